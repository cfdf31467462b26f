"""Ways in: right implementations pass, each wrong one is named, and a program may do whatever it likes."""

import importlib.util
import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conformance import block_cases

from randlora_ref import DIALECTS, nn, spec
from randlora_ref.conformance import (
    Case,
    check,
    check_target,
    expected,
    find_case,
    pytest_cases,
    random_case,
    reference,
    search,
    stored_cases,
    vectors,
)
from randlora_ref.conformance.cases import rounded
from randlora_ref.conformance.program import Program
from randlora_ref.conformance.report import choose
from randlora_ref.conformance.vectors import results_file
from randlora_ref.conformance.ways import load_function

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


wrong = example("wrong")


def test_the_package_itself_passes_in_five_seconds() -> None:
    report = check(reference)
    assert report.passed, "\n".join(report.lines())
    assert report.passed_cases == len(choose(None, None, None)) == 236
    assert report.seconds < 5


def on(library: Any, implementation: Any) -> Any:
    """``implementation``, whose results come as arrays of ``library``."""
    return lambda case: {name: library.array(x) for name, x in implementation(case).items()}


def test_results_of_any_array_library(library: Any) -> None:
    """Right ones pass, counts and ranks as arrays without axes too; a wrong one is named as it is on NumPy."""
    report = check(on(library, reference))
    assert report.passed, "\n".join(report.lines())
    assert report.passed_cases == len(choose(None, None, None)) == 236
    fault = wrong.WRONG["crossed"]
    report = check(on(library, fault), [fault.kind])
    assert not report.passed
    assert report.diagnosis == fault.diagnosis


@pytest.mark.parametrize("name", wrong.RIGHT)
def test_right_implementations_pass(name: str) -> None:
    run, dtype = wrong.RIGHT[name]
    report = check(run, ["layer"], dtype=dtype)
    assert report.passed, "\n".join(report.lines())
    assert report.passed_cases >= 50


def test_there_are_enough_wrong_ones() -> None:
    assert len(wrong.WRONG) >= 30
    assert {one.kind for one in wrong.WRONG.values()} == {"layer", "bases", "start", "count", "block"}


def test_a_block_from_its_forward_alone_passes() -> None:
    """The block that the wrong ones are made of, its gradients by the complex step; it is no layer."""
    report = check(wrong.wrong_blocks.block)
    assert report.passed, "\n".join(report.lines())
    assert report.passed_cases == 7
    assert {reason for _, _, reason in report.absent} == {"unsupported: blocks alone"}


def test_ties_are_all_listed() -> None:
    """On a square case with s = 2 and r = 2, α for α/r and s squared are the same number."""
    cases = [c for c in stored_cases() if c.scaling == 2 and c.kind == "layer" and c.lambda_.shape[1] == 2]
    report = check(wrong.WRONG["alpha"], cases=cases)
    assert "scaling alpha, not alpha/r" in report.diagnosis
    assert "scaling applied twice" in report.diagnosis


def test_a_failure_says_all_it_takes() -> None:
    report = check(wrong.WRONG["literal"], ["layer"], target="wrong:literal")
    text = "\n".join(report.failures[0].lines())
    assert report.failures[0].case.id in text
    for part in ("§4.1", "entries", "expected", "got", "no tolerance", "looks like: literal pairing"):
        assert part in text
    assert f"randlora-ref check wrong:literal --case {report.failures[0].case.id}" in text
    assert json.loads(json.dumps(report.to_json()))["passed"] is False


def test_cases_are_found_again_by_their_id() -> None:
    assert find_case("exact-001-hand-3x2").lambda_.tolist() == [[2], [1]]
    assert find_case("random-peft-3-17").id == "random-peft-3-17"
    with pytest.raises(ValueError, match="case: 'no'; it must be an id"):
        find_case("no")


# -- module:function and results files --------------------------------------------------------------------


