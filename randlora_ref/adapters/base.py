"""What the adapters do alike: the layer itself, dropout, bias, merging, counting, checks, random draws.

``project`` and ``project_backward`` are the linear layer, with an adapter or without. A method is a subclass that says
what it learns and gives ΔW and its pullback: its rows then go through W0 + ΔW. One that knows a way without ΔW goes it
in ``_step`` and ``_step_back``. Most are a product of two thin matrices: ``LowRank`` goes that way for any
ΔW = s·L R, and they give the pair and its pullback.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections import namedtuple
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self, TypedDict

import numpy as np

from .. import arrays, checks
from ..bases import tile

Array = Any
Factors = tuple[tuple[Any, ...], ...]
Arrays = dict[str, tuple[Array, tuple[int, ...]]]  # arrays by name, and the shape that each must have


class Cache(NamedTuple):
    """What backward needs of forward. ``inner``: the adapter's order of contraction with what it keeps."""

    x: Array
    weight: Array
    has_bias: bool
    dropout_mask: Array | None
    inner: Any
    adapter: "LinearAdapter | None" = None


class LinearGrads(NamedTuple):
    """Gradients of the weight and the bias of a layer without adapter; None where not asked for, or where none is."""

    weight: Array | None
    bias: Array | None


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearAdapter(ABC):
    """An update ΔW of a frozen weight W0 (out, in), with learned values of its own. Nothing is changed in place.

    A method is a subclass that names what is ``learned``. Its gradients are a named tuple: those of the learned arrays,
    then ``weight``, None unless asked for, and ``bias``, None where the layer has none.
    """

    LEARNED: ClassVar[tuple[str, ...]]
    GRADS: ClassVar[Callable[..., Any]]
    WHY: ClassVar[Mapping[str, str]] = {}  # what is known of an array that is not finite, by name

    out_features: int
    in_features: int

    def __init_subclass__(cls, learned: tuple[str, ...] = ()) -> None:
        super().__init_subclass__()
        cls.__repr__ = arrays.brief  # type: ignore[method-assign]
        if learned:
            named_tuple: Any = namedtuple
            cls.LEARNED = learned
            cls.GRADS = named_tuple(f"{cls.__name__}Grads", (*learned, "weight", "bias"), module=cls.__module__)

    def __post_init__(self) -> None:
        checks.sizes(self.out_features, self.in_features, getattr(self, "rank", 1))
        self._derive()
        self._check()

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight that is adapted."""
        return int(self.out_features), int(self.in_features)

    def forward(
        self,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        *,
        dropout_mask: Array | None = None,
        keep_merged: bool = False,
    ) -> tuple[Array, Cache]:
        """y (…, out) = x W0ᵀ + (x∘m) ΔWᵀ + b of x (…, in), and the cache of ``backward``.

        ``dropout_mask`` m, of the shape of x, holds 0 where dropped and 1/(1 − p) where kept. ``keep_merged`` keeps
        W0 + ΔW for backward, out·in numbers more, where the method forms it. Raises TypeError or ValueError, naming
        the argument, for another library, device, precision or shape than the adapter's.
        """
        given = {"x": x, "weight": weight, "bias": bias, "dropout_mask": dropout_mask}
        xp = checks.linear(self.shape, half=True, adapter=self._like, **given)
        return project(xp, x, weight, bias, self, dropout_mask, keep_merged)

    def backward(self, dy: Array, cache: Cache, *, weight_grad: bool = False) -> tuple[Array, Any]:
        """∂L/∂x (…, in) and the gradients of ∂L/∂y = ``dy`` (…, out); that of W0 if ``weight_grad``.

            ∂L/∂x = dy W0 + (dy ΔW)∘m      ∂L/∂W0 = Σ_t dy_t x_tᵀ      ∂L/∂b = Σ_t dy_t

        Raises TypeError or ValueError for a ``dy`` that is not of y's shape, library, device and precision.
        """
        checks.instance("cache", cache, Cache)
        xp = checks.floats(half=True, adapter=self._like, cache=cache.x, dy=dy)
        checks.shape("dy", dy, (*cache.x.shape[:-1], self.shape[0]))
        return project_backward(xp, dy, cache._replace(adapter=self), weight_grad)

    def merge(self, weight: Array) -> Array:
        """W0 + ΔW, of the shape of ``weight`` (out, in) and in its precision, which may be lower than the adapter's.

        The sum is taken in the adapter's precision, and rounded to that of ``weight`` once.
        """
        return self._added(weight, self._merged_update())

    def unmerge(self, weight: Array) -> Array:
        """The merged ``weight`` (out, in) − ΔW, in its precision: W0 up to one rounding of the merged weight."""
        return self._added(weight, -self._merged_update())

    def _added(self, weight: Array, update: Array) -> Array:
        """``weight`` + ``update`` (out, in), in the precision of ``weight``."""
        xp, own = checks.namespace(adapter=self._like, weight=weight), checks.precision("adapter", self._like)
        lower = arrays.unit_roundoff(checks.precision("weight", weight)) > arrays.unit_roundoff(own)
        if not lower:
            checks.floats(half=True, adapter=self._like, weight=weight)
        checks.shape("weight", weight, self.shape)
        checks.finite(xp, weight=weight)
        return arrays.astype(xp, arrays.widen(xp, weight, own) + update, weight.dtype) if lower else weight + update

    def num_parameters(self) -> int:
        """How many learned values there are."""
        return sum(math.prod(getattr(self, name).shape) for name in self.LEARNED)

    def replace(self, **learned: Array) -> Self:
        """The same adapter with other learned values, by name. What they leave alone is shared, and not read again.

        Raises TypeError for a name that is not learned, and what the constructor raises of the new values.
        """
        for name in learned:
            if name not in self.LEARNED:
                raise TypeError(f"{name}: not learned by {type(self).__name__}; it must be {' or '.join(self.LEARNED)}")
        other = copy.copy(self)
        vars(other).update(learned)  # frozen for whoever holds it, and nobody holds it yet
        other._check({*learned, *other._derive()})
        return other

    @abstractmethod
    def delta_weight(self) -> Array:
        """ΔW (out, in)."""

    def _merged_update(self) -> Array:
        """What merging adds to W0: ΔW, but for a method whose code adds another matrix."""
        return self.delta_weight()

    @abstractmethod
    def factors(self) -> Factors:
        """ΔW without its scaling as a sum of products; in a product, a vector is a diagonal factor."""

    # -- what a method gives for the way of rows through ΔW -----------------------------------------------

    def _pull_back_delta(self, xp: Any, dy: Array, x: Array) -> tuple[Array, ...]:
        """The gradients of the learned values from G = ∂L/∂ΔW = dyᵀ x (out, in)."""
        raise NotImplementedError

    def _step(self, xp: Any, x: Array, masked: bool, keep: bool) -> tuple[Array, Any] | None:
        """x ΔWᵀ (T, out) of rows x (T, in) without ΔW, and the way's name with what it keeps; None: ΔW is formed."""
        return None

    def _step_back(self, xp: Any, dy: Array, x: Array, kept: Any) -> tuple[Array, tuple[Array, ...]]:
        """dy ΔW (T, in) of rows dy (T, out) the same way, and the gradients of the learned values."""
        raise NotImplementedError

    # -- checks -------------------------------------------------------------------------------------------

    @property
    def _like(self) -> Array:
        return getattr(self, self.LEARNED[0])

    @abstractmethod
    def _arrays(self) -> Arrays:
        """Every array by name, and the shape that it must have; the first settles the precision."""

    def _derive(self) -> Collection[str]:
        """Makes what is made of the arrays once; the names of those that it was made of anew."""
        return ()

    def _check(self, fresh: Collection[str] | None = None) -> None:
        """Whether all arrays fit together, and whether those named ``fresh`` (None: all) are finite."""
        named = self._arrays()
        xp = checks.floats(half=True, **{name: x for name, (x, _) in named.items()})
        for name, (x, shape) in named.items():
            checks.shape(name, x, shape)
        read = {name: x for name, (x, _) in named.items() if fresh is None or name in fresh}
        checks.finite(xp, why=self.WHY, **read)


