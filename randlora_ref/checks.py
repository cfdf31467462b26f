"""Every check that a door makes of its arguments, and nothing else: library, device, precision, shape, range, numbers.

A door is a function that users call. What it refuses it names: the argument as the caller knows it, what it was, what
it must be. TypeError for the wrong kind of thing, ValueError for a wrong value, IndexError for an id or a label that is
out of range. A NumPy scalar is a number like any other; a bool or a text never is.

Precision. A complex array counts as the float of its parts (the complex step needs it). The arrays of one call have
one precision, values and gradients, cache and cotangent, model and adapters: nothing is rounded unasked.

==================================  ===================  ================  ============================================
function                            float16              float32, float64  beside them
==================================  ===================  ================  ============================================
adapters (forward, backward,        exact on small       yes               frozen bases of RandLoRA may be narrower
merge, ``delta_weight``)            integers; else                         than Λ and Γ and are widened; wider ones are
                                    within the gauge                       refused, but by ``start(dtype="float16")``
``nn`` (all of it), the models,     refused              yes               ids, labels and masks: integers of any width
``optim``                                                                  in native byte order, unsigned too
``certify_rank``, ``spectrum``      yes                  yes               integers; no complex numbers
``draw_bases``, ``tile``            refused              yes               PEFT's bfloat16 or float16 draws, held wider
==================================  ===================  ================  ============================================

Refused everywhere: subclasses of NumPy's array but ``memmap`` (a matrix multiplies otherwise, a masked array hides
entries), types that the array library does not have (bfloat16), and bytes in another order than this machine's.
"""

import difflib
import errno
import math
import numbers
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from . import arrays

Array = Any
# Arguments that are never None, in any door; others may be what a layer has not.
REQUIRED = {"x", "dy", "do", "q", "k", "v", "A", "B", "lambda_", "gamma", "weight", "gate", "up", "slope", "ids"}
REQUIRED |= {"logits", "texts", "images", "pixels", "table", "like"}
MOST_BYTES = 1 << 40  # of one array, where the system does not tell its memory


# ---------------------------------------------------------------------------------------------------------
# Arrays
# ---------------------------------------------------------------------------------------------------------


def namespace(**named: Array) -> arrays.Namespace:
    """The one array namespace of all named arrays (None is skipped where it may be); a TypeError if of several.

    A library is refused beside another, and so is a device beside another: nothing is moved unasked.
    """
    given = {name: x for name, x in named.items() if x is not None}
    if missing := REQUIRED & named.keys() - given.keys():
        raise TypeError(f"{min(missing)}: None; it must be an array")
    if not given:
        raise TypeError("no array among the arguments; at least one is needed")
    first, like = next(iter(given.items()))
    xp, device = arrays.namespace_of(first, like), arrays.device_of(like)
    for name, x in given.items():
        if arrays.namespace_of(name, x) is not xp or arrays.device_of(x) != device:
            raise TypeError(
                f"{name}: an array of {arrays.describe(x)}; it must be of one library and on one device with {first}, "
                f"which is of {arrays.describe(like)}"
            )
    if not arrays.is_current(device):
        raise TypeError(f"{first}: an array on {device}; it must be on CuPy's current device (`with device:`)")
    return xp


def precision(name: str, x: Array, *, half: bool = True) -> str:
    """ "float16", "float32" or "float64" of a real or complex array; a TypeError for any other dtype.

    float16 is refused unless ``half``.
    """
    dtype = arrays.dtype_name(x)
    dtype = arrays.REAL_PART.get(dtype, dtype)
    allowed = ("float16", "float32", "float64") if half else ("float32", "float64")
    if dtype not in allowed:
        raise TypeError(f"{name}: dtype {dtype}; it must be {', '.join(allowed)} or complex")
    return dtype


def floats(*, half: bool = False, **named: Array) -> arrays.Namespace:
    """The namespace of the named arrays (None is skipped), once they are of one library, device and precision.

    A TypeError names the first that is not as the one before it; float16 is refused unless ``half``.
    """
    xp = namespace(**named)
    found = {name: precision(name, x, half=half) for name, x in named.items() if x is not None}
    first, expected = next(iter(found.items()))
    for name, one in found.items():
        if one != expected:
            raise TypeError(f"{name}: dtype {arrays.dtype_name(named[name])}; it must be {expected}, as {first} is")
    return xp


def shape(name: str, x: Array, expected: tuple[int, ...]) -> None:
    """A ValueError naming the argument whose shape is not ``expected``; a TypeError for None."""
    if x is None:
        raise TypeError(f"{name}: None; it must be an array of shape {expected}")
    shaped(tuple(x.shape) == expected, name, x, expected)


def shaped(well: bool, name: str, x: Array, wanted: Any) -> None:
    """A ValueError that names the argument, its shape and the ``wanted`` one, unless it is ``well``."""
    if not well:
        raise ValueError(f"{name}: shape {tuple(x.shape)}; it must be {wanted}")


