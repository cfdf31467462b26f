"""Rotary position embedding (arXiv 2104.09864), with the halves laid out as Llama's checkpoints have them.

Coordinates i and i + h/2 of a head are turned by the angle t·ω_i, ω_i = θ^(−2i/h), at position t. A rotation's
transpose turns back, so backward is forward with the sines negated.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .. import arrays, checks

Array = Any


@dataclass(frozen=True)
class RotaryScaling:
    """Slower turns, for inputs longer than those that a model was trained on: ω becomes s·ω + (1 − s)·ω/``factor``.

    With τ = c·ω/2π, the turns that ω makes in c = ``original_max_position_embeddings`` tokens, Llama 3.1 has s =
    (τ − low)/(high − low), no less than 0 and no more than 1: few turns are slowed down, many kept. With c = 0
    every s is 0: linear scaling. ValueError names the number that cannot be one.
    """

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0

    def __post_init__(self) -> None:
        checks.number("factor", self.factor, least=1.0)
        low = checks.number("low_freq_factor", self.low_freq_factor, above=0.0)
        checks.number("high_freq_factor", self.high_freq_factor, above=low)
        checks.integer("original_max_position_embeddings", self.original_max_position_embeddings, 0)


ROPE_TYPES = {"default": set[str](), "linear": {"factor"}, "llama3": {one.name for one in fields(RotaryScaling)}}


def read_scaling(given: Mapping[str, Any], longest: Any = None) -> RotaryScaling | None:
    """What ``rope_scaling`` or ``rope_parameters`` of a ``config.json`` says, without its θ; None if that is nothing.

    ``longest`` stands for an original length that is left out. ValueError names what is not computed, missing,
    contradictory or no number.
    """
    kind = given.get("rope_type", given.get("type", "default"))
    checks.choice("rope_scaling['rope_type']", kind, ROPE_TYPES)
    if given.get("type", kind) != kind:
        raise ValueError(f"rope_scaling: type {given['type']!r}; it must be {kind!r}, as rope_type is, or left out")
    rest = {"original_max_position_embeddings": longest} if kind == "llama3" else {}
    rest |= {key: value for key, value in given.items() if key not in ("rope_type", "type")}
    if rest.keys() != ROPE_TYPES[kind]:
        raise ValueError(f"rope_scaling: has {list(rest)}; of rope_type {kind!r} it must be {sorted(ROPE_TYPES[kind])}")
    return RotaryScaling(**rest) if rest else None


# ---------------------------------------------------------------------------------------------------------
# Kernels
# ---------------------------------------------------------------------------------------------------------


def scaled(xp: Any, omega: Array, scaling: RotaryScaling) -> Array:
    """s·ω + (1 − s)·ω/factor, as ``RotaryScaling`` has it."""
    low, high = float(scaling.low_freq_factor), float(scaling.high_freq_factor)
    turns = omega * (int(scaling.original_max_position_embeddings) / (2 * math.pi))  # (h/2,)
    s = xp.clip((turns - low) / (high - low), 0.0, 1.0)
    return s * omega + (1.0 - s) * omega / float(scaling.factor)


def rotate(xp: Any, x: Array, cos: Array, sin: Array) -> Array:
    """x (…, T, h) turned by the angles of cos and sin (T, h/2)."""
    half = cos.shape[-1]
    first, second = x[..., :half], x[..., half:]  # (…, T, h/2)
    return arrays.concat(xp, [first * cos - second * sin, second * cos + first * sin], -1)


# ---------------------------------------------------------------------------------------------------------
# Doors
# ---------------------------------------------------------------------------------------------------------


def rotary_tables(like: Array, size: int, width: int, theta: float, scaling: Any = None) -> tuple[Array, Array]:
    """(cos, sin), each (size, width/2), for ``size`` positions and heads of ``width``; angles are taken in float64.

    ``theta`` θ > 0; ``width`` is even; ``scaling``: a ``RotaryScaling``, or a mapping that says it, or None. TypeError
    or ValueError names what cannot be.
    """
    xp, device = checks.floats(like=like), arrays.on(arrays.device_of(like))
    size, width = checks.integer("size", size), checks.integer("width", width)
    checks.room("size", size, width, itemsize=8)
    theta = checks.number("theta", theta, above=0.0)
    if width % 2:
        raise ValueError(f"width: {width}; it must be even, for a head's coordinates are turned in pairs")
    omega = xp.exp(xp.arange(width // 2, dtype=xp.float64, **device) * (-2 * math.log(theta) / width))
    scaling = read_scaling(scaling) if isinstance(scaling, Mapping) else scaling
    if scaling is not None:
        checks.choice("scaling", type(scaling), (RotaryScaling,))
        omega = scaled(xp, omega, scaling)
    angles = xp.arange(size, dtype=xp.float64, **device)[:, None] * omega  # (T, h/2)
    real = getattr(xp, checks.precision("like", like))
    return arrays.astype(xp, xp.cos(angles), real), arrays.astype(xp, xp.sin(angles), real)


def check_tables(name: str, shape: tuple[int, ...], tables: tuple[Array, Array]) -> None:
    """A ValueError unless ``tables`` turn an array of ``shape`` (…, T, h)."""
    cos, sin = checks.kept(tables, 2, "tables")
    size, width = cos.shape[0], 2 * cos.shape[-1]
    if tuple(shape[-2:]) != (size, width):
        raise ValueError(f"{name}: shape {tuple(shape)}; it must be (…, {size}, {width}) for these tables")
    checks.shape("sin", sin, tuple(cos.shape))


def rotary(x: Array, tables: tuple[Array, Array], *, name: str = "x") -> tuple[Array, tuple[Array, Array]]:
    """y (…, T, h) = x (…, T, h) turned; the cache is the tables. Errors call x by its ``name``."""
    xp = checks.floats(cos=checks.kept(tables, 2, "tables")[0], sin=tables[1], **{name: x})
    check_tables(name, x.shape, tables)
    return rotate(xp, x, *tables), tables


def rotary_backward(dy: Array, tables: tuple[Array, Array]) -> Array:
    """∂L/∂x: dy turned back."""
    return rotary(dy, (checks.kept(tables, 2, "tables")[0], -tables[1]), name="dy")[0]
