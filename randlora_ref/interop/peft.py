"""The folders in which PEFT keeps adapters: RandLoRA, LoRA and VeRA, read and written.

``save_peft`` needs safetensors, imported when it is called.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from .. import arrays, checks
from ..adapters.base import Made
from ..bases import Bases, Kind, draw_bases
from .saved import METHODS, PeftAdapter, PeftLoRA, PeftVeRA, Saved, Shape
from .tensors import Array, Tensors, read_json, read_tensors

Shapes = Sequence[Shape] | Mapping[str, Shape] | None
PREFIX = "base_model."
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"

__all__ = ["PeftAdapter", "PeftLoRA", "PeftVeRA", "load_peft", "save_peft"]


def load_peft(folder: str | Path, shapes: Shapes = None, *, draw_dtype: Any = "bfloat16", **made: Unpack[Made]) -> Any:
    """An adapter that PEFT saved in ``folder``: a ``PeftAdapter`` (RandLoRA), ``PeftLoRA`` or ``PeftVeRA``.

    ``shapes``: the (out, in) of every adapted layer, or of the base model's modules by name (``models.layer_shapes``),
    which settles each layer's shape. An adapter saved without its bases (``save_projection=False``) needs them: a
    RandLoRA one draws its bases again, bit for bit, from its ``projection_prng_key``, in ``draw_dtype`` "bfloat16", or
    "float16" where the hardware that it was trained on has no bfloat16: no file says which. Another adapter of the same
    model has a folder of its own inside this one.

    Arrays are of the library ``xp`` on ``device``, in ``dtype``; without one each is as it is saved, but for bfloat16,
    which comes as float32, value for value. Raises ValueError that names the file for one that is missing, malformed,
    of another method, or contradicts itself.
    """
    saved = read_peft(folder, shapes, draw_dtype)
    with checks.naming(Path(folder) / WEIGHTS_FILE):
        for name in saved.modules:
            saved.layer(name)
        return saved.to(**made)


def save_peft(adapter: Saved, folder: str | Path) -> None:
    """Write ``adapter`` into ``folder`` for PEFT's ``from_pretrained``, the bases once.

    PEFT stores RandLoRA's once more for each layer, and so warns of missing keys; what it then computes is the same.
    """
    from safetensors.numpy import save_file

    bases, config = zip(adapter.SHARED, adapter.bases_to_peft(), strict=True), getattr(adapter, "config", {})
    tensors = {PREFIX + key: x for key, x in bases}
    for what, ending in adapter.LEARNED.items():
        for name, x in getattr(adapter, what).items():
            tensors[f"{PREFIX}model.{name}.{ending}"] = adapter.from_peft(what, arrays.to_numpy(x))
    tensors |= adapter.extra
    Path(folder).mkdir(parents=True, exist_ok=True)
    contiguous = {key: np.array(arrays.to_numpy(x), order="C") for key, x in tensors.items()}
    save_file(contiguous, Path(folder) / WEIGHTS_FILE, metadata={"format": "pt"})
    (Path(folder) / CONFIG_FILE).write_text(json.dumps(dict(config), indent=2, sort_keys=True) + "\n")


def read_peft(folder: str | Path, shapes: Shapes = None, draw_dtype: Any = "bfloat16") -> Saved:
    """As ``load_peft``, on the host and each array as it is saved, its layers not made.

    ``draw_dtype`` None: without bases, where they are not saved.
    """
    config = read_json(Path(folder) / CONFIG_FILE, "PEFT's adapter configuration")
    with checks.naming(Path(folder) / CONFIG_FILE):
        kind = check_config(config)
    tensors = read_tensors(Path(folder) / WEIGHTS_FILE)
    with checks.naming(Path(folder) / WEIGHTS_FILE):
        return assemble(kind, config, tensors, shapes, draw_dtype)


def check_config(config: Mapping[str, Any]) -> type[Saved]:
    """The class of the method that a configuration of PEFT's names. ValueError names the key that is not right."""
    checks.choice("peft_type", config.get("peft_type"), METHODS)
    kind: type[Saved] = METHODS[config["peft_type"]]
    for key, check in kind.SETTINGS.items():
        check(key, config.get(key))
    checks.choice("bias", config.get("bias", "none"), ("none", "all", f"{config['peft_type'].lower()}_only"))
    return kind


