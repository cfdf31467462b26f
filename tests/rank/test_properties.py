"""Ranks over drawn configurations: every property of ``verify.ranks``, each seen to fail where something is broken."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import drawn, holds

from randlora_ref import nn, spec
from randlora_ref.adapters import RandLoRA, RandLoRAa
from randlora_ref.rank import certify, certify_rank, law, randlora_factors, spectrum, structure
from randlora_ref.verify import audit, configurations, ranks
from randlora_ref.verify.block import BlockCase
from randlora_ref.verify.configurations import HOST, Backend, Chosen, generator
from randlora_ref.verify.integers import fraction_rank, fractions


@given(drawn(ranks.draw_factors))
def test_certificates(case: Any) -> None:
    """Of any method and basis: equal to elimination, within the method's bound, blind to what changes no rank."""
    for one in ranks.PROPERTIES:
        holds("rank", one, case)


@settings(max_examples=settings().max_examples // 4)
@given(drawn(ranks.draw_descent))
def test_the_law_of_the_first_steps_inside_a_block(case: Any) -> None:
    """0, min(r, d), then what the tokens allow, in every linear layer, from any norm, mask, activation, pairing."""
    holds("rank", ranks.LAW, case)


def test_on_every_array_library(library: Any) -> None:
    """Factors of any library and device are certified alike."""
    choose = generator(np.random.default_rng(0))
    for _ in range(20):
        holds(
            f"{library!r}, rank", ranks.PROPERTIES[0], ranks.draw_factors(choose), Backend(library.xp, library.device)
        )


# -- each can fail ----------------------------------------------------------------------------------------


def faults() -> dict[str, tuple[str, Any, str, Any]]:
    """What is broken by hand: the start of the property that must see it, then owner, name and replacement."""
    honest, modulo, bounds, pullback = certify_rank, certify.rank_modulo, certify.bounds, spec.pullback
    lawful = ranks.law
    factors = RandLoRA.factors
    start = {"randlora_b": lambda *shape, seed, dtype, **_: RandLoRA.start(*shape, "paper", seed, dtype=dtype)}

    def unlucky(*arguments: Any) -> Any:
        return (found := modulo(*arguments))._replace(rank=max(0, found.rank - 1))

    def short(terms: Any) -> Any:
        return [bound._replace(value=max(1, bound.value - 1)) for bound in bounds(terms)]

    def first_term(source: Any, seed: int = 0) -> Any:
        return honest(source[:1] if isinstance(source, tuple) else source, seed=seed)

    def by_seed(source: Any, seed: int = 0) -> Any:
        return replace(honest(source), rank=seed)

    def undecided(source: Any, seed: int = 0) -> Any:
        return replace(honest(source), exact=False)

    def summed(self: RandLoRAa) -> Any:
        return tuple((self.B[i], self.lambda_[i], self.A[i], self.gamma[i]) for i in range(self.n))

    def filled(self: RandLoRA) -> Any:
        if self.dialect.orientation == "reshape":
            return factors(self)
        return tuple((B, x, np.where(np.any(A != 0, axis=0), A, 1.0), y) for B, x, A, y in factors(self))

    def frozen_gamma(*arguments: Any) -> Any:
        return pullback(*arguments)[0], 0 * arguments[4]

    def alike(*arguments: Any) -> Any:
        d_lambda, d_gamma = pullback(*arguments)
        return d_lambda, 0 * d_gamma + d_gamma[:1]

    def rounded(*arguments: Any) -> Any:
        return tuple(fractions(np.asarray(gradient, float)) for gradient in pullback(*arguments))

    def without_live(G: Any, r: int, n: int, constant: int) -> int:
        t = fraction_rank(G)
        drawn = np.random.default_rng(0).integers(1, 99, (2, 40, t))
        everywhere = fractions(drawn[0] @ drawn[1].T)  # of that rank, no column zero
        return min(*G.shape, lawful(everywhere if t else G, r, n, constant), n * r)

    def of_any_t(G: Any, r: int, n: int, constant: int) -> int:
        rows = constant * r + fraction_rank(G) * r * (r + 1) // 2
        return min(*G.shape, n * r, rows, constant * r + int(np.sum(np.any(G != 0, axis=0))))

    equal, beyond, other, law = "certified rank beside", "rank beyond", "rank under", "ranks after 0, 1, 2"
    return {
        "every prime unlucky": (equal, certify, "rank_modulo", unlucky),
        "bounds of structure one short": (equal, certify, "bounds", short),
        "Γ taken for one direction": (equal, structure, "_directions", lambda rows: 1),
        "elimination that sees the first column": (equal, ranks, "fraction_rank", lambda m: int(any(m[:, 0]))),
        "a certificate that is not exact": (equal, ranks, "certify_rank", undecided),
        "no exact certificate is within a bound": (beyond, ranks, "certify_rank", undecided),
        "-a, products summed": (beyond, RandLoRAa, "factors", summed),
        "-b of the whole rank": (beyond, configurations, "METHODS", configurations.METHODS | start),
        "zero columns of A filled": (beyond, RandLoRA, "factors", filled),
        "the first term alone": (other, ranks, "certify_rank", first_term),
        "a rank that follows the seed": (other, ranks, "certify_rank", by_seed),
        "no exact certificate is like another": (other, ranks, "certify_rank", undecided),
        "Γ not stepped": (law, spec, "pullback", frozen_gamma),
        "Γ_j stepped alike": (law, spec, "pullback", alike),
        "gradients rounded": (law, spec, "pullback", rounded),
        "the law without ℓ": (law, ranks, "law", without_live),
        "the law without what t = 1 has less": (law, ranks, "law", of_any_t),
    }


@cache
def draws(one: Any) -> list[Any]:
    """A few seeded configurations, on all of which the property holds."""
    choose = generator(np.random.default_rng(0))
    if one is ranks.LAW:
        found = [FEW_SEEN, ONE_TOKEN, FROM_ZERO, block_of(8, 2, False, False)]
        found += [ranks.draw_descent(choose) for _ in range(4)]
    else:
        found = [ranks.draw_factors(choose) for _ in range(16 if one.figure is ranks.invariance else 200)]
    assert all(one.figure(case, HOST) == 0 for case in found)
    return found


@pytest.mark.parametrize("fault", list(faults()))
def test_what_is_broken_by_hand_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the property that is there for it, which holds otherwise."""
    expected, owner, name, broken = faults()[fault]
    (one,) = [one for one in (*ranks.PROPERTIES, ranks.LAW) if one.name.startswith(expected)]
    cases = draws(one)
    monkeypatch.setattr(owner, name, broken)
    assert not all(0 <= one.figure(case, HOST) <= one.limit for case in cases)


@pytest.mark.parametrize("fault", ["the first term alone", "-a, products summed", "Γ not stepped"])
def test_the_audit_sees_it_too(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``randlora-ref verify`` draws enough of each."""
    expected, owner, name, broken = faults()[fault]
    monkeypatch.setattr(owner, name, broken)
    part = "rank after steps" if expected.startswith("ranks after") else "rank"
    found = [one.name for one in audit.properties(parts=[part]) if not one.ok]
    assert any(one.partition(": ")[2].startswith(expected) for one in found), found


# -- where the law and the stored numbers part ------------------------------------------------------------


def block_of(
    width: int, size: int, causal: bool, fused: bool, rotary: Any = None, rank: int = 1, dialect: str = "paper"
) -> BlockCase:
    """One sequence through a block with RandLoRA at its start everywhere."""
    kind = nn.BlockSpec(width, 4, 2, 2, width // 2, 1e-5, "gelu_tanh", fused=fused)
    options = {"dialect": dialect, "alpha": 2.0, "kind": "dense"}
    adapters = {role: Chosen("randlora", rank, True, k, options) for k, role in enumerate(kind.shapes())}
    return BlockCase(kind, 1, size, causal, None, rotary, adapters, 3)


FEW_SEEN = replace(block_of(6, 1, True, fused=True, rank=3), spec=nn.BlockSpec(8, 4, 1, 1, 2, 1e-5, "gelu", fused=True))


ONE_TOKEN = block_of(9, 1, False, fused=False, rank=3)
ONE_TOKEN = replace(ONE_TOKEN, spec=replace(ONE_TOKEN.spec, heads=3, key_heads=3, head_width=3))
FROM_ZERO = block_of(8, 1, False, fused=False, rank=2, dialect="vision")  # x is the same at both steps


LESS = [(3, 3, 1, 8), (3, 4, 1, 9), (4, 4, 1, 13), (2, 3, 1, 5), (3, 3, 0, 6), (4, 3, 0, 9), (2, 2, 0, 3)]


@pytest.mark.parametrize(("r", "n", "constant", "rank"), LESS)
@pytest.mark.parametrize("pairing", ["literal", "crossed"])
def test_one_token_gives_less(r: int, n: int, constant: int, rank: int, pairing: spec.Pairing) -> None:
    """C(m − c, 2) rows of K less than n·r and c·r + r(r + 1)/2, m = min(n, r + c): of integers, by elimination."""
    rng, d = np.random.default_rng(r * n), 20
    A, B = (fractions(rng.integers(-9, 10, shape)) for shape in ((r, d), (n, d, r)))
    lambda_, gamma = fractions(np.full((n, r), 1 - constant)), fractions(np.full((n, d), constant))
    for _ in range(1 + constant):
        G = fractions(np.outer(*rng.integers(-9, 10, (2, d))))
        d_lambda, d_gamma = spec.pullback(G, A, B, lambda_, gamma, 1, pairing)
        lambda_, gamma = lambda_ - d_lambda, gamma - d_gamma
    assert fraction_rank(spec.khatri_rao(A, gamma).reshape(n * r, d)) == ranks.law(G, r, n, constant) == rank


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(0, 99))
def test_what_a_reshape_gains(out: int, in_: int, rank: int, seed: int) -> None:
    """No more than ``reshape_gain`` of the sum's rank, and out / in of it exactly where that divides."""
    rng, (D, d) = np.random.default_rng(seed), spec.sides((out, in_))
    M = fractions(rng.integers(-99, 100, (D, rank)) @ rng.integers(-99, 100, (rank, d)))
    delta, gain = spec.oriented(M, (out, in_), "reshape"), law.reshape_gain((out, in_))
    assert fraction_rank(delta) <= gain * fraction_rank(M)
    if out % in_ == 0:
        assert gain == out // in_
        assert fraction_rank(delta) == min(in_, gain * fraction_rank(M))


def test_where_each_query_sees_one_key_a_fused_projection_gains_less() -> None:
    """(6, 8), r = 3, t = 1: q and k have no gradient, so 3 + min(2, 6) = 5 and not 6."""
    G = fractions(np.outer([0, 0, 0, 0, 1, 2], np.arange(1, 9)))
    assert ranks.law(G.T, 3, 2, constant=1) == 5
    holds("rank", ranks.LAW, FEW_SEEN)


@pytest.mark.parametrize("rotary", [None, (10000.0, None)])
@pytest.mark.parametrize("causal", [False, True])
def test_how_many_tokens_the_gradient_of_queries_and_keys_has(causal: bool, rotary: Any) -> None:
    """Of four tokens: q three if causal, exactly. k three without rotary, Σ_s dk_s = 0, but stored dk hide it."""
    case = block_of(8, 4, causal, False, rotary)
    block = case.build()
    arguments = block.arguments(block.values, {})
    y, inputs = spec.block_forward(*arguments)
    _, found = spec.block_backward(y - block.dy, *arguments)
    stored, numerical = {}, {}
    for role in "qkv":
        dy, x = (fractions(part.reshape(4, -1)) for part in (found[role].y, inputs[role]))
        stored[role], numerical[role] = fraction_rank(dy.T @ x), np.linalg.matrix_rank((dy.T @ x).astype(float))
    queries = 3 if causal else 4
    assert stored == {"q": queries, "k": 4, "v": 4}
    assert numerical == {"q": queries, "k": 4 if rotary else 3, "v": 4}


@pytest.mark.parametrize("pairing", ["literal", "crossed"])
def test_rounding_fills_the_rank_that_the_method_leaves(pairing: spec.Pairing) -> None:
    """8×8, r = 1, three tokens: rank 4 in fractions and numerically, 8 proven of the stored float64."""
    rng = np.random.default_rng(0)
    A, B = fractions(rng.uniform(-1, 1, (1, 8))), fractions(rng.uniform(-1, 1, (8, 8, 1)))
    lambda_, gamma = fractions(np.zeros((8, 1))), fractions(np.full((8, 8), 1 / 8))
    for _ in range(2):
        G = fractions(rng.standard_normal((3, 8))).T @ fractions(rng.standard_normal((3, 8)))
        d_lambda, d_gamma = spec.pullback(G, A, B, lambda_, gamma, 1, pairing)
        lambda_, gamma = lambda_ - ranks.RATE * d_lambda, gamma - ranks.RATE * d_gamma
    law = ranks.law(G, 1, 8, constant=1)
    assert fraction_rank(spec.delta_weight(A, B, lambda_, gamma, (8, 8), 1, pairing)) == law == 4
    stored = randlora_factors(*(np.asarray(part, float) for part in (A, B, lambda_, gamma)))
    assert certify_rank(stored).rank == 8
    assert spectrum(stored).rank == 4


def test_a_drawn_adapter_is_never_refused() -> None:
    """PEFT's A of two equal numbers has no deviation: seed 658 draws them."""
    with pytest.raises(ValueError, match="deviation"):
        RandLoRA.start(2, 3, rank=1, seed=658, dialect="peft", dtype="float64")
    chosen = Chosen("randlora", 1, True, 658, {"dialect": "peft", "alpha": 2.0, "kind": "dense"})
    assert chosen.adapter((2, 3)).shape == (2, 3)
