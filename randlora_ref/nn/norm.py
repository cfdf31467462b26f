"""Normalisations over the last axis: LayerNorm (arXiv 1607.06450), RMSNorm (arXiv 1910.07467), unit length.

LayerNorm is RMSNorm of the centred input, so one pair of kernels serves both.
"""

import math
from typing import Any

from .. import arrays, checks
from ..adapters.base import LinearGrads

Array = Any
NormGrads = LinearGrads


# ---------------------------------------------------------------------------------------------------------
# Kernels
# ---------------------------------------------------------------------------------------------------------


def mean(xp: Any, x: Array) -> Array:
    """The mean over the last axis, (…, 1). The sum alone may overflow."""
    return xp.sum(x / x.shape[-1], axis=-1, keepdims=True)


def largest(xp: Any, x: Array, least: float) -> Array:
    """max|Re x| over the last axis (…, 1), at least ``least``; 1 where that is 0."""
    m = xp.max(xp.abs(arrays.real(xp, x)), axis=-1, keepdims=True)
    m = arrays.where(xp, m > least, m, least)
    return arrays.where(xp, m == 0, 1.0, m)


@arrays.blocked
def norm_rows(xp: Any, x: Array, *, weight: Array, bias: Array | None, root: float, centred: bool) -> tuple[Array, ...]:
    """y = x̂∘w + b, x̂ = r·c and r = 1/√(mean(c²) + ε), with c = x − mean(x) if ``centred``, else x; ``root`` is √ε.

    The squares are taken of c/m, m = max(max|c|, √ε) of the row, which cancels: c² itself may overflow or vanish.
    """
    c = x - mean(xp, x) if centred else x  # (T, k)
    m = largest(xp, c, root)  # (T, 1)
    c = c / m
    rstd = 1 / xp.sqrt(mean(xp, c * c) + (root / m) ** 2)  # (T, 1)   m·r
    x_hat = c * rstd
    y = x_hat * weight
    return (y if bias is None else y + bias), x_hat, rstd / m


@arrays.blocked
def norm_rows_backward(xp: Any, dy: Array, x_hat: Array, rstd: Array, *, weight: Array, centred: bool) -> Array:
    """∂L/∂c = r·(g − x̂·mean(x̂∘g)), g = ∂L/∂x̂ = dy∘w; of LayerNorm ∂L/∂x = ∂L/∂c − mean(∂L/∂c).

    From dr = −r³·mean(c∘dc) follows dx̂ = r·(dc − x̂·mean(x̂∘dc)), a symmetric map, and centring, dc = dx − mean(dx),
    is symmetric too: each is applied to the cotangent, in reverse order. (x̂ has mean zero but for rounding, which a
    nearly constant row magnifies; so centring stays a step of its own.)
    """
    g = dy * weight  # (T, k)
    dc = rstd * (g - x_hat * mean(xp, x_hat * g))
    return dc - mean(xp, dc) if centred else dc


def apply_norm(xp: Any, x: Array, weight: Array, bias: Array | None, eps: float, centred: bool) -> tuple[Array, Any]:
    """Either norm of x (…, k), and its cache: x̂ (…, k), r (…, 1), the weight, whether biased, whether centred."""
    y, x_hat, rstd = norm_rows(xp, x, weight=weight, bias=bias, root=math.sqrt(eps), centred=centred)
    return y, (x_hat, rstd, weight, bias is not None, centred)


def apply_norm_backward(xp: Any, dy: Array, cache: Any, weight_grad: bool) -> tuple[Array, NormGrads]:
    """∂L/∂x (…, k), and ∂L/∂w = Σ dy∘x̂, ∂L/∂b = Σ dy over all rows."""
    x_hat, rstd, weight, has_bias, centred = cache
    d_weight = xp.sum(arrays.as_rows(xp, dy * x_hat), axis=0) if weight_grad else None
    d_bias = xp.sum(arrays.as_rows(xp, dy), axis=0) if weight_grad and has_bias else None
    return norm_rows_backward(xp, dy, x_hat, rstd, weight=weight, centred=centred), NormGrads(d_weight, d_bias)


# ---------------------------------------------------------------------------------------------------------
# Doors
# ---------------------------------------------------------------------------------------------------------


def layer_norm(x: Array, weight: Array, bias: Array | None, eps: float, *, centred: bool = True) -> tuple[Array, Any]:
    """y (…, k) of x (…, k), weight (k,) and bias (k,) or None; the variance is the population's."""
    xp = checks.floats(x=x, weight=weight, bias=bias)
    k, eps = checks.last_axis("x", x), checks.number("eps", eps, least=0.0)
    checks.shape("weight", weight, (k,))
    if bias is not None:
        checks.shape("bias", bias, (k,))
    return apply_norm(xp, x, weight, bias, eps, centred)


def rms_norm(x: Array, weight: Array, bias: Array | None, eps: float) -> tuple[Array, Any]:
    """The same without centring; Llama's has no bias."""
    return layer_norm(x, weight, bias, eps, centred=False)


def norm_backward(dy: Array, cache: Any, *, weight_grad: bool = False) -> tuple[Array, NormGrads]:
    """∂L/∂x (…, k) of ∂L/∂y, for either norm; the gradients of weight and bias if ``weight_grad``."""
    xp = checks.cotangent("dy", dy, tuple(checks.kept(cache, 5)[0].shape), cache[0])
    return apply_norm_backward(xp, dy, cache, weight_grad)


def normalize(x: Array) -> tuple[Array, Any]:
    """y = x/|x| over the last axis, |x| = √Σx²; zero where x is. Squares are taken of x/max|x|, as in the norms."""
    xp = checks.floats(x=x)
    checks.last_axis("x", x)
    m = largest(xp, x, 0.0)  # (…, 1)
    c = x / m
    length = xp.sqrt(xp.sum(c * c, axis=-1, keepdims=True))  # (…, 1)   |x|/m
    length = arrays.where(xp, length == 0, 1.0, length)
    y = c / length
    return y, (y, length, m)


def normalize_backward(dy: Array, cache: Any) -> Array:
    """∂L/∂x = (dy − y·⟨y, dy⟩)/|x|: the part of dy along y cannot change a unit vector."""
    y, length, m = checks.kept(cache, 3)
    xp = checks.cotangent("dy", dy, tuple(y.shape), y)
    return (dy - y * xp.sum(y * dy, axis=-1, keepdims=True)) / length / m  # m·length may overflow
