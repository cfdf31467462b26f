"""Activations. Each returns its value and its slope, so that every backward pass is one product: dx = dy∘f′(x).

    gelu        x·Φ(x), Φ(x) = ½(1 + erf(x/√2))                Hendrycks and Gimpel, arXiv 1606.08415
    gelu_tanh   ½x(1 + tanh u), u = √(2/π)(x + 0.044715x³)     its approximation; GPT-2's
    quick_gelu  x·σ(1.702x)                                    its other approximation; CLIP's
    silu        x·σ(x)                                         Llama's, inside SwiGLU (arXiv 2002.05202)

All hold for complex arguments: a branch looks at the real part, and no absolute value is taken.
"""

import math
from collections.abc import Callable
from typing import Any

from .. import arrays, checks

Array = Any

# erf(x) = x + x·P(x²) for |x| < 1, and 1 − exp(−x²)·Q(1/(2 + x)) beyond: coefficients from the constant term up,
# fitted in 40 digits to the least worst relative error of erf (7e-18, 3e-17 on [1, 6]; 2e-9, 1.1e-8 on [1, 4]).
# fmt: off
_ERF = {
    "float64": (
        (0.12837916709551256, -0.3761263890318352, 0.11283791670944189, -0.02686617064311238, 0.005223977606128004,
         -0.0008548325929845636, 0.00012055293594493553, -1.4924712665291995e-05, 1.6447136294690147e-06,
         -1.620635135311938e-07, 1.3711147713237949e-08, -7.779787446466367e-10),
        (2.8841652475134862e-05, 0.5629326724413781, 1.1530888931356431, 1.6865738628756395, 5.018326073480338,
         -8.676880219108039, 39.16358274990675, -93.0800088331655, 74.85552161522251, 38.33892430317164,
         -101.6636433133574, 49.50557204271472),
    ),
    "float32": (
        (0.12837916572686336, -0.37612625831019597, 0.11283585268180416, -0.02685381823678066, 0.0051883415643248915,
         -0.0008010328941159685, 7.854344420772961e-05),
        (-0.013613833524647092, 0.786389814302194, -0.2532973546366066, 5.806216732213815, -0.6345065737971284),
    ),
}
# fmt: on
_FAR = {"float64": 27.5, "float32": 13.0}  # beyond, exp(−x²) is zero


def _polynomial(t: Array, coefficients: tuple[float, ...]) -> Array:
    """Σ_k c_k t^k by Horner's rule; the running value is its own array, so it is changed in place."""
    value = t * coefficients[-1]
    for c in coefficients[-2:0:-1]:
        value += c
        value *= t
    value += coefficients[0]
    return value


def _within(xp: Any, x: Array, far: float) -> Array:
    """``x`` where its real part is within ±far, else ±far."""
    size = arrays.real(xp, x)
    if size is x:
        return xp.clip(x, -far, far)
    return arrays.where(xp, size < -far, -far, arrays.where(xp, size > far, far, x))


def _right(xp: Any, x: Array) -> Array:
    """1 where the real part of ``x`` is not negative, else 0, real and of its precision."""
    return arrays.astype(xp, arrays.real(xp, x) >= 0, getattr(xp, checks.precision("x", x)))


def _erf_parts(xp: Any, x: Array, sign: Array) -> tuple[Array, Array, Array, Array]:
    """Of a = |x| = x·sign: erf(a) where a < 1, erfc(a) beyond, each right to its last places there; a, exp(−a²)."""
    near, tail = _ERF[checks.precision("x", x)]
    a = _within(xp, x * sign, _FAR[checks.precision("x", x)])
    z = a * a
    decay = xp.exp(-z)
    inside = _polynomial(z, near)
    inside *= a
    inside += a
    outside = _polynomial(1 / (a + 2), tail)
    outside *= decay
    return inside, outside, arrays.real(xp, a), decay


def _erf(xp: Any, x: Array) -> tuple[Array, Array]:
    sign = 2 * _right(xp, x) - 1
    inside, outside, size, decay = _erf_parts(xp, x, sign)
    value = xp.where(size < 1, inside, 1 - outside)
    value *= sign
    return value, decay


