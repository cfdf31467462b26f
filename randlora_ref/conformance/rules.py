"""What wrong bases, starts and counts are made by: named rules, one at each stage, in the place of the right ones.

As with layers the fewest that reproduce all cases are the diagnosis; A and B may each go its own way.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import product
from typing import Any, get_args

import numpy as np

from ..dialects import DIALECTS, StartRule
from ..spec import CountRule, number_of_terms, sides
from . import oracle
from .cases import BASIS_KINDS, Case
from .compare import Verdict
from .pattern import numbers
from .stages import Choice, choices, picked

Array = Any
Stages = Sequence[Mapping[str, Any]]
Rows = Sequence[tuple[Case, Mapping[str, Array]]]  # what is answered to each case
# Each rule of the bases and what ``oracle`` calls it.
BASES: Stages = (
    {f"the bases of dialect {name}": name for name in DIALECTS},
    {"dense bases": "dense", "sparse bases, s = 6": "sparse", "very sparse bases": "very_sparse"},
    {"population deviation": "population"},
    {"no normalisation": "raw", "B by A's deviation": "B by A", "normalised per term": "per term"}
    | {"normalised per term, then whole": "per term, then whole"},
    {"not centred": "not centred", "without the factor sqrt(3)": "no variance"},
    {"drawn in float32": "float32", "drawn in float16": "float16"},
    {"B drawn before A": "B first", "A drawn row by row": "A row by row"},
    {"B drawn at once as (D, n, r)": "B at once", "streams counted from 0": "streams from 0"},
    {"s = sqrt(D), as the paper": "s = sqrt(D)"},
    {"shared sides by layer, not by (out, in)": "sides apart"},
    {"seed plus one": "seed + 1"},
)
# n of a layer's shape, r and the network's shapes; values of a layer of n, r, D, d; what else is learned.
COUNTS: Stages = (
    {f"n by {rule}": lambda s, r, _, rule=rule: number_of_terms(s, r, rule) for rule in get_args(CountRule)}
    | {
        "n of the whole network": lambda s, r, every: max(number_of_terms(one, r) for one in every),
        "n of the network's sides, 1024 at most": lambda s, r, every: -(-min(1024, *np.max(every, axis=0)) // r),
        "n of a side of 1024 at most": lambda s, r, _: -(-min(1024, *s) // r),
        "n of 1000 at most": lambda s, r, _: min(1000, number_of_terms(s, r)),
        "n from the large side": lambda s, r, _: -(-max(s) // r),
    },
    {
        "lambda not counted": lambda n, r, D, d: n * d,
        "gamma not counted": lambda n, r, D, d: n * r,
        "gamma on the large side": lambda n, r, D, d: n * (r + D),
        "gamma of length r": lambda n, r, D, d: n * 2 * r,
        "one value for each base": lambda n, r, D, d: n,
        "LoRA's count, r(out + in)": lambda n, r, D, d: r * (D + d),
    },
    {"A counted as learned": lambda n, r, D, d: r * d},
)


def _fewest(stages: Stages, most: int, fits: Callable[[Choice], bool]) -> list[str]:
    """The smallest sets of rules that fit, in words."""
    places = [name for stage in stages for name in stage]
    for size in range(most + 1):
        if found := [rules for rules in choices(stages, size) if fits(rules)]:
            return [" and ".join(sorted(rules, key=places.index)) for rules in found]
    return []


@lru_cache(maxsize=4096)
def _drawn(case: Case, rules: Choice) -> tuple[Array, Array]:
    """A and B under other rules; no arrays where the case has no room for them."""
    faults = {stage[name] for stage in BASES for name in rules & stage.keys()}
    dialect = next(iter(faults & DIALECTS.keys()), case.dialect)
    kind = next(iter(faults & set(BASIS_KINDS)), case.kind_of_basis)
    seed = case.seed + ("seed + 1" in faults)
    try:
        with np.errstate(all="ignore"):
            return oracle.bases(seed, case.shapes, case.rank, kind, dialect, faults, case.context)
    except (ValueError, ZeroDivisionError, OverflowError, IndexError, KeyError):
        return np.nan, np.nan


def _gives(rules: Choice, case: Case, name: str, actual: Array, exact: bool) -> bool:
    """Whether rules give A or B; exactly, or but for a factor and within rounding."""
    drawn = _drawn(case, rules)["AB".index(name)]
    if exact or actual.shape != np.shape(drawn) or not np.all(np.isfinite(drawn)):
        return np.array_equal(actual, drawn)
    factor, u = np.vdot(drawn, actual) / (np.vdot(drawn, drawn) or 1.0), 2.0**-8 if case.dialect == "peft" else 2.0**-22
    return bool(np.max(np.abs(actual - factor * drawn)) <= 2 * u * np.max(np.abs(actual)))


def bases(rows: Rows) -> list[str]:
    """The fewest rules that give A and B, else A's and B's apart; exactly, else but for a factor of each array."""
    rows = sorted(rows, key=lambda row: row[1]["B"].size)  # what is quickly drawn decides first

    def fewest(most: int, exact: bool, names: str = "AB") -> list[str]:
        asked = [(case, name, given[name]) for case, given in rows for name in names]
        return _fewest(BASES, most, lambda rules: all(_gives(rules, *one, exact) for one in asked))

    def apart(exact: bool) -> list[str]:
        each = product(*(fewest(2, exact, name) for name in "AB"))
        return [", ".join(f"{text} in {name}" for text, name in zip(some, "AB", strict=True) if text) for some in each]

    found = fewest(2, True) or apart(True)
    if not found and rows[0][1]["B"].size < 100:  # each set is drawn entry by entry
        found = fewest(3, True)
    rough = [] if found else fewest(1, False) or apart(False)
    return found or ["; ".join(filter(None, (text, "normalised otherwise"))) for text in rough]


def count(rows: Rows) -> list[str]:
    """The fewest rules of n, of the values of a term and of what else is learned."""

    def total(case: Case, rules: Choice) -> int:
        dialect, r = DIALECTS[case.dialect], case.rank
        terms = picked(COUNTS[0], rules, lambda s, r, _: dialect.terms(s, r, context=case.context))
        values = picked(COUNTS[1], rules, lambda n, r, D, d: n * (r + d))
        more = picked(COUNTS[2], rules, lambda n, r, D, d: 0)
        layers = [(terms(s, r, case.shapes), r, *sides(s, dialect.orientation)) for s in case.shapes]
        return sum(values(*sizes) + more(*sizes) for sizes in layers)

    return _fewest(COUNTS, 3, lambda rules: all(row["num_parameters"] == total(case, rules) for case, row in rows))


def start(rows: Rows) -> list[str]:
    """What fills Λ and Γ, each by a rule of the sizes, or neither constant nor by any; and whether ΔW is zero."""

    def fills(rule: Any, name: str, case: Case, row: Mapping[str, Array]) -> bool:
        value, _ = replace(DIALECTS[case.dialect], lambda_start=rule).start(case.shape, case.rank, len(row["lambda_"]))
        return np.allclose(row[name], value, rtol=2.0**-22, atol=0)

    parts, by_rule = [], {}
    for name in ("lambda_", "gamma"):
        by_rule[name] = [rule for rule in get_args(StartRule) if all(fills(rule, name, *row) for row in rows)]
        values = np.concatenate([np.ravel(row[name]) for _, row in rows])
        random = f"not of its sizes, mean {values.mean():.2g}, deviation {values.std():.2g}"
        parts.append(f"{name.strip('_')} {' or '.join(by_rule[name]) or random}")
    for one in reversed(DIALECTS.values()):
        if one.lambda_start in by_rule["lambda_"] and one.gamma_start in by_rule["gamma"]:
            parts = [f"the start of dialect {one.name}"]
    return [" and ".join([*parts, *["ΔW ≠ 0"] * any(np.any(row["delta_weight"]) for _, row in rows)])]


RULES = {"bases": bases, "count": count, "start": start}


def ruled(verdicts: Sequence[Verdict]) -> list[str]:
    """The rules of bases, starts or counts that give all that is there."""
    sound = [one for one in verdicts if not one.absent and all(wrong.problem == "value" for wrong in one.mismatches)]
    rows = [(one.case, numbers(one)) for one in sound]
    return RULES[verdicts[0].case.kind](rows) if rows and verdicts[0].case.kind in RULES else []
