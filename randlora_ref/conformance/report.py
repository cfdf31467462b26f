"""Check an implementation against cases, and say what came of it."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from .cases import KINDS, Case, expected
from .compare import Mismatch, compare, limits
from .diagnose import Failing, diagnose
from .vectors import stored_cases

Implementation = Callable[[Case], Mapping[str, Any]]
Progress = Callable[[int, int], None]


MISSING = "missing, and no reason given"
Absent = tuple[str, str, str]  # case, result, reason


@dataclass(frozen=True)
class Failure:
    """A case that failed: its wrong results and what they look like."""

    case: Case
    mismatches: tuple[Mismatch, ...]
    diagnosis: str
    reproduce: str

    def lines(self) -> list[str]:
        """Case, clause and flags; each wrong result; the diagnosis; the command that repeats it."""
        head = f"FAIL {self.case.id}, {self.case.clause} ({', '.join(self.case.notes) or 'plain'})"
        limit = ["limit: u·max(2¹⁰·largest of the tensor, largest of the case)"] if self.case.kind == "block" else []
        rest = [*(mismatch.line() for mismatch in self.mismatches), *limit, f"looks like: {self.diagnosis}"]
        return [head, *(f"    {line}" for line in [*rest, f"again: {self.reproduce}"])]


@dataclass(frozen=True)
class Report:
    """What a check found. ``absent`` lists what did not come, with the reason: it is never counted as passed."""

    target: str
    passed_cases: int
    failures: tuple[Failure, ...] = ()
    absent: tuple[Absent, ...] = ()
    diagnosis: str = ""
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """No failure, nothing missing without a reason, and at least one case passed."""
        missing = any(reason == MISSING for _, _, reason in self.absent)
        return not self.failures and not missing and self.passed_cases > 0

    def lines(self, most: int = 3) -> list[str]:
        """The report in lines: the ``most`` smallest failures, what is absent by reason, the sum."""
        lines = [line for failure in self.failures[:most] for line in failure.lines()]
        if len(self.failures) > most:
            lines.append(f"… and {len(self.failures) - most} failures more")
        for reason, number in Counter(reason for _, _, reason in self.absent).items():
            case, result = next(row[:2] for row in self.absent if row[2] == reason)
            lines.append(f"not checked: {number} results, {reason}; the first is {result} of {case}")
        for reason, number in Counter(self.details.get("known", {}).values()).items():
            lines.append(f"known to fail: {number} cases, {reason}")
        if "versions" in self.details:
            lines.append(", ".join(f"{name} {version}" for name, version in self.details["versions"].items()))
        lines += [f"UNEXPECTED PASS: {id_}" for id_ in self.details.get("unexpected", ())]
        if self.failures:
            lines.append(f"diagnosis: {self.diagnosis}")
        sums = f"{self.passed_cases} cases passed, {len(self.failures)} failed"
        sums += f", {len({case for case, _, _ in self.absent})} not fully checked, {self.seconds:.1f} s"
        return [*lines, f"{self.target}: {'PASSED' if self.passed else 'FAILED'}, {sums}"]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        plain = ("target", "passed", "passed_cases", "diagnosis", "absent", "seconds", "details")
        failures = [
            {"case": f.case.id, "clause": f.case.clause, "notes": f.case.notes, "diagnosis": f.diagnosis,
             "mismatches": [mismatch.line() for mismatch in f.mismatches], "reproduce": f.reproduce}
            for f in self.failures
        ]  # fmt: skip
        return {**{name: getattr(self, name) for name in plain}, "failures": failures}


def name_of(implementation: Implementation) -> str:
    """ "module:function", as ``randlora-ref check`` takes it."""
    names = (getattr(implementation, name, name.strip("_")) for name in ("__module__", "__qualname__"))
    return ":".join(names)


def judge(case: Case, results: Mapping[str, Any], dtype: str | None = None) -> tuple[list[Mismatch], list[Absent]]:
    """(what is wrong, what is absent) of one case's results."""
    wrong, absent = [], []
    right, limit = expected(case), limits(case, dtype)
    for name in case.wanted:
        value = results.get(name)
        if value is None or (isinstance(value, str) and value.startswith("unsupported")):
            reason = (value or "").removeprefix("unsupported").strip(": ")
            absent.append((case.id, name, f"unsupported: {reason}" if reason else MISSING))
        elif (mismatch := compare(name, value, right[name], limit[name])) is not None:
            wrong.append(mismatch)
    return wrong, absent


