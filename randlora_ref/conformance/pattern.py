"""What failing cases have in common that the others lack; errors, shapes and non-finite results in those words."""

from collections.abc import Iterator, Sequence

import numpy as np

from .answers import expected
from .cases import Case
from .compare import Verdict

RAISED = "raised "  # how a text begins that stands for a result because the implementation raised
MEANING = {"dgamma (n, r)": "gamma of length r", "dlambda (n, 1)": "one scalar for each base"}


def features(case: Case) -> dict[str, bool]:
    """What may be true of a case, in words."""
    flagged = dict.fromkeys(case.notes, True)
    if case.kind not in ("layer", "rank"):
        return flagged | {f"of {case.dialect}": True, f"of {case.kind_of_basis} bases": True}
    (n, r), (out, in_) = case.lambda_.shape, case.shape if case.weight is None else case.weight.shape
    flagged |= {"rectangular": out != in_, "wide": out < in_, "tall": out > in_, "literal": case.pairing == "literal"}
    flagged |= {"with n > 1": n > 1, "with r > 1": r > 1, "with n·r = d": n * r == min(out, in_)}
    return flagged | {"with s = 1": case.scaling == 1, "real": case.tier == "real", "float32": case.dtype == "float32"}


def pattern(inside: Sequence[Case], outside: Sequence[Case]) -> str:
    """What all of ``inside`` are and the others are not: up to three features or their opposites, the sharpest first.

    Cases in which little can show, of Λ = 0 or of no rows, are not counted among the others.
    """
    outside = [case for case in outside if {"start", "empty batch"}.isdisjoint(case.notes)]
    rows = [features(case) for case in (*inside, *outside)]
    names = sorted({name for row in rows for name in row})
    table = np.array([[row.get(name, False) for name in names] for row in rows])
    table, words = np.hstack([table, ~table]), [*names, *(f"not {name}" for name in names)]
    held = [i for i in range(len(words)) if table[: len(inside), i].all()]
    others, chosen = table[len(inside) :], list[int]()
    while held and len(others) and len(chosen) < 3:
        best = min(held, key=lambda i: int(others[:, i].sum()))
        if others[:, best].all():
            break
        chosen, others = [*chosen, best], others[others[:, best]]
    if len(others) > len(outside) / 2:
        return "cases that have nothing in common"
    text = f"every case that is {', '.join(words[i] for i in chosen)}" if chosen else "every case"
    return text + f", but for {len(others)} that are so too" * bool(len(others))


def _where(chosen: Sequence[Verdict], verdicts: Sequence[Verdict]) -> str:
    return pattern([one.case for one in chosen], [one.case for one in verdicts if one not in chosen])


def raises(verdict: Verdict) -> str:
    """What the implementation raised on a case, or ""."""
    return next((x for x in verdict.results.values() if isinstance(x, str) and x.startswith(RAISED)), "")


def errors(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Which cases raise, and what."""
    if raised := [verdict for verdict in verdicts if raises(verdict)]:
        yield f"raises {raises(raised[0]).removeprefix(RAISED)}: {_where(raised, verdicts)}"


def statements(verdicts: Sequence[Verdict], explained: bool = False) -> Iterator[str]:
    """Errors and results that are no finite arrays of their shape; ``explained``: a choice says why."""
    if not explained:
        yield from errors(verdicts)
    problems = dict.fromkeys((m.tensor, m.problem) for verdict in verdicts for m in verdict.mismatches)
    for name, problem in problems:
        has = [
            v for v in verdicts if not raises(v) and (name, problem) in ((m.tensor, m.problem) for m in v.mismatches)
        ]
        modelled = problem == "shape" and explained and name in ("delta_weight", "dlambda", "dgamma")
        if has and problem != "value" and not modelled:
            yield f"{name} {_shape(name, has) if problem == 'shape' else problem}: {_where(has, verdicts)}"


def _shape(name: str, has: Sequence[Verdict]) -> str:
    """The shape that a result has and the one that it must have, in symbols where they are the same in all cases."""
    got, asked = (
        _symbols(has, shapes)
        for shapes in (
            [np.shape(verdict.results[name]) for verdict in has],
            [expected(verdict.case)[name].shape for verdict in has],
        )
    )
    meaning = MEANING.get(f"{name} {got}")
    return f"of shape {got}, not {asked}" + (f": {meaning}" if meaning else "")


def _symbols(has: Sequence[Verdict], shapes: Sequence[tuple[int, ...]]) -> str:
    if has[0].case.kind != "layer" or len({len(shape) for shape in shapes}) > 1:
        return str(shapes[0])
    sizes = [dict(zip(("n", "r"), v.case.lambda_.shape, strict=True)) for v in has]
    for row, verdict in zip(sizes, has, strict=True):
        out, in_ = verdict.case.weight.shape
        row |= {"d": min(out, in_), "D": max(out, in_), "out": out, "in": in_, "1": 1}
    axes = [
        next((s for s in sizes[0] if all(row[s] == k for row, k in zip(sizes, axis, strict=True))), str(axis[0]))
        for axis in zip(*shapes, strict=True)
    ]
    return f"({', '.join(axes)})"


def next_steps(failing: Sequence[Verdict]) -> Iterator[str]:
    """Where nothing fits: which results are right throughout, and where to look first."""
    wrong = {name for verdict in failing for name in verdict.wrong}
    first = min(failing, key=telling)
    if sound := [name for name in first.case.wanted if name not in wrong and name in first.results]:
        yield f"right throughout: {', '.join(sound)}"
    yield f"look first at {first.case.id}: {', '.join(first.wrong)}"


def telling(verdict: Verdict) -> tuple[bool, int]:
    """The order of failures to look at: those in which a cause can show, the smallest first; n, r > 1."""
    case = verdict.case
    plain = case.kind != "layer" or (min(case.lambda_.shape) > 1 and case.x.size > 0 and bool(np.any(case.lambda_)))
    return not plain, case.size
