"""NumPy in place of kernels: what a call of CuPy should have computed, NumPy writes into the result's memory.

CuPy runs first, whole: it refuses, promotes, allocates, copies and starts its kernels, which do nothing
(``null_device``). If it started any, NumPy's function of the same name computes the result from the same memory. It is
an error where the two differ in dtype or shape, and where kernels started that nothing answers for: no value is taken
on trust. All values are therefore NumPy's, and say nothing about a GPU.
"""

import ctypes
import functools
import warnings
from collections.abc import Callable
from typing import Any

import null_device
import numpy as np

cupy = null_device.install()
products = ctypes.CDLL("libcublas.so.12").calls  # of the library that ``run`` built: how many products it was handed
answered_products = 0

BINARY = "add sub mul truediv floordiv mod pow matmul lshift rshift and or xor"
METHODS = {f"__{kind}{name}__" for name in BINARY.split() for kind in ("", "r", "i")}
METHODS |= {f"__{name}__" for name in "lt le gt ge eq ne neg pos abs invert getitem setitem".split()}  # noqa: SIM905


class NotAnsweredError(Exception):
    """NumPy's result is of another dtype or shape than CuPy's, or CuPy's is no array."""


class Memory:
    """What NumPy needs to know of a CuPy array to look at its memory."""

    def __init__(self, x: Any) -> None:
        place = {"data": (x.data.ptr, False), "strides": x.strides}
        self.__array_interface__ = {"shape": x.shape, "typestr": x.dtype.str, "version": 3} | place


def host(x: Any) -> Any:
    """``x`` as NumPy sees it, the same memory; also inside lists, tuples and dictionaries."""
    if isinstance(x, cupy.ndarray):
        return np.asarray(Memory(x)) if x.size else np.empty(x.shape, x.dtype)
    if isinstance(x, (list, tuple)):
        return type(x)(map(host, x))
    return {name: host(one) for name, one in x.items()} if isinstance(x, dict) else x


def counts() -> dict[str, int]:
    """Kernels of CuPy's own, products handed to cuBLAS, copies to the host: all up to now."""
    return {"launches": null_device.counts["launches"], "products": products(), "reads": null_device.counts["reads"]}


def watched(call: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, bool]:
    """The result of a call that is answered, and whether it started anything."""
    global answered_products
    before, null_device.inside = counts(), True
    try:
        result = call(*args, **kwargs)
    finally:
        null_device.inside, after = False, counts()
        answered_products += after["products"] - before["products"]
    return result, before | {"reads": 0} != after | {"reads": 0}


def answered(name: str, call: Callable[..., Any], answer: Callable[..., Any]) -> Callable[..., Any]:
    """CuPy's ``call``, after which NumPy's ``answer`` gives what kernels should have written."""

    @functools.wraps(call, updated=())
    def both(*args: Any, **kwargs: Any) -> Any:
        if null_device.inside:  # CuPy calls itself: the outermost result alone matters
            return call(*args, **kwargs)
        result, started = watched(call, *args, **kwargs)
        if started:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                settle(name, result, answer(*host(args), **host(kwargs)))
        return result

    return both


def settle(name: str, result: Any, right: Any) -> None:
    """Writes ``right`` into the memory of CuPy's ``result``; None is that of a call that changed an argument."""
    if isinstance(result, tuple):
        for one, its in zip(result, right, strict=True):
            settle(name, one, its)
    elif result is not None:
        found, right = host(result), np.asarray(right)
        if not isinstance(found, np.ndarray):
            raise NotAnsweredError(f"{name}: gives {type(result).__name__}, which depends on what a kernel computes")
        if (found.dtype, found.shape) != (right.dtype, right.shape):
            ours, numpys = (f"{x.dtype} of shape {x.shape}" for x in (found, right))
            raise NotAnsweredError(f"{name}: CuPy gives {ours}, NumPy {numpys}")
        np.copyto(found, right)


def sort_order(a: Any, axis: int = -1) -> Any:
    """The result of argsort, as one launch: CuPy leaves sorting to a library that knows nothing of this device."""
    null_device.launch()
    return cupy.empty(a.shape, np.int64)


def fuse(*options: Any, **named: Any) -> Any:
    """``cupy.fuse``, counted as CuPy fuses; the values are those of the function itself, run again uncounted."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        fused = _fuse(*options, **named)(function)

        def both(*args: Any) -> Any:
            result, _ = watched(fused, *args)
            before = dict(null_device.counts)
            settle("fuse", result, host(function(*args)))
            null_device.counts.update(before)
            return result

        return both

    return decorate


_fuse = cupy.fuse


def install() -> None:
    """Answers every function and method that the two libraries have under one name."""
    cupy.fuse, cupy.argsort = fuse, sort_order
    answers = {**vars(np), "argsort": functools.partial(np.argsort, kind="stable")}  # CuPy's is
    for name, call in list(vars(cupy).items()):
        if not name.startswith("_") and callable(call) and not isinstance(call, type) and callable(answers.get(name)):
            setattr(cupy, name, answered(name, call, answers[name]))
    for name, answer in vars(np.ndarray).items():
        call = getattr(cupy.ndarray, name, None)
        if callable(call) and callable(answer) and (name in METHODS or not name.startswith("_")):
            setattr(cupy.ndarray, name, answered(name, call, answer))
    cupy.ndarray.get = answered("get", cupy.ndarray.get, lambda x, *_, **__: x.copy())


def unanswered() -> list[str]:
    """What started outside of every call that is answered; the list is emptied."""
    global answered_products
    found = [f"a kernel, at {place}" for place in null_device.unanswered]
    if products() != answered_products:
        found.append("a product, at a place unknown")
    null_device.unanswered.clear()
    answered_products = products()
    return found
