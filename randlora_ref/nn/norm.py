"""Normalisations over the last axis: LayerNorm (arXiv 1607.06450), RMSNorm (arXiv 1910.07467), unit length.

LayerNorm is RMSNorm of the centred input, and one pair of functions serves both. With c = x − mean(x), or c = x,

    r = 1/√(mean(c²) + ε),   x̂ = c·r,   y = x̂∘w + b.

The squares are taken of c/m, m = max(max|c|, √ε) of the row, which cancels: c² itself may overflow or vanish.

Backward, g = dy∘w: from dr = −r³·mean(c∘dc) follows dx̂ = r·dc − x̂·mean(x̂∘r·dc), a symmetric map, and centring, dc =
dx − mean(dx), is symmetric too, so each is applied to the cotangent in turn (x̂ has mean zero but for rounding, which a
nearly constant row magnifies, so centring comes last):

    ∂L/∂c = r·(g − x̂·mean(x̂∘g)),   ∂L/∂x = ∂L/∂c − [mean(∂L/∂c)],   ∂L/∂w = Σ_rows dy∘x̂,   ∂L/∂b = Σ_rows dy.
"""

import math
from typing import Any, NamedTuple

from .. import arrays, checks

Array = Any


class NormCache(NamedTuple):
    """What backward needs of forward: x̂ (T, k), r (T, 1), the weight, which norm it was, and the shape of x."""

    normal: Array
    inverse: Array
    weight: Array
    has_bias: bool
    centred: bool
    shape: tuple[int, ...]


class NormGrads(NamedTuple):
    """Gradients of the weight and the bias (k,); None where not asked for, or where there is none."""

    weight: Array | None
    bias: Array | None


def layer_norm(x: Array, weight: Array, bias: Array | None, eps: float) -> tuple[Array, NormCache]:
    """y (…, k) of x (…, k), weight (k,) and bias (k,) or None; the variance is the population's."""
    return _norm(x, weight, bias, eps, True)


def rms_norm(x: Array, weight: Array, bias: Array | None, eps: float) -> tuple[Array, NormCache]:
    """The same without centring; Llama's has no bias."""
    return _norm(x, weight, bias, eps, False)


def _norm(x: Array, weight: Array, bias: Array | None, eps: float, centred: bool) -> tuple[Array, NormCache]:
    xp = checks.floats(x=x, weight=weight, bias=bias)
    k, root = checks.last_axis("x", x), math.sqrt(checks.number("eps", eps, least=0.0))
    checks.shape("weight", weight, (k,))
    if bias is not None:
        checks.shape("bias", bias, (k,))

    def rows(x: Array) -> tuple[Array, ...]:
        c = x - xp.sum(x / k, axis=-1, keepdims=True) if centred else x
        m = largest(xp, c, root)
        c = c / m
        inverse = 1 / xp.sqrt(xp.sum(c * c, axis=-1, keepdims=True) / k + (root / m) ** 2)
        normal = c * inverse
        y = normal * weight
        return (y if bias is None else y + bias), normal, inverse / m

    y, normal, inverse = arrays.by_rows(xp, rows, arrays.as_rows(xp, x))
    return xp.reshape(y, x.shape), NormCache(normal, inverse, weight, bias is not None, centred, tuple(x.shape))


def norm_backward(dy: Array, cache: NormCache, *, weight_grad: bool = False) -> tuple[Array, NormGrads]:
    """∂L/∂x (…, k) of ∂L/∂y, for either norm; the gradients of weight and bias if ``weight_grad``."""
    xp, k = checks.floats(cache=cache.normal, dy=dy), cache.normal.shape[-1]

    def rows(dy: Array, normal: Array, inverse: Array) -> tuple[Array, ...]:
        g = dy * cache.weight
        g -= normal * (xp.sum(normal * g, axis=-1, keepdims=True) / k)
        g *= inverse
        if cache.centred:
            g -= xp.sum(g, axis=-1, keepdims=True) / k
        return (g,)

    checks.shape("dy", dy, cache.shape)
    dy_rows = arrays.as_rows(xp, dy)
    (dx,) = arrays.by_rows(xp, rows, dy_rows, cache.normal, cache.inverse)
    d_weight = xp.sum(dy_rows * cache.normal, axis=0) if weight_grad else None
    d_bias = xp.sum(dy_rows, axis=0) if weight_grad and cache.has_bias else None
    return xp.reshape(dx, dy.shape), NormGrads(d_weight, d_bias)


def normalize(x: Array) -> tuple[Array, Any]:
    """y = x/|x| over the last axis, |x| = √Σx²; zero where x is."""
    xp = checks.floats(x=x)
    checks.last_axis("x", x)
    m = largest(xp, x, 0.0)
    c = x / m
    length = xp.sqrt(xp.sum(c * c, axis=-1, keepdims=True))
    length = arrays.where(xp, length == 0, 1.0, length)
    y = c / length
    return y, (y, length, m)


def largest(xp: Any, x: Array, least: float) -> Array:
    """max|Re x| over the last axis (…, 1), at least ``least``; 1 where that is 0."""
    m = xp.max(xp.abs(arrays.real(xp, x)), axis=-1, keepdims=True)
    m = arrays.where(xp, m > least, m, least)
    return arrays.where(xp, m == 0, 1.0, m)


def normalize_backward(dy: Array, cache: Any) -> Array:
    """∂L/∂x = (dy − y·⟨y, dy⟩)/|x|: the part of dy along y cannot change a unit vector."""
    y, length, m = cache
    xp = checks.floats(cache=y, dy=dy)
    checks.shape("dy", dy, tuple(y.shape))
    return (dy - y * xp.sum(y * dy, axis=-1, keepdims=True)) / length / m
