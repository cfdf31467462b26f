"""Cases of the conformance kit: what an implementation is given, and what the specification expects of it.

Every expected value is ``spec``'s, or ``oracle``'s for bases; the fast code has no part in it.
"""

from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from typing import Any, Literal, Self

import numpy as np

from .. import spec
from ..arrays import UNIT_ROUNDOFF
from ..bases import draw_bases
from ..dialects import DIALECTS
from . import oracle

Array = Any
CaseKind = Literal["layer", "bases", "start", "count", "rank"]
KINDS: tuple[CaseKind, ...] = ("layer", "bases", "start", "count", "rank")
ARRAYS = ("x", "weight", "bias", "A", "B", "lambda_", "gamma", "dy")
WANTED = {
    "layer": ("delta_weight", "y", "dx", "dlambda", "dgamma"),
    "bases": ("A", "B"),
    "start": ("lambda_", "gamma", "delta_weight"),
    "count": ("num_parameters",),
    "rank": ("rank",),
}
# What to think when a case with this flag fails.
NOTES = {
    "crossed": "which column of B meets which row of A; a trained adapter read with the other pairing is noise",
    "wide": "out < in takes the transpose of the sum, not a reshape of it",
    "square": "a square layer takes the sum itself",
    "ragged": "r does not divide d: n is the ceiling, the floor loses the full rank",
    "rank one": "r = 1: both pairings agree",
    "one term": "n = 1: both pairings agree",
    "over-ranked": "r > d: one term",
    "sliced": "the stored bases are larger; the rest is filled with a rogue value and must not be read",
    "fan_in_fan_out": "who has such a mode holds the weight as (in, out); arguments and results stay (out, in)",
    "merged": "y and dx through W0 + ΔW",
    "leading axes": "x with none or several leading axes",
    "empty batch": "no rows: every gradient of a learned value is zero",
    "start": "Λ = 0: ΔW = 0 and the gradient of Γ is exactly zero",
    "zero cotangent": "dy = 0: every gradient is zero",
    "no bias": "a layer without bias",
    "inflated": "layers of several shapes share bases of the largest sides; PEFT takes the maximum of (out, in) first",
    "deficient": "the rank is smaller than d, for a reason that the factors show",
}


@dataclass(frozen=True, eq=False)
class Case:
    """One question. A "layer" holds x (…, in), weight (out, in), bias (out) or None, A (r, d_max), B (n_max, D_max, r),
    lambda_ (n, r), gamma (n, d), dy (…, out), in ``dtype``; "rank" the same without x, weight, dy; the others seed,
    shapes or shape, rank, dialect. ``tier`` "exact" has no tolerance in the dtypes of ``exact_in``."""

    id: str
    kind: CaseKind
    tier: Literal["exact", "real"] = "exact"
    clause: str = "§4.1, Eq. 4"
    notes: tuple[str, ...] = ()
    dialect: str = "paper"
    x: Array = None
    weight: Array = None
    bias: Array = None
    A: Array = None
    B: Array = None
    lambda_: Array = None
    gamma: Array = None
    dy: Array = None
    scaling: float = 1.0
    alpha: float | None = None
    pairing: spec.Pairing = "literal"
    dtype: str = "float64"
    exact_in: tuple[str, ...] = ()
    fan_in_fan_out: bool = False
    merged: bool = False
    shape: tuple[int, int] = (1, 1)
    shapes: tuple[tuple[int, int], ...] = ()
    rank: int = 1
    seed: int = 0
    kind_of_basis: Any = "dense"
    stored: dict[str, Array] | None = field(default=None, repr=False)  # expected values read from a vector

    @property
    def wanted(self) -> tuple[str, ...]:
        """The names of the results; a merged layer has no gradient of its learned values."""
        return WANTED[self.kind][:3] if self.merged else WANTED[self.kind]

    @property
    def size(self) -> int:
        """How many numbers go in: failures are reported smallest first."""
        given = sum(np.size(getattr(self, name)) for name in ARRAYS if getattr(self, name) is not None)
        return given or self.rank * sum(sum(shape) for shape in (self.shape, *self.shapes))

    def cast(self, dtype: str) -> Self:
        """The case in another precision: its numbers rounded to it (bfloat16 held in float32), nothing expected yet."""
        if dtype not in UNIT_ROUNDOFF:
            raise ValueError(f"dtype: {dtype!r}; it must be one of {', '.join(UNIT_ROUNDOFF)}")
        given = {name: getattr(self, name) for name in ARRAYS if getattr(self, name) is not None}
        return replace(self, dtype=dtype, stored=None, **{name: rounded(x, dtype) for name, x in given.items()})

    def with_arrays(self, convert: Any) -> Self:
        """The case with ``convert`` applied to each of its arrays."""
        return replace(self, **{f.name: convert(getattr(self, f.name)) for f in fields(self) if f.name in ARRAYS})


