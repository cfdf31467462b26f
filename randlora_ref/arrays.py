"""Array libraries: which one an argument belongs to, and the few functions that they spell differently.

The only room that knows NumPy from CuPy. The others take the namespace ``xp`` from their arguments and call what
NumPy 2, CuPy 13 and 14 and array-api-strict share. Arrays never move between devices but by ``to_numpy`` and
``from_numpy``.
"""

import functools
import math
import reprlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast

import numpy as np

Array = Any
Namespace = Any
Kernel = TypeVar("Kernel", bound=Callable[..., Any])

# Unit roundoff u = 2^-t, t the digits of the significand: the largest relative error of one rounding to nearest.
UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
BLOCK = 1 << 15  # entries that element-wise chains work on at a time on NumPy: they stay in a core's own cache
REAL_PART = {"complex64": "float32", "complex128": "float64"}


@dataclass(frozen=True, eq=False)
class Reshaped:
    """A factor of an update: the entries of a sum of products in another ``shape`` (rows, columns).

    Number i·rows + o of them, counted along the sum's rows, is at [o, i].
    """

    terms: tuple[Any, ...]
    shape: tuple[int, int]


def namespace_of(name: str, x: Array) -> Namespace:
    """The array namespace of argument ``name``; a TypeError if it is no array, or one that computes in its own way."""
    if isinstance(x, (np.ndarray, np.generic)):  # NumPy's sums over all axes are scalars
        if isinstance(x, np.ndarray) and type(x) not in (np.ndarray, np.memmap):
            raise TypeError(f"{name}: {type(x).__name__}; it must be a plain array (np.asarray makes one)")
        return np
    if is_cupy(x):  # CuPy's arrays have no __array_namespace__
        return sys.modules["cupy"]
    if hasattr(x, "__array_namespace__"):
        return x.__array_namespace__()
    raise TypeError(f"{name}: {type(x).__name__}; it must be an array of NumPy, CuPy or another array library")


def is_cupy(x: Any) -> bool:
    """Whether ``x`` is CuPy's, an array or a device."""
    return type(x).__module__.partition(".")[0] == "cupy"


def is_current(device: Any) -> bool:
    """Whether new arrays can be made on ``device``: of CuPy's, on the current one alone."""
    return not is_cupy(device) or bool(device == sys.modules["cupy"].cuda.Device())


def device_of(x: Array) -> Any:
    """The device of an array: "cpu" for NumPy, a device object elsewhere."""
    return getattr(x, "device", "cpu")


def describe(x: Array) -> str:
    """The library and the device of an array, in words."""
    return f"{type(x).__module__.partition('.')[0]} on {device_of(x)}"


_text = functools.lru_cache(maxsize=None, typed=True)(str)  # of a dtype; NumPy takes microseconds to spell one


def dtype_name(x: Array) -> str:
    """The dtype of an array as a plain word: "float32", "complex128", "object" …"""
    return _text(x.dtype).rpartition(".")[2]


class _Short(reprlib.Repr):
    """Of an array its dtype and shape; of anything else what ``reprlib`` leaves of it."""

    def repr_instance(self, x: Any, level: int) -> str:
        if hasattr(x, "dtype") and hasattr(x, "shape"):
            return f"<{dtype_name(x)} {tuple(x.shape)}>"
        return super().repr_instance(x, level)


_short = _Short()
vars(_short).update(maxlevel=2, maxdict=3, maxtuple=3, maxlist=3, maxstring=60, maxother=60)


def brief(value: Any) -> str:
    """The ``repr`` of a dataclass that holds arrays: each field that is not at its default, in a few words."""
    held = [(one, getattr(value, one.name)) for one in fields(value) if one.repr]
    shown = [f"{one.name}={_short.repr(x)}" for one, x in held if x is not one.default]
    return f"{type(value).__name__}({', '.join(shown)})"


def unit_roundoff(dtype: str) -> float:
    """u of "float64", "float32", "float16" or "bfloat16", and of the complex types made of them."""
    dtype = REAL_PART.get(str(dtype), str(dtype))
    if dtype not in UNIT_ROUNDOFF:
        raise ValueError(f"dtype: {dtype!r}; it must be one of {', '.join(UNIT_ROUNDOFF)}")
    return UNIT_ROUNDOFF[dtype]


def to_numpy(x: Array) -> np.ndarray[Any, Any]:
    """A copy of ``x`` in host memory, or ``x`` itself if it is NumPy's."""
    if isinstance(x, (np.ndarray, np.generic)):
        return np.asarray(x)
    if is_cupy(x):
        return np.asarray(x.get())
    xp = namespace_of("x", x)
    devices = xp.__array_namespace_info__().devices()
    return np.array(x if x.device == devices[0] else x.to_device(devices[0]))


def from_numpy(xp: Namespace, x: np.ndarray[Any, Any], device: Any = None) -> Array:
    """``x`` as an array of ``xp`` on ``device`` (None: the library's default)."""
    return xp.asarray(x, **on(device, xp))


def on(device: Any, xp: Namespace | None = None) -> dict[str, Any]:
    """Keyword arguments that make an array on ``device`` (None: the library's default); none for NumPy and CuPy.

    No device is dropped: a ValueError for one of NumPy's or CuPy's that is not of ``xp``, where that is given, and for
    one of CuPy's that is not the current one, on which CuPy makes all arrays.
    """
    if device is None:
        return {}
    own = "numpy" if isinstance(device, str) and device == "cpu" else type(device).__module__.partition(".")[0]
    other = xp is not None and own != xp.__name__ and (own == "cupy" or xp.__name__ in ("numpy", "cupy"))
    if other or not is_current(device):
        raise ValueError(f"device: {device!r}; it must be the library's own, CuPy's current one (`with device:`)")
    return {} if own in ("numpy", "cupy") else {"device": device}