def project(
    xp: Any, x: Array, weight: Array, bias: Array | None, adapter: LinearAdapter | None, mask: Array | None, keep: bool
) -> tuple[Array, Cache]:
    """y (…, out) = x W0ᵀ + (x∘m) ΔWᵀ + b of x (…, in); without an adapter there is no ΔW."""
    rows, inner = arrays.as_rows(xp, x), None  # (T, in)
    masked = rows if mask is None else rows * arrays.as_rows(xp, mask)
    if adapter is None:
        y = rows @ weight.T  # (T, out)
    elif (thin := adapter._step(xp, masked, mask is not None, keep)) is not None:
        y, inner = rows @ weight.T + thin[0], thin[1]
    else:
        M = merged(adapter, weight, mask)
        y, inner = masked @ M.T, ("merged", M if keep else None)
        y = y if mask is None else rows @ weight.T + y
    y = xp.reshape(y if bias is None else y + bias, (*x.shape[:-1], weight.shape[0]))
    return y, Cache(x, weight, bias is not None, mask, inner, adapter)


def project_backward(xp: Any, dy: Array, cache: Cache, weight_grad: bool) -> tuple[Array, Any]:
    """∂L/∂x (…, in), the adapter's gradients, ∂L/∂W0 = Σ_t dy_t x_tᵀ and ∂L/∂b = Σ_t dy_t over all rows t."""
    x, weight, has_bias, mask, inner, adapter = cache
    rows, dy = arrays.as_rows(xp, x), arrays.as_rows(xp, dy)
    d_weight = dy.T @ rows if weight_grad else None
    d_bias = xp.sum(dy, axis=0) if has_bias else None
    if adapter is None:
        return xp.reshape(dy @ weight, tuple(x.shape)), LinearGrads(d_weight, d_bias)
    mask = None if mask is None else arrays.as_rows(xp, mask)
    masked = rows if mask is None else rows * mask
    if inner[0] == "merged":
        M = merged(adapter, weight, mask) if inner[1] is None else inner[1]
        dx, learned = dy @ M, adapter._pull_back_delta(xp, dy, masked)  # (T, in)
    else:
        dx, learned = adapter._step_back(xp, dy, masked, inner)
    dx = dx if mask is None else dx * mask
    dx = dx if inner[0] == "merged" and mask is None else dy @ weight + dx
    return xp.reshape(dx, tuple(x.shape)), adapter.GRADS(*learned, d_weight, d_bias)


