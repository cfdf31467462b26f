"""The rank of an update over the first steps of training: of each dialect, and how many tokens full rank needs."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..adapters import RandLoRA
from ..bases import draw_bases
from ..dialects import DIALECTS
from ..rank import certify_rank, randlora_factors, rank_after_steps, spectrum
from ..rank.law import reshape_gain, rows_reached, tokens_needed
from ..spec import pullback

SHAPE, RANK, STEPS = (96, 64), 8, 3  # (out, in): a tall layer, which nlg reshapes


class FirstRanks(NamedTuple):
    """Of a dialect: the rank of ΔW after 0, 1, … steps, proven of the stored float64 and numerical."""

    dialect: str
    proven: list[int]
    numerical: list[int]
    gain: int  # how often a reshape can show a rank of the sum in ΔW, else 1

    def line(self) -> str:
        """For a person."""
        return f"{self.dialect}: {self.proven} proven of the stored float64, numerically {self.numerical}"


def first_ranks(name: str, seed: int, shape: tuple[int, int] = SHAPE, r: int = RANK) -> FirstRanks:
    """One layer of ``shape`` (out, in) on the dialect's own bases, from its start, down ½‖ΔW − T‖²."""
    dialect = replace(DIALECTS[name], context=min(shape))
    bases = draw_bases(dialect, seed=seed, shapes=[shape, shape[::-1]], rank=r, dtype="float64")
    start = RandLoRA.start(*shape, r, dialect, bases=bases, dtype="float64")
    rules = {"pairing": dialect.pairing, "orientation": dialect.orientation}
    descent = rank_after_steps(bases.A, bases.B, start.lambda_, start.gamma, shape, STEPS, seed=seed, **rules)  # type: ignore[arg-type]
    gain = reshape_gain(shape) if dialect.orientation == "reshape" else 1
    ranks = [one.rank for one in descent.certificates], [spectrum(one).rank for one in descent.factors]
    return FirstRanks(name, *ranks, gain)


def starting(lambda_zero: bool, seed: int) -> list[FirstRanks]:
    """Every dialect that starts at Λ = 0, or at Γ = 0."""
    names = [name for name, dialect in DIALECTS.items() if (dialect.lambda_start == "0") == lambda_zero]
    return [first_ranks(name, seed) for name in names]


def rank_of_tokens(t: int, d: int, r: int, seed: int) -> int:
    """The rank after two steps of which the second has ``t`` tokens, from Λ = 0 and Γ = 1, of integers: exactly."""
    rng, n = np.random.default_rng(seed), -(-d // r)
    A, B = (2.0 * rng.integers(-5, 5, shape) + 1 for shape in ((r, d), (n, d, r)))
    lambda_, gamma = np.zeros((n, r)), np.ones((n, d))
    for tokens in (d, t):
        dy, x = rng.integers(-9, 10, (2, tokens, d)).astype(float)
        d_lambda, d_gamma = pullback(dy.T @ x, A, B, lambda_, gamma)
        lambda_, gamma = lambda_ - d_lambda, gamma - d_gamma
    if max(np.max(np.abs(lambda_)), np.max(np.abs(gamma))) >= 2**53:
        raise ArithmeticError("Λ or Γ is no longer an integer that float64 holds")
    return certify_rank(randlora_factors(A, B, lambda_, gamma)).rank


def tokens(seed: int, sizes: Sequence[tuple[int, int]] = ((768, 32), (768, 6))) -> tuple[bool, str]:
    """Whether integers have the ranks of the law around the number of tokens that is needed, and what was seen."""
    d, r = 12, 2
    n, needed = d // r, tokens_needed(d, r, d // r)
    found = {t: rank_of_tokens(t, d, r, seed) for t in (needed - 1, needed)}
    right = all(rank == min(d, rows_reached(t, r, n, constant=1)) for t, rank in found.items())
    seen = ", ".join(f"{rank} from {t} tokens" for t, rank in found.items())
    large = ", ".join(f"{tokens_needed(d, r, d // r)} at r = {r}" for d, r in sizes)
    return right and found[needed] == d, (
        f"the second step adds t·r(r + 1)/2 to r at most, t the rank of its ∂L/∂ΔW and no more than its tokens:"
        f" exactly, of integers, d = {d} and r = {r}, {seen}; d = {sizes[0][0]} needs {large}"
    )
