"""Folders as `transformers` and PEFT leave them, written without either: safetensors, config.json, adapters."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "uint16": "BF16", "int64": "I64"}
CONFIGS: dict[str, dict[str, Any]] = {
    "randlora": {"peft_type": "RANDLORA", "r": 3, "randlora_alpha": 6, "projection_prng_key": 5},
    "lora": {"peft_type": "LORA", "r": 3, "lora_alpha": 5},
    "vera": {"peft_type": "VERA", "r": 3, "projection_prng_key": 5},
}


def header(tensors: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and its bytes of tensors; uint16 is bfloat16's bits."""
    entries, data = {}, b""
    for name, x in tensors.items():
        offsets = [len(data), len(data) + x.nbytes]
        entries[name] = {"dtype": CODES[x.dtype.name], "shape": list(x.shape), "data_offsets": offsets}
        data += np.ascontiguousarray(x).tobytes()
    return entries, data


def write(path: Path, tensors: dict[str, Any]) -> None:
    """A safetensors file."""
    entries, data = header(tensors)
    write_raw(path, json.dumps(entries).encode(), data)


def write_raw(path: Path, text: bytes, data: bytes) -> None:
    """A safetensors file of any header, for faults."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def checkpoint(folder: Path, keys: dict[str, Any], weights: dict[str, Any], shards: int = 1) -> Path:
    """A checkpoint's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(keys))
    if shards == 1:
        write(folder / "model.safetensors", weights)
        return folder
    places = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(weights)}
    for place in set(places.values()):
        write(folder / place, {name: x for name, x in weights.items() if places[name] == place})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def tensors(method: str, shapes: dict[str, tuple[int, int]], dtype: str = "float64") -> dict[str, Any]:
    """Random tensors of an adapter in PEFT's layout, by its key."""
    rng, found, r = np.random.default_rng(1), {}, CONFIGS[method]["r"]

    def draw(*size: int) -> Any:
        return rng.standard_normal(size).astype(dtype)

    D, d = max(map(max, shapes.values())), max(map(min, shapes.values()))
    out, in_ = (max(shape[axis] for shape in shapes.values()) for axis in (0, 1))
    for name, (o, i) in shapes.items():
        key, n = f"base_model.model.{name}", -(-min(o, i) // r)
        if method == "randlora":
            found |= {f"{key}.randlora_lambda": draw(r, n), f"{key}.randlora_gamma": draw(n, min(o, i))}
        if method == "lora":
            found |= {f"{key}.lora_A.weight": draw(r, i), f"{key}.lora_B.weight": draw(o, r)}
        if method == "vera":
            found |= {f"{key}.vera_lambda_b": draw(o), f"{key}.vera_lambda_d": draw(r)}
    if method == "randlora":
        found |= {"base_model.randlora_A": draw(r, 1, d), "base_model.randlora_B": draw(D, -(-d // r), r)}
    if method == "vera":
        found |= {"base_model.vera_A": draw(r, in_), "base_model.vera_B": draw(out, r)}
    return found


def adapter(folder: Path, method: str, tensors: dict[str, Any], **keys: Any) -> Path:
    """An adapter's folder."""
    write(folder / "adapter_model.safetensors", tensors)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIGS[method] | keys))
    return folder
