"""Cases of the conformance kit: what an implementation is given, and what the specification expects of it.

Every expected value is ``spec``'s, or ``oracle``'s for bases; the fast code has no part in it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal, Self

import numpy as np

from .. import spec
from ..arrays import UNIT_ROUNDOFF
from ..bases import Kind, draw_bases
from ..dialects import DIALECTS
from ..verify.integers import fractions
from . import oracle

Array = Any
CaseKind = Literal["layer", "bases", "start", "count", "rank", "block"]
KINDS: tuple[CaseKind, ...] = ("layer", "bases", "start", "count", "rank", "block")
BASIS_KINDS: tuple[Kind, ...] = ("dense", "sparse", "very_sparse")
ROGUE = 99.0  # what fills the part of stored bases that a layer must not read
ARRAYS = ("x", "weight", "bias", "A", "B", "lambda_", "gamma", "dy", "dropout_mask")
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
    "dropout": "the mask is on the adapter's x alone, so on its part of dx and on G: not on x W0ᵀ, not on y",
    "causal": "token t sees tokens 1 … t",
    "padded": "a token that is masked is seen by none; it has an output and gradients, and sees a token itself",
    "grouped keys": "g = H/K query heads after each other read one key head: i·g … i·g + g − 1 read head i",
    "rotary": "coordinates i and i + h/2 of q and k turn by t·θ^(−2i/h), t from 0: halves, no neighbours",
    "fused": "qkv has rows of q, then k, then v; one Λ and one Γ for all three",
    "RMSNorm": "no mean is subtracted; eps stands inside the root",
    "gated": "down(act(gate)∘up): the activation is on gate",
}


@dataclass(frozen=True, eq=False)
class Case:
    """One question. A "layer" holds x (…, in), weight (out, in), bias (out) or None, A (r, d_max), B (n_max, D_max, r),
    lambda_ (n, r), gamma (n, d), dy (…, out), dropout_mask of the shape of x (0 where dropped, 1/(1 − p) where kept) or
    None, in ``dtype``; "rank" the same without x, weight, dy; the others seed, shapes or shape, rank, dialect.

    A "block" holds x and dy (b, T, k), and by role, as ``spec.block_forward`` has the roles: weight; bias of those that
    have one; A, B, lambda_, gamma of those that are adapted, all bases cut from one pair. ``block`` (``nn.BlockSpec``)
    has sizes and choices, ``attention_mask`` b rows of T ones and zeros, ``rope_theta`` θ of the rotary embedding or
    None. The results are y, dx, dlambda.ROLE and dgamma.ROLE.

    ``tier`` "exact" has no tolerance in the dtypes of ``exact_in``."""

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
    dropout_mask: Array = None
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
    block: Any = None  # nn.BlockSpec
    causal: bool = False
    attention_mask: tuple[tuple[int, ...], ...] = ()
    rope_theta: float | None = None
    stored: dict[str, Array] | None = field(default=None, repr=False)  # expected values read from a vector

    @property
    def wanted(self) -> tuple[str, ...]:
        """The names of the results; a merged layer has no gradient of its learned values."""
        if self.kind == "block":
            return ("y", "dx", *(f"{name}.{role}" for role in self.A for name in ("dlambda", "dgamma")))
        return WANTED[self.kind][:3] if self.merged else WANTED[self.kind]

    @property
    def factors(self) -> dict[str, tuple[Array, Array, Array, Array]]:
        """A block's (A, B, Λ, Γ) by role, of the roles that are adapted."""
        return {role: (A, self.B[role], self.lambda_[role], self.gamma[role]) for role, A in self.A.items()}

    @property
    def size(self) -> int:
        """How many numbers go in: failures are reported smallest first."""
        sizes = [0]
        self.with_arrays(lambda x: sizes.append(np.size(x)))
        return sum(sizes) or self.rank * sum(sum(shape) for shape in (self.shape, *self.shapes))

    def cast(self, dtype: str) -> Self:
        """The case in another precision: its numbers rounded to it (bfloat16 held in float32), nothing expected yet."""
        if dtype not in UNIT_ROUNDOFF:
            raise ValueError(f"dtype: {dtype!r}; it must be one of {', '.join(UNIT_ROUNDOFF)}")
        return replace(self.with_arrays(lambda x: rounded(x, dtype)), dtype=dtype, stored=None)

    def with_arrays(self, convert: Callable[[Array], Array]) -> Self:
        """The case with ``convert`` applied to each array that it has."""
        given = {name: getattr(self, name) for name in ARRAYS}
        return replace(self, **{name: each(convert, x) for name, x in given.items() if x is not None})


