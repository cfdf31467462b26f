"""A linear layer, with an adapter or without: y = x(W0 + ΔW)ᵀ + b."""

from typing import Any, NamedTuple

from .. import arrays, checks
from ..adapters.base import LinearAdapter as Adapter

Array = Any


class LinearCache(NamedTuple):
    """What backward needs of forward."""

    x: Array
    weight: Array
    has_bias: bool
    adapter: Adapter | None
    adapter_cache: Any


class LinearGrads(NamedTuple):
    """Gradients of the weight and the bias of a layer without adapter; None where not asked for, or where none is."""

    weight: Array | None
    bias: Array | None


def project(xp: Any, x: Array, weight: Array, bias: Array | None, adapter: Adapter | None) -> tuple[Array, LinearCache]:
    """y (…, out) = x Wᵀ + b, or what the adapter, a door of its own, makes of x and W."""
    if adapter is not None:
        y, adapter_cache = adapter.forward(x, weight, bias, keep_merged=True)
        return y, LinearCache(x, weight, bias is not None, adapter, adapter_cache)
    rows = arrays.as_rows(xp, x) @ weight.T  # (T, out)
    y = xp.reshape(rows if bias is None else rows + bias, (*x.shape[:-1], weight.shape[0]))
    return y, LinearCache(x, weight, bias is not None, None, None)


def project_backward(xp: Any, dy: Array, cache: LinearCache, weight_grad: bool) -> tuple[Array, Any]:
    """∂L/∂x = dy W, ∂L/∂W = Σ_t dy_t x_tᵀ and ∂L/∂b = Σ_t dy_t over all rows t, or the adapter's gradients."""
    x, weight, has_bias, adapter, adapter_cache = cache
    if adapter is not None:
        return adapter.backward(dy, adapter_cache, weight_grad=weight_grad)
    rows = arrays.as_rows(xp, dy)  # (T, out)
    d_weight = rows.T @ arrays.as_rows(xp, x) if weight_grad else None
    d_bias = xp.sum(rows, axis=0) if has_bias else None
    return xp.reshape(rows @ weight, x.shape), LinearGrads(d_weight, d_bias)


def linear(
    x: Array, weight: Array, bias: Array | None = None, adapter: Adapter | None = None
) -> tuple[Array, LinearCache]:
    """y (…, out) of x (…, in), weight (out, in) and bias (out,) or None; ``adapter`` adds its ΔW."""
    checks.instance("adapter", adapter, Adapter | None)
    xp = checks.floats(x=x, weight=weight)  # an adapter takes float16, nn does not
    if adapter is None:
        if weight.ndim != 2:
            raise ValueError(f"weight: shape {tuple(weight.shape)}; it must be (out, in)")
        checks.linear(tuple(weight.shape), x=x, weight=weight, bias=bias)
    return project(xp, x, weight, bias, adapter)


def linear_backward(dy: Array, cache: LinearCache, *, weight_grad: bool = False) -> tuple[Array, Any]:
    """∂L/∂x (…, in), and the adapter's gradients, or ``LinearGrads``; that of W if asked for."""
    xp = checks.cotangent("dy", dy, (*checks.kept(cache, 5).x.shape[:-1], cache.weight.shape[0]), cache.x)
    return project_backward(xp, dy, cache, weight_grad)