def merged(adapter: LinearAdapter, weight: Array, mask: Array | None) -> Array:
    """M = W0 + ΔW (out, in), or ΔW alone: with dropout, x and x∘m take two ways."""
    return weight + adapter.delta_weight() if mask is None else adapter.delta_weight()


@dataclass(frozen=True, eq=False, kw_only=True)
class LowRank(LinearAdapter):
    """An adapter with ΔW = s·L R, L (out, r) and R (r, in), of which ΔW itself is formed only to merge.

    With z = s·x Rᵀ and v = s·dy L:  x ΔWᵀ = z Lᵀ,  dy ΔW = v R,  ∂L/∂L = dyᵀz,  ∂L/∂R = vᵀx.
    """

    rank: int

    @property
    @abstractmethod
    def scaling(self) -> float:
        """s, the number in front of the product."""

    @abstractmethod
    def _pair(self, xp: Any) -> tuple[Array, Array]:
        """L (out, r) and R (r, in)."""

    @abstractmethod
    def _pull_back_pair(self, xp: Any, dL: Array, dR: Array) -> tuple[Array, ...]:
        """The gradients of the learned values from those of L and R."""

    def delta_weight(self) -> Array:
        """ΔW (out, in)."""
        L, R = self._pair(arrays.namespace_of("learned", self._like))
        return self.scaling * (L @ R)

    def _step(self, xp: Any, x: Array, masked: bool, keep: bool) -> tuple[Array, Any]:
        L, R = self._pair(xp)
        z = self.scaling * (x @ R.T)  # (T, r)
        return z @ L.T, ("thin", L, R, z)  # (T, out)

    def _step_back(self, xp: Any, dy: Array, x: Array, kept: Any) -> tuple[Array, tuple[Array, ...]]:
        _, L, R, z = kept
        v = self.scaling * (dy @ L)  # (T, r)
        return v @ R, self._pull_back_pair(xp, dy.T @ z, v.T @ x)  # (T, in)