def each(convert: Callable[[Any], Any], value: Any) -> Any:
    """``convert`` of ``value``, or of each value of a mapping by role."""
    return {role: convert(x) for role, x in value.items()} if isinstance(value, Mapping) else convert(value)


def rounded(x: Array, dtype: str) -> Array:
    """``x`` rounded to ``dtype`` by the nearest, ties to even; bfloat16 is held in float32."""
    if dtype != "bfloat16":
        return np.asarray(x).astype(dtype)
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    nearest = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) & np.uint32(0xFFFF0000)
    return nearest.view(np.float32).reshape(np.shape(x))


def layer_outputs(case: Case, number: Any = np.float64) -> dict[str, Array]:
    """``spec``'s ΔW, y and gradients for a layer case, in float64, or in exact rationals for ``number=Fraction``."""
    c = case.with_arrays(fractions if number is Fraction else lambda x: np.asarray(x, dtype=number))
    factors = (c.A, c.B, c.lambda_, c.gamma)
    options = number(case.scaling), case.pairing
    gradients = spec.backward(c.dy, c.x, c.weight, *factors, *options, c.dropout_mask)
    return {
        "delta_weight": spec.delta_weight(*factors, case.weight.shape, *options),
        "y": spec.forward(c.x, c.weight, c.bias, *factors, *options, c.dropout_mask),
        "dx": gradients.x,
        "dlambda": gradients.lambda_,
        "dgamma": gradients.gamma,
    }


def block_outputs(case: Case) -> dict[str, Array]:
    """``spec``'s y and gradients for a block case, in the numbers of its arrays."""
    updates = {role: spec.Update(*own, case.scaling, case.pairing) for role, own in case.factors.items()}
    seen, theta = spec.visible(case.x.shape[1], case.causal, np.array(case.attention_mask)), case.rope_theta
    tables = theta and spec.rotary_tables(case.x.shape[1], case.block.head_width, theta, dtype=case.x.dtype)
    parameters = {role: (weight, case.bias.get(role)) for role, weight in case.weight.items()}
    arguments = case.x, case.block, parameters, updates, seen, tables
    y, _ = spec.block_forward(*arguments)
    return block_results(y, *spec.block_backward(case.dy, *arguments), case)


def block_results(y: Array, dx: Array, gradients: Mapping[str, Any], case: Case) -> dict[str, Array]:
    """A block's results by name, of the gradients by role."""
    learned = {"dlambda": "lambda_", "dgamma": "gamma"}
    own = {f"{name}.{role}": getattr(gradients[role], of) for role in case.A for name, of in learned.items()}
    return {"y": y, "dx": dx} | own


def expected(case: Case) -> dict[str, Array]:
    """What a right implementation answers, by name."""
    if case.stored is not None:
        return case.stored
    if case.kind == "layer":
        return layer_outputs(case)
    if case.kind == "block":
        return block_outputs(case.with_arrays(lambda x: np.asarray(x, dtype=np.float64)))
    dialect = DIALECTS[case.dialect]
    if case.kind == "bases":
        A, B = oracle.bases(case.seed, case.shapes, case.rank, case.kind_of_basis, case.dialect)
        return {"A": A, "B": B}
    if case.kind == "start":
        n = spec.number_of_terms(case.shape, case.rank, dialect.count_rule)
        lambda_, gamma = dialect.start(case.shape, case.rank, n)
        learned = {"lambda_": np.full((n, case.rank), lambda_), "gamma": np.full((n, min(case.shape)), gamma)}
        return {**learned, "delta_weight": np.zeros(case.shape)}
    if case.kind == "count":
        counts = [spec.number_of_terms(s, case.rank, dialect.count_rule) * (case.rank + min(s)) for s in case.shapes]
        return {"num_parameters": np.asarray(sum(counts))}
    return {"rank": np.asarray(oracle.exact_rank(case))}


