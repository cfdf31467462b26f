"""The diagnosis: each wrong implementation by its name, no right one by any, and whatever comes back in between."""

import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from randlora_ref import DIALECTS
from randlora_ref.conformance import Case, check, expected, random_case, reference, stored_cases
from randlora_ref.conformance.laws import EXPONENTS, ONE, Law, laws
from randlora_ref.conformance.report import COLUMNS, LINES, choose
from randlora_ref.conformance.stages import AS_ASKED, PLACES, STAGES, layer_of

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import wrong
import wrong_copies

LAYERS = [case for case in stored_cases() if case.kind == "layer"]
ASKED = [case for case in LAYERS if case.dialect in ("paper", "peft")]
SECONDS = 10  # on two cores
OFTEN = [*list(wrong.WRONG)[::29], *wrong.wrong_bases.WRONG]  # in the default run


def slow_but(names: Any, often: Any) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in often)) for name in names]


# -- each by its name -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", slow_but(wrong.WRONG, OFTEN))
def test_wrong_implementations_are_caught_and_named(name: str) -> None:
    """By its name alone, or with two ties at most; in ten seconds."""
    one, begin = wrong.WRONG[name], time.perf_counter()
    report = check(one, [one.kind])
    assert not report.passed
    ties, _ = report.causes[one.kind]
    assert time.perf_counter() - begin < SECONDS
    assert one.diagnosis in ties
    assert len(ties) <= 3
    assert all(failure.case.kind == one.kind for failure in report.failures)


def test_there_is_a_wrong_one_for_each_option_in_two_copies_and_enough_combinations() -> None:
    """The names of the options are read here alone; the wrong ones know nothing of them."""
    texts = {one.diagnosis for one in wrong.WRONG.values() if one.kind == "layer"}
    for option in {*PLACES} - {"wide layers alone transposed"}:  # which is what the paper asks for
        assert any(option in text for text in texts), option
    for name in wrong.FAULTS:
        assert {name, f"{name}_by_hand"} <= set(wrong.WRONG)
    assert len(wrong.COMBINED) >= 20
    assert {one.kind for one in wrong.WRONG.values()} == {"layer", "bases", "start", "count", "block"}
    source = Path(wrong.__file__).read_text()
    assert not any(f"conformance.{room}" in source for room in ("stages", "laws", "configure", "diagnose", "rules"))


COPIES = {
    "hhnqqq_1": "literal pairing and gamma on B's rows",
    "hhnqqq_2": "crossed pairing and no layer transposed, n times too large in dlambda and dgamma",
    "hhnqqq_3": "crossed pairing and orientation test inverted, n times too large in dlambda and dgamma",
    "hhnqqq_4": "adapter not applied",
    "hhnqqq_head": "all but merged layers: crossed pairing and scaling over sqrt(n), "
    "n times too large in dlambda and dgamma",
    "lovench_first": "raises AttributeError: 'RandLoRA' object has no attribute 'weight': every case",
    "lovench": "crossed pairing and the product S·B, factors in the other order and scaling left out, "
    "n times too large in dlambda and dgamma",
    "orkrs": "literal pairing and gamma of length r, as read in dgamma",
    "survey": "literal pairing and gamma of length r and scaling left out, as read in dgamma",
    "equimo": "literal pairing and one scalar for each base and gamma ignored, as read in dlambda",
    "dag": "literal pairing",
    "laihongphuc": "crossed pairing",
    "official": "crossed pairing and scaling over sqrt(n)",
    "nlg": "crossed pairing and tall layers reshaped, square ones transposed and scaling over sqrt(n)",
    "nlg_v": "crossed pairing and B's rows d … d + D and no layer transposed and scaling over sqrt(n)",
    "vision": "merged layers: crossed pairing and scaling 1/r; "
    "all but merged layers: crossed pairing and square layers transposed and scaling 1/r",
    "vision_attention": "merged layers: crossed pairing and scaling 1/r; "
    "all but merged layers: crossed pairing and square layers transposed and scaling 1/r, zero in dlambda and dgamma",
    "kradapter": "literal pairing and no layer transposed and scaling left out",
    "peft": "crossed pairing",
    "peft_quantized": "merged layers: crossed pairing and the product S·B, factors in the other order; "
    "all but merged layers: crossed pairing",
    "other_A": "n times too large in dlambda and dgamma",
}


