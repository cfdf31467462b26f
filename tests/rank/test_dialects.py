"""Ranks under every dialect: over the first steps as the authors' code has them, and of a reshaped update."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from randlora_ref import DIALECTS, Bases, RandLoRA, certify_rank, rank
from randlora_ref.rank import structure
from randlora_ref.verify.integers import fraction_rank, fractions, small

FOLDER = Path(__file__).parents[1] / "authors"
NLG = replace(DIALECTS["nlg"], context=4)


def reshaped(out: int, in_: int, r: int, n: int, seed: int, alike: bool = False) -> RandLoRA:
    """A layer of integers; ``alike``: all Γ_j are equal, so that the sum has rank r at most."""
    rng, (D, d) = np.random.default_rng(seed), (max(out, in_), min(out, in_))
    gamma = small(rng, n, d)
    own: dict[str, Any] = {"lambda_": small(rng, n, r), "gamma": np.repeat(gamma[:1], n, axis=0) if alike else gamma}
    bases = Bases(small(rng, r, d), small(rng, n, D, r))
    return RandLoRA(out_features=out, in_features=in_, rank=r, bases=bases, dialect=NLG, scaling=0.5, **own)


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99), st.booleans())
def test_a_reshaped_update_has_its_own_rank(out: int, in_: int, r: int, n: int, seed: int, alike: bool) -> None:
    """The certificate is elimination's in fractions of ΔW itself, not of the sum that is reshaped."""
    layer = reshaped(out, in_, r, n, seed, alike)
    certificate = certify_rank(layer)
    assert certificate.exact
    assert certificate.details["shape"] == [out, in_]
    assert certificate.rank == fraction_rank(fractions(layer.delta_weight()))


def test_a_reshape_can_raise_the_rank_and_hides_no_zero() -> None:
    """Of the sum 1 in ΔW more, and a zero update stays one; other entries in the same sum are another hash."""
    layer = reshaped(6, 3, 1, 2, 5, alike=True)
    assert certify_rank(layer).rank > certify_rank(replace(layer, dialect="peft")).rank == 1
    assert certify_rank(layer.replace(gamma=0 * layer.gamma)).rank == 0
    assert certify_rank(layer).details["sha256"] != certify_rank(replace(layer, dialect="peft")).details["sha256"]


def test_the_transposed_form_has_every_structural_bound() -> None:
    """A wide layer's factors are the transposed ones: equal Γ_j are seen there too, so nothing is left to primes."""
    layer = RandLoRA.start(40, 90, rank=8, dialect="paper")
    layer = layer.replace(lambda_=np.random.default_rng(0).standard_normal(layer.lambda_.shape, dtype=np.float32))
    certificate = certify_rank(layer)
    assert (certificate.rank, certificate.exact, certificate.method) == (8, True, "structure")
    found = structure.as_randlora(layer.factors())
    assert found is not None
    assert np.array_equal(found[3], layer.gamma)


RANKS = [(name, case) for name in ("official", "nlg", "vision", "kradapter")
         for case in sorted({key.partition("/")[0] for key in np.load(FOLDER / f"{name}.npz").files})
         if case.startswith("rank-")]  # fmt: skip


@pytest.mark.parametrize(("name", "case"), RANKS)
def test_ranks_over_the_first_steps(name: str, case: str) -> None:
    """Λ and Γ as the authors' code left them after 0, 1, 2, 3 steps: the numerical rank is what they found."""
    with np.load(FOLDER / f"{name}.npz") as file:
        own = {key.partition("/")[2]: file[key] for key in file.files if key.startswith(f"{case}/")}
    out, in_ = own["weight"].shape
    for step, found in enumerate(own["ranks"]):
        lambda_, gamma = own["lambda_steps"][step], own["gamma_steps"][step]
        layer = RandLoRA(
            out_features=out, in_features=in_, rank=lambda_.shape[1], bases=Bases(own["A"], own["B"]), lambda_=lambda_,
            gamma=gamma, dialect=DIALECTS[name], scaling=float(own["scaling"]),
        )  # fmt: skip
        spectrum = rank.spectrum(layer)
        assert spectrum.rank == found
        ours, theirs = spectrum.values * abs(layer.scaling), own["singular_values"][step]
        assert np.abs(ours - theirs).max() <= 1e-12 * max(theirs.max(), np.finfo(float).tiny)