def kept(cache: Any, parts: int, name: str = "cache") -> Any:
    """``cache`` itself; a TypeError unless it is a tuple of so many parts, the first an array, as forward gives it."""
    if not (isinstance(cache, tuple) and len(cache) == parts and hasattr(cache[0], "shape")):
        raise TypeError(f"{name}: {type(cache).__name__}; it must be what forward gave")
    return cache


def cotangent(name: str, dy: Array, expected: tuple[int, ...], cache: Array) -> arrays.Namespace:
    """The namespace of a cotangent, once it fits an array of forward's ``cache`` and is of the ``expected`` shape."""
    xp = floats(cache=cache, **{name: dy})
    shape(name, dy, expected)
    return xp


def last_axis(name: str, x: Array) -> int:
    """The length of the last axis. A ValueError if there is none, or if it is empty."""
    shaped(x.ndim > 0 and x.shape[-1] > 0, name, x, "(…, k) with k >= 1")
    return int(x.shape[-1])


def finite(xp: arrays.Namespace, *, why: Mapping[str, str] | None = None, **named: Array) -> None:
    """A ValueError naming the argument that holds NaN or infinity, and ``why`` by name, where a reason is known.

    Reads one boolean of the device if all is well.
    """
    name = _first_bad(xp, {name: xp.isfinite(x) for name, x in named.items() if x is not None})
    if name is not None:
        raise ValueError(f"{name}: holds NaN or infinity; it must be finite{(why or {}).get(name, '')}")


def _first_bad(xp: arrays.Namespace, good: Mapping[str, Array]) -> str | None:
    """The first name whose array of verdicts is not all true; one boolean of the device is read if all are."""
    verdicts = {name: xp.all(verdict) for name, verdict in good.items()}
    if not good or bool(xp.all(xp.stack(list(verdicts.values())))):
        return None
    return next(name for name, verdict in verdicts.items() if not bool(verdict))


def linear(size: tuple[int, int], *, half: bool = False, x: Array, weight: Array, **beside: Array) -> arrays.Namespace:
    """The namespace of a linear layer's arguments, once they fit its (out, in) ``size``.

    ``beside``: ``bias``, ``dropout_mask`` and the adapter's array ``adapter``, or None.
    """
    xp = floats(half=half, adapter=beside.pop("adapter", None), x=x, weight=weight, **beside)
    shaped(x.ndim > 0 and x.shape[-1] == size[1], "x", x, f"(…, {size[1]}), in_features last")
    expected = {"weight": size, "bias": size[:1], "dropout_mask": tuple(x.shape)}
    for name, array in {"weight": weight, **beside}.items():
        if array is not None:
            shape(name, array, expected[name])
    return xp


def room(name: str, *sizes: int, itemsize: int = 4) -> None:
    """A ValueError, before any work, for an array of ``sizes`` that this machine's memory cannot hold."""
    needed, told = math.prod(map(int, sizes)) * itemsize, hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names
    held = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if told else MOST_BYTES
    if needed > held:
        shown = " by ".join(map(str, sizes))
        raise ValueError(f"{name}: {shown} numbers, {needed / 2**30:.3g} GiB; it must fit in memory, {held >> 30} GiB")


# ---------------------------------------------------------------------------------------------------------
# Ids and labels
# ---------------------------------------------------------------------------------------------------------


def integers(name: str, x: Array) -> str:
    """The dtype of an array of integers, signed or not; a TypeError for any other."""
    dtype = arrays.dtype_name(x)
    if not dtype.startswith(("int", "uint")):
        raise TypeError(f"{name}: dtype {dtype}; it must be an integer type in this machine's byte order")
    return dtype


def index_range(**named: tuple[Array | None, int, int | None]) -> None:
    """An IndexError naming the integers not in [0, limit), each given as (array, limit, a value let through or None).

    A TypeError if they are not integers. Reads one boolean of the device for all of them, if all is well.
    """
    given = {name: x for name, (x, _, _) in named.items() if x is not None}
    if not given:
        return
    xp, good = namespace(**given), {}
    for name, x in given.items():
        dtype, (_, limit, spared) = integers(name, x), named[name]
        wide = arrays.astype(xp, x, xp.int64)  # limit may lie beyond a narrow type; the upper half of uint64 wraps
        good[name] = (wide >= 0) & (wide < limit)
        if spared is not None and (spared >= 0 or dtype.startswith("int")):
            good[name] = good[name] | (wide == spared)
    if (bad := _first_bad(xp, good)) is not None:
        _, limit, spared = named[bad]
        value = int(arrays.to_numpy(given[bad])[~arrays.to_numpy(good[bad])][0])
        besides = "" if spared is None else f" or {spared}"
        raise IndexError(f"{bad}: holds {value}; it must be in 0 … {limit - 1}{besides}")


