"""The comparison itself: it must reject what it should, and by its own arithmetic."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from randlora_ref.conformance import (
    Case,
    check,
    compare,
    expected,
    find_case,
    limits,
    random_case,
    reference,
    stored_cases,
)


def layer(**changes: object) -> Case:
    """The 3×2 layer of rank 1 that ``spec`` works out by hand, with x = [1, 2], W = 0 and dy = [1, 0, 1]."""
    given = {
        "id": "hand", "kind": "layer", "x": np.array([[1.0, 2.0]]), "weight": np.zeros((3, 2)),
        "A": np.array([[1.0, 2.0]]), "B": np.array([[[1.0], [0.0], [1.0]], [[0.0], [1.0], [1.0]]]),
        "lambda_": np.array([[2.0], [1.0]]), "gamma": np.array([[1.0, 3.0], [2.0, 1.0]]),
        "dy": np.array([[1.0, 0.0, 1.0]]), "exact_in": ("float64",),
    }  # fmt: skip
    return Case(**{**given, **changes})  # type: ignore[arg-type]


HAND = {
    "delta_weight": [[2, 12], [2, 2], [4, 14]],
    "y": [[26, 6, 32]],
    "dx": [[6, 26]],
    "dlambda": [[26], [6]],
    "dgamma": [[4, 16], [1, 4]],
}


def test_expected_values_are_those_worked_out_by_hand() -> None:
    out = expected(layer())
    assert {name: value.tolist() for name, value in out.items()} == HAND


def test_a_right_answer_in_integers_lists_and_floats_passes() -> None:
    assert check(lambda case: HAND, cases=[layer()]).passed
    assert check(lambda case: {k: np.array(v, np.int8) for k, v in HAND.items()}, cases=[layer()]).passed
    assert check(lambda case: {k: np.array(v, np.float32) for k, v in HAND.items()}, cases=[layer()]).passed


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 26 + 1e-12, -26])
def test_one_wrong_entry_fails(value: float) -> None:
    wrong = {**HAND, "y": [[value, 6, 32]]}
    report = check(lambda case: wrong, cases=[layer()])
    assert not report.passed
    (mismatch,) = report.failures[0].mismatches
    assert (mismatch.tensor, mismatch.count, mismatch.size, mismatch.index) == ("y", 1, 3, (0, 0))
    assert mismatch.problem == ("value" if math.isfinite(value) else "non-finite")
    assert mismatch.expected == 26


def test_nan_is_the_worst_entry_and_a_nan_limit_lets_nothing_pass() -> None:
    mismatch = compare("y", np.array([5.0, np.nan, 9.0]), np.zeros(3), 1.0)
    assert mismatch is not None
    assert mismatch.index == (1,)
    assert compare("y", np.zeros(1), np.zeros(1), np.nan) is not None
    assert compare("y", np.array([np.inf]), np.zeros(1), np.inf) is not None


MASKED = np.ma.masked_array(HAND["y"], mask=[[True, False, False]])


@pytest.mark.parametrize(
    "value",
    ["26", [["a", "b", "c"]], [[26, 6], [32]], [[26j, 6, 32]], {"y": 1}, object(), [[True, True, False]], MASKED],
)
def test_what_is_no_array_of_numbers_fails_in_words(value: object) -> None:
    report = check(lambda case: {**HAND, "y": value}, cases=[layer()])
    assert not report.passed
    assert "it must be an array of numbers" in report.failures[0].mismatches[0].line()


def test_shapes_are_not_broadcast() -> None:
    report = check(lambda case: {**HAND, "y": HAND["y"][0]}, cases=[layer()])
    assert report.failures[0].mismatches[0].line() == "y: shape (3,); it must be (1, 3)"


def test_missing_and_unsupported_results_never_count_as_passed() -> None:
    cases = [layer(), layer(id="hand again")]
    missing = check(lambda case: {k: v for k, v in HAND.items() if k != "dgamma"}, cases=cases)
    assert not missing.passed
    assert missing.passed_cases == 0
    assert not missing.failures
    said = check(lambda case: {**HAND, "dgamma": "unsupported: no autograd"}, cases=cases)
    assert not said.passed  # no case passed in full
    assert said.absent[0] == ("hand", "dgamma", "unsupported: no autograd")
    partly = check(lambda case: {**HAND, **({"y": "unsupported: why"} if case.id == "hand" else {})}, cases=cases)
    assert partly.passed
    assert partly.passed_cases == 1
    assert any("unsupported: why" in line for line in partly.lines())
    assert not check(lambda case: {**HAND, "y": "unsupported"}, cases=cases).passed  # a reason is part of it


def test_an_exception_is_a_failure_in_one_line() -> None:
    def raises(case: Case) -> dict[str, object]:
        raise RuntimeError("first\nsecond")

    report = check(raises, cases=[layer()])
    assert not report.passed
    assert "raises RuntimeError: first" in "\n".join(report.lines())
    assert "second" not in "\n".join(report.lines())


@pytest.mark.parametrize("value", [12, np.array([[26.0]]), [1, 2], "12", None])
def test_what_has_no_names_is_no_result(value: object) -> None:
    """A right number, too, must come under its name: a bare one would be every result of the case."""
    case = Case(id="count", kind="count", shapes=((3, 3),), rank=1)
    assert expected(case) == {"num_parameters": 12}
    report = check(lambda _: value, cases=[case])  # type: ignore[arg-type, return-value]
    assert not report.passed
    assert f"returned {type(value).__name__} " in report.failures[0].mismatches[0].line()


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="kinds: 'layers'; it must be some of"):
        check(lambda case: {}, ["layers"])
    with pytest.raises(ValueError, match="no case is left"):
        check(lambda case: {}, ["rank"], cases=[layer()])
    with pytest.raises(ValueError, match="dtype: 'float8'"):
        check(lambda case: {}, cases=[layer(tier="real")], dtype="float8")


def test_an_implementation_cannot_change_the_case() -> None:
    def destroys(case: Case) -> dict[str, object]:
        case.A[:] = 7
        return {}

    case = layer()
    check(destroys, cases=[case])
    assert case.A.tolist() == [[1.0, 2.0]]

    def destroys_by_role(case: Case) -> dict[str, object]:
        case.gamma["q"][:] = 7
        del case.weight["q"]
        return {}

    block = find_case("block-003-vit")
    before = block.gamma["q"].copy()
    check(destroys_by_role, cases=[block])
    assert np.array_equal(block.gamma["q"], before)
    assert "q" in block.weight


def test_the_limit_is_the_rule_written_out() -> None:
    """16·u·G with G of y = |x|(|W| + |ΔW|)ᵀ + |b|, by hand for the 3×2 layer with a minus sign and a bias."""
    case = layer(tier="real", exact_in=(), bias=np.array([-1.0, 0.0, 2.0]), lambda_=np.array([[2.0], [-1.0]]))
    limit = limits(case)
    assert np.array_equal(limit["delta_weight"], 16 * 2.0**-53 * np.array(HAND["delta_weight"]))
    assert np.array_equal(limit["y"], 16 * 2.0**-53 * (np.array(HAND["y"]) + np.array([1, 0, 2])))
    wide = layer(tier="real", lambda_=np.ones((1024, 1)), gamma=np.ones((1024, 2)), B=np.ones((1024, 3, 1)))
    assert limits(wide)["delta_weight"][0, 0] == 16 * math.sqrt(1024 / 256) * 2.0**-53 * 1024


def test_the_real_tier_takes_rounding_and_no_more() -> None:
    case = next(c for c in map(random_case, range(50)) if c.tier == "real" and c.dtype == "float32" and c.x.size)
    right, limit = expected(case), limits(case)
    for name, value in right.items():
        assert compare(name, value.astype(np.float32), value, limit[name]) is None
        assert compare(name, value + 0.9 * limit[name], value, limit[name]) is None
        moved = value + np.where(np.arange(value.size).reshape(value.shape) == 0, 1.1, 0) * limit[name]
        mismatch = compare(name, moved, value, limit[name])
        assert mismatch is not None
        assert mismatch.count == 1
        assert mismatch.ratio == pytest.approx(1.1, rel=1e-6)


# -- blocks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "u"), [("float64", 2.0**-53), ("float32", 2.0**-24)])
def test_the_limit_of_a_block_is_the_rule_written_out(dtype: str, u: float) -> None:
    """u·max(1024·the tensor's largest, the case's largest); ∂L/∂Γ of the start is zero, and has the second."""
    case = find_case("block-007-start").cast(dtype)
    right, limit = expected(case), limits(case)
    largest = {name: max(abs(float(entry)) for entry in x.flat) for name, x in right.items()}
    assert limit.keys() == right.keys()
    assert limit["y"] == u * 1024 * largest["y"]
    assert limit["dlambda.q"] == u * 1024 * largest["dlambda.q"]
    assert largest["dgamma.q"] == 0
    assert limit["dgamma.q"] == u * max(largest.values())


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_block_takes_rounding_and_no_more(dtype: str) -> None:
    """One entry moved by 0.9 of the limit passes, by 1.1 fails, and the rule is said; this package has 1/10 at most."""
    case = find_case("block-002-llama").cast(dtype)
    right, own = expected(case), reference(case)
    case = replace(case, stored=right)  # computed once
    limit = limits(case)
    for name, value in right.items():
        assert np.max(np.abs(own[name] - value)) <= limit[name] / 10
        first = np.arange(value.size).reshape(value.shape) == 0
        assert check(lambda _, n=name, s=first * 0.9: {**right, n: right[n] + s * limit[n]}, cases=[case]).passed
        report = check(lambda _, n=name, s=first * 1.1: {**right, n: right[n] + s * limit[n]}, cases=[case])
        lines = report.failures[0].lines()
        assert [line for line in lines if name in line and "1 of" in line and "1.1 times the limit" in line]
        assert "    limit: u·max(2¹⁰·largest of the tensor, largest of the case)" in lines


def test_a_block_in_single_precision_is_called_so() -> None:
    """Who computes in float32 what is declared as float64 fails, by that name; declared, it passes."""
    blocks = [case for case in stored_cases() if case.kind == "block"]

    def single(case: Case) -> Mapping[str, object]:
        return reference(case.cast("float32"))

    report = check(single, cases=blocks)
    assert len(report.failures) == len(blocks)
    assert report.diagnosis == "computed in the precision of float32"
    assert check(single, cases=blocks, dtype="float32").passed_cases == len(blocks)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_blocks_are_left_out_where_no_limit_parts_right_from_wrong(dtype: str) -> None:
    with pytest.raises(ValueError, match="no case is left"):
        check(reference, ["block"], dtype=dtype)
    layers = check(reference, ["layer"], dtype=dtype).passed_cases
    assert check(reference, ["layer", "block"], dtype=dtype).passed_cases == layers
