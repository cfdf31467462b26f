"""Check an implementation against cases, and say what came of it."""

import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from time import perf_counter
from typing import Any

import numpy as np

from .. import arrays, checks
from ..arrays import brief
from ..rank.exact import Progress
from .cases import KINDS, Case, of_dialect
from .compare import MISSING, Absent, Instead, Mismatch, Verdict, judge
from .diagnose import Cause, diagnosis
from .pattern import instead, telling
from .vectors import stored_cases

Implementation = Callable[[Case], Mapping[str, Any]]
Causes = Callable[[], Mapping[str, Cause]]
SHOWN = 100  # characters of an exception's message
LINES, COLUMNS = 25, 120  # of a report
SHOWN_FAILURES, SHOWN_RESULTS, SHOWN_TIES = 3, 2, 3
LIKE = "looks like: "


@dataclass(frozen=True)
class Failure:
    """A case that failed: its wrong results and what they look like. ``reproduce`` is "" if no command repeats it."""

    case: Case
    mismatches: tuple[Mismatch, ...]
    reproduce: str
    raised: str = ""
    find: Causes = field(default=dict, repr=False)

    @property
    def diagnosis(self) -> str:
        """What the failures of its kind look like."""
        ties, _ = self.find()[self.case.kind]
        return "any of these: " * (len(ties) > 1) + "; ".join(ties)

    def lines(self) -> list[str]:
        """Case, clause and flags; the first wrong results, or the error; the diagnosis; the command that repeats it."""
        lines = [self.raised] if self.raised else [mismatch.line() for mismatch in self.mismatches[:SHOWN_RESULTS]]
        if not self.raised and (rest := self.mismatches[SHOWN_RESULTS:]):
            lines.append(f"wrong as well: {', '.join(mismatch.tensor for mismatch in rest)}")
        if self.case.kind == "block":
            lines.append("limit: u·max(2¹⁰·largest of the tensor, largest of the case)")
        lines += [f"{LIKE}{self.diagnosis}", *[f"again: {self.reproduce}"] * bool(self.reproduce)]
        head = f"FAIL {self.case.id}, {self.case.clause} ({', '.join(self.case.notes) or 'plain'})"
        return [head, *(f"    {line}" for line in lines)]

    def to_json(self) -> dict[str, Any]:
        """The failure as JSON values."""
        head = {"case": self.case.id, "clause": self.case.clause, "notes": self.case.notes, "diagnosis": self.diagnosis}
        return {**head, "mismatches": [one.line() for one in self.mismatches], "reproduce": self.reproduce}


@dataclass(frozen=True)
class Report:
    """What a check found. ``absent`` lists what did not come, with the reason: it is never counted as passed.

    What the failures look like is found when it is asked for.
    """

    target: str
    passed_cases: int
    failures: tuple[Failure, ...] = ()
    absent: tuple[Absent, ...] = ()
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)
    find: Causes = field(default=dict, repr=False)
    kinds: tuple[str, ...] = ()  # of the cases that passed
    __repr__ = brief

    @property
    def causes(self) -> Mapping[str, Cause]:
        """Of each kind that fails, all that its failures look like, and what else is known of them."""
        return self.find() if self.failures else {}

    @property
    def diagnosis(self) -> str:
        """What the failures look like, in one line."""
        texts = {one.case.kind: one.diagnosis for one in self.failures}
        return "; ".join(text if len(texts) == 1 else f"{kind}: {text}" for kind, text in texts.items())

    @property
    def at_fault(self) -> bool:
        """A failure, a result missing without a reason, or a pass where a failure is known: the list is out of date."""
        missing = any(reason.startswith(MISSING) for _, _, reason in self.absent)
        return bool(self.failures or missing or self.details.get("unexpected"))

    @property
    def passed(self) -> bool:
        """Nothing at fault, and at least one case passed."""
        return not self.at_fault and self.passed_cases > 0

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self, most: int = SHOWN_FAILURES) -> list[str]:
        """Diagnosis and pattern; the ``most`` most telling failures; what is absent by reason; the verdict.

        ``LINES`` of ``COLUMNS`` characters, unless more failures are asked for or there are more reasons.
        """
        head = [f"FAILED {len(self.failures)} of {len(self.failures) + self.passed_cases} cases"]
        for kind, (ties, notes) in self.causes.items():
            head.append(f"{kind}: " * (len(self.causes) > 1) + f"{LIKE}{ties[0]}")
            head += [f"    or like: {tie}" for tie in ties[1:SHOWN_TIES]]
            head += [f"    … or like {len(ties) - SHOWN_TIES} more; --json has all"] * (len(ties) > SHOWN_TIES)
            head += [f"    {note}" for note in notes]
        head, tail = wrapped(head if self.failures else []), wrapped(self._tail())
        blocks = [wrapped(line for line in one.lines() if LIKE not in line) for one in self.failures[:most]]
        while most == SHOWN_FAILURES and blocks and len([*head, *chain(*blocks), *tail]) >= LINES:
            blocks.pop()
        more = [f"… and {len(self.failures) - len(blocks)} failures more"] * (len(self.failures) > len(blocks))
        return [*head, *chain(*blocks), *more, *tail]

    def _tail(self) -> list[str]:
        """What is absent or known, and the sum."""
        lines = []
        for reason, number in Counter(reason for _, _, reason in self.absent).items():
            case, result = next(row[:2] for row in self.absent if row[2] == reason)
            lines.append(f"not checked: {number} results, {reason}; the first is {result} of {case}")
        for reason, number in Counter(self.details.get("known", {}).values()).items():
            lines.append(f"known to fail: {number} cases, {reason}")
        versions = self.details.get("versions", {})
        lines += [", ".join(f"{name} {version}" for name, version in versions.items())] * bool(versions)
        lines += [f"UNEXPECTED PASS: {id_}" for id_ in self.details.get("unexpected", ())]
        left = [kind for kind in KINDS if kind not in self.kinds]
        if self.passed and left:
            lines.append(f"passed: {', '.join(self.kinds)}; not checked: {', '.join(left)}")
        sums = f"{self.passed_cases} cases passed, {len(self.failures)} failed"
        sums += f", {len({case for case, _, _ in self.absent})} not fully checked, {self.seconds:.1f} s"
        return [*lines, f"{self.target}: {'PASSED' if self.passed else 'FAILED'}, {sums}"]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        plain = ("target", "passed", "passed_cases", "diagnosis", "absent", "seconds", "details", "causes")
        return {**{name: getattr(self, name) for name in plain}, "failures": [one.to_json() for one in self.failures]}


