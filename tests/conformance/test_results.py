"""What an implementation may answer, and what is said of an answer that is missing, unknown or unreadable."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from randlora_ref import conformance
from randlora_ref.conformance import Case, check, check_target, reference, stored_cases

LAYER = next(one for one in stored_cases() if one.kind == "layer")
CROSS = pytest.mark.crosscheck


class Gone:
    """An array of a library whose memory cannot be read."""

    def detach(self) -> Any:
        raise RuntimeError("device\x1b[2J lost")


def test_a_missing_result_is_no_pass_in_any_way_in() -> None:
    """An empty implementation fails a check, a random search and pytest, and the report says what to answer instead."""
    empty: Any = lambda case: {}  # noqa: E731
    for report in (check(empty, cases=[LAYER]), conformance.search(empty, 3)):
        assert not report.passed
        assert any("missing, and no reason given: answer an array, or 'unsupported" in line for line in report.lines())
    assert check(empty, cases=[LAYER]).lines()[0].startswith("not checked: 5 results, missing")
    test = conformance.pytest_cases(empty, kinds=["count"])
    with pytest.raises(pytest.fail.Exception, match="missing"):
        test(next(one for one in stored_cases() if one.kind == "count"))


def test_an_unknown_name_is_said() -> None:
    """Where a wanted result is missing; a result that another case of the kind wants is none."""
    given = {("dW" if name == "delta_weight" else name): x for name, x in reference(LAYER).items()}
    report = check(lambda case: given, cases=[LAYER])
    assert not report.passed
    assert "unknown result 'dW'; wanted delta_weight, y" in " ".join(map(str.strip, report.lines()))


def test_an_answer_that_cannot_be_read_fails_its_case_with_the_reason() -> None:
    report = check(lambda case: {**reference(case), "y": Gone()}, cases=[LAYER])
    (mismatch,) = report.failures[0].mismatches
    assert (mismatch.tensor, mismatch.problem) == ("y", "not numbers")
    assert "RuntimeError: device\\x1b[2J lost" in mismatch.line()


@pytest.mark.parametrize("dialect", [None, "peft"])
def test_what_is_no_case_is_refused_by_name(dialect: str | None) -> None:
    """Whatever else is asked of the cases."""
    what: Any = [LAYER.id]
    with pytest.raises(TypeError, match=r"^cases: str; it must be Case"):
        check(reference, cases=what, dialect=dialect)


def test_a_case_says_its_own_shape_and_rank() -> None:
    for case in stored_cases():
        if case.kind == "layer":
            assert (case.shape, case.rank) == (case.weight.shape, case.lambda_.shape[1])
        if case.kind == "rank":
            assert case.rank == case.lambda_.shape[1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import sys; print('no such layer', file=sys.stderr); sys.exit(3)", r"exit status 3; stderr: 'no such layer'"),
        (
            "print('hello, world', flush=True); input(); input()",
            r"bad answer: answer: Expecting value.*; the line 'hello, world",
        ),
        ("import sys; sys.stderr.write('x' * 10**6); sys.exit(1)", r"exit status 1; stderr: 'x"),
    ],
)
def test_what_a_program_did_is_said(tmp_path: Path, source: str, message: str) -> None:
    """Its exit status, the end of its stderr, the line that was no JSON."""
    (tmp_path / "program.py").write_text(source, encoding="utf-8")
    report = check_target(command=f"{sys.executable} {tmp_path / 'program.py'}", case=LAYER.id)
    assert not report.passed
    assert re.search(message, report.failures[0].mismatches[0].text)


def test_the_cause_stands_in_the_first_three_lines(tmp_path: Path) -> None:
    """Of all cases of all kinds, whatever came in place of their results."""
    (tmp_path / "program.py").write_text("import sys; sys.exit('no such layer')", encoding="utf-8")
    report = check_target(command=f"{sys.executable} {tmp_path / 'program.py'}")
    head = " ".join(" ".join(report.lines()[:3]).split())
    assert "the program has ended; exit status 1; stderr: 'no such layer'" in head


def test_a_result_that_cannot_be_read_fails_alone(tmp_path: Path) -> None:
    """One line of JSON of the case asked is an answer: the program is asked on, and its other results are judged."""
    body = """
import json, sys
from randlora_ref.conformance import reference, stored_cases, vectors
cases = {case.id: case for case in stored_cases()}
for line in sys.stdin:
    case = cases[json.loads(line)["case"]["id"]]
    results = {name: vectors.encode(x, "float64") for name, x in reference(case).items()}
    results["y"]["data"] = "7ff8000000000000 " * 3
    print(json.dumps({"id": case.id, "results": results}), flush=True)
"""
    (tmp_path / "program.py").write_text(body, encoding="utf-8")
    report = check_target(command=f"{sys.executable} {tmp_path / 'program.py'}", kinds=["layer"])
    assert len(report.failures) > 100
    assert {mismatch.tensor for one in report.failures for mismatch in one.mismatches} == {"y"}
    assert "all finite" in report.failures[0].mismatches[0].text
    assert "not asked" not in str(report)


def test_cases_that_are_not_answered_are_counted_nowhere(tmp_path: Path) -> None:
    """As many cases stand in the first line as in the pattern."""

    def halved(case: Case) -> Any:
        if case.dropout_mask is not None:
            raise NotImplementedError("dropout")
        return {name: x / 2 for name, x in reference(case).items()}

    first, _, third, *_ = check(halved, ["layer"]).lines()
    assert re.findall(r"\d+", first) == re.findall(r"\d+", third.partition(":")[0])


@CROSS
def test_torch_arrays_are_taken_as_they_come() -> None:
    """With a gradient, and in bfloat16 where the case is exact in it."""
    import torch

    def answer(dtype: Any) -> Any:
        return lambda case: {n: torch.tensor(x, dtype=dtype, requires_grad=True) for n, x in reference(case).items()}

    assert check(answer(torch.float64), cases=[LAYER]).passed
    exact = next(one for one in stored_cases() if one.kind == "layer" and "bfloat16" in one.exact_in)
    assert check(answer(torch.bfloat16), cases=[exact], dtype="bfloat16").passed
    meta = check(lambda case: dict.fromkeys(case.wanted, torch.empty(2, device="meta")), cases=[LAYER])
    assert "NotImplementedError" in meta.failures[0].mismatches[0].line()


def forward(x: Any, weight: Any, bias: Any, A: Any, B: Any, lambda_: Any, gamma: Any, scaling: float) -> Any:
    """The layer in five lines, of torch or JAX."""
    n, (D, d) = len(lambda_), (max(weight.shape), min(weight.shape))
    M = sum(B[j, :D] * lambda_[j] @ A[:, :d] * gamma[j] for j in range(n)) * scaling
    y = x @ (weight + (M if weight.shape[0] == D else M.T)).T
    return y if bias is None else y + bias


def literal(case: Case) -> bool:
    return case.kind == "layer" and case.pairing == "literal" and case.dropout_mask is None and case.dialect == "paper"


@CROSS
def test_the_gradients_are_taken_of_a_torch_forward() -> None:
    """A right one passes the literal cases; one whose scaling is left out fails them."""
    cases = [one for one in stored_cases() if literal(one) and one.orientation == "paper"]
    report = check(conformance.autograd(forward, "torch"), cases=cases)
    assert report.passed, str(report)

    def unscaled(scaling: float, **given: Any) -> Any:
        return forward(**given, scaling=1.0)

    assert not check(conformance.autograd(unscaled, "torch"), cases=cases).passed


def test_autograd_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"^library: 'mlx'; it must be one of torch, jax"):
        conformance.autograd(forward, "mlx")