@dataclass(frozen=True, eq=False, kw_only=True)
class LowRankByAlpha(LowRank):
    """A product of two thin matrices with s = α/r."""

    alpha: float

    def __post_init__(self) -> None:
        checks.number("alpha", self.alpha)
        super().__post_init__()

    @property
    def scaling(self) -> float:
        """α/r."""
        return float(self.alpha / self.rank)


def terms(name: str, x: Array, *sizes: int) -> int:
    """n of an array (n, *sizes), one entry of the first axis a term. A ValueError for none, or another shape."""
    checks.namespace(**{name: x})
    wanted = ", ".join(["n", *map(str, sizes)]) + "," * (not sizes)
    well = x.ndim == 1 + len(sizes) and x.shape[0] > 0 and tuple(x.shape[1:]) == sizes
    checks.shaped(well, name, x, f"({wanted}) with n >= 1")
    return int(x.shape[0])


class Made(TypedDict, total=False):
    """Keywords of every ``start``: what its arrays are made in. ``Maker`` has their meaning and their defaults."""

    dtype: str
    xp: Any
    device: Any


class Maker:
    """Makes a start's arrays, constant or drawn from ``seed``: in ``dtype``, by the library ``xp``, on ``device``.

    A ValueError for a dtype that no learned value has, or a device that is not the library's.
    """

    def __init__(self, seed: int = 0, /, dtype: str = "float32", xp: Any = np, device: Any = None) -> None:
        checks.library(xp)
        checks.choice("dtype", dtype, ("float16", "float32", "float64"))
        self.seed, self.dtype, self.xp = seed, dtype, xp
        self.options: dict[str, Any] = {"dtype": getattr(xp, dtype), **arrays.on(device, xp)}
        wide = "float64" if dtype == "float64" else "float32"  # what bases are drawn in
        self.wide: dict[str, Any] = {"dtype": wide, "xp": xp, "device": device}

    def full(self, value: float, *shape: int) -> Array:
        """``value`` in every entry of ``shape``."""
        checks.room("shape", *shape)
        return self.xp.full(shape, value, **self.options) if value else self.xp.zeros(shape, **self.options)

    def uniform(self, rows: int, columns: int, bound: float = math.sqrt(3), *, stream: int = 1) -> Array:
        """(rows, columns), uniform on ±bound: entry [i, k] is word i·columns + k of Philox stream ``stream`` >= 1.

        The unit-variance entry of ``bases.tile`` (±√3) times bound/√3, in float64 for float64 and else in float32. More
        rows under the same seed begin with the same rows, on any device.
        """
        checks.room("shape", rows, columns)
        drawn = tile(stream, 0, rows, seed=self.seed, rank=columns, **self.wide)
        return arrays.astype(self.xp, drawn * (bound / math.sqrt(3)), self.options["dtype"])

    def stack(self, n: int, rows: int, rank: int, *, stream: int) -> Array:
        """n matrices (rows, rank) of unit variance, (n, rows, rank): row o of them all is row o of ``uniform``."""
        drawn = self.uniform(rows, n * rank, stream=stream)
        return arrays.permute(self.xp, self.xp.reshape(drawn, (rows, n, rank)), (1, 0, 2))