# ---------------------------------------------------------------------------------------------------------
# Numbers
# ---------------------------------------------------------------------------------------------------------


def number(
    name: str, value: Any, *, least: float = -math.inf, above: float = -math.inf, below: float = math.inf
) -> float:
    """``value`` as a float: finite, at least ``least``, above ``above`` and below ``below``; no bool, no text.

    Taken as a Python number it leaves the dtype of whatever it meets alone. A ValueError for anything else.
    """
    limits = {"of at least": least, "above": above, "below": below}
    wanted = " ".join(f"{words} {limit:g}" for words, limit in limits.items() if math.isfinite(limit))
    try:
        found = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        found = math.inf
    if not (math.isfinite(found) and found >= least and above < found < below):
        raise ValueError(f"{name}: {value!r}; it must be a finite number {wanted}".rstrip())
    return found


def scalar(name: str, value: Any, like: Array) -> Any:
    """``value`` as a Python number; an array without axes stays one, of the library and precision of ``like``."""
    if isinstance(value, np.generic) or not hasattr(value, "ndim"):
        return number(name, value)
    floats(cache=like, **{name: value})
    shape(name, value, ())
    return value


def is_integer(value: Any) -> bool:
    """Whether ``value`` is an integer of Python or NumPy, and no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def integer(name: str, value: Any, least: int = 1) -> int:
    """``value`` as an int of at least ``least``. A ValueError for anything else."""
    if not is_integer(value) or int(value) < least:
        wanted = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise ValueError(f"{name}: {value!r}; it must be {wanted}")
    return int(value)


def integers_of(least: int = 1, **values: Any) -> list[int]:
    """Each of ``values`` as an int of at least ``least``. A ValueError that names the first that is none."""
    return [integer(name, value, least) for name, value in values.items()]


def instance(name: str, value: Any, kind: Any) -> None:
    """A TypeError unless ``value`` is a ``kind``, a type or several."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: {type(value).__name__}; it must be {getattr(kind, '__name__', kind)}")


def library(xp: Any) -> None:
    """A TypeError unless ``xp`` is a library of arrays."""
    if not all(hasattr(xp, name) for name in ("asarray", "float32", "uint64", "arange")):
        raise TypeError(f"xp: {xp!r}; it must be a library of arrays, such as numpy")


def seed(value: Any) -> int:
    """``value`` as an int; a TypeError or ValueError unless it is an integer in [0, 2⁶⁴)."""
    if is_integer(value) and 0 <= int(value) < 2**64:
        return int(value)
    error = ValueError if hasattr(value, "__index__") else TypeError
    raise error(f"seed: {value!r}; it must be an integer in [0, 2**64)")


def choice(name: str, value: Any, allowed: Collection[Any], why: str = "") -> None:
    """A ValueError unless ``value`` is one of ``allowed``, with the reason ``why``; an array is none."""
    if not any(isinstance(value, type(one)) and value == one for one in allowed):
        raise ValueError(f"{name}: {value!r}; it must be one of {', '.join(map(str, allowed))}{why}")


def nearest(name: str, names: Iterable[str]) -> str:
    """Words for the end of a message: which of ``names`` is spelled most like ``name``; none if none is like it."""
    found = difflib.get_close_matches(name, names, n=1)
    return f"; the nearest there is {found[0]!r}" if found else ""


@contextmanager
def naming(what: Any) -> Iterator[None]:
    """A KeyError, TypeError or ValueError inside becomes a ValueError that begins with ``what``, such as a file."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{what}: {error.args[0]}") from None


def layer_shape(value: Any) -> tuple[int, int]:
    """``value`` as (out, in). A ValueError unless it is two positive integers."""
    pair = isinstance(value, Sequence) and len(value) == 2
    if not pair or not all(is_integer(size) and int(size) > 0 for size in value):
        raise ValueError(f"shape: {value!r}; it must be (out, in), two positive integers")
    return int(value[0]), int(value[1])


def layer_shapes(values: Any, least: int = 1) -> list[tuple[int, int]]:
    """``values`` as a list of (out, in), of ``least`` or more. A ValueError for anything else."""
    if not isinstance(values, Sequence) or len(values) < least:
        raise ValueError(f"shapes: {values!r}; it must list the (out, in) of every adapted layer")
    return [layer_shape(value) for value in values]


def sizes(out_features: Any, in_features: Any, rank: Any = 1) -> tuple[int, int, int]:
    """All three as ints. A ValueError unless they are positive integers."""
    return *layer_shape((out_features, in_features)), integer("rank", rank)


# ---------------------------------------------------------------------------------------------------------
# Texts and files
# ---------------------------------------------------------------------------------------------------------


def regular_file(path: Path) -> Path:
    """``path``; an OSError for a pipe or a device, whose end would be waited for. What is not there is not judged."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return path


def printable(text: str) -> str:
    """``text`` with escape codes and lone surrogates spelled out: what a stranger wrote commands no terminal."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
