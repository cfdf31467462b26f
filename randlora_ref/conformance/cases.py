"""Cases of the conformance kit: what an implementation is given, and the names of what it is asked for."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np

from .. import checks, spec
from ..arrays import UNIT_ROUNDOFF, brief
from ..bases import Kind, draw_bases
from ..dialects import Dialect, get_dialect

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


@dataclass(frozen=True, eq=False)
class Case:
    """One question. A "layer" holds x (…, in), weight (out, in), bias (out) or None, A (r, d_max), B (n_max, D_max, r),
    lambda_ (n, r), gamma (n, d), dy (…, out), dropout_mask of the shape of x (0 where dropped, 1/(1 − p) where kept) or
    None, in ``dtype``; "rank" the same without x, weight, dy; the others seed, shapes or shape, rank, dialect, and for
    nlg ``context``, the network's context length. ``orientation`` is how a layer's ΔW comes of its sum M, as
    ``spec.is_transposed`` has it; widths are those of ``spec.sides``. ``scaling`` is the number that counts; ``alpha``,
    where there is one, is what ``dialect`` makes it of.

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
    orientation: spec.Orientation = "paper"
    dtype: str = "float64"
    exact_in: tuple[str, ...] = ()
    fan_in_fan_out: bool = False
    merged: bool = False
    shape: tuple[int, int] = (1, 1)
    shapes: tuple[tuple[int, int], ...] = ()
    rank: int = 1
    seed: int = 0
    context: int | None = None
    kind_of_basis: Any = "dense"
    block: Any = None  # nn.BlockSpec
    causal: bool = False
    attention_mask: tuple[tuple[int, ...], ...] = ()
    rope_theta: float | None = None
    stored: dict[str, Array] | None = field(default=None, repr=False)  # expected values read from a vector
    __repr__ = brief

    def __post_init__(self) -> None:
        if self.kind in ("layer", "rank") and hasattr(self.lambda_, "shape"):
            object.__setattr__(self, "rank", int(self.lambda_.shape[1]))
            object.__setattr__(self, "shape", self.shape if self.weight is None else tuple(self.weight.shape))

    @property
    def wanted(self) -> tuple[str, ...]:
        """The names of the results; a merged layer has no gradient of its learned values."""
        if self.kind == "block":
            return ("y", "dx", *(f"{name}.{role}" for role in self.A for name in ("dlambda", "dgamma")))
        return WANTED[self.kind][:3] if self.merged else WANTED[self.kind]

    @property
    def given(self) -> dict[str, Any]:
        """The arrays that there are by name, a block's by role."""
        return {name: x for name in ARRAYS if (x := getattr(self, name)) is not None}

    @property
    def factors(self) -> dict[str, tuple[Array, Array, Array, Array]]:
        """(A, B, Λ, Γ) by role, of a block's roles that are adapted; of a layer itself under ""."""
        if self.kind != "block":
            return {"": (self.A, self.B, self.lambda_, self.gamma)}
        return {role: (A, self.B[role], self.lambda_[role], self.gamma[role]) for role, A in self.A.items()}

    @property
    def parameters(self) -> dict[str, tuple[Array, Array | None]]:
        """A block's (weight, bias or None) by role."""
        return {role: (weight, self.bias.get(role)) for role, weight in self.weight.items()}

    @property
    def size(self) -> int:
        """How many numbers go in: failures are reported smallest first."""
        values = (x.values() if isinstance(x, Mapping) else [x] for x in self.given.values())
        sizes = [np.size(x) for some in values for x in some]
        return sum(sizes) or self.rank * sum(sum(shape) for shape in (self.shape, *self.shapes))

    def cast(self, dtype: str) -> Self:
        """The case in another precision: its numbers rounded to it (bfloat16 held in float32), nothing expected yet."""
        checks.choice("dtype", dtype, UNIT_ROUNDOFF)
        return replace(self.with_arrays(lambda x: rounded(x, dtype)), dtype=dtype, stored=None)

    def with_arrays(self, convert: Callable[[Array], Array]) -> Self:
        """The case with ``convert`` applied to each array that it has."""
        return replace(self, **{name: each(convert, x) for name, x in self.given.items()})


