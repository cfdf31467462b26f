"""Check an implementation against cases, and say what came of it."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from .. import arrays, checks
from ..rank.exact import Progress
from .cases import KINDS, Case, of_dialect
from .compare import MISSING, Absent, Mismatch, Verdict, judge
from .diagnose import diagnose
from .vectors import stored_cases

Implementation = Callable[[Case], Mapping[str, Any]]
SHOWN = 100  # characters of an exception's message


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

    def to_json(self) -> dict[str, Any]:
        """The failure as JSON values."""
        head = {"case": self.case.id, "clause": self.case.clause, "notes": self.case.notes, "diagnosis": self.diagnosis}
        return {**head, "mismatches": [one.line() for one in self.mismatches], "reproduce": self.reproduce}


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
    def at_fault(self) -> bool:
        """A failure, a result missing without a reason, or a pass where a failure is known: the list is out of date."""
        missing = any(reason == MISSING for _, _, reason in self.absent)
        return bool(self.failures or missing or self.details.get("unexpected"))

    @property
    def passed(self) -> bool:
        """Nothing at fault, and at least one case passed."""
        return not self.at_fault and self.passed_cases > 0

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
        return {**{name: getattr(self, name) for name in plain}, "failures": [one.to_json() for one in self.failures]}


def name_of(implementation: Implementation) -> str:
    """ "module:function", as ``randlora-ref check`` takes it."""
    names = (getattr(implementation, name, name.strip("_")) for name in ("__module__", "__qualname__"))
    return ":".join(names)


def run_case(implementation: Implementation, case: Case, dtype: str | None = None) -> Verdict:
    """What comes of a case whose arrays are the implementation's own to change; an exception is a result too."""
    try:
        results = implementation(case.with_arrays(np.array))
        if not isinstance(results, Mapping):
            text = f"returned {type(results).__name__} {str(results)[:SHOWN]!r}, no results by name"
            results = dict.fromkeys(case.wanted, text)
    except NotImplementedError as error:
        results = dict.fromkeys(case.wanted, f"unsupported: {error}")
    except Exception as error:  # whatever an implementation under test raises is its failure, not ours
        text = f"raised {type(error).__name__}: {str(error).splitlines()[0][:SHOWN] if str(error) else ''}"
        results = dict.fromkeys(case.wanted, text)
    return judge(case, results, dtype)


def check(
    implementation: Implementation,
    kinds: Iterable[str] | None = None,
    *,
    cases: Iterable[Case] | None = None,
    dtype: str | None = None,
    target: str | None = None,
    progress: Progress | None = None,
    dialect: str | None = None,
) -> Report:
    """Compare ``implementation(case) -> {name: array}`` with the specification on ``cases`` (None: the stored vectors).

    ``dialect`` keeps those that its own code computes as they ask for it; None, of the stored ones, those of paper and
    PEFT. ``kinds`` keeps some of "layer", "bases", "start", "count", "rank", "block". ``dtype`` declares a lower
    precision, such as "bfloat16": the cases are rounded to it first, starts compared in it. Blocks are left out below
    float32, where no limit would part right from wrong. ``progress(case, part)`` is called as work goes on.
    Raises ValueError for an unknown kind, dtype or dialect, or if no case is left.
    """
    checks.instance("target", target, str | None)
    checks.instance("progress", progress, Callable | None)
    begin, target = perf_counter(), named_target(target or name_of(implementation), dialect)
    chosen, verdicts = choose(kinds, cases, dtype, dialect), []
    for done, case in enumerate(chosen, 1):
        verdicts.append(run_case(implementation, case, dtype))
        if progress is not None:
            progress(f"case {done} of {len(chosen)}", done / len(chosen))
    return report_of(verdicts, target, dtype, perf_counter() - begin)


def named_target(target: str, dialect: str | None) -> str:
    """A target as the command takes it, with the dialect that it is held to."""
    return target if dialect is None else f"{target} --dialect {dialect}"


def choose(
    kinds: Iterable[str] | None, cases: Iterable[Case] | None, dtype: str | None, dialect: str | None = None
) -> Sequence[Case]:
    """``check``'s cases of these kinds (None: all) and this dialect, rounded to ``dtype`` if one is declared."""
    checks.choice("dtype", dtype, (None, *arrays.UNIT_ROUNDOFF))
    for name, value in (("kinds", kinds), ("cases", cases)):
        checks.instance(name, value, Sequence | Set | Iterator | None)
    wanted = tuple(KINDS) if kinds is None else (kinds,) if isinstance(kinds, str) else tuple(kinds)
    for kind in wanted:
        if not isinstance(kind, str) or kind not in KINDS:
            raise ValueError(f"kinds: {kind!r}; it must be some of {', '.join(KINDS)}")
    if dialect is not None:
        cases = of_dialect(stored_cases() if cases is None else cases, dialect)
    elif cases is None:
        cases = [case for case in stored_cases() if case.dialect in ("paper", "peft")]
    cases = list(cases)
    for case in cases:
        checks.instance("cases", case, Case)
    chosen = [case for case in cases if case.kind in wanted]
    if dtype is not None:
        layers = [case for case in chosen if case.kind == "layer" and (case.tier == "real" or dtype in case.exact_in)]
        layers += [case for case in chosen if case.kind == "block" and dtype in ("float32", "float64")]
        chosen = [c.cast(dtype) for c in layers] + [c for c in chosen if c.kind not in ("layer", "block")]
    if not chosen:
        raise ValueError(f"kinds: {wanted!r}; no case is left to check")
    return chosen


def report_of(
    verdicts: Sequence[Verdict], target: str, dtype: str | None, seconds: float, only: str | None = None
) -> Report:
    """The report of all verdicts; ``only`` are the arguments that repeat a failure (None: the case by its id)."""
    failing = sorted((verdict for verdict in verdicts if verdict.wrong), key=lambda verdict: verdict.case.size)
    passing = [verdict.case for verdict in verdicts if not (verdict.wrong or verdict.absent)]
    texts, failures = {}, []
    for kind in KINDS:
        if of_kind := [verdict for verdict in failing if verdict.case.kind == kind]:
            names = diagnose(of_kind, [case for case in passing if case.kind == kind], dtype)
            texts[kind] = names[0] if len(names) == 1 else "any of these, no failure tells: " + "; ".join(names)
    declared = f" --dtype {dtype}" if dtype else ""
    for one in failing:
        again = f"randlora-ref check {target} {only or f'--case {one.case.id}'}{declared}"
        failures.append(Failure(one.case, one.mismatches, texts[one.case.kind], again))
    absent = tuple(row for verdict in verdicts for row in verdict.absent)
    diagnosis = "; ".join(text if len(texts) == 1 else f"{kind}: {text}" for kind, text in texts.items())
    return Report(target, len(passing), tuple(failures), absent, diagnosis, seconds)
