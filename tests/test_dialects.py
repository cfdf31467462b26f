"""The table of implementations, checked against the figures that they are known by."""

import doctest
import math
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest

from randlora_ref import DIALECTS, dialects, draw_bases


def test_rows() -> None:
    """Six implementations, all of which run; a row cannot be changed."""
    assert list(DIALECTS) == ["paper", "peft", "official", "nlg", "vision", "kradapter"]
    assert [name for name, row in DIALECTS.items() if row.pairing == "literal"] == ["paper", "kradapter"]
    with pytest.raises(FrozenInstanceError):
        DIALECTS["peft"].name = "other"  # type: ignore[misc]
    assert doctest.testmod(dialects).failed == 0


def test_counts_terms_and_scalings() -> None:
    """A layer of 768×3072 at r = 100, and a cap."""
    shape = (768, 3072)
    assert [row.terms(shape, 100, context=512) for row in DIALECTS.values()] == [8, 8, 8, 6, 8, 9]
    assert [row.terms(shape, 96, context=768) for row in DIALECTS.values()] == [8, 8, 8, 9, 9, 9]
    assert DIALECTS["nlg"].num_parameters(shape, 96, context=1024) == 11 * (96 + 768)
    with pytest.raises(ValueError, match="context: None; it must be a positive integer"):
        DIALECTS["nlg"].terms(shape, 96)
    assert DIALECTS["vision"].terms((2048, 2048), 1) == 1000
    assert DIALECTS["peft"].num_parameters(shape, 96) == 8 * (96 + 768)
    assert DIALECTS["paper"].scaling(32, 16) == 0.5
    assert DIALECTS["paper"].scaling(32, 16, alpha=10) == 10 / 32
    assert DIALECTS["peft"].scaling(32, 24) == 20
    assert DIALECTS["official"].scaling(32, 16) == 0.5
    assert DIALECTS["kradapter"].scaling(32, 16) == 1
    assert DIALECTS["nlg"].scaling(32, 16) == 1
    assert DIALECTS["vision"].scaling(32, 16) == 1 / 32
    with pytest.raises(ValueError, match="alpha: None; the scaling alpha/r of dialect 'peft' needs a number"):
        replace(DIALECTS["peft"], default_alpha=None).scaling(32, 16)


def test_starting_values() -> None:
    """Λ and Γ of a layer of 8×6, r = 4, n = 2."""
    values = {name: row.start((8, 6), 4, 2) for name, row in DIALECTS.items()}
    zero_then = {"paper": 1 / 6, "peft": 1 / 6, "official": 1 / 6, "nlg": 1 / 6}
    assert {name: values[name] for name in zero_then} == {name: (0, gamma) for name, gamma in zero_then.items()}
    assert values["vision"] == (1 / 4, 0)
    assert values["kradapter"] == (1 / 2, 0)
    assert DIALECTS["peft"].start((5, 3), 1, 9)[1] == 1 / 9


def test_shared_sides_and_generator_are_chosen_by_field() -> None:
    """A record under another name draws as its fields say."""
    shapes = [(6, 4), (4, 8)]
    other = replace(DIALECTS["peft"], name="other", shared_sides="max(D), max(d)")
    assert draw_bases(other, shapes=shapes, rank=2).A.shape == (2, 4)
    assert draw_bases("peft", shapes=shapes, rank=2).A.shape == (2, 6)
    ours = replace(other, generator="philox")
    assert np.array_equal(draw_bases(ours, shapes=shapes, rank=2).A, draw_bases("paper", shapes=shapes, rank=2).A)


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("pairing", "Crossed", "one of literal, crossed"),
        ("count_rule", "round", r"one of ceil, floor, floor\+1, ceil\+1"),
        ("counted_side", "D", "one of d, context"),
        ("scaling_rule", "alpha", r"one of 2/sqrt\(n\), alpha/r, "),
        ("scaling_rule", 1, r"one of 2/sqrt\(n\), alpha/r, "),
        ("lambda_start", "2", "one of 0, 1, 1/d, "),
        ("gamma_start", 0, "one of 0, 1, 1/d, "),
        ("generator", "numpy", "one of philox, torch, "),
        ("shared_sides", "D, d", r"one of max\(D\), max\(d\), "),
        ("orientation", "Σ…", "one of paper, square_transposed, never, reshape"),
        ("default_alpha", "640", "a finite number"),
        ("default_alpha", math.nan, "a finite number"),
        ("default_seed", -1, "an integer of at least 0"),
        ("default_seed", 0.5, "an integer of at least 0"),
        ("max_terms", 0, "a positive integer"),
        ("max_terms", True, "a positive integer"),
    ],
)
def test_what_is_not_of_its_list_is_named(field: str, value: Any, wanted: str) -> None:
    """The field, what it was, what it must be, when the record is made."""
    with pytest.raises(ValueError, match=f"^{field}: {value!r}; it must be {wanted}"):
        replace(DIALECTS["peft"], **{field: value})
