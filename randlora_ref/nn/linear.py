"""A linear layer, with an adapter or without: y = x(W0 + ΔW)ᵀ + b."""

from typing import Any

from .. import checks
from ..adapters import Adapter, Cache, base

Array = Any


def project(xp: Any, x: Array, weight: Array, bias: Array | None, adapter: Adapter | None) -> tuple[Array, Cache]:
    """y (…, out) = x Wᵀ + b, or what the adapter, a door of its own, makes of x and W."""
    if adapter is None:
        return base.project(xp, x, weight, bias, None, None, False)
    return adapter.forward(x, weight, bias, keep_merged=True)


def linear(x: Array, weight: Array, bias: Array | None = None, adapter: Adapter | None = None) -> tuple[Array, Cache]:
    """y (…, out) of x (…, in), weight (out, in) and bias (out,) or None; ``adapter`` adds its ΔW."""
    checks.instance("adapter", adapter, Adapter | None)
    xp = checks.floats(x=x, weight=weight)  # an adapter takes float16, nn does not
    if adapter is None:
        checks.shaped(weight.ndim == 2, "weight", weight, "(out, in)")
        checks.linear(tuple(weight.shape), x=x, weight=weight, bias=bias)
    return project(xp, x, weight, bias, adapter)


def linear_backward(dy: Array, cache: Cache, *, weight_grad: bool = False) -> tuple[Array, Any]:
    """∂L/∂x (…, in), and the adapter's gradients, or ``LinearGrads``; that of W if asked for."""
    checks.instance("cache", cache, Cache)
    xp = checks.cotangent("dy", dy, (*cache.x.shape[:-1], cache.weight.shape[0]), cache.x)
    return base.project_backward(xp, dy, cache, weight_grad)
