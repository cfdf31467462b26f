"""Rotary position embedding (arXiv 2104.09864), with the halves laid out as Llama's checkpoints have them.

Coordinates i and i + h/2 of a head are turned by the angle t·θ^(−2i/h) at place t. A rotation's transpose turns back,
so backward is forward with the sines negated.
"""

import math
from typing import Any

from .. import arrays, checks

Array = Any


def rotary_tables(like: Array, size: int, width: int, theta: float) -> tuple[Array, Array]:
    """(cos, sin), each (size, width/2), for ``size`` places and heads of ``width``; angles are taken in float64."""
    xp, device = checks.namespace(like=like), arrays.on(arrays.device_of(like))
    if width % 2:
        raise ValueError(f"width: {width}; a head that is rotated must have an even number of coordinates")
    frequency = xp.exp(xp.arange(width // 2, dtype=xp.float64, **device) * (-2 * math.log(theta) / width))
    angles = xp.arange(size, dtype=xp.float64, **device)[:, None] * frequency
    real = getattr(xp, checks.precision("like", like))
    return arrays.astype(xp, xp.cos(angles), real), arrays.astype(xp, xp.sin(angles), real)


def rotary(x: Array, tables: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
    """y (…, T, h) = x (…, T, h) turned; the cache is the tables."""
    cos, sin = tables
    half = cos.shape[-1]
    if x.ndim < 2 or tuple(x.shape[-2:]) != (cos.shape[0], 2 * half):
        raise ValueError(f"x: shape {tuple(x.shape)}; it must be (…, {cos.shape[0]}, {2 * half}), as the tables are")
    xp = checks.namespace(x=x, cos=cos, sin=sin)
    first, second = x[..., :half], x[..., half:]
    return arrays.concat(xp, [first * cos - second * sin, second * cos + first * sin], -1), tables


def rotary_backward(dy: Array, tables: tuple[Array, Array]) -> Array:
    """∂L/∂x: dy turned back."""
    return rotary(dy, (tables[0], -tables[1]))[0]