def each(convert: Callable[[Any], Any], value: Any) -> Any:
    """``convert`` of ``value``, or of each value of a mapping by role."""
    return {role: convert(x) for role, x in value.items()} if isinstance(value, Mapping) else convert(value)


def rounded(x: Array, dtype: str) -> Array:
    """``x`` rounded to ``dtype`` once, to the nearest, ties to even; bfloat16, of 8 digits, is held in float32."""
    if dtype != "bfloat16":
        return np.asarray(x).astype(dtype)
    exponent = np.frexp(x)[1] - 8
    return np.ldexp(np.rint(np.ldexp(x, -exponent)), exponent).astype(np.float32)


def draw_layer(
    id_: str, shape: tuple[int, int], r: int, rules: Dialect, context: int | None, lead: tuple[int, ...],
    pad: Sequence[int], draw: Callable[[int, tuple[int, ...]], Array], **more: Any,
) -> Case:  # fmt: skip
    """A layer of ``shape`` (out, in), each array by ``draw(largest, size)``; bases larger by ``pad`` in d, n and D."""
    n, (D, d) = rules.terms(shape, r, context=context), spec.sides(shape, rules.orientation)
    A, B = np.full((r, d + pad[0]), ROGUE), np.full((n + pad[1], D + pad[2], r), ROGUE)
    A[:, :d], B[:n, :D] = draw(1, (r, d)), draw(1, (n, D, r))
    sizes = {"x": (*lead, shape[1]), "weight": shape, "bias": shape[:1], "lambda_": (n, r), "gamma": (n, d)}
    given = {name: draw(3, size) for name, size in sizes.items()} | {"dy": draw(3, (*lead, shape[0])), "A": A, "B": B}
    return Case(id=id_, kind="layer", orientation=rules.orientation, **{**given, **more})


