"""What the adapters do alike: the base path, dropout, bias, merging, counting, checks, random draws.

A method says what it learns, how rows go through ΔW, and how a cotangent comes back: ``_apply`` and ``_pull_back``.
Most methods are a product of two thin matrices; ``LowRank`` does those two steps for any ΔW = s·L R, and such a method
gives the pair and its pullback alone.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from .. import arrays, checks
from ..bases import WORDS_AT_A_TIME, tile

Array = Any
Factors = tuple[tuple[Any, ...], ...]


class Cache(NamedTuple):
    """What backward needs of forward. ``inner`` is what the method keeps of its own."""

    x: Array
    weight: Array
    has_bias: bool
    dropout_mask: Array | None
    inner: Any


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearAdapter(ABC):
    """An update ΔW of a frozen weight W0 (out, in), with learned values of its own. Nothing is changed in place."""

    LEARNED: ClassVar[tuple[str, ...]]  # the names of the learned arrays
    GRADS: ClassVar[Callable[..., Any]]  # a named tuple: their gradients, then weight and bias

    out_features: int
    in_features: int

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
        rows = arrays.as_rows(xp, x)
        if dropout_mask is None:
            y, inner = self._apply(xp, rows, weight, keep_merged)
        else:
            step, inner = self._apply(xp, rows * arrays.as_rows(xp, dropout_mask), None, keep_merged)
            y = rows @ weight.T + step
        if bias is not None:
            y = y + bias
        return xp.reshape(y, (*x.shape[:-1], self.shape[0])), Cache(x, weight, bias is not None, dropout_mask, inner)

    def backward(self, dy: Array, cache: Cache, *, weight_grad: bool = False) -> tuple[Array, Any]:
        """∂L/∂x (…, in) and the gradients of ∂L/∂y = ``dy`` (…, out); that of W0 if ``weight_grad``.

            ∂L/∂x = dy W0 + (dy ΔW)∘m      ∂L/∂W0 = Σ_t dy_t x_tᵀ      ∂L/∂b = Σ_t dy_t

        Raises TypeError or ValueError for a ``dy`` that is not of y's shape, library, device and precision.
        """
        xp = checks.floats(half=True, adapter=self._like, cache=cache.x, dy=dy)
        checks.shape("dy", dy, (*cache.x.shape[:-1], self.shape[0]))
        rows, dy_rows = arrays.as_rows(xp, cache.x), arrays.as_rows(xp, dy)
        if cache.dropout_mask is None:
            dx, learned = self._pull_back(xp, dy_rows, rows, cache.weight, cache.inner)
        else:
            mask = arrays.as_rows(xp, cache.dropout_mask)
            step, learned = self._pull_back(xp, dy_rows, rows * mask, None, cache.inner)
            dx = dy_rows @ cache.weight + step * mask
        d_weight = dy_rows.T @ rows if weight_grad else None
        d_bias = xp.sum(dy_rows, axis=0) if cache.has_bias else None
        return xp.reshape(dx, tuple(cache.x.shape)), self.GRADS(*learned, d_weight, d_bias)

    def merge(self, weight: Array) -> Array:
        """W0 + ΔW, of the shape of ``weight`` (out, in)."""
        self._check_weight(weight)
        return weight + self.delta_weight()

    def unmerge(self, weight: Array) -> Array:
        """The merged ``weight`` (out, in) − ΔW: W0 up to one rounding of the merged weight."""
        self._check_weight(weight)
        return weight - self.delta_weight()

    def num_parameters(self) -> int:
        """How many learned values there are."""
        return sum(math.prod(getattr(self, name).shape) for name in self.LEARNED)

    def replace(self, **learned: Array) -> Self:
        """The same adapter with other learned values, by name. A TypeError for a name that is not learned."""
        for name in learned:
            if name not in self.LEARNED:
                raise TypeError(f"{name}: not learned by {type(self).__name__}; it must be {' or '.join(self.LEARNED)}")
        return replace(self, **learned)

    @abstractmethod
    def delta_weight(self) -> Array:
        """ΔW (out, in)."""

    @abstractmethod
    def factors(self) -> Factors:
        """ΔW without its scaling as a sum of products; in a product, a vector is a diagonal factor."""

    # -- the pieces of a method ---------------------------------------------------------------------------

    @abstractmethod
    def _apply(self, xp: Any, p: Array, weight: Array | None, keep_merged: bool) -> tuple[Array, Any]:
        """p (W0 + ΔW)ᵀ of rows p (T, in), or p ΔWᵀ where ``weight`` is None, and what ``_pull_back`` needs."""

    @abstractmethod
    def _pull_back(
        self, xp: Any, q: Array, p: Array, weight: Array | None, inner: Any
    ) -> tuple[Array, tuple[Array, ...]]:
        """q (W0 + ΔW) of the cotangent q (T, out), or q ΔW, and the gradients of the learned values."""

    # -- checks -------------------------------------------------------------------------------------------

    @property
    def _like(self) -> Array:
        return getattr(self, self.LEARNED[0])

    def _check(self, **named: tuple[Array, tuple[int, ...]]) -> None:
        """The constructor's checks of arrays with the shapes they must have; the first settles the precision."""
        given = {name: x for name, (x, _) in named.items()}
        xp = checks.floats(half=True, **given)
        for name, (x, shape) in named.items():
            checks.shape(name, x, shape)
        checks.finite(xp, **given)

    def _check_weight(self, weight: Array) -> None:
        xp = checks.floats(half=True, adapter=self._like, weight=weight)
        checks.shape("weight", weight, self.shape)
        checks.finite(xp, weight=weight)