def rounded(x: Array, dtype: str) -> Array:
    """``x`` rounded to ``dtype`` by the nearest, ties to even; bfloat16 is held in float32."""
    if dtype != "bfloat16":
        return np.asarray(x).astype(dtype)
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    nearest = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) & np.uint32(0xFFFF0000)
    return nearest.view(np.float32).reshape(np.shape(x))


def layer_outputs(case: Case, number: Any = np.float64) -> dict[str, Array]:
    """``spec``'s ΔW, y and gradients for a layer case, in float64, or in exact rationals for ``number=Fraction``."""

    def convert(x: Array) -> Array:
        if x is None:
            return None
        return oracle.fractions(x) if number is Fraction else np.asarray(x, dtype=number)

    c = case.with_arrays(convert)
    factors = (c.A, c.B, c.lambda_, c.gamma)
    scaling = number(case.scaling)
    gradients = spec.backward(c.dy, c.x, c.weight, *factors, scaling, case.pairing)
    return {
        "delta_weight": spec.delta_weight(*factors, case.weight.shape, scaling, case.pairing),
        "y": spec.forward(c.x, c.weight, c.bias, *factors, scaling, case.pairing),
        "dx": gradients.x,
        "dlambda": gradients.lambda_,
        "dgamma": gradients.gamma,
    }


def expected(case: Case) -> dict[str, Array]:
    """What a right implementation answers, by name."""
    if case.stored is not None:
        return case.stored
    if case.kind == "layer":
        return layer_outputs(case)
    dialect = DIALECTS[case.dialect]
    if case.kind == "bases":
        A, B = oracle.bases(case.seed, case.shapes, case.rank, case.kind_of_basis, case.dialect)
        return {"A": A, "B": B}
    if case.kind == "start":
        n = dialect.terms(case.shape, case.rank)
        lambda_, gamma = dialect.start(case.shape, case.rank, n)
        return {
            "lambda_": np.full((n, case.rank), lambda_),
            "gamma": np.full((n, min(case.shape)), gamma),
            "delta_weight": np.zeros(case.shape),
        }
    if case.kind == "count":
        terms = [spec.number_of_terms(shape, case.rank, dialect.count_rule) for shape in case.shapes]
        each = [n * (case.rank + min(shape)) for n, shape in zip(terms, case.shapes, strict=True)]
        return {"num_parameters": np.asarray(sum(each))}
    return {"rank": np.asarray(oracle.exact_rank(case))}


# ---------------------------------------------------------------------------------------------------------
# Random cases
# ---------------------------------------------------------------------------------------------------------

BASIS_KINDS = ("dense", "sparse", "very_sparse")


