"""What does a wrong implementation compute instead? Failing cases are computed again under named hypotheses.

A diagnosis must reproduce every failing result of every failing case. Pairs of hypotheses are tried on the three
smallest failures only; all that fit are listed; where none fits, that is said, and nothing is guessed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from .. import spec
from ..arrays import unit_roundoff
from ..dialects import DIALECTS, Dialect
from ..verify import gauge
from . import answers, oracle
from .answers import expected
from .cases import BASIS_KINDS, Case, flags
from .compare import Verdict, compare, limits

Array = Any
Outputs = Mapping[str, Array]
NONE = "no known deviation"
PAIRED, SPARED = 3, 40  # smallest failures that pairs are tried on; smallest right cases that must stay right
UNFIT = (ValueError, IndexError, ZeroDivisionError, TypeError)  # a hypothesis that does not apply to a case


@dataclass(frozen=True)
class Hypothesis:
    """A named deviation: other inputs or outputs of a case. It raises one of ``UNFIT`` where it does not apply."""

    name: str
    before: Callable[[Case], Case] = lambda c: c
    after: Callable[[Case, Outputs], Outputs] = lambda c, out: out


def _given(name: str, **change: Callable[[Case], Any]) -> Hypothesis:
    """Other inputs."""
    return Hypothesis(name, lambda c: replace(c, **{field: make(c) for field, make in change.items()}))


def _only(outputs: str, name: str, **change: Callable[[Case], Any]) -> Hypothesis:
    """The named outputs as with other inputs, the rest right."""

    def after(c: Case, out: Outputs) -> Outputs:
        changed = answers.layer(_given(name, **change).before(c))
        return {**out, **{output: changed[output] for output in outputs.split()}}

    return Hypothesis(name, after=after)


def _made(name: str, **change: Callable[[Case, Outputs], Array]) -> Hypothesis:
    """Other outputs, made of the right ones; with another ΔW go y and dx."""

    def after(c: Case, out: Outputs) -> Outputs:
        made = {**out, **{output: make(c, out) for output, make in change.items()}}
        if "delta_weight" in change:
            mask = 1 if c.dropout_mask is None else c.dropout_mask
            y = c.x @ c.weight.T + (c.x * mask) @ made["delta_weight"].T
            dx = c.dy @ c.weight + (c.dy @ made["delta_weight"]) * mask
            made |= {"y": y if c.bias is None else y + c.bias, "dx": dx}
        return made

    return Hypothesis(name, after=after)


def _backwards_product(c: Case, out: Outputs) -> Array:
    (n, r), (rows, columns) = c.lambda_.shape, c.weight.shape
    A, B = spec.layer_bases(c.A, c.B, n, c.weight.shape)
    S = c.scaling * (c.lambda_[:, :, None] * spec.khatri_rao(A, c.gamma)).reshape(n * r, -1)
    if rows != columns or n * r != rows:
        raise ValueError("a product of these shapes does not exist")
    return S @ np.concatenate([spec.term_basis(B, j, c.pairing) for j in range(n)], axis=1)


def _last(c: Case, ragged: bool = False) -> Array:
    """True over the last term of Λ, as a column; with ``ragged`` only where r does not divide d."""
    n, r = c.lambda_.shape
    return (np.arange(n) == n - 1)[:, None] & (n > 1 and (not ragged or min(c.weight.shape) % r != 0))


def _dropped(name: str, ragged: bool) -> Hypothesis:
    def before(c: Case) -> Case:
        return replace(c, lambda_=np.where(_last(c, ragged), 0.0, c.lambda_))

    return Hypothesis(name, before, lambda c, out: {**out, "dlambda": np.where(_last(c, ragged), 0.0, out["dlambda"])})


def _rows(c: Case) -> int:
    return max(1, int(np.prod(c.x.shape[:-1])))


# fmt: off
LAYER = (
    _given("crossed pairing", pairing=lambda c: "crossed"),
    _given("literal pairing", pairing=lambda c: "literal"),
    _only("dlambda dgamma", "other pairing in the gradients",
          pairing=lambda c: "literal" if c.pairing == "crossed" else "crossed"),
    _made("square layer transposed", delta_weight=lambda c, out: (
        out["delta_weight"].T if "square" in flags(c) else out["delta_weight"])),
    _made("wide layer reshaped, not transposed", delta_weight=lambda c, out: out["delta_weight"] if (
        "wide" not in flags(c)) else out["delta_weight"].T.reshape(c.weight.shape)),
    _made("factors multiplied in the wrong order", delta_weight=_backwards_product),
    _given("scaling r/alpha", scaling=lambda c: 1 / c.scaling),
    _given("scaling alpha, not alpha/r", scaling=lambda c: c.scaling * c.lambda_.shape[1]),
    _given("scaling over sqrt(n)", scaling=lambda c: c.scaling * len(c.lambda_) ** -0.5),
    _given("scaling over sqrt(r)", scaling=lambda c: c.scaling * c.lambda_.shape[1] ** -0.5),
    _given("scaling times sqrt(r), as alpha/sqrt(r)", scaling=lambda c: c.scaling * c.lambda_.shape[1] ** 0.5),
    _given("scaling left out", scaling=lambda c: 1.0),
    _given("scaling applied twice", scaling=lambda c: c.scaling**2),
    _only("dlambda dgamma", "scaling missing from the gradients", scaling=lambda c: 1.0),
    _only("dx", "scaling missing from dx", scaling=lambda c: 1.0),
    _given("lambda rolled by one term", lambda_=lambda c: np.roll(c.lambda_, 1, 0)),
    _given("gamma rolled by one term", gamma=lambda c: np.roll(c.gamma, 1, 0)),
    _given("lambda read as (r, n)", lambda_=lambda c: c.lambda_.reshape(c.lambda_.shape[::-1]).T),
    _given("gamma read as (d, n)", gamma=lambda c: c.gamma.reshape(c.gamma.shape[::-1]).T),
    _given("lambda and gamma swapped", lambda_=lambda c: c.gamma, gamma=lambda c: c.lambda_),
    _given("one lambda for all terms", lambda_=lambda c: 0 * c.lambda_ + c.lambda_[:1]),
    _given("one gamma for all terms", gamma=lambda c: 0 * c.gamma + c.gamma[:1]),
    _given("one scalar for each base", lambda_=lambda c: 0 * c.lambda_ + c.lambda_[:, :1]),
    _given("lambda ignored", lambda_=lambda c: 0 * c.lambda_ + 1),
    _given("gamma ignored", gamma=lambda c: 0 * c.gamma + 1),
    _given("B_1 for all terms", B=lambda c: np.repeat(c.B[:1], len(c.B), 0)),
    _given("A sliced from the wrong end", A=lambda c: c.A[:, -min(c.weight.shape):]),
    _given("B's terms sliced from the wrong end", B=lambda c: c.B[-len(c.lambda_):]),
    _given("B's rows sliced from the wrong end", B=lambda c: c.B[:, -max(c.weight.shape):]),
    _dropped("last term dropped", ragged=False),
    _dropped("partial last term dropped, n = floor(d/r)", ragged=True),
    _only("dgamma", "dgamma without lambda", lambda_=lambda c: 0 * c.lambda_ + 1),
    _only("dlambda", "dlambda without gamma", gamma=lambda c: 0 * c.gamma + 1),
    _only("dx", "dx without the base path", weight=lambda c: 0 * c.weight),
    _only("dx", "dx without the adapter path", scaling=lambda c: 0.0),
    _only("y", "y without the adapter path", scaling=lambda c: 0.0),
    _only("y", "y without the base path", weight=lambda c: 0 * c.weight),
    _given("bias left out", bias=lambda c: None),
    _made("bias added twice", y=lambda c, out: out["y"] if c.bias is None else out["y"] + c.bias),
    _made("gradients averaged over the rows",
          dlambda=lambda c, out: out["dlambda"] / _rows(c), dgamma=lambda c, out: out["dgamma"] / _rows(c)),
    _only("dlambda dgamma", "gradients of the last leading index alone",
          x=lambda c: c.x[-1:] if c.x.ndim > 1 else c.x, dy=lambda c: c.dy[-1:] if c.x.ndim > 1 else c.dy,
          dropout_mask=lambda c: c.dropout_mask if c.dropout_mask is None or c.x.ndim < 2 else c.dropout_mask[-1:]),
    _only("dlambda dgamma", "zero gradients", dy=lambda c: 0 * c.dy),
    _only("dlambda", "dlambda zero", dy=lambda c: 0 * c.dy),
    _only("dgamma", "dgamma zero", dy=lambda c: 0 * c.dy),
    _only("dlambda dgamma", "gradients of the opposite sign", dy=lambda c: -c.dy),
    _given("dropout mask ignored", dropout_mask=lambda c: None),
    _given("dropout mask without its 1/(1 - p)", dropout_mask=lambda c: 1.0 * (c.dropout_mask > 0)),
    _made("dropout mask on the base path too", y=lambda c, out: out["y"] + (c.x * (c.dropout_mask - 1)) @ c.weight.T,
          dx=lambda c, out: out["dx"] + (c.dy @ c.weight) * (c.dropout_mask - 1)),
    _only("dx", "dx without the dropout mask", dropout_mask=lambda c: None),
    _only("dlambda dgamma", "gradients without the dropout mask", dropout_mask=lambda c: None),
)
BASES = (  # name, and what ``oracle`` calls it
    ("the bases of dialect paper", "paper"), ("the bases of dialect peft", "peft"), ("dense bases", "dense"),
    ("sparse bases, s = 6", "sparse"), ("very sparse bases", "very_sparse"), ("population deviation", "population"),
    ("no normalisation", "raw"), ("B by A's deviation", "B by A"), ("normalised per term", "per term"),
    ("not centred", "not centred"), ("drawn in float32", "float32"), ("drawn in float16", "float16"),
    ("B drawn at once as (D, n, r)", "B at once"), ("B drawn before A", "B first"),
    ("s = sqrt(D), as the paper", "s = sqrt(D)"), ("A drawn row by row", "A row by row"),
    ("streams counted from 0", "streams from 0"), ("without the factor sqrt(3)", "no variance"),
    ("shared sides by layer, not by (out, in)", "sides apart"), ("seed plus one", "seed + 1"),
)
# fmt: on


def _bases_hypothesis(name: str, fault: str) -> Hypothesis:
    def after(c: Case, _: Outputs) -> Outputs:
        dialect = fault if fault in DIALECTS else c.dialect
        kind = fault if fault in BASIS_KINDS else c.kind_of_basis
        A, B = oracle.bases(c.seed + (fault == "seed + 1"), c.shapes, c.rank, kind, dialect, {fault}, c.context)
        return {"A": A, "B": B}

    return Hypothesis(name, after=after)


def _start_hypotheses() -> Iterable[Hypothesis]:
    for row in DIALECTS.values():

        def values(c: Case, out: Outputs, row: Dialect = row) -> tuple[float, float]:
            return row.start(c.shape, c.rank, len(out["lambda_"]))

        yield _made(
            f"the start of dialect {row.name}",
            lambda_=lambda c, out, values=values: 0 * out["lambda_"] + values(c, out)[0],  # type: ignore[misc]
            gamma=lambda c, out, values=values: 0 * out["gamma"] + values(c, out)[1],  # type: ignore[misc]
        )
    yield _made("gamma 1 at the start", gamma=lambda c, out: 0 * out["gamma"] + 1)
    yield _made("gamma 1/max(out, in) at the start", gamma=lambda c, out: 0 * out["gamma"] + 1 / max(c.shape))


def _count_hypothesis(name: str, each: Callable[[int, tuple[int, int], int], int]) -> Hypothesis:
    def after(c: Case, _: Outputs) -> Outputs:
        rules, r = DIALECTS[c.dialect], c.rank
        n = {shape: rules.terms(shape, r, context=c.context) for shape in c.shapes}
        most = max(n.values()) if "network" in name else 0
        counts = [each(most or n[shape], spec.sides(shape, rules.orientation), r) for shape in c.shapes]
        return {"num_parameters": np.asarray(sum(counts))}

    return Hypothesis(name, after=after)


# fmt: off
COUNT: tuple[tuple[str, Callable[[int, tuple[int, int], int], int]], ...] = (
    ("n by floor", lambda n, s, r: spec.number_of_terms(s, r, "floor") * (r + s[1])),
    ("n by floor+1", lambda n, s, r: spec.number_of_terms(s, r, "floor+1") * (r + s[1])),
    ("n by ceil+1", lambda n, s, r: spec.number_of_terms(s, r, "ceil+1") * (r + s[1])),
    ("n of the whole network", lambda n, s, r: n * (r + s[1])),
    ("n from the large side", lambda n, s, r: -(-s[0] // r) * (r + s[1])),
    ("lambda not counted", lambda n, s, r: n * s[1]),
    ("gamma not counted", lambda n, s, r: n * r),
    ("gamma on the large side", lambda n, s, r: n * (r + s[0])),
    ("gamma of length r", lambda n, s, r: n * 2 * r),
    ("A counted as learned", lambda n, s, r: n * (r + s[1]) + r * s[1]),
    ("LoRA's count, r(out + in)", lambda n, s, r: r * sum(s)),
)
# fmt: on
HYPOTHESES: dict[str, tuple[Hypothesis, ...]] = {
    "layer": LAYER,
    "bases": tuple(_bases_hypothesis(*row) for row in BASES),
    "start": tuple(_start_hypotheses()),
    "count": tuple(_count_hypothesis(*row) for row in COUNT),
}


def predict(case: Case, chosen: Sequence[Hypothesis]) -> Outputs:
    """What ``case`` gives under hypotheses together. Raises one of ``UNFIT`` where one does not apply."""
    for hypothesis in chosen:
        case = hypothesis.before(case)
    out: Outputs = expected(replace(case, stored=None) if case.kind == "layer" else case)
    for hypothesis in chosen:
        out = hypothesis.after(case, out)
    return out


def spoils(case: Case, chosen: Sequence[Hypothesis], names: Iterable[str], dtype: str | None = None) -> list[bool]:
    """Whether the named results would be wrong under the hypotheses together; none where they do not apply."""
    try:
        with np.errstate(all="ignore"):
            out, right, limit = predict(case, chosen), expected(case), limits(case, dtype)
    except UNFIT:
        return []
    return [compare(name, out[name], right[name], limit[name]) is not None for name in names]


def fits(chosen: Sequence[Hypothesis], failing: Verdict, dtype: str | None = None) -> bool:
    """Whether the hypotheses together reproduce every wrong result of a failing case, and would themselves fail it."""
    spoilt = spoils(failing.case, chosen, failing.wrong, dtype)
    if not spoilt or not all(spoilt):
        return False
    out, loose = predict(failing.case, chosen), limits(replace(failing.case, tier="real"), dtype)
    u = unit_roundoff(dtype or failing.case.dtype) if failing.case.kind == "layer" else 0.0
    largest = {name: np.max(np.abs(out[name]), initial=0.0) for name in failing.wrong}
    return _agree(failing, out, {name: loose[name] + gauge.limit(size, 1, u) for name, size in largest.items()})


def _agree(failing: Verdict, values: Outputs, limit: Outputs) -> bool:
    """Whether all wrong results are these values, within a limit."""
    return all(compare(name, failing.results[name], values[name], limit[name]) is None for name in failing.wrong)


def _within(failing: Verdict, lower: str, dtype: str | None) -> bool:
    """Whether rounding to a lower precision explains the errors; a wrong case that is exact in it refutes it."""
    case = failing.case
    exact = case.tier == "exact" and lower in case.exact_in
    known = case.kind == "layer" or (case.kind, lower) == ("block", "float32")
    if not known or exact or unit_roundoff(lower) <= unit_roundoff(dtype or case.dtype):
        return False
    return _agree(failing, expected(case), limits(replace(case, tier="real"), lower))


def diagnose(failing: Sequence[Verdict], passing: Sequence[Case] = (), dtype: str | None = None) -> tuple[str, ...]:
    """The deviations that reproduce all of ``failing``, cases of one kind; several are a tie; NONE if none does.

    One that would have spoiled results that came out right gives way to the others, and is named with what it fits.
    """
    failing = sorted(failing, key=lambda f: f.case.size)
    if any(mismatch.problem != "value" for f in failing for mismatch in f.mismatches):
        return (NONE,)
    known = HYPOTHESES.get(failing[0].case.kind, ())
    single = [h for h in known if all(fits((h,), f, dtype) for f in failing)]
    right = [(f.case, set(f.case.wanted) - set(f.wrong)) for f in failing]
    right += [(case, set(case.wanted)) for case in sorted(passing, key=lambda case: case.size)[:SPARED]]
    whole = [h.name for h in single if not any(any(spoils(case, (h,), names, dtype)) for case, names in right)]
    if single:
        names = ", ".join(sorted({name for f in failing for name in f.wrong}))
        return tuple(whole or [f"{h.name}, in {names} alone" for h in single])
    for lower, name in (("float32", "float32"), ("float16", "TF32 or float16"), ("bfloat16", "bfloat16")):
        if all(_within(f, lower, dtype) for f in failing):
            return (f"computed in the precision of {name}",)
    pairs = [pair for pair in combinations(known, 2) if all(fits(pair, f, dtype) for f in failing[:PAIRED])]
    return tuple(f"{a.name} and {b.name}" for a, b in pairs) or (NONE,)
