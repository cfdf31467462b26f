"""Conversions: the same matrix under another dialect, to the bit on integers, and every one that cannot be refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import randlora_ref as rl
from randlora_ref import DIALECTS, Bases, RandLoRA, spec
from randlora_ref.verify.integers import small

SIZE = st.integers(1, 7)


def layer(shape: tuple[int, int], r: int, dialect: Any, seed: int, n: int | None = None) -> RandLoRA:
    """A layer of integers on bases that are larger than it."""
    rng, (D, d) = np.random.default_rng(seed), (max(shape), min(shape))
    if DIALECTS[getattr(dialect, "name", dialect)].orientation == "never":
        D, d = shape
    n = -(-min(shape) // r) if n is None else n
    bases = Bases(small(rng, r, d + 1), small(rng, n + 1, D + 2, r))
    own = {"lambda_": small(rng, n, r), "gamma": small(rng, n, d), "scaling": 0.5}
    return RandLoRA(out_features=shape[0], in_features=shape[1], rank=r, bases=bases, dialect=dialect, **own)


@given(SIZE, SIZE, SIZE, st.sampled_from([("paper", "peft"), ("peft", "paper"), ("official", "peft")]), SIZE)
def test_delta_weight_is_the_same(out: int, in_: int, r: int, pair: tuple[str, str], seed: int) -> None:
    """Every entry; Λ, Γ, A and the scaling are what they were, and there and back gives B again."""
    source = layer((out, in_), r, pair[0], seed)
    found = rl.convert(source, pair[1])
    assert found.dialect == DIALECTS[pair[1]]
    assert np.array_equal(found.delta_weight(), source.delta_weight())
    assert found.lambda_ is source.lambda_
    assert found.gamma is source.gamma
    assert found.scaling == source.scaling
    if pair[0] != "official":
        again = rl.convert(found, pair[0])
        assert np.array_equal(again.bases.B, source.bases.slice(source.n, max(out, in_), min(out, in_)).B)


NLG = replace(DIALECTS["nlg"], context=4)
REFUSED = {
    "reshaped": ((6, 3), NLG, "paper", "its ΔW is reshaped"),
    "reshaped, where it is a transpose": ((3, 6), NLG, "peft", "that is exact, and not offered"),
    "reshaped, of a square sum": ((4, 4), NLG, "peft", "the transpose of a square sum"),
    "to reshaped": ((6, 3), "vision", NLG, "its ΔW is reshaped"),
    "square, transposed": ((4, 4), "vision", "peft", "the transpose of a square sum"),
    "square, transposed in both": ((4, 4), "vision", NLG, "that is exact, and not offered"),
    "square, from KRAdapter": ((4, 4), "kradapter", "vision", "the transpose of a square sum"),
    "vision's others": ((4, 6), "vision", "peft", "that is exact, and not offered"),
    "Γ on the longer side": ((3, 6), "kradapter", "paper", "Γ is on its longer side"),
    "Γ on the shorter side": ((3, 6), "vision", "kradapter", "Γ is on its longer side"),
    "KRAdapter's others": ((6, 3), "kradapter", "paper", "that is exact, and not offered"),
    "to an orientation": ((6, 3), "paper", "vision", "only paper's and peft's are offered"),
    "to the fork": ((6, 3), "peft", "official", "only paper's and peft's are offered"),
    "to no dialect": ((6, 3), "peft", "lora", "dialect: 'lora'; it must be one of"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(name: str) -> None:
    """With the reason."""
    shape, source, target, reason = REFUSED[name]
    with pytest.raises(ValueError, match=reason):
        rl.convert(layer(shape, 2, source, 0), target)


@given(st.integers(2, 7), st.integers(2, 7), st.sampled_from(sorted(DIALECTS)), st.sampled_from(sorted(DIALECTS)))
def test_a_reason_is_true(out: int, in_: int, source: str, target: str) -> None:
    """What is said to be exact puts each entry of M where the other does; what is said not to be does not.

    Of sides of 2 and more: a row is its own transpose and its own reshape.
    """
    shape, asked = (out, in_), [replace(DIALECTS[name], context=4) for name in (source, target)]
    M = np.arange(out * in_)
    sums = [spec.sides(shape, one.orientation) for one in asked]
    places = [spec.oriented(M.reshape(sides), shape, one.orientation) for sides, one in zip(sums, asked, strict=True)]
    same = sums[0] == sums[1] and np.array_equal(*places)
    found = ""
    try:
        rl.convert(layer(shape, 2, asked[0], 0), asked[1])
    except ValueError as error:
        found = str(error)
    apart = ("alone takes the transpose", "on its longer side in", "is reshaped in")
    assert any(reason in found for reason in apart) != same


def test_another_number_of_terms_is_refused() -> None:
    """PEFT has n = ceil(d/r) and no other."""
    with pytest.raises(ValueError, match=r"it has n = 2 terms there, the layer 3"):
        rl.convert(layer((6, 4), 2, "paper", 0, n=3), "peft")


def test_on_every_array_library(library: Any) -> None:
    """Nothing moves."""
    host = layer((5, 7), 2, "paper", 3)
    parts = {name: library.array(getattr(host, name)) for name in ("lambda_", "gamma")}
    bases = Bases(library.array(host.bases.A), library.array(host.bases.B))
    found = rl.convert(replace(host, bases=bases, **parts), "peft")
    assert np.array_equal(library.host(found.delta_weight()), host.delta_weight())