@pytest.mark.parametrize("name", slow_but(COPIES, ["lovench", "vision"]))
def test_public_copies_are_named(name: str) -> None:
    (copy,) = (copy for copy in wrong_copies.COPIES if copy.__name__ == name)
    begin = time.perf_counter()
    assert check(copy, ["layer"]).causes["layer"][0] == (COPIES[name],)
    assert time.perf_counter() - begin < SECONDS


@pytest.mark.parametrize("name", [name for name in DIALECTS if name not in ("paper", "peft")])
def test_a_dialect_is_asked_about_its_own_layers_too(name: str) -> None:
    """Where the cases have another orientation, the paper's is a deviation."""
    cases = [case for case in LAYERS if case.dialect == name]
    turned = check(lambda case: reference(replace(case, orientation="paper")), cases=cases, dialect=name)
    if DIALECTS[name].orientation == "paper":
        assert turned.passed
    elif name != "kradapter":  # Γ does not fit there: it raises
        assert turned.diagnosis.startswith("wide layers alone transposed")
    else:
        assert "raises ValueError" in turned.diagnosis


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_no_right_implementation_is_given_a_deviation(dtype: str | None) -> None:
    for run, precision in wrong.RIGHT.values():
        if precision == dtype:
            report = check(run, ["layer"], dtype=dtype)
            assert report.passed
            assert report.diagnosis == ""
            assert not report.causes


# -- what it stands on ------------------------------------------------------------------------------------


def test_as_asked_is_what_the_specification_says() -> None:
    """In every stored layer and some random ones of each dialect, gradients too."""
    for case in [*LAYERS, *(random_case(index, 5, name) for name in DIALECTS for index in range(9))]:
        layer, right = layer_of(case, None), expected(case)
        for name in case.wanted:
            both = layer(name, AS_ASKED)
            assert both is not None
            assert np.all(np.abs(both[0] + both[1] - right[name]) <= layer.limit(name, right[name])), (case.id, name)


def test_each_option_shows_on_a_layer_that_is_asked() -> None:
    """None is inert, and no two are the same, in ΔW or in y."""
    seen: dict[Any, str] = {}
    for option in PLACES:
        if option in STAGES["rows"]:
            continue
        results = []
        for case in ASKED:
            both = layer_of(case, None)("y", frozenset({option}))
            results.append(None if both is None else np.round(both[0] + both[1], 6).tobytes())
        key = tuple(results)
        assert key not in seen, (option, seen[key])
        seen[key] = option


@given(st.sampled_from(range(len(EXPONENTS))), st.sampled_from([1.0, -1.0, 2.0, 0.25, 1.7]))
def test_a_law_is_found_again(index: int, constant: float) -> None:
    """Out of its ratios on the stored layers alone: among those found, one gives them all."""
    law, sizes = Law(constant, tuple(EXPONENTS[index].tolist())), [layer_of(case, None).sizes for case in ASKED]
    ratios = [law(one) for one in sizes]
    found = laws(sizes, [(one, 1e-12) for one in [*ratios[:-1], np.nan]])
    assert found
    assert all(np.allclose([one(size) for size in sizes], ratios, rtol=1e-6) for one in found)
    assert np.count_nonzero(found[0].exponents) <= np.count_nonzero(law.exponents)
    assert laws(sizes, [(1.0, 1e-12)] * len(sizes)) == [ONE]
    ratios[0] *= 1.001
    assert not any(one == law for one in laws(sizes, [(one, 1e-12) for one in ratios]))


def test_ties_are_all_listed() -> None:
    """Where s = r = 2 throughout, α for α/r and s squared are the same number."""
    cases = [c for c in LAYERS if c.scaling == 2 and c.lambda_.shape == (2, 2)]
    ties, _ = check(wrong.WRONG["alpha"], cases=cases).causes["layer"]
    assert {"scaling alpha, not alpha/r", "scaling applied twice"} <= set(ties)


