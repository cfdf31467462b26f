"""A linear layer, with an adapter or without: y = x(W0 + ΔW)ᵀ + b."""

from typing import Any, NamedTuple

from .. import arrays, checks
from ..adapters.base import LinearAdapter as Adapter

Array = Any


class LinearCache(NamedTuple):
    """What backward needs of forward; ``inner`` is the adapter's own cache."""

    x: Array
    weight: Array
    has_bias: bool
    adapter: Adapter | None
    inner: Any


class LinearGrads(NamedTuple):
    """Gradients of a layer without adapter; None where not asked for, or where there is none."""

    weight: Array | None
    bias: Array | None


def linear(
    x: Array, weight: Array, bias: Array | None = None, adapter: Adapter | None = None
) -> tuple[Array, LinearCache]:
    """y (…, out) of x (…, in), weight (out, in) and bias (out,) or None; ``adapter`` adds its ΔW."""
    inner = None
    if adapter is not None:
        checks.floats(x=x)  # an adapter takes float16, nn does not
        y, inner = adapter.forward(x, weight, bias, keep_merged=True)
    else:
        if checks.namespace(weight=weight) and weight.ndim != 2:
            raise ValueError(f"weight: shape {tuple(weight.shape)}; it must be (out, in)")
        xp = checks.linear(tuple(weight.shape), x=x, weight=weight, bias=bias)
        rows = arrays.as_rows(xp, x) @ weight.T
        y = xp.reshape(rows if bias is None else rows + bias, (*x.shape[:-1], weight.shape[0]))
    return y, LinearCache(x, weight, bias is not None, adapter, inner)


def linear_backward(dy: Array, cache: LinearCache, *, weight_grad: bool = False) -> tuple[Array, Any]:
    """∂L/∂x = dy W, and the adapter's gradients, or ``LinearGrads``: ∂L/∂b = Σ dy, ∂L/∂W = Σ dyᵀx if asked for."""
    if cache.adapter is not None:
        return cache.adapter.backward(dy, cache.inner, weight_grad=weight_grad)
    xp = checks.floats(cache=cache.x, dy=dy)
    checks.shape("dy", dy, (*cache.x.shape[:-1], cache.weight.shape[0]))
    rows = arrays.as_rows(xp, dy)
    d_weight = rows.T @ arrays.as_rows(xp, cache.x) if weight_grad else None
    d_bias = xp.sum(rows, axis=0) if cache.has_bias else None
    return xp.reshape(rows @ cache.weight, cache.x.shape), LinearGrads(d_weight, d_bias)
