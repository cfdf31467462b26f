"""Safetensors files and JSON, read whole and checked against themselves. Nothing in a file is run.

A safetensors file is the length of its header (8 bytes, little-endian), the header, JSON that gives each tensor's
dtype, shape and place, and the tensors' bytes without a gap.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from .. import arrays, checks

Array = Any
Tensors = dict[str, Any]  # NumPy's, by name
WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
PAIRS = "F64:<f8 F32:<f4 F16:<f2 BF16:<u2 I64:<i8 I32:<i4 I16:<i2 I8:i1 U64:<u8 U32:<u4 U16:<u2 U8:u1 BOOL:?"
DTYPES = dict(pair.split(":") for pair in PAIRS.split())


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object's mapping. ValueError if a key is given twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"one of {', '.join(key for key, _ in pairs[:9])} is given twice")
    return found


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file. ValueError that names the file, and ``what`` it must be."""
    try:
        found = json.loads(checks.regular_file(path).read_text(encoding="utf-8"), object_pairs_hook=once)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}; it must be {what}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: {type(found).__name__}; it must be {what}, a JSON object")
    return found


def read_tensors(path: Path) -> Tensors:
    """Every tensor of a safetensors file by name, finite; bfloat16 is widened to float32, value for value.

    ValueError that names the file, and the tensor, where it is cut off, contradicts itself or holds NaN.
    """
    name, tensors = "header", Tensors()
    try:
        with checks.regular_file(path).open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            left = path.stat().st_size - 8 - size
            header = json.loads(file.read(size) if left >= 0 else "", object_pairs_hook=once)
            header.pop("__metadata__", None)
            end = 0
            for name, entry in sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"])):
                shape, (first, last), dtype = entry["shape"], entry["data_offsets"], np.dtype(DTYPES[entry["dtype"]])
                bad = first != end or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != last - first
                if bad or last > left:
                    raise ValueError(f"{entry} after {end} of {left} bytes of tensors")
                x = np.fromfile(file, dtype, math.prod(shape)).reshape(shape)
                tensors[name], end = (x.astype(np.uint32) << 16).view("f4") if entry["dtype"] == "BF16" else x, last
        if end != left:
            raise ValueError(f"{end} bytes of tensors announced, {left} there")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: {name}: {error}; it must be a safetensors file") from None
    for name, x in tensors.items():
        check_finite(f"{path}: {name}", x)
    return tensors


def read_checkpoint(folder: Path) -> Tensors:
    """The tensors of a checkpoint's folder, in one file or in those that an index lists.

    ValueError that names the file; nothing but safetensors is read, for other formats can run code.
    """
    if (folder / WEIGHTS_FILE).exists() or not (folder / INDEX_FILE).exists():
        return read_tensors(folder / WEIGHTS_FILE)
    index, tensors = folder / INDEX_FILE, Tensors()
    places = read_json(index, "an index of safetensors files").get("weight_map")
    if not isinstance(places, dict) or any(Path(str(name)).name != name for name in places.values()):
        raise ValueError(f"{index}: weight_map {places!r}; it must give the file of each tensor, in this folder")
    for name in sorted(set(places.values())):
        found = read_tensors(folder / name)
        if odd := found.keys() ^ {key for key, place in places.items() if place == name}:
            raise ValueError(f"{folder / name}: {min(odd)!r} is in this file or in {INDEX_FILE}; it must be in both")
        tensors |= found
    return tensors


def to_host(name: str, x: Any) -> Array:
    """A copy of a tensor of PyTorch, or of any array, in NumPy's; bfloat16 comes as float32. ValueError for NaN."""
    if hasattr(x, "detach"):  # PyTorch's, which need not be imported
        x = x.detach().cpu()
        x = (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()
    arrays.namespace_of(name, x)
    copied = np.array(arrays.to_numpy(x))
    check_finite(name, copied)
    return copied


def check_finite(name: str, x: Array) -> None:
    """A ValueError unless every number of ``x`` is finite."""
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise ValueError(f"{name}: holds NaN or infinity; it must be finite")