def layer_case(
    id_: str, shape: tuple[int, int], r: int, lead: tuple[int, ...], pad: tuple[int, ...],
    draw: Callable[[int, tuple[int, ...]], Array], **more: Any,
) -> Case:  # fmt: skip
    """A layer of ``shape`` (out, in), each array by ``draw(largest, size)``; bases larger by ``pad`` in d, n and D."""
    (out_features, in_features), n, D, d = shape, -(-min(shape) // r), max(shape), min(shape)
    A, B = np.full((r, d + pad[0]), ROGUE), np.full((n + pad[1], D + pad[2], r), ROGUE)
    A[:, :d], B[:n, :D] = draw(1, (r, d)), draw(1, (n, D, r))
    sizes = {"x": (*lead, in_features), "weight": shape, "bias": (out_features,), "lambda_": (n, r), "gamma": (n, d)}
    given = {name: draw(3, size) for name, size in sizes.items()} | {"dy": draw(3, (*lead, out_features))}
    case = Case(id=id_, kind="layer", **{**given, "A": A, "B": B, **more})
    return replace(case, notes=flags(case))


def with_mask(case: Case, mask: Array) -> Case:
    """A layer case with a dropout mask of the shape of x."""
    return replace(case, dropout_mask=mask, notes=(*case.notes, "dropout"))


def random_case(index: int, seed: int = 0, dialect: str = "peft") -> Case:
    """Case ``index`` of the endless list that ``seed`` begins: layers of every shape, half of them exact, half real.

    Shapes go round wide, tall and square; ranks round r | d, r ∤ d, r = d, r > d, r = 1; dtype, Conv1D's layout,
    merging, basis kind, leading axes and a dropout mask are drawn.
    """
    rng = np.random.default_rng([seed, index])
    d, more = int(rng.integers(2, 13) if index % 16 else rng.integers(24, 49)), int(rng.integers(1, 9))
    shape = ((d, d + more), (d + more, d), (d, d))[index % 3]
    divisors, others = [r for r in range(1, d + 1) if d % r == 0], [r for r in range(2, d) if d % r] or [d]
    r = int((rng.choice(divisors), rng.choice(others), d, d + more, 1)[index // 3 % 5])
    exact, dtype = bool(rng.integers(2)), ("float32", "float64")[int(rng.integers(2))]
    alpha = r * 2.0 ** int(rng.integers(-2, 4)) if exact else float(rng.choice([1, 2 * r, 20 * r, 640]))
    case = layer_case(
        f"random-{dialect}-{seed}-{index}", shape, r,
        lead=[(7,), (3, 2), (), (0,), (1,)][int(rng.choice(5, p=[0.6, 0.2, 0.1, 0.05, 0.05]))],
        pad=tuple(int(k) for k in rng.integers(0, 3, 3)),
        draw=lambda most, size: rng.integers(-most, most + 1, size) if exact else rng.standard_normal(size),
        dialect=dialect, pairing=DIALECTS[dialect].pairing, alpha=alpha, scaling=alpha / r,
        fan_in_fan_out=bool(rng.integers(2)), merged=bool(rng.integers(4) == 0),
        **({} if rng.integers(4) else {"bias": None}),
    )  # fmt: skip
    masks, p = np.random.default_rng([seed, index, 1]), 0.5 if exact else 0.1
    if not case.merged and masks.integers(3) == 0:
        case = with_mask(case, (masks.random(case.x.shape) >= p) / (1 - p))
    if exact:
        return replace(case.cast(dtype), exact_in=("float32", "float64"))
    kind, (n, D, _) = BASIS_KINDS[int(rng.integers(3))], case.B.shape
    large = (max(D, 64), max(case.A.shape[1], 32, n * r))  # large enough to be sure of a deviation
    bases = draw_bases("peft", seed=int(rng.integers(2**31)), shapes=[large], rank=r, kind=kind)
    return replace(case, tier="real", A=bases.A[:, : case.A.shape[1]], B=bases.B[:n, :D]).cast(dtype)


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
        "dropout": case.dropout_mask is not None,
    }
    return tuple(name for name, value in holds.items() if value)
