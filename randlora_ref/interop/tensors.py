"""Safetensors files and JSON, read whole and checked against themselves. Nothing in a file is run.

A safetensors file is the length of its header (8 bytes, little-endian), the header, JSON that gives each tensor's
dtype, shape and place, and the tensors' bytes without a gap. It is read once, and its arrays are views.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Array = Any
Tensors = dict[str, Any]  # NumPy's, by name
WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip


def parse(text: str) -> dict[str, Any]:
    """The JSON object of ``text``. ValueError for malformed JSON, a key given twice, NaN, or no object."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"{key!r} is given twice")
            found[key] = value
        return found

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        found = json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    except RecursionError:
        raise ValueError("too many brackets one inside another") from None
    if not isinstance(found, dict):
        raise ValueError(f"{type(found).__name__}, no object")
    return found


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file. ValueError that names the file, and ``what`` it must be."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}; it must be {what}") from None


def read_tensors(path: Path) -> Tensors:
    """Every tensor of a safetensors file by name, finite; bfloat16 is widened to float32, value for value.

    ValueError that names the file, and the tensor, where it is cut off, contradicts itself or holds NaN.
    """
    try:
        data = np.fromfile(path, np.uint8)
        start = 8 + int.from_bytes(data[:8].tobytes(), "little")
        if len(data) < 8 or start > len(data):
            raise ValueError(f"{len(data)} bytes, {start} announced before the first tensor")
        header = parse(data[8:start].tobytes().decode())
        header.pop("__metadata__", None)
        data, end, tensors = data[start:], 0, {}
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            tensors[name], end = _tensor(name, entry, data, end), entry["data_offsets"][1]
        if end != len(data):
            raise ValueError(f"{len(data)} bytes of tensors, {end} announced")
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        reason = str(error) if isinstance(error, (OSError, ValueError)) else "a tensor without dtype, shape or place"
        raise ValueError(f"{path}: {reason}; it must be a safetensors file") from None
    for name, x in tensors.items():
        check_finite(f"{path}: {name}", x)
    return tensors


def _tensor(name: str, entry: Mapping[str, Any], data: Array, first: int) -> Array:
    """One tensor of ``data``, the bytes of them all, where it begins at ``first``."""
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if code not in DTYPES:
        raise ValueError(f"{name} of dtype {code!r}, none of {', '.join(DTYPES)}")
    dtype, sizes = np.dtype(DTYPES[code]), [*shape, *offsets]
    if any(type(size) is not int or size < 0 for size in sizes):
        raise ValueError(f"{name} of shape {shape} at {offsets}, which are no sizes")
    if offsets != [first, first + math.prod(shape) * dtype.itemsize] or offsets[1] > len(data):
        raise ValueError(f"{name} {code} {shape} at {offsets}, of {len(data)} bytes, {first} of them taken")
    native = dtype.newbyteorder("=")
    x = np.require(data[first : offsets[1]].view(dtype), native, "A").reshape(shape)
    return (x.astype(np.uint32) << 16).view(np.float32) if code == "BF16" else x


def read_checkpoint(folder: Path) -> Tensors:
    """The tensors of a checkpoint's folder, in one file or in those that an index lists.

    ValueError that names the file; nothing but safetensors is read, for other formats can run code.
    """
    if (folder / WEIGHTS_FILE).exists() or not (folder / INDEX_FILE).exists():
        return read_tensors(folder / WEIGHTS_FILE)
    index, tensors = folder / INDEX_FILE, Tensors()
    places = read_json(index, "an index of safetensors files").get("weight_map")
    if not isinstance(places, Mapping) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{index}: weight_map {places!r}; it must be the file of each tensor")
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise ValueError(f"{index}: {name!r}; it must be a file of this folder")
        found = read_tensors(folder / name)
        if odd := found.keys() ^ {key for key, place in places.items() if place == name}:
            raise ValueError(f"{folder / name}: {min(odd)!r} is in this file or in {INDEX_FILE}; it must be in both")
        tensors |= found
    return tensors


def to_host(name: str, x: Any) -> Array:
    """A copy of a tensor of PyTorch or of any array in NumPy's; bfloat16 comes as float32. It must be finite."""
    if hasattr(x, "detach"):  # PyTorch's, which this need not import
        x = x.detach().cpu()
        x = (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()
    from ..arrays import to_numpy

    copied = np.array(to_numpy(x))
    check_finite(name, copied)
    return copied


def check_finite(name: str, x: Array) -> None:
    """A ValueError unless every number of ``x`` is finite."""
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise ValueError(f"{name}: holds NaN or infinity; it must be finite")
