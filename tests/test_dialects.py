"""The table of implementations, checked against the figures that they are known by."""

import doctest
from dataclasses import FrozenInstanceError, replace

import pytest

from randlora_ref import DIALECTS, dialects


def test_rows() -> None:
    """Six implementations; two of them run; a row cannot be changed."""
    assert list(DIALECTS) == ["paper", "peft", "official", "nlg", "vision", "kradapter"]
    assert [name for name, row in DIALECTS.items() if row.runs] == ["paper", "peft"]
    assert [name for name, row in DIALECTS.items() if row.pairing == "literal"] == ["paper", "kradapter"]
    with pytest.raises(FrozenInstanceError):
        DIALECTS["peft"].name = "other"  # type: ignore[misc]
    assert doctest.testmod(dialects).failed == 0


def test_counts_terms_and_scalings() -> None:
    """A layer of 768×3072 at r = 100, and a cap."""
    shape = (768, 3072)
    assert [row.terms(shape, 100) for row in DIALECTS.values()] == [8, 8, 8, 8, 8, 9]
    assert [row.terms(shape, 96) for row in DIALECTS.values()] == [8, 8, 8, 9, 9, 9]
    assert DIALECTS["vision"].terms((2048, 2048), 1) == 1000
    assert DIALECTS["peft"].num_parameters(shape, 96) == 8 * (96 + 768)
    assert DIALECTS["paper"].scaling(32, 16) == 0.5
    assert DIALECTS["paper"].scaling(32, 16, alpha=10) == 10 / 32
    assert DIALECTS["peft"].scaling(32, 24) == 20
    assert DIALECTS["official"].scaling(32, 16) == 0.5
    assert DIALECTS["kradapter"].scaling(32, 16) == 1
    with pytest.raises(ValueError, match="alpha: None"):
        DIALECTS["nlg"].scaling(32, 16)


def test_starting_values() -> None:
    """Λ and Γ of a layer of 8×6, r = 4, n = 2."""
    values = {name: row.start((8, 6), 4, 2) for name, row in DIALECTS.items()}
    zero_then = {"paper": 1 / 6, "peft": 1 / 6, "official": 1 / 6, "nlg": 1 / 6}
    assert {name: values[name] for name in zero_then} == {name: (0, gamma) for name, gamma in zero_then.items()}
    assert values["vision"] == (1 / 4, 0)
    assert values["kradapter"] == (1 / 2, 0)
    assert DIALECTS["peft"].start((5, 3), 1, 9)[1] == 1 / 9


def test_documented_dialects_do_not_run() -> None:
    """The error says how to reach what differs by a parameter only."""
    with pytest.raises(ValueError, match=r"'vision' is documented, not run.*dataclasses.replace"):
        dialects.get_dialect("vision")
    with pytest.raises(ValueError, match="'vision' is documented"):
        dialects.get_dialect(DIALECTS["vision"])
    assert dialects.get_dialect(replace(DIALECTS["peft"], count_rule="floor")).count_rule == "floor"