def run_case(implementation: Implementation, case: Case) -> Mapping[str, Any]:
    """The implementation's results of a case whose arrays are its own to change; an exception is a result too."""
    try:
        results = implementation(case.with_arrays(np.array))
        return results if isinstance(results, Mapping) else dict.fromkeys(case.wanted, results)
    except NotImplementedError as error:
        return dict.fromkeys(case.wanted, f"unsupported: {error}")
    except Exception as error:  # whatever an implementation under test raises is its failure, not ours
        text = f"raised {type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"
        return dict.fromkeys(case.wanted, text)


def check(
    implementation: Implementation,
    kinds: Iterable[str] | None = None,
    *,
    cases: Iterable[Case] | None = None,
    dtype: str | None = None,
    target: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compare ``implementation(case) -> {name: array}`` with the specification on ``cases`` (None: the stored vectors).

    ``kinds`` keeps some of "layer", "bases", "start", "count", "rank", "block". ``dtype`` declares a lower precision,
    such as "bfloat16": the cases are rounded to it first. Blocks are left out below float32, where no limit would part
    right from wrong. Raises ValueError for an unknown kind or dtype, or if no case is left.
    """
    begin, target = perf_counter(), target or name_of(implementation)
    chosen = _chosen(kinds, cases, dtype)
    failing: list[Failing] = []
    absent: list[Absent] = []
    passing: list[Case] = []
    for done, case in enumerate(chosen, 1):
        results = run_case(implementation, case)
        wrong, missing = judge(case, results, dtype)
        absent += missing
        if wrong:
            failing.append(Failing(case, results, tuple(wrong)))
        elif not missing:
            passing.append(case)
        if progress is not None:
            progress(done, len(chosen))
    failing.sort(key=lambda one: one.case.size)
    kinds_failing = [kind for kind in KINDS if any(f.case.kind == kind for f in failing)]
    texts = {kind: _diagnosis(kind, failing, passing, dtype) for kind in kinds_failing}
    again = f"randlora-ref check {target} --case "
    failures = tuple(Failure(f.case, f.mismatches, texts[f.case.kind], again + f.case.id) for f in failing)
    diagnosis = "; ".join(text if len(texts) == 1 else f"{kind}: {text}" for kind, text in texts.items())
    return Report(target, len(passing), failures, tuple(absent), diagnosis, perf_counter() - begin)


def _chosen(kinds: Iterable[str] | None, cases: Iterable[Case] | None, dtype: str | None) -> Sequence[Case]:
    """The cases of these kinds, rounded to ``dtype`` if one is declared."""
    wanted = tuple(KINDS) if kinds is None else (kinds,) if isinstance(kinds, str) else tuple(kinds)
    for kind in wanted:
        if kind not in KINDS:
            raise ValueError(f"kinds: {kind!r}; it must be some of {', '.join(KINDS)}")
    chosen = [case for case in (stored_cases() if cases is None else cases) if case.kind in wanted]
    if dtype is not None:
        layers = [case for case in chosen if case.kind == "layer" and (case.tier == "real" or dtype in case.exact_in)]
        layers += [case for case in chosen if case.kind == "block" and dtype in ("float32", "float64")]
        chosen = [c.cast(dtype) for c in layers] + [c for c in chosen if c.kind not in ("layer", "block")]
    if not chosen:
        raise ValueError(f"kinds: {wanted!r}; no case is left to check")
    return chosen


def _diagnosis(kind: str, failing: Sequence[Failing], passing: Sequence[Case], dtype: str | None) -> str:
    """What all failures of one kind look like."""
    of_kind = [f for f in failing if f.case.kind == kind]
    names = diagnose(of_kind, [case for case in passing if case.kind == kind], dtype)
    return names[0] if len(names) == 1 else "any of these, no failure tells: " + "; ".join(names)
