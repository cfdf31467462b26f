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
from ..dialects import DIALECTS
from . import oracle
from .cases import Case, expected, layer_outputs
from .compare import as_numbers, compare, limits

Array = Any
Outputs = Mapping[str, Array]
NONE = "no known deviation"
UNFIT = (ValueError, IndexError, ZeroDivisionError, TypeError)  # a hypothesis that does not apply to a case


@dataclass(frozen=True)
class Failing:
    """A failing case with all results that came, and the names of the wrong ones."""

    case: Case
    results: Mapping[str, Any]
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class Hypothesis:
    """A named deviation: other inputs, or other outputs of a case. It raises ValueError where it does not apply."""

    name: str
    before: Callable[[Case], Case] | None = None
    after: Callable[[Case, Outputs], Outputs] | None = None


def _scaled(factor: Callable[[Case], float]) -> Callable[[Case], Case]:
    return lambda c: replace(c, scaling=c.scaling * factor(c))


def _only(names: str, change: Callable[[Case], Case]) -> Callable[[Case, Outputs], Outputs]:
    """The named outputs of the changed case, the others right."""

    def after(c: Case, out: Outputs) -> Outputs:
        changed = layer_outputs(change(c))
        return {**out, **{name: changed[name] for name in names.split()}}

    return after


def _plus(**change: Callable[[Case, Outputs], Array]) -> Callable[[Case, Outputs], Outputs]:
    return lambda c, out: {**out, **{name: value(c, out) for name, value in change.items()}}


def _other_pairing(c: Case) -> Case:
    return replace(c, pairing="literal" if c.pairing == "crossed" else "crossed")


def _swapped(c: Case) -> Case:
    return replace(c, lambda_=c.gamma, gamma=c.lambda_)  # only where r = d, else it raises


def _resized(c: Case, part: str) -> Case:
    n, D, d = c.lambda_.shape[0], *spec.sides(c.weight.shape)
    A, B = (c.A[:, -d:] if part == "A" else c.A), (c.B[-n:] if part == "terms" else c.B)
    return replace(c, A=A, B=B[:, -D:] if part == "rows" else B)


def _with_update(make: Callable[[Case, Array], Array]) -> Callable[[Case, Outputs], Outputs]:
    """ΔW, y and dx with another update made of the right one."""

    def after(c: Case, out: Outputs) -> Outputs:
        delta = make(c, out["delta_weight"])
        y, dx = c.x @ (c.weight + delta).T, c.dy @ (c.weight + delta)
        return {**out, "delta_weight": delta, "y": y if c.bias is None else y + c.bias, "dx": dx}

    return after


def _square_transposed(c: Case, delta: Array) -> Array:
    return delta.T if c.weight.shape[0] == c.weight.shape[1] else delta


def _backwards_product(c: Case, delta: Array) -> Array:
    n, r = c.lambda_.shape
    A, B = spec.layer_bases(c.A, c.B, n, c.weight.shape)
    S = (c.scaling * c.lambda_[:, :, None] * spec.khatri_rao(A, c.gamma).reshape(n, r, -1)).reshape(n * r, -1)
    if delta.shape[0] != delta.shape[1] or n * r != delta.shape[0]:
        raise ValueError("a product of these shapes does not exist")
    columns = [spec.term_basis(B, j, c.pairing) for j in range(n)]
    return S @ np.concatenate(columns, axis=1)


def _rows_of(c: Case) -> int:
    return max(1, int(np.prod(c.x.shape[:-1])))