def erf(x: Array) -> tuple[Array, Array]:
    """(erf(x), exp(−x²)) of ``x`` of any shape in float32, float64 or complex128; the slope is 2/√π of the second.

    Within 2 units in the last place of the C library in float64 and 4 in float32.
    """
    return _elementwise(_erf, checks.floats(x=x), x)


def _elementwise(f: Callable[[Any, Array], tuple[Array, Array]], xp: Any, x: Array) -> tuple[Array, Array]:
    """f(xp, x) on cache-sized blocks, in the shape of ``x``."""
    value, slope = arrays.by_rows(xp, lambda part: f(xp, part), xp.reshape(x, (-1,)))
    return xp.reshape(value, x.shape), xp.reshape(slope, x.shape)


def _gelu(xp: Any, x: Array) -> tuple[Array, Array]:
    """f′ = Φ(x) + x·φ(x), with φ(x) = exp(−x²/2)/√(2π). Far to the left Φ is ½erfc(|x|/√2), which cancels nothing."""
    right = _right(xp, x)
    sign = 2 * right - 1
    inside, outside, size, phi = _erf_parts(xp, x * math.sqrt(0.5), sign)
    inside *= sign
    inside += 1
    outside += right * (2 - 2 * outside)
    half = xp.where(size < 1, inside, outside)
    half *= 0.5
    phi *= 1 / math.sqrt(2 * math.pi)
    phi *= x
    phi += half
    return x * half, phi


def _gate(c: float, a: float, far: float) -> Callable[[Any, Array], tuple[Array, Array]]:
    """x·σ(u) with u = c(x + ax³), and σ + x·σ(1 − σ)·u′. With e = exp(−|u|), σ is 1/(1 + e) or e/(1 + e).

    Beyond ±``far`` e is zero, so u stays there, and nothing overflows. (½(1 + tanh u) = σ(2u).)
    """

    def f(xp: Any, x: Array) -> tuple[Array, Array]:
        near = _within(xp, x, far)
        z = near * near * (c * a) if a else 0.0
        u = near * (z + c)
        right = _right(xp, u)
        e = xp.exp(u * (1 - 2 * right))
        large = 1 / (1 + e)  # σ(|u|)
        e *= large  # σ(−|u|)
        sigma = large - e
        sigma *= right
        sigma += e
        e *= large
        e *= near
        e *= 3 * z + c
        e += sigma
        return x * sigma, e

    return f


KINDS: dict[str, Callable[[Any, Array], tuple[Array, Array]]] = {
    "gelu": _gelu,
    "gelu_tanh": _gate(2 * math.sqrt(2 / math.pi), 0.044715, 22.0),
    "quick_gelu": _gate(1.702, 0.0, 800.0),
    "silu": _gate(1.0, 0.0, 800.0),
}


def activation(x: Array, kind: str) -> tuple[Array, Array]:
    """y = f(x) and the cache f′(x), both of the shape of ``x``; ``kind`` is a name of the table above."""
    xp = checks.floats(x=x)
    checks.choice("kind", kind, KINDS)
    return _elementwise(KINDS[kind], xp, x)


def activation_backward(dy: Array, slope: Array) -> Array:
    """∂L/∂x = dy∘f′(x)."""
    checks.floats(slope=slope, dy=dy)
    checks.shape("dy", dy, tuple(slope.shape))
    return dy * slope


def gated(gate: Array, up: Array, kind: str = "silu") -> tuple[Array, Any]:
    """y = f(gate)∘up, SwiGLU's inner part with f = silu; two arrays of one shape."""
    checks.floats(gate=gate, up=up)
    checks.shape("up", up, tuple(gate.shape))
    value, slope = activation(gate, kind)
    return value * up, (value, slope, up)


def gated_backward(dy: Array, cache: Any) -> tuple[Array, Array]:
    """∂L/∂gate = dy∘up∘f′(gate) and ∂L/∂up = dy∘f(gate)."""
    value, slope, up = cache
    checks.floats(cache=up, dy=dy)
    checks.shape("dy", dy, tuple(up.shape))
    return dy * up * slope, dy * value
