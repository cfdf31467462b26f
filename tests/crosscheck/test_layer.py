"""The installed PEFT under test: its layer, starts and counts against the specification."""

import numpy as np
import pytest

from randlora_ref.conformance import Case, check, check_peft

pytestmark = pytest.mark.crosscheck


@pytest.fixture(autouse=True)
def _frameworks() -> None:
    pytest.importorskip("peft")
    pytest.importorskip("transformers")


def test_peft_is_the_peft_dialect() -> None:
    report = check_peft(count=240)
    assert report.passed, "\n".join(report.lines())
    assert report.passed_cases == 240


def test_peft_read_literally_is_diagnosed_as_crossed() -> None:
    report = check_peft("paper", count=60)
    assert not report.passed
    assert report.diagnosis == "crossed pairing"
    assert all("one term" not in f.case.notes and "rank one" not in f.case.notes for f in report.failures)


def test_random_cases_of_peft_cover_what_they_should() -> None:
    from randlora_ref.conformance import random_case

    cases = [random_case(index) for index in range(240)]
    for flag in (
        "wide",
        "square",
        "ragged",
        "rank one",
        "one term",
        "over-ranked",
        "fan_in_fan_out",
        "merged",
        "sliced",
    ):
        seen = [case for case in cases if flag in case.notes]
        assert {case.dtype for case in seen} == {"float32", "float64"}, flag
        assert {case.tier for case in seen} == {"exact", "real"}, flag


def test_start_and_count() -> None:
    from randlora_ref.interop import run_peft

    shapes = ((6, 4), (4, 9), (5, 5), (3, 7), (8, 2))
    cases = [
        Case(id=f"start-{i}-{r}", kind="start", dialect="peft", shape=shape, rank=r)
        for i, shape in enumerate(shapes)
        for r in (1, 2, 3, 7)
    ]
    cases += [Case(id=f"count-{r}", kind="count", dialect="peft", shapes=shapes, rank=r) for r in (1, 2, 3, 7)]
    report = check(run_peft, cases=cases)
    assert report.passed, "\n".join(report.lines())


def test_a_layer_of_another_n_is_unsupported_with_a_reason() -> None:
    from randlora_ref.interop import run_peft

    case = Case(
        id="short", kind="layer", x=np.ones((1, 4)), weight=np.ones((5, 4)), A=np.ones((2, 4)), B=np.ones((1, 5, 2)),
        lambda_=np.ones((1, 2)), gamma=np.ones((1, 4)), dy=np.ones((1, 5)),
    )  # fmt: skip
    assert all("unsupported: PEFT has n = 2" in value for value in run_peft(case).values())