def astype(xp: Namespace, x: Array, dtype: Any) -> Array:
    """``x`` in another dtype (CuPy 13 has the method alone, array-api-strict the function alone)."""
    return x.astype(dtype, copy=False) if hasattr(x, "astype") else xp.astype(x, dtype, copy=False)


def widen(xp: Namespace, x: Array, precision: str) -> Array:
    """A float or complex ``x`` with parts in ``precision``, which must hold them."""
    kind = {"float32": "complex64", "float64": "complex128"}[precision] if dtype_name(x) in REAL_PART else precision
    return astype(xp, x, getattr(xp, kind))


def permute(xp: Namespace, x: Array, axes: tuple[int, ...]) -> Array:
    """``x`` with its axes in another order, a view where the library has views."""
    return xp.permute_dims(x, axes) if hasattr(xp, "permute_dims") else x.transpose(axes)


def swap_last(x: Array) -> Array:
    """Each matrix of a stack (…, m, k) transposed."""
    return x.mT if hasattr(x, "mT") else x.swapaxes(-1, -2)


def as_rows(xp: Namespace, x: Array) -> Array:
    """``x`` (…, k) as a matrix (T, k) of its rows; T is 1 for a vector and 0 for an empty batch."""
    return xp.reshape(x, (math.prod(x.shape[:-1]), *x.shape[-1:]))


def concat(xp: Namespace, parts: list[Array], axis: int) -> Array:
    """``parts`` one behind the other along ``axis`` (CuPy 13 has the older name alone)."""
    return xp.concat(parts, axis=axis) if hasattr(xp, "concat") else xp.concatenate(parts, axis=axis)


def where(xp: Namespace, condition: Array, x: Array, y: Array) -> Array:
    """``x`` where ``condition`` holds, else ``y``; one of the two may be a number, which takes the other's dtype.

    The array API standard takes numbers since 2024.12 alone. NumPy and CuPy always have, without a copy to the device.
    """
    like = x if hasattr(x, "dtype") else y
    if xp is not np and hasattr(like, "__array_namespace__"):  # CuPy's arrays have none
        x, y = (v if hasattr(v, "dtype") else xp.asarray(v, dtype=like.dtype, **on(device_of(like))) for v in (x, y))
    return xp.where(condition, x, y)


def real(xp: Namespace, x: Array) -> Array:
    """The real part; ``x`` itself if it is real already (array-api-strict refuses that)."""
    return xp.real(x) if dtype_name(x) in REAL_PART else x


def by_rows(xp: Namespace, f: Callable[..., Any], *xs: Array, step: int | None = None) -> Any:
    """``f(*xs)`` of ``xs`` (…, k_i), alike but for the last axis, for an ``f`` that treats every row alone.

    ``f`` gets matrices (T, k_i) and gives one or a tuple of them, which come back as (…, k). On NumPy it runs on blocks
    of ``step`` rows (None: as many as stay in cache), so a chain of element-wise steps reads memory once and makes no
    temporaries of full size. Elsewhere it is one call.
    """
    leading, xs = xs[0].shape[:-1], tuple(as_rows(xp, x) for x in xs)
    rows, width = xs[0].shape[0], math.prod(xs[0].shape[1:])
    step = max(1, BLOCK // max(1, width)) if step is None else step
    if xp is not np or rows <= step:
        results = _as_tuple(f(*xs))
    else:
        results = ()
        for first in range(0, rows, step):
            parts = _as_tuple(f(*(x[first : first + step] for x in xs)))
            results = results or tuple(np.empty((rows, *part.shape[1:]), part.dtype) for part in parts)
            for result, part in zip(results, parts, strict=True):
                result[first : first + step] = part
    shaped = tuple(xp.reshape(result, (*leading, *result.shape[1:])) for result in results)
    return shaped if len(shaped) > 1 else shaped[0]


def _as_tuple(found: Any) -> tuple[Array, ...]:
    return found if isinstance(found, tuple) else (found,)


def blocked(f: Kernel) -> Kernel:
    """A kernel ``f(xp, *xs, **fixed)`` that runs ``by_rows`` of ``xs``."""

    def run(xp: Namespace, *xs: Array, **fixed: Any) -> Any:
        return by_rows(xp, functools.partial(f, xp, **fixed), *xs)

    return cast(Kernel, functools.wraps(f)(run))


def elementwise(f: Kernel) -> Kernel:
    """A kernel ``f(xp, *xs, **fixed)`` of element-wise steps alone, arrays of one shape: ``fused`` or ``blocked``."""
    return fused(f, elsewhere=blocked(f))


def fused(f: Kernel, elsewhere: Callable[..., Any] | None = None) -> Kernel:
    """A kernel ``f(xp, *xs, **fixed)`` of element-wise steps alone, of arrays that broadcast: on CuPy one kernel of it.

    Elsewhere (None: as it is), and of complex numbers, it is run step by step.
    """

    def run(xp: Namespace, *xs: Array, **fixed: Any) -> Any:
        if xp.__name__ == "cupy" and dtype_name(xs[0]) not in REAL_PART:
            return _traced(f, tuple(fixed.items()))(*xs)
        return (elsewhere or f)(xp, *xs, **fixed)

    return cast(Kernel, functools.wraps(f)(run))


@functools.cache
def _traced(f: Callable[..., Any], fixed: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    """``cupy.fuse`` of ``f``: traced at its first call with each dtype, then one launch a call."""
    cupy = sys.modules["cupy"]
    return cast(Callable[..., Any], cupy.fuse(kernel_name=f.__name__)(functools.partial(f, cupy, **dict(fixed))))