def assemble(kind: type[Saved], config: Mapping[str, Any], tensors: Tensors, shapes: Shapes, draw_dtype: Any) -> Saved:
    """The saved adapter that ``tensors`` are, by PEFT's keys. ValueError names what is missing, unknown or at odds."""
    learned: dict[str, dict[str, Array]] = {what: {} for what in kind.LEARNED}
    shared, extra = Tensors(), Tensors()
    for key, x in tensors.items():
        name, last = key.removeprefix(f"{PREFIX}model."), key.rpartition(".")[2]
        ours = [what for what, ending in kind.LEARNED.items() if name.endswith(f".{ending}")]
        if ours:
            module = name.removesuffix(f".{kind.LEARNED[ours[0]]}")
            if 0 in x.shape or x.ndim != (1 if "vera" in last else 2) or module in learned[ours[0]]:
                raise ValueError(f"{key} {x.shape}; it must be the only one of its module, a matrix, VeRA's a vector")
            learned[ours[0]][module] = kind.from_peft(ours[0], x)
        elif last in kind.SHARED:
            one: Array = shared.setdefault(last, x)
            if one is not x and not np.array_equal(one, x):
                raise ValueError(f"{key}: differs from another {last}; all modules must share one")
        else:
            _check_beside(key, name, x, config)
            extra[key] = x
    first, second = learned.values()
    if not first or first.keys() != second.keys() or len(shared) == 1:
        needed = f"each module needs {' and '.join(kind.LEARNED.values())}, all of them {kind.SHARED} or neither"
        raise ValueError(f"{len(tensors)} tensors; {needed}")
    by_name: Mapping[str, Shape] = shapes if isinstance(shapes, Mapping) else dict.fromkeys(first, (0, 0))
    for name in sorted(first.keys() - by_name):
        raise ValueError(f"{name}: no linear module of the base model{checks.nearest(name, by_name)}")
    known = {name: by_name[name] for name in first} if by_name is shapes else {}
    given: dict[str, Any] = {**learned, "config": config, "extra": extra, "shapes": known}
    if shared:
        given["bases"] = kind.bases_from_peft(*(shared[key] for key in kind.SHARED))
    elif kind.SHARED:
        listed: Any = known.values() or shapes or ()
        given["bases"] = None if draw_dtype is None else _draw(config, list(listed), draw_dtype)
    return kind(**given)


def _draw(config: Mapping[str, Any], shapes: list[Shape], draw_dtype: Any) -> Bases:
    """RandLoRA's bases, bit for bit, from the seed that the configuration has."""
    if config["peft_type"] != "RANDLORA":
        raise ValueError("holds no bases; they must be saved (save_projection=True), for RandLoRA's alone are drawn")
    if not shapes:
        raise ValueError("holds no bases; shapes must list the (out, in) of every adapted layer")
    kind: Kind = "very_sparse" if config.get("very_sparse") else "sparse" if config.get("sparse") else "dense"
    seed, rank = config["projection_prng_key"], config["r"]
    return draw_bases("peft", seed=seed, shapes=shapes, rank=rank, kind=kind, draw_dtype=draw_dtype)


def _check_beside(key: str, name: str, x: Array, config: Mapping[str, Any]) -> None:
    """A ValueError unless PEFT trains a tensor beside the adapter, or it counts something, as an adapter's never do."""
    bias = name.endswith(".bias") and config.get("bias", "none") != "none"
    kept = any(f".{one}." in f".{name}" for one in config.get("modules_to_save") or ())
    if not (bias or kept or x.dtype.kind != "f"):
        raise ValueError(f"{key}: unknown; it must be the adapter's, a bias if 'bias' says so, or of modules_to_save")
