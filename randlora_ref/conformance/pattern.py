"""What failing cases have in common that the others lack; errors, shapes and non-finite results in those words."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .answers import expected
from .cases import Case
from .compare import Instead, Verdict, as_numbers

MEANING = {"dgamma (n, r)": "gamma of length r", "dlambda (n, 1)": "one scalar for each base"}


def features(case: Case) -> set[str]:
    """What is true of a case, in words."""
    if case.kind not in ("layer", "rank"):
        return {*case.notes, f"of {case.dialect}", f"of {case.kind_of_basis} bases"}
    (n, r), (out, in_) = case.lambda_.shape, case.shape
    holds = {"rectangular": out != in_, "wide": out < in_, "tall": out > in_, "literal": case.pairing == "literal"}
    holds |= {"with n > 1": n > 1, "with r > 1": r > 1, "with n·r = d": n * r == min(out, in_)}
    holds |= {"with s = 1": case.scaling == 1, "real": case.tier == "real", "float32": case.dtype == "float32"}
    return {*case.notes, *(word for word, true in holds.items() if true)}


def pattern(inside: Sequence[Verdict], among: Sequence[Verdict]) -> str:
    """What all ``inside`` are and the others are not: up to three features or their opposites, the sharpest first.

    Cases in which little can show, of Λ = 0 or of no rows, are not counted among the others.
    """
    known = {id(one) for one in inside}  # verdicts that are alike are not the same
    outside = [one for one in among if id(one) not in known and not {"start", "empty batch"} & {*one.case.notes}]
    rows = [features(one.case) for one in (*inside, *outside)]
    names = sorted(set().union(*rows))
    rows = [row | {f"not {name}" for name in names if name not in row} for row in rows]
    words = [*names, *(f"not {name}" for name in names)]
    held = [word for word in words if all(word in row for row in rows[: len(inside)])]
    left, chosen = rows[len(inside) :], list[str]()
    while held and left and len(chosen) < 3:
        best = min(held, key=lambda word: sum(word in row for row in left))
        if all(best in row for row in left):
            break
        chosen, left = [*chosen, best], [row for row in left if best in row]
    if len(left) > len(outside) / 2:
        return "cases that have nothing of their own in common"
    text = f"every case that is {', '.join(chosen)}" if chosen else "every case"
    return text + f", but for {len(left)} that are so too" * bool(left)


def instead(verdict: Verdict) -> str:
    """What came in place of a case's results, or ""."""
    return next((x for x in verdict.results.values() if isinstance(x, Instead)), "")


def numbers(verdict: Verdict) -> dict[str, Any]:
    """The results that are wanted as arrays; None for what is no numbers."""
    return {name: as_numbers(verdict.results.get(name, "missing")) for name in verdict.case.wanted}


def errors(verdicts: Sequence[Verdict]) -> list[str]:
    """Which cases have no results, and what came instead."""
    without = [verdict for verdict in verdicts if instead(verdict)]
    return [f"{instead(without[0])}: {pattern(without, verdicts)}"] if without else []


def statements(verdicts: Sequence[Verdict], explained: bool = False) -> Iterator[str]:
    """Errors and results that are no finite arrays of their shape; ``explained``: a choice says why."""
    yield from () if explained else errors(verdicts)
    having: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        for mismatch in () if instead(verdict) else verdict.mismatches:
            having.setdefault((mismatch.tensor, mismatch.problem), []).append(verdict)
    for (name, problem), some in having.items():
        modelled = problem == "shape" and explained and name in ("delta_weight", "dlambda", "dgamma")
        if problem != "value" and not modelled:
            yield f"{name} {_shape(name, some) if problem == 'shape' else problem}: {pattern(some, verdicts)}"


def _shape(name: str, has: Sequence[Verdict]) -> str:
    """The shape that a result has and the one that it must have, in symbols where they are the same in all cases."""
    shapes = [np.shape(one.results[name]) for one in has], [expected(one.case)[name].shape for one in has]
    got, asked = (_symbols([one.case for one in has], some) for some in shapes)
    meaning = MEANING.get(f"{name} {got}")
    return f"of shape {got}, not {asked}" + (f": {meaning}" if meaning else "")


def _symbols(cases: Sequence[Case], shapes: Sequence[tuple[int, ...]]) -> str:
    if cases[0].kind != "layer" or len({len(shape) for shape in shapes}) > 1:
        return str(shapes[0])
    sizes = [(1, *c.shape[::-1], max(c.shape), min(c.shape), *c.lambda_.shape[::-1]) for c in cases]
    names = dict(zip(zip(*sizes, strict=True), ("1", "in", "out", "D", "d", "r", "n"), strict=True))
    return f"({', '.join(names.get(axis, str(axis[0])) for axis in zip(*shapes, strict=True))})"


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