def wrapped(lines: Iterable[str]) -> list[str]:
    """Lines of at most ``COLUMNS`` characters."""
    return [part for line in lines for part in textwrap.wrap(line, COLUMNS, subsequent_indent=" " * 8)]


def name_of(implementation: Implementation) -> str:
    """ "module:function", as ``randlora-ref check`` takes it."""
    module = getattr(implementation, "__module__", "module")
    return f"{module}:{getattr(implementation, '__qualname__', type(implementation).__qualname__)}"


def can_be_named(implementation: Implementation) -> bool:
    """Whether another process would find it under its name: no lambda, no partial, nothing of ``__main__``."""
    module, _, name = name_of(implementation).partition(":")
    found: Any = None if module == "__main__" else sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is implementation


def run_case(implementation: Implementation, case: Case, dtype: str | None = None) -> Verdict:
    """What comes of a case whose arrays are the implementation's own to change; an exception is a result too."""
    try:
        results = implementation(case.with_arrays(np.array))
        known = isinstance(results, Mapping)
        text = "" if known else f"returned {type(results).__name__} {str(results)[:SHOWN]!r}, no results by name"
    except NotImplementedError as error:
        text = f"unsupported: {error}"
    except Exception as error:  # whatever an implementation under test raises is its failure, not ours
        text = f"raises {type(error).__name__}: {str(error).splitlines()[0][:SHOWN] if str(error) else ''}"
    return judge(case, dict.fromkeys(case.wanted, Instead(text)) if text else results, dtype)


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
    begin, only = perf_counter(), None if target or can_be_named(implementation) else ""
    target = named_target(target or name_of(implementation), dialect)
    chosen, verdicts = choose(kinds, cases, dtype, dialect), []
    for done, case in enumerate(chosen, 1):
        verdicts.append(run_case(implementation, case, dtype))
        if progress is not None:
            progress(f"case {done} of {len(chosen)}", done / len(chosen))
    return report_of(verdicts, target, dtype, perf_counter() - begin, only)


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
    given = list(stored_cases() if cases is None else cases)
    for case in given:
        checks.instance("cases", case, Case)
    if dialect is not None:
        given = list(of_dialect(given, dialect))
    elif cases is None:
        given = [case for case in given if case.dialect in ("paper", "peft")]
    chosen = [case for case in given if case.kind in wanted]
    if dtype is not None:
        layers = [case for case in chosen if case.kind == "layer" and (case.tier == "real" or dtype in case.exact_in)]
        layers += [case for case in chosen if case.kind == "block" and dtype in ("float32", "float64")]
        chosen = [c.cast(dtype) for c in layers] + [c for c in chosen if c.kind not in ("layer", "block")]
    if not chosen:
        held = "" if dialect is None else f"dialect: {dialect!r}, "
        raise ValueError(f"{held}kinds: {wanted!r}; no case is left to check")
    return chosen


def report_of(
    verdicts: Sequence[Verdict], target: str, dtype: str | None, seconds: float, only: str | None = None
) -> Report:
    """The report of all verdicts; ``only`` are the arguments that repeat a failure (None: the case by its id).

    No command can repeat it where ``only`` is "".
    """
    failing = sorted((verdict for verdict in verdicts if verdict.wrong), key=telling)
    passing = [verdict for verdict in verdicts if not verdict.wrong]
    declared = f" --dtype {dtype}" if dtype else ""

    @cache
    def find() -> dict[str, Cause]:
        kinds = dict.fromkeys(verdict.case.kind for verdict in failing)
        answered = [one for one in passing if len(one.absent) < len(one.case.wanted)]
        of = {kind: [one for one in (*failing, *answered) if one.case.kind == kind] for kind in kinds}
        return {kind: diagnosis(some, dtype) for kind, some in of.items()}

    def failure(one: Verdict) -> Failure:
        command = f"randlora-ref check {target} {only or f'--case {one.case.id}'}{declared}" if only != "" else ""
        return Failure(one.case, one.mismatches, command, instead(one), find)

    absent = tuple(row for verdict in verdicts for row in verdict.absent)
    passed = [verdict.case.kind for verdict in passing if not verdict.absent]
    failures, kinds = tuple(map(failure, failing)), tuple(dict.fromkeys(passed))
    return Report(target, len(passed), failures, absent, seconds, find=find, kinds=kinds)