class LowRank(LinearAdapter):
    """An adapter with ΔW = s·L R, L (out, r) and R (r, in), of which ΔW itself is formed only to merge.

    With z = s·p Rᵀ and v = s·q L:  p ΔWᵀ = z Lᵀ,  q ΔW = v R,  ∂L/∂L = qᵀz,  ∂L/∂R = vᵀp.
    """

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

    def _apply(self, xp: Any, p: Array, weight: Array | None, keep_merged: bool) -> tuple[Array, Any]:
        L, R = self._pair(xp)
        z = self.scaling * (p @ R.T)
        step = z @ L.T
        return (step if weight is None else p @ weight.T + step), (L, R, z)

    def _pull_back(
        self, xp: Any, q: Array, p: Array, weight: Array | None, inner: Any
    ) -> tuple[Array, tuple[Array, ...]]:
        L, R, z = inner
        v = self.scaling * (q @ L)
        step = v @ R
        return (step if weight is None else q @ weight + step), self._pull_back_pair(xp, q.T @ z, v.T @ p)


def options(dtype: str, xp: Any, device: Any) -> dict[str, Any]:
    """Keyword arguments that make an array of a learned value. A ValueError for a dtype that none has."""
    checks.choice("dtype", dtype, ("float16", "float32", "float64"))
    return {"dtype": getattr(xp, dtype), **arrays.on(device, xp)}


def uniform(
    rows: int,
    columns: int,
    bound: float = math.sqrt(3),
    *,
    stream: int = 1,
    seed: int = 0,
    dtype: str = "float32",
    xp: Any = np,
    device: Any = None,
) -> Array:
    """A (rows, columns) array uniform on ±bound: entry [i, k] is word i·columns + k of Philox stream ``stream`` >= 1.

    The unit-variance entry of ``bases.tile`` (±√3) times bound/√3, in float64 for float64 and else in float32. More
    rows under the same seed begin with the same rows, on any device.
    """
    made = options(dtype, xp, device)
    wide = "float64" if dtype == "float64" else "float32"
    result = xp.empty((rows, columns), **made)
    step = max(1, WORDS_AT_A_TIME // columns)
    for first in range(0, rows, step):
        last = min(rows, first + step)
        part = tile(stream, first, last, seed=seed, rank=columns, dtype=wide, xp=xp, device=device)
        result[first:last, :] = arrays.astype(xp, part * (bound / math.sqrt(3)), made["dtype"])
    return result
