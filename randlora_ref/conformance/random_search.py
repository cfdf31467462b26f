"""A random search by hypothesis: small exact layers, shrunk to a smallest one that fails."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from random import Random
from time import perf_counter
from typing import Any

import numpy as np

from .. import checks
from ..arrays import UNIT_ROUNDOFF
from ..dialects import Dialect, get_dialect
from ..rank.exact import Progress
from ..spec import SPEC_VERSION
from .cases import Case, draw_layer, flags
from .compare import Verdict
from .report import Implementation, Report, choose, name_of, named_target, report_of, run_case

EXACT_IN = ("float64", "float32")  # what holds the results of these layers


def search(
    implementation: Implementation,
    count: int = 200,
    seed: int = 0,
    target: str | None = None,
    *,
    kinds: Any = None,
    dtype: str | None = None,
    progress: Progress | None = None,
    dialect: str | None = None,
) -> Report:
    """``check`` on ``count`` random layers, and on the smallest that fails if one does; the report names ``seed``."""
    import hypothesis
    from hypothesis import strategies as st

    checks.choice("dtype", dtype, (None, *UNIT_ROUNDOFF))
    count, seed, begin = checks.integer("count", count), checks.seed(seed), perf_counter()
    target = named_target(name_of(implementation) if target is None else target, dialect)
    rules = get_dialect("paper" if dialect is None else dialect)
    pairings = ["literal", "crossed"] if dialect is None else [rules.pairing]
    phases = hypothesis.Phase.generate, hypothesis.Phase.shrink
    settings = hypothesis.settings(max_examples=count, database=None, deadline=None, phases=phases)
    verdicts: list[Verdict] = []

    def fails(case: Case) -> bool:
        (case,) = choose(kinds, [case], dtype, dialect)
        verdicts.append(run_case(implementation, case, dtype))
        if progress is not None:
            progress(f"random layer {len(verdicts)}", min(1.0, len(verdicts) / count))
        return bool(verdicts[-1].wrong)

    # Flaky: it answers a case now so, now otherwise
    with suppress(hypothesis.errors.NoSuchExample, hypothesis.errors.Flaky):
        drawn = st.composite(_draw)(st, seed, dtype, rules, pairings)
        hypothesis.find(drawn, fails, settings=settings, random=Random(seed))
    first = next((index for index, verdict in enumerate(verdicts) if verdict.wrong), len(verdicts))
    smallest = [verdict for verdict in verdicts if verdict.wrong][-1:]  # what is between them is its shrinking
    only = f"--random {count} --seed {seed}"
    report = report_of(verdicts[:first] + smallest, target, dtype, perf_counter() - begin, only)
    return replace(report, details={"seed": seed, "count": count, "spec": SPEC_VERSION})


def _draw(draw: Any, st: Any, seed: int, dtype: str | None, rules: Dialect, pairings: Sequence[str]) -> Case:
    """A small layer of integers by ``rules``; everything shrinks: sizes to 1, each array to zeros, then ones."""
    out_features, in_features, r, entries = (draw(st.integers(1, most)) for most in (6, 6, 3, 6))

    def array(most: int, size: tuple[int, ...]) -> Any:
        fill = draw(st.integers(0, 9))
        rng = np.random.default_rng([entries, fill, *size])
        return (rng.integers(-most, most + 1, size) if fill > 1 else np.full(size, fill)).astype(np.float64)

    context = draw(st.integers(1, 6)) if rules.counted_side == "context" else None
    scaling = float(draw(st.sampled_from([1] if rules.scaling_rule == "1" else [1, 2, 4])))
    form = draw(st.sampled_from(["plain", "masked", "merged"]))
    case = draw_layer(
        f"search-{seed}", (out_features, in_features), r, rules, context,
        draw(st.sampled_from([(1,), (2,), (), (0,), (2, 2)])), [draw(st.integers(0, 2)) for _ in range(3)], array,
        pairing=draw(st.sampled_from(pairings)), scaling=scaling, alpha=scaling * r,
        tier="exact" if dtype is None or dtype in EXACT_IN else "real", exact_in=EXACT_IN,
        merged=form == "merged", fan_in_fan_out=draw(st.booleans()), **draw(st.sampled_from([{"bias": None}, {}])),
    )  # fmt: skip
    if form == "masked":
        case = replace(case, dropout_mask=2 * np.abs(array(1, case.x.shape)))
    return replace(case, notes=flags(case))