# -- what comes back that is no answer ----------------------------------------------------------------------


def crossed(case: Case) -> dict[str, Any]:
    return dict(wrong.automatic(case, (wrong.STRUCTURE["crossed"][1],)))


BAD: dict[str, tuple[Any, str]] = {
    "text": (lambda x: "what", "not numbers"),
    "object": (lambda x: object(), "not numbers"),
    "ragged": (lambda x: [[1], [1, 2]], "not numbers"),
    "another shape": (lambda x: np.zeros((7, 9, 3)), "of shape (7, 9, 3)"),
    "NaN": (lambda x: np.full(x.shape, np.nan), "non-finite"),
    "infinite": (lambda x: np.full(x.shape, np.inf), "non-finite"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", ["delta_weight", "y", "dx", "dlambda", "dgamma"])
def test_a_bad_answer_never_stops_the_rest(bad: str, name: str) -> None:
    spoil, words = BAD[bad]
    report = check(lambda case: (out := crossed(case)) | {name: spoil(out[name])}, cases=ASKED[::3])
    assert any(tie.startswith("crossed pairing") for tie in report.causes["layer"][0])
    assert f"{name} {words}" in report.diagnosis


def test_a_shape_is_named_with_the_one_it_must_have() -> None:
    def narrow(case: Case) -> Mapping[str, Any]:
        (n, r), out = case.lambda_.shape, dict(reference(case))
        return out | {"dgamma": np.ones((n, r)), "dx": out["dx"].T if case.x.ndim == 2 else out["dx"]}

    report = check(narrow, ["layer"])
    assert "dgamma of shape (n, r), not (n, d): gamma of length r" in report.diagnosis
    assert "dx of shape (in, " in report.diagnosis


def test_errors_are_told_by_what_they_share() -> None:
    def raises(case: Case) -> Mapping[str, Any]:
        if case.weight.shape[0] != case.weight.shape[1]:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        return reference(case)

    report = check(raises, ["layer"])
    assert "mat1 and mat2 shapes cannot be multiplied: every case that is rectangular" in "\n".join(report.lines())
    assert report.diagnosis == "orientation test inverted"
    plain = check(lambda case: reference(case) if case.bias is not None else 1 / 0, ["layer"])
    assert plain.diagnosis == "raises ZeroDivisionError: division by zero: every case that is no bias"


def test_a_case_may_be_asked_twice() -> None:
    """Its verdicts are alike, and hold arrays, of which no one truth can be told; where it raises, too."""

    def run(case: Case) -> Mapping[str, Any]:
        if case.bias is None:
            raise RuntimeError("no bias")
        return crossed(case)

    once, twice = (check(run, cases=cases).diagnosis for cases in (ASKED[::3], ASKED[::3] * 2))
    assert once == twice == "crossed pairing; raises RuntimeError: no bias: every case that is no bias"


def test_rounding_where_integers_are_exact_is_no_deviation() -> None:
    report = check(lambda case: {k: x * (1 + 2.0**-52) for k, x in reference(case).items()}, ["layer"])
    assert report.diagnosis == "rounded where integers are exact"


def test_bases_of_several_differences_and_of_none_known() -> None:
    """Two and three together, A and B each its own, a factor, and noise: in ten seconds each."""

    def only(change: Any) -> Any:
        def run(case: Case) -> Mapping[str, Any]:
            dense = case.dialect == "peft" and case.kind_of_basis == "dense"
            return change(case) if dense else dict.fromkeys("AB", "unsupported: PEFT's dense ones alone")

        return run

    made = wrong.wrong_bases._torch_bases
    noise = np.random.default_rng(0).standard_normal
    for change, text in (
        (lambda c: made(c, dtype="float32", first="B"), "drawn in float32 and B drawn before A"),
        (
            lambda c: made(c, dtype="float32", first="B", ddof=0),
            "population deviation and drawn in float32 and B drawn before A",
        ),
        (lambda c: {"A": made(c)["A"], "B": made(c, by="none")["B"]}, "no normalisation in B"),
        (lambda c: {k: x * (0.25 if k == "B" else 1) for k, x in made(c).items()}, "normalised otherwise"),
        (lambda c: {k: noise(x.shape) for k, x in made(c).items()}, "no known deviation"),
    ):
        begin = time.perf_counter()
        assert check(only(change), ["bases"]).causes["bases"][0] == (text,)
        assert time.perf_counter() - begin < SECONDS


def test_counts_and_starts_of_copies() -> None:
    """A capped side, a value a base, and Λ that is random: ΔW is then not zero."""
    capped = check(lambda c: {"num_parameters": sum(
        -(-min(1024, *shape) // c.rank) * (c.rank + min(shape)) for shape in c.shapes)}, ["count"])  # fmt: skip
    assert capped.diagnosis == "n of a side of 1024 at most"
    each = check(lambda c: {"num_parameters": sum(-(-min(shape) // c.rank) for shape in c.shapes)}, ["count"])
    assert each.diagnosis == "one value for each base"
    random = check(
        lambda c: {name: x + np.arange(x.size).reshape(x.shape) for name, x in reference(c).items()}, "start"
    )
    assert "lambda not of its sizes" in random.diagnosis
    assert random.diagnosis.endswith("and ΔW ≠ 0")


# -- the report -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["crossed", "unknown", "swapped_product", "start_normal", "block_not_causal"])
def test_a_report_is_short_and_begins_with_what_it_looks_like(name: str) -> None:
    report = check(wrong.WRONG[name], target=f"wrong:{name}")
    lines = report.lines()
    assert len(lines) <= LINES == 25
    assert max(map(len, lines)) <= COLUMNS == 120
    assert lines[0].startswith(f"FAILED {len(report.failures)} of ")
    assert lines[1].startswith("looks like: ")
    assert lines[1].removeprefix("looks like: ") in report.diagnosis
    assert str(report) == "\n".join(lines)
    assert any(f"again: randlora-ref check wrong:{name} --case " in line for line in lines)
    assert len(report.lines(most=20)) > 25 or len(report.failures) < 10


def test_a_report_on_noise_in_every_kind_is_short_too() -> None:
    noise = np.random.default_rng(0).standard_normal
    lines = check(lambda case: {k: noise(np.shape(x)) for k, x in reference(case).items()}).lines()
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= COLUMNS


def test_the_next_step_is_said_where_nothing_fits() -> None:
    text = str(check(wrong.WRONG["mask_on_y"], ["layer"]))
    assert "fail: every case that is dropout" in text
    assert "right throughout: delta_weight, dlambda, dgamma" in text
    assert "look first at dropout-" in text


def test_a_command_is_given_only_where_it_can_be_run() -> None:
    for run, again in ((lambda case: {}, False), (partial(crossed), False), (crossed, __name__ in sys.modules)):
        report = check(lambda case, run=run: {"y": 1} | run(case), ["layer"]) if not again else check(run, ["layer"])
        assert all(bool(failure.reproduce) == again for failure in report.failures)
        assert ("again:" in str(report)) == again


def test_an_error_is_shown_once_a_case() -> None:
    def raises(case: Case) -> Mapping[str, Any]:
        raise RuntimeError("no such thing")

    (lines, *_) = [failure.lines() for failure in check(raises, ["layer"]).failures]
    assert sum("no such thing" in line and "looks like" not in line for line in lines) == 1


def test_failures_in_which_the_cause_can_show_come_first() -> None:
    """Layers of one term or rank are last, and the smallest first among the rest."""
    report = check(wrong.WRONG["scaled_twice"], ["layer"])
    cases = [failure.case for failure in report.failures]
    plain = [min(case.lambda_.shape) == 1 or not case.x.size or not case.lambda_.any() for case in cases]
    assert plain == sorted(plain)
    sizes = [failure.case.size for failure in report.failures[: plain.index(True)]]
    assert sizes == sorted(sizes)
    assert len(choose(["layer"], None, None)) == len(ASKED)