# fmt: off
LAYER = (
    Hypothesis("crossed pairing", lambda c: replace(c, pairing="crossed")),
    Hypothesis("literal pairing", lambda c: replace(c, pairing="literal")),
    Hypothesis("other pairing in the gradients", after=_only("dlambda dgamma", _other_pairing)),
    Hypothesis("square layer transposed", after=_with_update(_square_transposed)),
    Hypothesis("wide layer reshaped, not transposed",
               after=_with_update(lambda c, w: w.T.reshape(w.shape) if w.shape[0] < w.shape[1] else w)),
    Hypothesis("factors multiplied in the wrong order", after=_with_update(_backwards_product)),
    Hypothesis("scaling r/alpha", lambda c: replace(c, scaling=1 / c.scaling)),
    Hypothesis("scaling alpha, not alpha/r", _scaled(lambda c: c.lambda_.shape[1])),
    Hypothesis("scaling over sqrt(n)", _scaled(lambda c: c.lambda_.shape[0] ** -0.5)),
    Hypothesis("scaling over sqrt(r)", _scaled(lambda c: c.lambda_.shape[1] ** -0.5)),
    Hypothesis("scaling times sqrt(r), as alpha/sqrt(r)", _scaled(lambda c: c.lambda_.shape[1] ** 0.5)),
    Hypothesis("scaling left out", lambda c: replace(c, scaling=1.0)),
    Hypothesis("scaling applied twice", _scaled(lambda c: c.scaling)),
    Hypothesis("scaling missing from the gradients", after=_only("dlambda dgamma", lambda c: replace(c, scaling=1.0))),
    Hypothesis("scaling missing from dx", after=_only("dx", lambda c: replace(c, scaling=1.0))),
    Hypothesis("lambda rolled by one term", lambda c: replace(c, lambda_=np.roll(c.lambda_, 1, 0))),
    Hypothesis("gamma rolled by one term", lambda c: replace(c, gamma=np.roll(c.gamma, 1, 0))),
    Hypothesis("lambda read as (r, n)", lambda c: replace(c, lambda_=c.lambda_.reshape(c.lambda_.shape[::-1]).T)),
    Hypothesis("gamma read as (d, n)", lambda c: replace(c, gamma=c.gamma.reshape(c.gamma.shape[::-1]).T)),
    Hypothesis("lambda and gamma swapped", _swapped),
    Hypothesis("one lambda for all terms", lambda c: replace(c, lambda_=0 * c.lambda_ + c.lambda_[:1])),
    Hypothesis("one gamma for all terms", lambda c: replace(c, gamma=0 * c.gamma + c.gamma[:1])),
    Hypothesis("one scalar for each base", lambda c: replace(c, lambda_=0 * c.lambda_ + c.lambda_[:, :1])),
    Hypothesis("lambda ignored", lambda c: replace(c, lambda_=0 * c.lambda_ + 1)),
    Hypothesis("gamma ignored", lambda c: replace(c, gamma=0 * c.gamma + 1)),
    Hypothesis("B_1 for all terms", lambda c: replace(c, B=np.repeat(c.B[:1], len(c.B), 0))),
    Hypothesis("A sliced from the wrong end", lambda c: _resized(c, "A")),
    Hypothesis("B's terms sliced from the wrong end", lambda c: _resized(c, "terms")),
    Hypothesis("B's rows sliced from the wrong end", lambda c: _resized(c, "rows")),
    Hypothesis("last term dropped", lambda c: replace(c, lambda_=np.where(_last(c), 0.0, c.lambda_)),
               _plus(dlambda=lambda c, out: np.where(_last(c), 0.0, out["dlambda"]))),
    Hypothesis("partial last term dropped, n = floor(d/r)",
               lambda c: replace(c, lambda_=np.where(_last(c, True), 0.0, c.lambda_)),
               _plus(dlambda=lambda c, out: np.where(_last(c, True), 0.0, out["dlambda"]))),
    Hypothesis("dgamma without lambda", after=_only("dgamma", lambda c: replace(c, lambda_=0 * c.lambda_ + 1))),
    Hypothesis("dlambda without gamma", after=_only("dlambda", lambda c: replace(c, gamma=0 * c.gamma + 1))),
    Hypothesis("dx without the base path", after=_only("dx", lambda c: replace(c, weight=0 * c.weight))),
    Hypothesis("dx without the adapter path", after=_only("dx", lambda c: replace(c, scaling=0.0))),
    Hypothesis("y without the adapter path", after=_only("y", lambda c: replace(c, scaling=0.0))),
    Hypothesis("y without the base path", after=_only("y", lambda c: replace(c, weight=0 * c.weight))),
    Hypothesis("bias left out", lambda c: replace(c, bias=None)),
    Hypothesis("bias added twice", after=_plus(y=lambda c, out: out["y"] if c.bias is None else out["y"] + c.bias)),
    Hypothesis("gradients averaged over the rows", after=_plus(
        dlambda=lambda c, out: out["dlambda"] / _rows_of(c), dgamma=lambda c, out: out["dgamma"] / _rows_of(c))),
    Hypothesis("gradients of the last leading index alone", after=_only("dlambda dgamma", lambda c: replace(
        c, x=c.x[-1:] if c.x.ndim > 1 else c.x, dy=c.dy[-1:] if c.x.ndim > 1 else c.dy))),
    Hypothesis("zero gradients", after=_plus(
        dlambda=lambda c, out: 0 * out["dlambda"], dgamma=lambda c, out: 0 * out["dgamma"])),
    Hypothesis("dlambda zero", after=_plus(dlambda=lambda c, out: 0 * out["dlambda"])),
    Hypothesis("dgamma zero", after=_plus(dgamma=lambda c, out: 0 * out["dgamma"])),
    Hypothesis("gradients of the opposite sign", after=_plus(
        dlambda=lambda c, out: -out["dlambda"], dgamma=lambda c, out: -out["dgamma"])),
)
BASES = (
    ("the bases of dialect paper", "paper"), ("the bases of dialect peft", "peft"), ("dense bases", "dense"),
    ("sparse bases, s = 6", "sparse"), ("very sparse bases", "very_sparse"), ("population deviation", ""),
    ("no normalisation", ""), ("B by A's deviation", "B by A"), ("normalised per term", "per term"),
    ("not centred", ""), ("drawn in float32", "float32"), ("drawn in float16", "float16"),
    ("B drawn at once as (D, n, r)", "B at once"), ("B drawn before A", "B first"),
    ("s = sqrt(D), as the paper", "s = sqrt(D)"), ("A drawn row by row", "A row by row"),
    ("streams counted from 0", "streams from 0"), ("without the factor sqrt(3)", "no variance"),
    ("shared sides by layer, not by (out, in)", "sides apart"), ("seed plus one", "seed + 1"),
)
# fmt: on