def random_case(index: int, seed: int = 0, dialect: str = "peft") -> Case:
    """Case ``index`` of the endless list that ``seed`` begins: layers of every shape, half of them exact, half real.

    Shapes go round wide, tall and square; ranks round r | d, r ∤ d, r = d, r > d, r = 1; dtype, Conv1D's layout,
    merging, basis kind, leading axes, nlg's context and a dropout mask are drawn. A real layer in seven has Λ and Γ of
    the dialect's start.
    """
    rules = get_dialect(dialect)
    index, seed = checks.integer("index", index, 0), checks.seed(seed)
    rng, masks, contexts = (np.random.default_rng([seed, index, *part]) for part in ((), (1,), (2,)))
    d, more = int(rng.integers(2, 13) if index % 16 else rng.integers(24, 49)), int(rng.integers(1, 9))
    shape = ((d, d + more), (d + more, d), (d, d))[index % 3]
    divisors, others = [r for r in range(1, d + 1) if d % r == 0], [r for r in range(2, d) if d % r] or [d]
    r = int((rng.choice(divisors), rng.choice(others), d, d + more, 1)[index // 3 % 5])
    exact, dtype = bool(rng.integers(2)), ("float32", "float64")[int(rng.integers(2))]
    alpha = r * 2.0 ** int(rng.integers(-2, 4)) if exact else float(rng.choice([1, 2 * r, 20 * r, 640]))
    case = draw_layer(
        f"random-{dialect}-{seed}-{index}", shape, r, rules, context=int(contexts.integers(1, 2 * d)),
        lead=[(7,), (3, 2), (), (0,), (1,)][int(rng.choice(5, p=[0.6, 0.2, 0.1, 0.05, 0.05]))],
        pad=rng.integers(0, 3, 3).tolist(),
        draw=lambda most, size: rng.integers(-most, most + 1, size) if exact else rng.standard_normal(size),
        dialect=dialect, pairing=rules.pairing, alpha=alpha, scaling=1.0 if rules.scaling_rule == "1" else alpha / r,
        fan_in_fan_out=bool(rng.integers(2)), merged=bool(rng.integers(4) == 0),
        **({} if rng.integers(4) else {"bias": None}),
    )  # fmt: skip
    if not case.merged and masks.integers(3) == 0:
        p = 0.5 if exact else 0.1
        case = replace(case, dropout_mask=(masks.random(case.x.shape) >= p) / (1 - p))
    (case,) = of_dialect([case], rules)
    if exact:
        case = replace(case, exact_in=("float32", "float64"))
    else:
        if index % 7 == 5:
            lambda_, gamma = rules.start(shape, r, len(case.lambda_))
            case = replace(case, lambda_=np.full_like(case.lambda_, lambda_), gamma=np.full_like(case.gamma, gamma))
        kind, (n, D, _) = BASIS_KINDS[int(rng.integers(3))], case.B.shape
        large = (max(D, 64, (n - 1) * r + 1), max(case.A.shape[1], 32, n * r))  # to be sure of a deviation
        bases = draw_bases("peft", seed=int(rng.integers(2**31)), shapes=[large], rank=r, kind=kind)
        case = replace(case, tier="real", A=bases.A[:, : case.A.shape[1]], B=bases.B[:n, :D])
    case = case.cast(dtype)
    return replace(case, notes=flags(case))


def of_dialect(cases: Iterable[Case], dialect: str | Dialect) -> Iterator[Case]:
    """The cases that the dialect's own code computes as they ask for it, whatever the case's dialect.

    α is left out where the dialect makes another scaling of it: the scaling is given.
    """
    rules = get_dialect(dialect)
    for case in cases:
        if case.kind in ("bases", "start", "count"):
            if case.dialect == rules.name:
                yield case
        elif all(_agrees(case, rules, role) for role in case.factors):
            if case.alpha is not None:
                n, r = case.lambda_.shape
                same = math.isclose(rules.scaling(r, n, case.alpha), case.scaling, rel_tol=2**-50)
                case = case if same else replace(case, alpha=None)
            yield case


def _agrees(case: Case, rules: Dialect, role: str) -> bool:
    """Whether pairing, scaling, widths and the place of each entry of M are the dialect's, or cannot show."""
    lambda_, shape = case.factors[role][2], case.weight[role].shape if role else case.shape
    if not (case.pairing == rules.pairing or 1 in lambda_.shape) or (rules.scaling_rule == "1" and case.scaling != 1):
        return False
    asked, own = [spec.sides(shape, orientation) for orientation in (case.orientation, rules.orientation)]
    M = np.arange(math.prod(shape))
    places = spec.oriented(M.reshape(asked), shape, case.orientation)
    return asked == own and np.array_equal(places, spec.oriented(M.reshape(own), shape, rules.orientation))


def flags(case: Case) -> tuple[str, ...]:
    """What is special about a layer case; the vectors' MANIFEST.json says of each what to think when it fails."""
    (n, r), (out_features, in_features) = case.lambda_.shape, case.weight.shape
    D, d = spec.sides(case.weight.shape, case.orientation)
    square, transposed = out_features == in_features, spec.is_transposed(case.weight.shape, case.orientation)
    holds = {
        "crossed": case.pairing == "crossed" and n > 1 and r > 1,
        "wide": out_features < in_features and transposed,
        "square": square and not transposed,
        "square transposed": square and transposed,
        "reshaped": case.orientation == "reshape" and out_features > in_features,
        "never transposed": out_features < in_features and not transposed,
        "ragged": d % r != 0 and r < d,
        "rank one": r == 1,
        "one term": n == 1,
        "over-ranked": r > d,
        "sliced": case.A.shape[1] > d or case.B.shape[:2] != (n, D),
        "fan_in_fan_out": case.fan_in_fan_out,
        "merged": case.merged,
        "leading axes": case.x.ndim != 2,
        "empty batch": case.x.size == 0,
        "start": not np.any(case.lambda_),
        "zero cotangent": case.dy.size > 0 and not np.any(case.dy),
        "over root n": case.alpha is not None and not math.isclose(case.alpha, case.scaling * r),
        "no bias": case.bias is None,
        "dropout": case.dropout_mask is not None,
    }
    return tuple(name for name, value in holds.items() if value)