def test_module_and_function(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_target("randlora_ref.conformance:reference", kinds=["count"]).passed
    monkeypatch.chdir(EXAMPLES)
    report = check_target("wrong:crossed", kinds=["layer"])
    assert report.diagnosis == "crossed pairing"


@pytest.mark.parametrize(
    "target", ["nowhere:f", "json:nothing", "json", "json:loads:dumps", ":", "json:__name__", "os;ls:x", "../a:b", ""]
)
def test_bad_targets_are_refused(target: str) -> None:
    with pytest.raises(ValueError, match=r"^target: "):
        check_target(target)
    with pytest.raises(ValueError, match=r"^target: "):
        load_function(target)


def results() -> dict[str, Any]:
    rows = {}
    for case in stored_cases():
        if case.kind in ("layer", "count", "block"):
            out = reference(case)
            rows[case.id] = {k: x.tolist() if hasattr(x, "tolist") else x for k, x in out.items() if k in case.wanted}
    return {"format": "randlora-results", "version": 1, "results": rows}


def test_a_results_file_is_checked_offline(tmp_path: Path) -> None:
    content = results()
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    report = check_target(str(path), kinds=["layer", "count", "block"])
    assert report.passed_cases > 130
    empty = sum(case.x.shape[0] == 0 for case in stored_cases() if case.kind == "layer" and case.x.ndim > 1)
    assert len(report.failures) == empty  # nested lists cannot say (0, 4); the vectors' form can
    content["results"]["exact-001-hand-3x2"]["y"][0][0] += 1
    path.write_text(json.dumps(content))
    failures = check_target(str(path), kinds=["layer", "count"]).failures
    assert len(failures) == empty + 1
    content["results"]["block-004-clip"]["dlambda.q"][0][0] += 1e-6
    path.write_text(json.dumps(content))
    (failure,) = check_target(str(path), kinds=["block"]).failures
    assert [mismatch.tensor for mismatch in failure.mismatches] == ["dlambda.q"]
    assert not check_target(str(path), kinds=["rank"]).passed  # nothing came


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c.update(format="x"), "format 'randlora-results'"),
        (lambda c: c.update(results=[]), "it must be an object by case id"),
        (lambda c: c["results"].update({"exact-999": {}}), "case 'exact-999' of results"),
    ],
)
def test_bad_results_files_are_refused(tmp_path: Path, change: Any, match: str) -> None:
    content = results()
    change(content)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=match):
        results_file(path)
    path.write_text(json.dumps(content)[:-5])
    with pytest.raises(ValueError, match=r"results\.json"):
        results_file(path)
    with pytest.raises(ValueError, match="No such file"):
        results_file(tmp_path / "none.json")


# -- programs ---------------------------------------------------------------------------------------------


def test_the_python_client_passes() -> None:
    report = check_target(command=f"{sys.executable} {EXAMPLES / 'client.py'}")
    assert not report.failures, "\n".join(report.lines())
    assert report.passed_cases >= 100
    assert report.seconds < 20
    assert {reason for _, _, reason in report.absent} == {
        f"unsupported: no {k} here" for k in ("bases", "start", "rank", "block")
    }


def test_the_javascript_client_passes() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    report = check_target(command=f"{node} {EXAMPLES / 'client.mjs'}", kinds=["layer"])
    assert report.passed, "\n".join(report.lines())
    assert report.seconds < 20
    orientations(f"{node} {EXAMPLES / 'client.mjs'}", ["layer"])


def test_the_python_client_passes_for_every_dialect() -> None:
    """Layers and counts."""
    orientations(f"{sys.executable} {EXAMPLES / 'client.py'}", ["layer", "count"])


def orientations(command: str, kinds: list[str]) -> None:
    """A client reads ``orientation``: under each of the authors' codes nothing that is asked is wrong or left out."""
    with Program(command) as run:
        for dialect in ("official", "nlg", "vision", "kradapter"):
            report = check(run, kinds, dialect=dialect, target=command)
            assert report.passed, "\n".join(report.lines())
            assert not report.absent


def program(body: str) -> str:
    return f"{sys.executable} -c '{body}'"


