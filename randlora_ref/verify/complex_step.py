"""Derivatives without subtraction: f(x + ih·u) has the directional derivative in its imaginary part.

For an analytic f, Im f(x + ih·u)/h = ⟨∇f, u⟩ + O(h²); at h = 1e-30 the remainder is below every unit roundoff, so
the derivative is right to rounding (Squire and Trapp, SIAM Review 40, 1998). The functions differentiated must carry
complex numbers through: maxima over the real part, x·x in place of a norm, no conjugate.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any


def directional(f: Callable[[Array], Array], x: Array, u: Array, h: float = 1e-30) -> Array:
    """The derivative of ``f`` at ``x`` along ``u``, real arrays of one shape; an array of the shape of f(x)."""
    return f(x + (1j * h) * u).imag / h


def gradient(f: Callable[[Array], Any], x: Array) -> Array:
    """∂f/∂x of a number f(x), entry by entry, in the precision of ``x``: float32 holds what h = 1e-20 makes of it."""
    units = np.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
    return np.array([directional(f, x, unit, 1e-20) for unit in units], x.dtype).reshape(x.shape)
