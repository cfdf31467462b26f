"""Activations. Each returns its value and its slope, so that every backward pass is one product: dx = dy∘f′(x).

    gelu        x·Φ(x), Φ(x) = ½(1 + erf(x/√2))                Hendrycks and Gimpel, arXiv 1606.08415
    gelu_tanh   ½x(1 + tanh u), u = √(2/π)(x + 0.044715x³)     its approximation; GPT-2's
    quick_gelu  x·σ(1.702x)                                    its other approximation; CLIP's
    silu        x·σ(x)                                         Llama's, inside SwiGLU (arXiv 2002.05202)

The kernels are chains of element-wise operations, f(xp, x) -> (f(x), f′(x)). All hold for complex arguments: a branch
looks at the real part, and |x| is x or −x.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from .. import arrays, checks

Array = Any
Kernel = Callable[[Any, Array], tuple[Array, Array]]

# erf(x) = x + x·P(x²) for 0 <= x < 1, and 1 − erfc(x), erfc(x) = exp(−x²)·Q(1/(2 + x)), beyond: (P, Q) from the
# constant term up, fitted in 60 digits to the least worst relative error, P of erf (7e-18; 2e-9), Q of erfc itself
# (5e-18 on [1, 27.5]; 6e-9 on [1, 10.1]).
# fmt: off
ERF = {
    "float64": (
        (0.12837916709551256, -0.3761263890318352, 0.11283791670944189, -0.02686617064311238, 0.005223977606128004,
         -0.0008548325929845636, 0.00012055293594493553, -1.4924712665291995e-05, 1.6447136294690147e-06,
         -1.620635135311938e-07, 1.3711147713237949e-08, -7.779787446466367e-10),
        (-2.820360481637949e-13, 0.5641895836082992, 1.128379161107837, 1.9746639052454278, 2.820932804176394,
         2.680360800851773, -0.2927360510583561, -7.072554556344062, -16.4031981373589, 28.980744455559492,
         -231.39489386278578, 2183.1200757900488, -12238.479378278364, 56441.517705758386, -210065.81909628192,
         582948.4397552934, -1160845.8209909627, 1615639.818527529, -1501084.4256901399, 841206.2087894347,
         -216048.4338541461),
    ),
    "float32": (
        (0.128379166, -0.376126258, 0.112835853, -0.0268538182, 0.00518834156, -0.000801032894, 7.85434442e-05),
        (-3.93840374e-06, 0.56439107, 1.12411693, 2.02204784, 2.53992365, 3.32437219, 1.72100418, -23.8491432,
         20.8060866),
    ),
}
# fmt: on
FAR = 27.5  # beyond, exp(−x²) is zero


# ---------------------------------------------------------------------------------------------------------
# Kernels
# ---------------------------------------------------------------------------------------------------------


def polynomial(t: Array, coefficients: tuple[float, ...]) -> Array:
    """Σ_k c_k t^k by Horner's rule."""
    value = t * coefficients[-1]
    for c in coefficients[-2:0:-1]:
        value = (value + c) * t
    return value + coefficients[0]


def bounded(xp: Any, x: Array, far: float) -> Array:
    """``x`` where its real part is within ±far, else ±far, so that nothing overflows."""
    real = arrays.real(xp, x)
    if real is x:
        return xp.clip(x, -far, far)
    return arrays.where(xp, real < -far, -far, arrays.where(xp, real > far, far, x))


def right_of_zero(xp: Any, x: Array) -> Array:
    """1 where the real part of ``x`` is not negative, else 0: a factor, as a choice by ``where`` is slow on NumPy."""
    real = arrays.real(xp, x)
    return arrays.astype(xp, real >= 0, real.dtype)


def erf_parts(xp: Any, x: Array, sign: Array) -> tuple[Array, Array, Array, Array]:
    """Of a = |x| = x·sign: whether a < 1; erf(a), right to its last places there; erfc(a), elsewhere; exp(−a²)."""
    a = bounded(xp, x * sign, FAR)
    P, Q = ERF[arrays.dtype_name(sign)]
    z = a * a
    decay = xp.exp(-z)
    return arrays.real(xp, a) < 1, a + a * polynomial(z, P), decay * polynomial(1 / (2 + a), Q), decay