def test_a_program_may_answer_blocks() -> None:
    """Everything that a block needs goes over the line and comes back."""
    body = """
import json, sys
from randlora_ref.conformance import reference, vectors
for line in sys.stdin:
    case = vectors.case_from_json(json.loads(line)["case"], "line")
    results = {name: vectors.encode(x, "float64") for name, x in reference(case).items()}
    print(json.dumps({"id": case.id, "results": results}), flush=True)
"""
    report = check_target(command=program(body), kinds=["block"])
    assert report.passed_cases == 7, "\n".join(report.lines())
    assert not report.absent


CASES = [case for case in stored_cases() if case.kind == "count"][:3]


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("import time; time.sleep(60)", "no answer in"),
        ("print(1)", "; it must be an object with the case's id"),
        ("import sys; sys.exit(3)", "the program has ended"),
        ("print(0, end=str())", "an unfinished one"),
        ('print("x" * 100)', "bad answer: answer: "),
        ('print("[" * 100000)', "nested too deeply"),
        ('while True: print("x" * 65536, end="")', "a line of over 16777216 bytes"),
        ('while True: print("{}\\n{}")', "more than one"),
        ('print("{}")', "it must be an object with the case"),
        ("import os, time; os.close(0); time.sleep(60)", "no answer in"),
        ('import os; os.write(1, b"\\xff\\xfe\\n")', "bad answer: answer: "),
    ],
)
def test_bad_programs_get_a_verdict_in_bounded_time(body: str, match: str) -> None:
    begin, cases = time.monotonic(), CASES[: 1 if "sleep" in body else 2]  # who sleeps takes all its time of each
    with Program(program(body), seconds=0.5) as child:
        report = check(child, cases=cases)
    assert time.monotonic() - begin < 8
    assert not report.passed
    assert len(report.failures) == len(cases)
    assert match in "\n".join(report.lines())


def test_a_program_that_fails_too_often_is_left_alone() -> None:
    many = [case for case in stored_cases() if case.kind == "count"][:6]
    with Program(program("import time; time.sleep(60)"), seconds=0.1) as child:
        report = check(child, cases=many)
    assert len(report.failures) == 6
    assert sum("not asked: the program failed 3 times" in "\n".join(f.lines()) for f in report.failures) == 3


@pytest.mark.parametrize("command", ["", "/nowhere/at/all", "''"])
def test_a_program_that_is_none_is_refused(command: str) -> None:
    with pytest.raises(ValueError, match=r"^command: "):
        check_target(command=command)


# -- pytest and hypothesis --------------------------------------------------------------------------------


def test_three_lines_give_one_test_per_case(tmp_path: Path) -> None:
    test = pytest_cases(wrong.WRONG["no_bias"], ["layer", "count"])
    cases = test.pytestmark[0].args[1]
    assert [case.id for case in cases] == test.pytestmark[0].kwargs["ids"]
    assert {case.kind for case in cases} == {"layer", "count"}
    passing = next(case for case in cases if "no bias" in case.notes)
    test(passing)
    with pytest.raises(pytest.fail.Exception, match="looks like: bias left out"):
        test(cases[0])
    with pytest.raises(pytest.skip.Exception, match="unsupported: layer cases alone"):
        test(next(case for case in cases if case.kind == "count"))


def test_results_missing_without_a_reason_fail_and_are_not_skipped() -> None:
    """One rule for ``check``, pytest and the search: unsupported is said, missing is a fault."""

    def answer(what: Any) -> Any:
        return lambda case: {**reference(case), "dgamma": what}

    case = next(case for case in stored_cases() if case.kind == "layer")
    pytest_cases(reference, "layer")(case)
    with pytest.raises(
        pytest.fail.Exception, match="missing, and no reason given: answer an array, or 'unsupported: reason'"
    ):
        pytest_cases(answer(None), ["layer"])(case)
    with pytest.raises(pytest.skip.Exception, match="dgamma: unsupported: why"):
        pytest_cases(answer("unsupported: why"), ["layer"])(case)
    missing, said = search(answer(None), 20), search(answer("unsupported: why"), 20)
    assert {row[1:] for row in missing.absent} == {
        ("dgamma", "missing, and no reason given: answer an array, or 'unsupported: reason'")
    }
    assert {row[1:] for row in said.absent} == {("dgamma", "unsupported: why")}
    assert missing.passed_cases > 0  # merged layers, of which no gradient is asked
    assert said.passed_cases > 0
    assert said.passed
    assert not missing.passed