def _last(c: Case, ragged: bool = False) -> Array:
    """True over the last term of Λ; with ``ragged`` only where r does not divide d."""
    n, r = c.lambda_.shape
    drop = n > 1 and (not ragged or min(c.weight.shape) % r != 0)
    return (np.arange(n) == n - 1)[:, None] & np.full((n, r), drop)


def _bases_hypothesis(name: str, fault: str) -> Hypothesis:
    def after(c: Case, _: Outputs) -> Outputs:
        dialect = fault if fault in ("paper", "peft") else c.dialect
        kind = fault if fault in ("dense", "sparse", "very_sparse") else c.kind_of_basis
        faults = {fault or name}
        A, B = oracle.bases(c.seed + (fault == "seed + 1"), c.shapes, c.rank, kind, dialect, faults)
        return {"A": A, "B": B}

    return Hypothesis(name, after=after)


def _start_hypotheses() -> Iterable[Hypothesis]:
    for row in DIALECTS.values():

        def after(c: Case, out: Outputs, row: Any = row) -> Outputs:
            lambda_, gamma = row.start(c.shape, c.rank, len(out["lambda_"]))
            return {**out, "lambda_": 0 * out["lambda_"] + lambda_, "gamma": 0 * out["gamma"] + gamma}

        yield Hypothesis(f"the start of dialect {row.name}", after=after)
    yield Hypothesis("gamma 1 at the start", after=_plus(gamma=lambda c, out: 0 * out["gamma"] + 1))
    yield Hypothesis(
        "gamma 1/max(out, in) at the start", after=_plus(gamma=lambda c, out: 0 * out["gamma"] + 1 / max(c.shape))
    )


