"""Check an implementation against cases, and say what came of it."""

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


@dataclass(frozen=True)
class Failure:
    """A case that failed: its wrong results and what they look like."""

    case: Case
    mismatches: tuple[Mismatch, ...]
    diagnosis: str
    reproduce: str

    def lines(self) -> list[str]:
        """Case, clause and flags; each wrong result; the diagnosis; the command that repeats it."""
        flags = f" ({', '.join(self.case.notes)})" if self.case.notes else ""
        return [
            f"FAIL {self.case.id}, {self.case.clause}{flags}",
            *(f"    {mismatch.line()}" for mismatch in self.mismatches),
            f"    looks like: {self.diagnosis}",
            f"    again: {self.reproduce}",
        ]


@dataclass(frozen=True)
class Report:
    """What a check found. ``absent`` lists (case, result, reason) of what did not come: never counted as passed."""

    target: str
    passed_cases: int
    failures: tuple[Failure, ...] = ()
    absent: tuple[tuple[str, str, str], ...] = ()
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
        reasons: dict[str, list[str]] = {}
        for case, result, reason in self.absent:
            reasons.setdefault(reason, []).append(f"{result} of {case}")
        for reason, which in reasons.items():
            lines.append(f"not checked: {len(which)} results, {reason}; the first is {which[0]}")
        for reason in sorted(set(self.details.get("known", {}).values())):
            number = list(self.details["known"].values()).count(reason)
            lines.append(f"known to fail: {number} cases, {reason}")
        lines += [f"UNEXPECTED PASS: {id_}" for id_ in self.details.get("unexpected", ())]
        if self.failures:
            lines.append(f"diagnosis: {self.diagnosis}")
        incomplete = len({case for case, _, _ in self.absent})
        verdict = "PASSED" if self.passed else "FAILED"
        lines.append(
            f"{self.target}: {verdict}, {self.passed_cases} cases passed, {len(self.failures)} failed, "
            f"{incomplete} not fully checked, {self.seconds:.1f} s"
        )
        return lines

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "target": self.target,
            "passed": self.passed,
            "passed_cases": self.passed_cases,
            "diagnosis": self.diagnosis,
            "failures": [
                {
                    "case": failure.case.id,
                    "clause": failure.case.clause,
                    "notes": list(failure.case.notes),
                    "mismatches": [m.line() for m in failure.mismatches],
                    "diagnosis": failure.diagnosis,
                    "reproduce": failure.reproduce,
                }
                for failure in self.failures
            ],
            "absent": [list(row) for row in self.absent],
            "details": self.details,
        }


MISSING = "missing, and no reason given"
UNSUPPORTED = "unsupported"


def judge(
    case: Case, results: Mapping[str, Any], dtype: str | None = None
) -> tuple[list[Mismatch], list[tuple[str, str, str]]]:
    """(what is wrong, what is absent) of one case's results."""
    wrong, absent = [], []
    right, limit = expected(case), limits(case, dtype)
    for name in case.wanted:
        value = results.get(name)
        if value is None:
            absent.append((case.id, name, MISSING))
        elif isinstance(value, str) and value.startswith(UNSUPPORTED):
            absent.append((case.id, name, value if value.removeprefix(UNSUPPORTED).strip(": ") else MISSING))
        elif (mismatch := compare(name, value, right[name], limit[name])) is not None:
            wrong.append(mismatch)
    return wrong, absent


def run_case(implementation: Implementation, case: Case) -> Mapping[str, Any]:
    """The implementation's results of a case whose arrays are its own to change; an exception is a result too."""
    try:
        results = implementation(case.with_arrays(lambda x: None if x is None else np.array(x)))
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
    target: str = "implementation",
    progress: Progress | None = None,
) -> Report:
    """Compare ``implementation(case) -> {name: array}`` with the specification on ``cases`` (None: the stored vectors).

    ``kinds`` keeps some of "layer", "bases", "start", "count", "rank". ``dtype`` declares a lower precision, such as
    "bfloat16": the cases are rounded to it first. Raises ValueError for an unknown kind or dtype, or if no case is
    left.
    """
    begin = perf_counter()
    chosen = _chosen(kinds, cases, dtype)
    failing: list[Failing] = []
    found: dict[str, list[Mismatch]] = {}
    absent: list[tuple[str, str, str]] = []
    passing: list[Case] = []
    for done, case in enumerate(chosen, 1):
        results = run_case(implementation, case)
        wrong, missing = judge(case, results, dtype)
        absent += missing
        if wrong:
            failing.append(Failing(case, results, tuple(mismatch.tensor for mismatch in wrong)))
            found[case.id] = wrong
        elif not missing:
            passing.append(case)
        if progress is not None:
            progress(done, len(chosen))
    failures, diagnosis = _failures(failing, found, passing, dtype, target)
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
        chosen = [case.cast(dtype) for case in layers] + [case for case in chosen if case.kind != "layer"]
    if not chosen:
        raise ValueError(f"kinds: {wanted!r}; no case is left to check")
    return chosen


def _failures(
    failing: Sequence[Failing],
    found: Mapping[str, list[Mismatch]],
    passing: Sequence[Case],
    dtype: str | None,
    target: str,
) -> tuple[tuple[Failure, ...], str]:
    """The failures, smallest first, each with the diagnosis of its kind, and all diagnoses in one text."""
    texts = {}
    for kind in KINDS:
        of_kind = [f for f in failing if f.case.kind == kind]
        if of_kind:
            names = diagnose(of_kind, [case for case in passing if case.kind == kind], dtype)
            texts[kind] = names[0] if len(names) == 1 else "any of these, no failure tells: " + "; ".join(names)
    failures = [
        Failure(f.case, tuple(found[f.case.id]), texts[f.case.kind], f"randlora-ref check {target} --case {f.case.id}")
        for f in sorted(failing, key=lambda f: f.case.size)
    ]
    several = "; ".join(f"{kind}: {text}" for kind, text in texts.items())
    return tuple(failures), next(iter(texts.values())) if len(texts) == 1 else several