def test_random_layers_have_masks_now_and_then() -> None:
    """p = 1/2 on integers, p = 1/10 on reals; a merged layer has none, and who ignores them is called so."""
    cases = [random_case(index) for index in range(120)]
    masked = [case for case in cases if case.dropout_mask is not None]
    assert 20 <= len(masked) <= 60
    assert {case.tier for case in masked} == {"exact", "real"}
    assert {case.weight.shape[0] > case.weight.shape[1] for case in masked} == {True, False}
    for case in masked:
        assert "dropout" in case.notes
        assert not case.merged
        assert case.dropout_mask.shape == case.x.shape
        kept = np.array([2 if case.tier == "exact" else 1 / 0.9]).astype(case.dtype)
        assert np.all((case.dropout_mask == 0) | (case.dropout_mask == kept))
    assert check(wrong.WRONG["mask_ignored"], cases=cases[:16]).diagnosis == "dropout mask ignored"


@pytest.mark.filterwarnings("ignore:Conversion of an array")
def test_the_smallest_block_is_one() -> None:
    """Every array of one entry stays an array, in NumPy 2.0 too, where np.float64 of it is a number."""
    kind = nn.BlockSpec(1, 1, 1, 1, 1, 0.1, "silu", centred=False, biases=frozenset(("q", "up")))
    case = block_cases.block("one", 1, kind, 1, "paper dense", attention_mask=((1, 1, 1), (1, 1, 1)))
    for one in (case, case.cast("float32")):
        assert {name: x.shape for name, x in expected(one).items()}["dlambda.q"] == (1, 1)
        assert check(reference, cases=[one]).passed
        assert check(wrong.wrong_blocks.block, cases=[one]).passed


def test_a_search_shrinks_to_a_smallest_failure() -> None:
    report = search(wrong.WRONG["crossed"], 100, seed=5)
    case: Case = report.failures[0].case
    n, r = case.lambda_.shape
    assert report.diagnosis == "crossed pairing"
    assert (n, r) == (2, 2)  # the least in which the pairings part
    assert not case.x.any()
    assert case.bias is None
    assert "--random 100 --seed 5" in report.failures[0].reproduce
    masked = search(wrong.WRONG["mask_ignored"], 100, seed=5)
    assert "dropout mask ignored" in masked.diagnosis  # x = 0 shrinks it to dx, where a second one fits
    assert masked.failures[0].case.notes[-1] == "dropout"
    right = search(reference, 40, seed=5)
    assert right.passed
    assert right.passed_cases >= 30
    assert not search(lambda case: {}, 5).passed


def test_a_search_drops_nothing_that_it_is_told() -> None:
    """The precision that is declared, the kinds and the progress; a case and random layers are no one question."""
    seen: list[Case] = []
    run, dtype = wrong.RIGHT["bfloat16"]

    def sees(case: Case) -> Any:
        seen.append(case)
        return run(case)

    shown: list[tuple[str, float]] = []
    report = search(sees, 30, dtype=dtype, progress=lambda what, part: shown.append((what, part)))
    assert report.passed, "\n".join(report.lines())
    assert {case.dtype for case in seen} == {"bfloat16"}
    assert len(shown) == len(seen)
    assert shown[-1][1] == 1
    failure = search(wrong.WRONG["crossed"], 100, dtype="float32").failures[0]
    assert failure.reproduce.endswith("--random 100 --seed 0 --dtype float32")
    with pytest.raises(ValueError, match="no case is left"):
        search(reference, 5, kinds=["count"])
    target = "randlora_ref.conformance:reference"
    with pytest.raises(ValueError, match=r"^kinds: \('count',\); no case is left"):
        check_target(target, random=5, kinds=["count"])
    with pytest.raises(ValueError, match=r"^dialect: 'nlg', kinds: .*; no case is left"):
        check_target(target, case="exact-001-hand-3x2", dialect="nlg")
    with pytest.raises(ValueError, match=r"^case: 'exact-001-hand-3x2' with 5 random layers"):
        check_target(target, random=5, case="exact-001-hand-3x2")