def random_case(index: int, seed: int = 0, dialect: str = "peft") -> Case:
    """Case ``index`` of the endless list that ``seed`` begins: layers of every shape, half of them exact, half real.

    Shapes go round wide, tall and square; ranks round r | d, r ∤ d, r = d, r > d, r = 1; dtype, Conv1D's layout,
    merging, basis kind and leading axes are drawn.
    """
    rng = np.random.default_rng([seed, index])
    d, more = int(rng.integers(2, 13) if index % 16 else rng.integers(24, 49)), int(rng.integers(1, 9))
    out_features, in_features = ((d, d + more), (d + more, d), (d, d))[index % 3]
    divisors = [r for r in range(1, d + 1) if d % r == 0]
    ragged = [r for r in range(2, d) if d % r] or [d]
    r = int((rng.choice(divisors), rng.choice(ragged), d, d + more, 1)[index // 3 % 5])
    n = -(-d // r)
    dtype = ("float32", "float64")[int(rng.integers(2))]
    lead = [(7,), (3, 2), (), (0,), (1,)][int(rng.choice(5, p=[0.6, 0.2, 0.1, 0.05, 0.05]))]
    pad = [int(k) for k in rng.integers(0, 3, 3)]
    stored = (r, d + pad[0]), (n + pad[1], max(out_features, in_features) + pad[2], r)
    sizes = {"x": (*lead, in_features), "weight": (out_features, in_features), "bias": (out_features,)}
    sizes |= {"lambda_": (n, r), "gamma": (n, d), "dy": (*lead, out_features)}
    exact = bool(rng.integers(2))
    if exact:
        alpha = r * 2.0 ** int(rng.integers(-2, 4))
        given: dict[str, Any] = {name: rng.integers(-3, 4, size).astype(dtype) for name, size in sizes.items()}
        given |= {"A": rng.integers(-1, 2, stored[0]).astype(dtype), "B": rng.integers(-1, 2, stored[1]).astype(dtype)}
    else:
        alpha = int(rng.choice([1, 2 * r, 20 * r, 640]))
        given = {name: rng.standard_normal(size).astype(dtype) for name, size in sizes.items()}
        kind = BASIS_KINDS[int(rng.integers(3))]
        given |= dict(zip("AB", _drawn(kind, r, stored, dtype, int(rng.integers(2**31))), strict=True))
    if rng.integers(4) == 0:
        del given["bias"]
    case = Case(
        id=f"random-{dialect}-{seed}-{index}",
        kind="layer",
        tier="exact" if exact else "real",
        dialect=dialect,
        alpha=alpha,
        scaling=alpha / r,
        pairing=DIALECTS[dialect].pairing,
        dtype=dtype,
        fan_in_fan_out=bool(rng.integers(2)),
        merged=bool(rng.integers(4) == 0),
        **given,
    )
    return replace(case, notes=flags(case), exact_in=("float32", "float64") if exact else ())


def _drawn(kind: Any, r: int, stored: Any, dtype: str, seed: int) -> tuple[Array, Array]:
    """PEFT's bases of that kind, cut to the stored sizes; drawn large enough to be sure of a deviation."""
    (_, d), (n, D, _) = stored
    bases = draw_bases("peft", seed=seed, shapes=[(max(D, 64), max(d, 32, n * r))], rank=r, kind=kind)
    return bases.A[:, :d].astype(dtype), bases.B[:n, :D].astype(dtype)


def flags(case: Case) -> tuple[str, ...]:
    """The keys of ``NOTES`` that hold for a layer case."""
    (n, r), (out_features, in_features) = case.lambda_.shape, case.weight.shape
    d = min(out_features, in_features)
    holds = {
        "crossed": case.pairing == "crossed" and n > 1 and r > 1,
        "wide": out_features < in_features,
        "square": out_features == in_features,
        "ragged": d % r != 0 and r < d,
        "rank one": r == 1,
        "one term": n == 1,
        "over-ranked": r > d,
        "sliced": case.A.shape[1] > d or case.B.shape[:2] != (n, max(out_features, in_features)),
        "fan_in_fan_out": case.fan_in_fan_out,
        "merged": case.merged,
        "leading axes": case.x.ndim != 2,
        "empty batch": case.x.size == 0,
        "start": not np.any(case.lambda_),
        "zero cotangent": case.dy.size > 0 and not np.any(case.dy),
        "no bias": case.bias is None,
    }
    return tuple(name for name, value in holds.items() if value)
