"""Two CUDA devices that are not there, under the real CuPy. Import this before CuPy.

CuPy reaches the CUDA runtime and driver through C functions that two of its modules publish in capsules, each named by
its C signature (``__pyx_capi__``); every other module copies the pointers when it is imported. So the capsules get
other pointers first. Memory is the host's, copies are made, kernels are counted and do nothing: ``stand_in`` answers
for what they would have written. All that CuPy decides before a kernel starts is its own. What is not replaced here
still asks CUDA and fails aloud.
"""

import ctypes
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

import cupy_backends.cuda.api.driver as driver
import cupy_backends.cuda.api.runtime as runtime

DEVICES = 2  # so that arrays can lie on one that is not the current one
DEVICE_TO_HOST = 2  # cudaMemcpyDeviceToHost
ATTRIBUTES = {1: 1024, 2: 1024, 5: 2**31 - 1, 8: 49152, 10: 32, 16: 132, 75: 9, 76: 0}  # an H100's, where CuPy asks
TYPES = {"int": ctypes.c_int, "unsigned int": ctypes.c_uint, "size_t": ctypes.c_size_t, "intptr_t": ctypes.c_ssize_t}

counts = {"launches": 0, "reads": 0}  # kernels of CuPy's own; copies from the device to the host
unanswered: list[str] = []  # kernels that started outside of every call that is answered: nothing was computed
inside = False  # whether a call that is answered is running
_current = 0
_kept: list[Any] = []  # the callbacks: CuPy holds their addresses alone

_malloc = ctypes.CDLL(None).malloc
_malloc.restype, _malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
_capsule_name, _set_capsule = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_SetPointer
_capsule_name.restype, _capsule_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
_set_capsule.argtypes = [ctypes.py_object, ctypes.c_void_p]


def nothing(*_: Any) -> None:
    """For what a device would do in its own time."""


def get_device() -> int:
    """The current device."""
    return _current


def set_device(device: int) -> None:
    """Makes ``device`` the current one."""
    global _current
    if not 0 <= device < DEVICES:
        raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
    _current = device


def allocate(size: int, *_: Any) -> int:
    """Host memory, never given back."""
    return int(_malloc(max(size, 1)))


def copy(to: int, source: int, size: int, kind: int, *_: Any) -> None:
    """A copy; one from the device to the host is a read."""
    counts["reads"] += kind == DEVICE_TO_HOST
    ctypes.memmove(to, source, size)


def fill(to: int, byte: int, size: int, *_: Any) -> None:
    """``size`` bytes set to ``byte``."""
    ctypes.memset(to, byte, size)


def launch(*_: Any) -> None:
    """A kernel starts: it is counted, and noted with the lines of Python above it if nothing answers for it."""
    counts["launches"] += 1
    if not inside:
        frames = [frame for frame in traceback.extract_stack() if frame.filename != __file__][-3:]
        unanswered.append(" < ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(frames)))


RUNTIME: dict[str, Callable[..., Any]] = {
    "getDevice": get_device, "setDevice": set_device, "getDeviceCount": lambda: DEVICES,
    "deviceGetAttribute": lambda name, device: ATTRIBUTES.get(name, 0), "deviceCanAccessPeer": lambda *_: 0,
    "_ensure_context": nothing, "_getCUDAMajorVersion": lambda: 12, "malloc": allocate, "hostAlloc": allocate,
    "free": nothing, "memcpy": copy, "memcpyAsync": copy, "memset": fill, "memsetAsync": fill,
    "pointerGetMemoryType": lambda pointer: 0, "streamIsCapturing": lambda stream: 0, "streamSynchronize": nothing,
    "eventCreateWithFlags": lambda flags: 1, "eventRecord": nothing,
}  # fmt: skip
DRIVER: dict[str, Callable[..., Any]] = {
    "moduleLoadData": lambda image: 1, "moduleGetFunction": lambda module, name: 1, "launchKernel": launch,
    "launchCooperativeKernel": launch, "occupancyMaxActiveBlocksPerMultiprocessor": lambda *_: 8,
}  # fmt: skip


def c_type(name: str) -> Any:
    """The type of ctypes for a type in C."""
    return ctypes.py_object if name.endswith("*") else TYPES[name]


def replace(module: ModuleType, name: str, answer: Callable[..., Any]) -> None:
    """Points the capsule of ``name`` at ``answer``, which is called as the C signature in the capsule's name says."""
    capsule = module.__pyx_capi__.get(name)
    if capsule is None:  # another version of CuPy
        return
    result, _, rest = _capsule_name(capsule).decode().removesuffix(")").partition("(")
    arguments = [one for one in rest.split(", ") if one != "void"]
    given = len(arguments) - ("int __pyx_skip_dispatch" in arguments)  # Cython's own last argument is not passed on
    types = [c_type(one.removesuffix("__pyx_skip_dispatch").strip()) for one in (result, *arguments)]
    callback = ctypes.PYFUNCTYPE(*types)(lambda *values: answer(*values[:given]))
    _kept.append(callback)
    _set_capsule(capsule, ctypes.cast(callback, ctypes.c_void_p))


def empty_module(*_: Any, **__: Any) -> Any:
    """In place of the compiler: a module in which every kernel is found."""
    from cupy.cuda import function

    module = function.Module()
    module.load(b"")
    return module


def install() -> ModuleType:
    """Puts the devices under CuPy and returns it."""
    attributes = runtime.PointerAttributes(0, 0, 0, 0)
    RUNTIME["pointerGetAttributes"] = lambda pointer: attributes
    for module, answers in ((runtime, RUNTIME), (driver, DRIVER)):
        for name, answer in answers.items():
            replace(module, name, answer)
    for name in ("getDevice", "setDevice", "getDeviceCount"):  # Python calls these by another way
        setattr(runtime, name, RUNTIME[name])
    runtime.getDeviceProperties = lambda device: {"name": b"null device"}
    import cupy
    from cupy.cuda import compiler

    compiler._compile_module_with_cache = empty_module
    return cupy