def test_a_search_survives_what_answers_now_so_now_otherwise() -> None:
    answers = iter([{}, {"y": "wrong"}] * 1000)
    assert not search(lambda case: next(answers), 50).passed


def test_a_known_failure_of_peft_that_passes_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of what PEFT fails would be out of date: with a right implementation in PEFT's place, all of it is."""
    from randlora_ref.conformance import peft

    monkeypatch.setattr(peft, "run_peft", reference)
    monkeypatch.setattr(peft, "installed", lambda: {"peft": "0"})
    report = peft.check_peft(count=3)
    assert len(report.details["unexpected"]) >= 20
    assert not report.failures
    assert not report.passed
    assert report.lines()[-1].startswith("peft: FAILED")


# -- dialects ---------------------------------------------------------------------------------------------


def test_a_right_copy_of_peft_passes_under_its_dialect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Crossed whatever is asked: wrong where all cases are asked, right where PEFT's are, by every way in."""
    monkeypatch.chdir(EXAMPLES)
    assert len(check_target("wrong:crossed", kinds=["layer"]).failures) == 55

    def passes(report: Any) -> None:
        assert report.passed, "\n".join(report.lines())
        assert report.passed_cases >= 60

    copy = wrong.WRONG["crossed"]
    passes(check_target("wrong:crossed", kinds=["layer"], dialect="peft"))
    passes(check_target("wrong:crossed", kinds=["layer"], dialect="peft", random=80))
    passes(check(copy, ["layer"], dialect="peft"))
    passes(search(copy, 80, dialect="peft"))
    for case in (test := pytest_cases(copy, ["layer"], dialect="peft")).pytestmark[0].args[1]:
        test(case)
    arrays = {c.id: copy(c) for c in stored_cases() if c.kind == "layer" and c.orientation == "paper"}
    rows = {id_: {name: vectors.encode(x, "float64") for name, x in one.items()} for id_, one in arrays.items()}
    (tmp_path / "results.json").write_text(json.dumps({"format": "randlora-results", "version": 1, "results": rows}))
    passes(check_target(str(tmp_path / "results.json"), kinds=["layer"], dialect="peft"))
    body = """
import json, sys
from dataclasses import replace
from randlora_ref.conformance import reference, vectors
for line in sys.stdin:
    case = vectors.case_from_json(json.loads(line)["case"], "line")
    out = reference(replace(case, pairing="crossed"))
    print(json.dumps({"id": case.id, "results": {k: vectors.encode(x, "float64") for k, x in out.items()}}), flush=True)
"""
    (tmp_path / "crossed.py").write_text(body)
    command = f"{sys.executable} {tmp_path / 'crossed.py'}"
    passes(check_target(command=command, kinds=["layer"], dialect="peft"))
    assert not check_target(command=command, kinds=["layer"], dialect="paper").passed
    assert not search(copy, 100, dialect="paper").passed


NAMES = tuple(DIALECTS)