@arrays.elementwise
def signed_erf(xp: Any, x: Array) -> tuple[Array, Array]:
    """erf(x) and exp(−x²)."""
    sign = 2 * right_of_zero(xp, x) - 1
    near, near_erf, far_erfc, decay = erf_parts(xp, x, sign)
    return sign * xp.where(near, near_erf, 1 - far_erfc), decay


@arrays.elementwise
def gelu(xp: Any, x: Array) -> tuple[Array, Array]:
    """f′ = Φ(x) + x·φ(x), φ(x) = exp(−x²/2)/√(2π). To the left Φ is ½erfc(|x|/√2), which far out cancels nothing."""
    right = right_of_zero(xp, x)
    near, near_erf, far_erfc, decay = erf_parts(xp, x * math.sqrt(0.5), 2 * right - 1)
    half_erfc = 0.5 * xp.where(near, 1 - near_erf, far_erfc)  # Φ(−|x|)
    cumulative = half_erfc + right * (1 - 2 * half_erfc)  # Φ(x)
    return x * cumulative, cumulative + x * decay * (1 / math.sqrt(2 * math.pi))


@arrays.elementwise
def sigmoid_gate(xp: Any, x: Array, *, c: float, cubic: float, far: float) -> tuple[Array, Array]:
    """x·σ(u) with u = c(x + cubic·x³), and σ + x·σ(1 − σ)·u′. With e = exp(−|u|), σ is 1/(1 + e) or e/(1 + e).

    ½(1 + tanh u) = σ(2u). Beyond ±``far`` e is zero.
    """
    x_near, right = bounded(xp, x, far), right_of_zero(xp, x)
    z = x_near * x_near * (c * cubic) if cubic else 0.0  # u = x(c + z), u′ = c + 3z
    e = xp.exp(x_near * (c + z) * (1 - 2 * right))
    large = 1 / (1 + e)  # σ(|u|)
    small = e * large  # σ(−|u|)
    sigma = small + right * (large - small)
    return x * sigma, sigma + large * small * (c + 3 * z) * x_near


KINDS: dict[str, Kernel] = {
    "gelu": gelu,
    "gelu_tanh": partial(sigmoid_gate, c=2 * math.sqrt(2 / math.pi), cubic=0.044715, far=22.0),
    "quick_gelu": partial(sigmoid_gate, c=1.702, cubic=0.0, far=800.0),
    "silu": partial(sigmoid_gate, c=1.0, cubic=0.0, far=800.0),
}


# ---------------------------------------------------------------------------------------------------------
# Doors
# ---------------------------------------------------------------------------------------------------------


def erf(x: Array) -> tuple[Array, Array]:
    """(erf(x), exp(−x²)) of ``x`` of any shape in float32, float64 or complex128; the slope is 2/√π of the second.

    Within 2 units in the last place of the C library in float64 and 4 in float32.
    """
    return signed_erf(checks.floats(x=x), x)


def activation(x: Array, kind: str) -> tuple[Array, Array]:
    """y = f(x) and the cache f′(x), both of the shape of ``x``; ``kind`` is a name of the table above."""
    xp = checks.floats(x=x)
    checks.choice("kind", kind, KINDS)
    return KINDS[kind](xp, x)


def activation_backward(dy: Array, slope: Array) -> Array:
    """∂L/∂x = dy∘f′(x)."""
    checks.namespace(slope=slope)
    checks.cotangent("dy", dy, tuple(slope.shape), slope)
    return dy * slope


def gated(gate: Array, up: Array, kind: str = "silu") -> tuple[Array, Any]:
    """y = f(gate)∘up, SwiGLU's inner part with f = silu; two arrays of one shape."""
    xp = checks.floats(gate=gate, up=up)
    checks.shape("up", up, tuple(gate.shape))
    checks.choice("kind", kind, KINDS)
    value, slope = KINDS[kind](xp, gate)
    return value * up, (value, slope, up)


def gated_backward(dy: Array, cache: Any) -> tuple[Array, Array]:
    """∂L/∂gate = dy∘up∘f′(gate) and ∂L/∂up = dy∘f(gate)."""
    value, slope, up = checks.kept(cache, 3)
    checks.cotangent("dy", dy, tuple(up.shape), up)
    return dy * up * slope, dy * value
