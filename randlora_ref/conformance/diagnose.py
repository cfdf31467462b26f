"""What does a wrong implementation compute instead? Layers by ``configure``, other kinds by ``rules``.

A diagnosis reproduces every result of every case, right ones too; several that do so are a tie, and all are listed;
where none does, that is said, with the next step, and nothing is guessed.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np

from ..arrays import unit_roundoff
from .answers import expected
from .cases import Case
from .compare import Verdict, judge
from .configure import Cell, configurations
from .pattern import errors, instead, next_steps, numbers, pattern, statements
from .rules import ruled
from .stages import GRADIENTS, layer_of

Cause = tuple[tuple[str, ...], tuple[str, ...]]  # all that the failures of a kind look like, and what else is known
NONE = "no known deviation"
LOWER = (("float32", "float32"), ("float16", "TF32 or float16"), ("bfloat16", "bfloat16"))


def diagnose(
    failing: Sequence[Verdict], passing: Sequence[Case | Verdict] = (), dtype: str | None = None
) -> tuple[str, ...]:
    """The deviations that reproduce all results of all cases of one kind; several are a tie; NONE if none does."""
    right = (one if isinstance(one, Verdict) else Verdict(one, expected(one), ()) for one in passing)
    return diagnosis([*failing, *right], dtype)[0]


def diagnosis(verdicts: Sequence[Verdict], dtype: str | None) -> Cause:
    """``diagnose``, and what else to know: the pattern; the errors, or where nothing fits, the next steps."""
    failing = [verdict for verdict in verdicts if verdict.wrong]
    shared = f"{len(failing)} of {len(verdicts)} fail: {pattern(failing, verdicts)}"
    names, hint = (_layers if failing[0].case.kind == "layer" else _others)(verdicts, dtype)
    if names:
        return tuple(names), (shared, *errors(verdicts))
    return ("; ".join(statements(verdicts)) or NONE,), (shared, *hint, *next_steps(failing))


def _layers(verdicts: Sequence[Verdict], dtype: str | None) -> tuple[list[str], list[str]]:
    """The configurations of layers, in the precision declared or the first lower one in which there is any.

    First with errors and other shapes to be explained, then without.
    """
    hint: list[str] = []
    unanswered = any(mismatch.problem in ("shape", "not numbers") for v in verdicts for mismatch in v.mismatches)
    for (lower, name), answered in product(((None, ""), *LOWER), (False, True)[: 1 + unanswered]):
        texts, failed = configurations(_cells(verdicts, dtype, lower, answered))
        if not failed:
            said = [*[f"computed in the precision of {name}"] * bool(lower), *statements(verdicts, not answered)]
            whole = ["; ".join(filter(None, [text, *said])) for text in texts]
            return whole if all(whole) else ["rounded where integers are exact"], []
        hint = hint or [f"up to {failed}: {text}" for text in texts if text]
    return [], hint


def _cells(verdicts: Sequence[Verdict], dtype: str | None, lower: str | None, answered: bool) -> list[Cell]:
    """Each result of each layer, failing and large cases first; ``answered``: without errors and other shapes."""
    cells = []
    for verdict in sorted(verdicts, key=lambda one: (not one.wrong, -one.case.size)):
        case, values = verdict.case, numbers(verdict)
        exact = case.tier == "exact" and lower in case.exact_in  # what is exact in it has no error
        coarser = lower and not exact and unit_roundoff(lower) > unit_roundoff(dtype or case.dtype)
        layer = layer_of(case, lower if coarser else dtype)
        other = {name for name, x in values.items() if x is not None and x.shape != layer.limits[name].shape}
        nothing = instead(verdict) or ("delta_weight" in other and not answered)  # no layer can add that to W0
        if nothing and not answered:
            cells += [Cell(name, layer, None, 0.0) for name in values]
        for name, value in () if nothing else values.items():
            fits = name not in other or (name in GRADIENTS and not answered)
            if value is not None and fits and np.all(np.isfinite(value)):
                cells.append(Cell(name, layer, value, layer.limit(name, value)))
    return cells


def _others(verdicts: Sequence[Verdict], dtype: str | None) -> tuple[list[str], list[str]]:
    """Bases, counts and starts by their rules; a block's precision; where there is an error, what is said of it."""
    said, u = list(statements(verdicts)), unit_roundoff("float32")
    if verdicts[0].case.kind == "block":
        lower = all(u > unit_roundoff(dtype or one.case.dtype) for one in verdicts)
        off = said or any(judge(one.case, one.results, "float32").wrong for one in verdicts)
        return ["computed in the precision of float32"] * (lower and not off), []
    return ["; ".join(filter(None, [name, *said])) for name in ruled(verdicts) if name or said], []