@pytest.mark.parametrize("name", NAMES)
def test_a_dialect_is_asked_what_its_code_computes(name: str) -> None:
    """Its own bases, starts and counts; layers that orientation, pairing and scaling leave the same."""
    rules, chosen = DIALECTS[name], choose(None, None, None, name)
    assert {case.dialect for case in chosen if case.kind in ("bases", "start", "count")} == {name}
    ids = {case.id for case in chosen}
    shares: dict[str, Any] = {
        "paper": lambda c: True,
        "vision": lambda c: c.weight.shape[0] != c.weight.shape[1],
        "kradapter": lambda c: c.weight.shape[0] >= c.weight.shape[1] and c.scaling == 1,
        "nlg": lambda c: c.weight.shape[0] < c.weight.shape[1],
    }
    layers = [case for case in stored_cases() if case.kind == "layer" and case.dialect == "paper"]
    agree = [c for c in layers if c.pairing == rules.pairing or 1 in c.lambda_.shape]
    expected_ids = {c.id for c in agree if shares.get(name, shares["paper"])(c)}
    assert expected_ids == {c.id for c in layers} & ids
    assert {c.id for c in stored_cases() if c.dialect == name and c.kind == "layer" and name != "paper"} <= ids
    for case in chosen:
        if case.kind == "layer" and case.alpha is not None:
            n, r = case.lambda_.shape
            assert rules.scaling(r, n, case.alpha) == pytest.approx(case.scaling, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_passes_under_each_dialect(name: str) -> None:
    """Stored cases, random ones, and a search."""
    target = "randlora_ref.conformance:reference"
    for report in (
        check_target(target, dialect=name),
        check(reference, cases=[random_case(index, 3, name) for index in range(90)], dialect=name),
        check_target(target, dialect=name, random=40),
    ):
        assert report.passed, "\n".join(report.lines())
        assert not report.absent
        assert report.target.endswith(f" --dialect {name}")
        assert report.passed_cases >= 40


FAULTS: dict[str, tuple[str, dict[str, Any]]] = {  # what another rule of a record spoils
    "n one less": ("count start", {"count_rule": "floor"}),
    "n of ceil+1": ("count start", {"count_rule": "ceil+1"}),
    "n of floor+1": ("count start", {"count_rule": "floor+1"}),
    "n of ceil": ("count start", {"count_rule": "ceil"}),
    "n by the layer": ("bases count start", {"counted_side": "d", "shared_sides": "max(out), max(in)"}),
    "no cap": ("count", {"max_terms": None}),
    "lambda of one": ("start", {"lambda_start": "1"}),
    "lambda of zero": ("start", {"lambda_start": "0"}),
    "gamma of 1/d": ("start", {"gamma_start": "1/d"}),
    "gamma of zero": ("start", {"gamma_start": "0"}),
    "A first": ("bases", {"generator": "torch_float32"}),
    "B_j first": ("bases", {"generator": "torch_terms_first"}),
    "B whole": ("bases", {"generator": "torch_whole"}),
    "sides turned": ("bases", {"shared_sides": "max(out), max(in)"}),
    "sides sorted": ("bases", {"shared_sides": "sorted max(out), max(in)"}),
}
CAUGHT = [
    *(("official", fault) for fault in ("n of floor+1", "gamma of zero", "lambda of one", "B_j first", "B whole")),
    *(("official", fault) for fault in ("sides turned", "sides sorted", "n one less")),
    *(("nlg", fault) for fault in ("n by the layer", "n of ceil", "A first", "B whole", "gamma of 1/d")),
    *(("vision", fault) for fault in ("no cap", "n of ceil", "lambda of zero", "A first", "B whole", "gamma of 1/d")),
    *(("kradapter", fault) for fault in ("n of floor+1", "n of ceil", "lambda of zero", "A first", "B_j first")),
    ("kradapter", "sides sorted"),
]


@pytest.mark.parametrize(("name", "fault"), CAUGHT)
def test_another_rule_in_a_record_fails(name: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stored answers hold still: count, start, generator order and shared sides are each caught."""
    kinds, change = FAULTS[fault]
    monkeypatch.setitem(DIALECTS, name, replace(DIALECTS[name], **change))
    failing = {failure.case.kind for failure in check(reference, dialect=name).failures}
    assert failing >= set(kinds.split())
    assert "layer" not in failing


ORIENTATIONS = ("paper", "square_transposed", "never", "reshape")
TURNED = []  # one other than the dialect's own in the default run, where the reference's test has its own
for dialect in DIALECTS.values():
    quick = ORIENTATIONS[ORIENTATIONS.index(dialect.orientation) - 1]
    for other in ORIENTATIONS:
        TURNED.append(pytest.param(dialect.name, other, marks=[pytest.mark.slow] * (other != quick)))


@pytest.mark.parametrize(("name", "orientation"), TURNED)
def test_another_orientation_fails(name: str, orientation: Any) -> None:
    """The stored cases, the search and random cases pass under the dialect's own orientation alone."""

    def turned(case: Case) -> Any:
        return reference(replace(case, orientation=orientation))

    right = DIALECTS[name].orientation == orientation
    assert check(turned, ["layer"], dialect=name).passed == right
    assert search(turned, 150, dialect=name).passed == right
    report = check(turned, ["layer"], cases=[random_case(index, 0, name) for index in range(60)], dialect=name)
    assert report.passed == right


@pytest.mark.parametrize("name", ["peft", "official", "vision"])
def test_a_copy_that_makes_its_own_scaling_of_alpha_passes(name: str) -> None:
    """α is given where the dialect's rule makes s of it, and left out where not."""
    given = []

    def copy(case: Case) -> Any:
        if case.alpha is not None:
            n, r = case.lambda_.shape
            given.append(case.id)
            case = replace(case, scaling=DIALECTS[name].scaling(r, n, case.alpha))
        return reference(case)

    report = check(copy, ["layer"], dialect=name)
    assert report.passed, "\n".join(report.lines())
    assert [id_ for id_ in given if name in id_ or name == "peft"]


def test_random_layers_of_each_dialect() -> None:
    """n by the dialect's rule, Γ on its side, its start now and then; an id finds its layer again."""
    for name, rules in DIALECTS.items():
        cases = [random_case(index, 1, name) for index in range(120)]
        assert {(case.pairing, case.orientation, case.dialect) for case in cases} == {
            (rules.pairing, rules.orientation, name)
        }
        for case in cases:
            (n, r), shape = case.lambda_.shape, case.weight.shape
            assert case.gamma.shape == (n, spec.sides(shape, rules.orientation)[1])
            assert n == rules.terms(shape, r) if name != "nlg" else n >= 1
        starts = [case for case in cases if len({*case.lambda_.flat}) == len({*case.gamma.flat}) == 1 and case.x.size]
        for case in starts[:5]:
            n, r = case.lambda_.shape
            if case.tier == "real" and case.lambda_.size > 2:
                begin = rules.start(case.weight.shape, r, n)
                assert (case.lambda_[0, 0], case.gamma[0, 0]) == pytest.approx(begin, rel=1e-6)
        assert starts
        again = find_case(f"random-{name}-1-7")
        assert np.array_equal(again.lambda_, cases[7].lambda_)
    assert len({len(random_case(i, 1, "nlg").lambda_) for i in range(60)}) > 5
    for function in (find_case, lambda _: random_case(1, 0, "lora")):
        with pytest.raises(ValueError, match="dialect: 'lora'; it must be one of paper, peft"):
            function("random-lora-0-1")


def test_a_case_alone_is_held_to_the_dialect_too() -> None:
    target = "randlora_ref.conformance:reference"
    with pytest.raises(ValueError, match="no case is left"):
        check_target(target, case="exact-007-wide-literal", dialect="peft")
    assert check_target(target, case="exact-008-wide-crossed", dialect="peft").passed
    assert check_target(target, case="dialects-layer-012-kradapter-wide-exact").passed
    failure = check(wrong.WRONG["literal"], ["layer"], dialect="official", target="wrong:literal").failures[0]
    assert failure.reproduce == f"randlora-ref check wrong:literal --dialect official --case {failure.case.id}"


@pytest.mark.parametrize("name", NAMES)
def test_starts_have_the_tolerance_of_their_precision(name: str) -> None:
    """Who holds 1/max(n, d) in float32 is right, in bfloat16 where that is declared; another constant is wrong."""

    def held(dtype: str, change: Any = lambda x: x) -> Any:
        return lambda case: {k: rounded(change(x), dtype) for k, x in reference(case).items()}

    for dtype, declared in (("float64", None), ("float32", None), ("float32", "float32"), ("bfloat16", "bfloat16")):
        report = check(held(dtype), ["start"], dtype=declared, dialect=name)
        assert report.passed, "\n".join(report.lines())
        other = check(held(dtype, lambda x: x * 1.02), ["start"], dtype=declared, dialect=name)
        assert len(other.failures) == 3
    assert not check(held("bfloat16"), ["start"], dialect=name).passed