def _count_hypotheses() -> Iterable[Hypothesis]:
    def count(name: str, value: Callable[[int, tuple[int, int], int], int]) -> Hypothesis:
        def after(c: Case, _: Outputs) -> Outputs:
            n = {shape: DIALECTS[c.dialect].terms(shape, c.rank) for shape in c.shapes}
            most = max(n.values()) if "network" in name else 0
            return {"num_parameters": np.asarray(sum(value(most or n[s], s, c.rank) for s in c.shapes))}

        return Hypothesis(name, after=after)

    for rule in ("floor", "floor+1", "ceil+1"):
        yield count(f"n by {rule}", lambda n, s, r, rule=rule: spec.number_of_terms(s, r, rule) * (r + min(s)))  # type: ignore[misc]
    yield count("n of the whole network", lambda n, s, r: n * (r + min(s)))
    yield count("lambda not counted", lambda n, s, r: n * min(s))
    yield count("gamma not counted", lambda n, s, r: n * r)
    yield count("gamma on the large side", lambda n, s, r: n * (r + max(s)))
    yield count("n from the large side", lambda n, s, r: -(-max(s) // r) * (r + min(s)))
    yield count("gamma of length r", lambda n, s, r: n * 2 * r)
    yield count("LoRA's count, r(out + in)", lambda n, s, r: r * sum(s))
    yield count("A counted as learned", lambda n, s, r: n * (r + min(s)) + r * min(s))


def hypotheses(kind: str) -> tuple[Hypothesis, ...]:
    """The named deviations for cases of ``kind``."""
    makers: dict[str, Callable[[], Iterable[Hypothesis]]] = {
        "layer": lambda: LAYER,
        "bases": lambda: (_bases_hypothesis(*row) for row in BASES),
        "start": _start_hypotheses,
        "count": _count_hypotheses,
    }
    return tuple(makers.get(kind, tuple)())


def predict(case: Case, chosen: Sequence[Hypothesis]) -> Outputs:
    """What ``case`` gives under hypotheses together. Raises ValueError where one does not apply."""
    for hypothesis in chosen:
        case = case if hypothesis.before is None else hypothesis.before(case)
    case = replace(case, stored=None) if case.kind == "layer" else case
    out: Outputs = expected(case)
    for hypothesis in chosen:
        out = out if hypothesis.after is None else hypothesis.after(case, out)
    return out


def fits(chosen: Sequence[Hypothesis], failing: Failing, dtype: str | None = None) -> bool:
    """Whether the hypotheses together reproduce every wrong result of a failing case, and would themselves fail it."""
    case = failing.case
    try:
        with np.errstate(all="ignore"):
            out, right = predict(case, chosen), expected(case)
            strict, loose = limits(case, dtype), limits(replace(case, tier="real"), dtype)
    except UNFIT:
        return False
    u = unit_roundoff(dtype or case.dtype) if case.kind == "layer" else 0.0
    for name in failing.wrong:
        slack = loose[name] + 16 * u * np.max(np.abs(out[name]), initial=0.0)
        if compare(name, failing.results.get(name), out[name], slack):
            return False
        if not compare(name, out[name], right[name], strict[name]):
            return False
    return True


def _contradicted(hypothesis: Hypothesis, right: Sequence[tuple[Case, tuple[str, ...]]], dtype: str | None) -> bool:
    """Whether the hypothesis would have spoiled one of the results that came out right."""
    for case, names in right:
        try:
            out, truth, limit = predict(case, (hypothesis,)), expected(case), limits(case, dtype)
        except UNFIT:
            continue
        if any(compare(name, out[name], truth[name], limit[name]) for name in names):
            return True
    return False


def _precision(failing: Sequence[Failing], dtype: str | None) -> tuple[str, ...]:
    """The highest precision whose rounding explains all errors; refuted by a wrong case that is exact in it."""
    for lower, name in (("float32", "float32"), ("float16", "TF32 or float16"), ("bfloat16", "bfloat16")):
        if all(_within(f, lower, dtype) for f in failing):
            return (f"computed in the precision of {name}",)
    return ()


def _within(failing: Failing, lower: str, dtype: str | None) -> bool:
    case = failing.case
    exact = case.tier == "exact" and lower in case.exact_in
    if case.kind != "layer" or exact or unit_roundoff(lower) <= unit_roundoff(dtype or case.dtype):
        return False
    right, limit = expected(case), limits(replace(case, tier="real"), lower)
    return all(compare(name, failing.results.get(name), right[name], limit[name]) is None for name in failing.wrong)


def diagnose(failing: Sequence[Failing], passing: Sequence[Case] = (), dtype: str | None = None) -> tuple[str, ...]:
    """The deviations that reproduce all of ``failing``, cases of one kind; several are a tie; NONE if none does.

    One that would have spoiled results that came out right gives way to the others, and is named with what it fits.
    """
    ordered = sorted(failing, key=lambda f: f.case.size)
    values = [as_numbers(f.results.get(name)) for f in ordered for name in f.wrong]
    if any(value is None or not np.isfinite(value).all() for value in values):
        return (NONE,)
    known = hypotheses(ordered[0].case.kind)
    single = [h for h in known if all(fits((h,), f, dtype) for f in ordered)]
    right = [(f.case, tuple(name for name in f.case.wanted if name not in f.wrong)) for f in ordered]
    right += [(case, case.wanted) for case in sorted(passing, key=lambda case: case.size)[:40]]
    whole = [h.name for h in single if not _contradicted(h, right, dtype)]
    names = ", ".join(sorted({name for f in ordered for name in f.wrong}))
    found = tuple(whole or [f"{h.name}, in {names} alone" for h in single]) or _precision(ordered, dtype)
    if found:
        return found
    pairs = [p for p in combinations(known, 2) if all(fits(p, f, dtype) for f in ordered[:3])]
    return tuple(f"{a.name} and {b.name}" for a, b in pairs) or (NONE,)
