"""Is a result right? Exactly so where exactness is possible, else within a limit derived from the data.

    |actual − expected| <= 16·max(1, √(m/256))·u·G     for every entry

G is the same formula on absolute values (the gauge), m the longest contraction, u the unit roundoff of the declared
precision (``verify.gauge``). A block is no sum of products, and has no gauge. There, for every entry of a tensor of it,

    |actual − expected| <= u·max(2¹⁰·max|expected|, max|all that is expected of the case|)

The stored blocks are of order one throughout, and three right implementations written apart (this package, PyTorch, a
forward pass with the complex step) come to 60·u at most in float64 and in float32. Half precision leaves no such room.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .. import arrays, checks
from ..verify import gauge
from .answers import arguments, expected, named
from .cases import WANTED, Case

Array = Any
Absent = tuple[str, str, str]  # case, result, reason
BLOCK_ROUNDINGS = 2**10  # of a tensor's largest entry, that a block may be off
SHOWN = 320  # characters of a bad value
EXTENDED = ("bfloat16", "float8_e4m3fn", "float8_e5m2")  # of ml_dtypes, which NumPy widens
MISSING = "missing, and no reason given: answer an array, or 'unsupported: reason'"


@dataclass(frozen=True)
class Mismatch:
    """One wrong tensor: how, how many of its entries, and the worst of them with its ratio over the limit."""

    tensor: str
    problem: Literal["not numbers", "shape", "non-finite", "value"]
    text: str
    count: int = 0
    size: int = 0
    index: tuple[int, ...] = ()
    expected: float = math.nan
    actual: float = math.nan
    ratio: float = math.inf

    def line(self) -> str:
        """The mismatch in one line."""
        if self.problem in ("not numbers", "shape"):
            return f"{self.tensor}: {self.text}"
        return (
            f"{self.tensor}: {self.count} of {self.size} entries {self.text}; worst at {list(self.index)}: "
            f"expected {self.expected!r} ({self.expected.hex()}), got {self.actual!r} ({self.actual.hex()}), "
            + ("no tolerance" if self.ratio == math.inf else f"{self.ratio:.3g} times the limit")
        )


class Instead(str):
    """What stands for every result of a case that has none: an exception, or what a program did."""

    __slots__ = ()


@dataclass(frozen=True)
class Verdict:
    """What came of one case: all results, what is wrong in them, in order, and what is absent."""

    case: Case
    results: Mapping[str, Any]
    mismatches: tuple[Mismatch, ...]
    absent: tuple[Absent, ...] = ()

    @property
    def wrong(self) -> tuple[str, ...]:
        """The names of the wrong results."""
        return tuple(mismatch.tensor for mismatch in self.mismatches)


def judge(case: Case, results: Mapping[str, Any], dtype: str | None = None) -> Verdict:
    """Each result that is wanted is right, wrong or absent."""
    wrong, absent = [], []
    right, limit = expected(case), limits(case, dtype)
    missing, known = MISSING, {*WANTED.get(case.kind, ()), *case.wanted}
    if unknown := [str(name) for name in results if name not in known]:
        missing += f"; unknown result {unknown[0][:SHOWN]!r}; wanted {', '.join(case.wanted)}"
    for name in case.wanted:
        value = results.get(name)
        if value is None or (isinstance(value, str) and value.startswith("unsupported")):
            reason = (value or "").removeprefix("unsupported").strip(": ")
            absent.append((case.id, name, f"unsupported: {checks.printable(reason)}" if reason else missing))
        elif (mismatch := compare(name, value, right[name], limit[name])) is not None:
            wrong.append(mismatch)
    return Verdict(case, results, tuple(wrong), tuple(absent))


def gauges(case: Case) -> dict[str, Array]:
    """G of each result of a layer case: ``spec`` on absolute values."""
    return named(gauge.layer_gauges(arguments(case)))


def limits(case: Case, dtype: str | None = None) -> dict[str, Array]:
    """The largest error allowed in each entry of each result; zero wherever a result can be exact."""
    checks.instance("case", case, Case)
    checks.choice("dtype", dtype, (None, *arrays.UNIT_ROUNDOFF))
    dtype = dtype or case.dtype
    u = arrays.unit_roundoff(dtype)
    if case.kind == "start":  # constants, rounded once to float32 or better, or to what is declared
        u = max(u, arrays.unit_roundoff("float32"))
        return {name: 2 * u * np.abs(value) for name, value in expected(case).items()}
    if case.kind == "block":
        sizes = {name: np.max(np.abs(value)) for name, value in expected(case).items()}
        return {name: u * max(BLOCK_ROUNDINGS * size, *sizes.values()) for name, size in sizes.items()}
    if case.kind != "layer" or (case.tier == "exact" and dtype in case.exact_in):
        return dict.fromkeys(case.wanted, 0.0)
    m = gauge.contraction(arguments(case))
    return {name: gauge.limit(G, m, u) for name, G in gauges(case).items()}


def as_numbers(value: Any) -> Array | None:
    """``read_numbers``, or None for what cannot be read."""
    try:
        return read_numbers(value)
    except Exception:  # whatever a stranger's array raises makes it no result
        return None


def read_numbers(value: Any) -> Array:
    """A result as a float64 array, of any library, device and precision; whatever cannot be read raises.

    TypeError for what is not real numbers: text, objects, ragged lists, complex values.
    """
    if hasattr(value, "detach"):  # torch's, which NumPy does not take with a gradient, on a GPU or in bfloat16
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    elif arrays.is_cupy(value) or hasattr(value, "__array_namespace__"):
        arrays.namespace_of("result", value)  # what a mask hides is no result
        value = arrays.to_numpy(value)
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" and array.dtype.name not in EXTENDED:
        raise TypeError(f"dtype {array.dtype}")
    return array.astype(np.float64)


def compare(tensor: str, actual: Any, right: Array, limit: Array | float) -> Mismatch | None:
    """None if ``actual`` is ``right`` within ``limit`` (0: equal), entry by entry, else what is wrong with it."""
    try:
        value = read_numbers(actual)
    except Exception as raised:  # whatever a stranger's array raises makes it no result
        own = "" if isinstance(actual, str) else f" ({type(raised).__name__}: {checks.printable(str(raised))[:SHOWN]})"
        text = f"{type(actual).__name__} {str(actual)[:SHOWN]!r}; it must be an array of numbers{own}"
        return Mismatch(tensor, "not numbers", " ".join(text.split()))
    right = np.asarray(right, dtype=np.float64)
    if value.shape != right.shape:
        return Mismatch(tensor, "shape", f"shape {value.shape}; it must be {right.shape}")
    finite = np.isfinite(value)
    with np.errstate(all="ignore"):
        error = np.where(finite, np.abs(value - right), np.inf)
        ok = finite & (error <= limit)
        if ok.all():
            return None
        ratio = np.where(ok, 0.0, error / limit)
        worst = np.where(ok, -1.0, error) if np.isinf(ratio).any() else ratio
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(worst)), value.shape))
    numbers = [float(x[index]) for x in (right, value, ratio)]
    count, text = int(np.sum(~ok)), "differ" if finite.all() else "differ, NaN or infinity among them"
    return Mismatch(tensor, "value" if finite.all() else "non-finite", text, count, value.size, index, *numbers)
