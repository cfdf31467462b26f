"""The folders in which PEFT keeps adapters: RandLoRA, LoRA and VeRA, read and written.

``save_peft`` needs safetensors, imported when it is called.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import arrays, checks
from .saved import METHODS, PREFIX, PeftAdapter, PeftLoRA, PeftVeRA, Saved, Shape
from .tensors import Tensors, read_json, read_tensors

Array = Any
Shapes = Sequence[Shape] | Mapping[str, Shape] | None
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"

__all__ = ["PeftAdapter", "PeftLoRA", "PeftVeRA", "load_peft", "save_peft"]


def load_peft(
    folder: str | Path, shapes: Shapes = None, *, draw_dtype: Any = "bfloat16", dtype: str | None = None, xp: Any = np,
    device: Any = None,
) -> Any:  # fmt: skip
    """An adapter that PEFT saved in ``folder``: a ``PeftAdapter`` (RandLoRA), ``PeftLoRA`` or ``PeftVeRA``.

    ``shapes``: the (out, in) of every adapted layer, or of the base model's modules by name (``models.layer_shapes``),
    which settles each layer's shape. An adapter saved without its bases (``save_projection=False``) needs them: a
    RandLoRA one draws its bases again, bit for bit, from its ``projection_prng_key``, in ``draw_dtype`` "bfloat16", or
    "float16" where the hardware that it was trained on has no bfloat16: no file says which. Another adapter of the same
    model has a folder of its own inside this one.

    Arrays are of the library ``xp`` on ``device``, in ``dtype``; None leaves each as it is saved, but for bfloat16,
    which comes as float32, value for value. Raises ValueError that names the file for one that is missing, malformed,
    of another method, or contradicts itself.
    """
    config, path = read_json(Path(folder) / CONFIG_FILE, "PEFT's adapter configuration"), Path(folder) / WEIGHTS_FILE
    try:
        kind = check_config(config)
    except ValueError as error:
        raise ValueError(f"{Path(folder) / CONFIG_FILE}: {error}") from None
    tensors = read_tensors(path)
    try:
        return assemble(kind, config, tensors, shapes, draw_dtype).to(dtype, xp, device)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def save_peft(adapter: Saved, folder: str | Path) -> None:
    """Write ``adapter`` into ``folder`` for PEFT's ``from_pretrained``, the bases once.

    PEFT stores RandLoRA's once more for each layer, and so warns of missing keys; what it then computes is the same.
    """
    from safetensors.numpy import save_file

    tensors = {PREFIX + key: x for key, x in adapter.shared_to_peft().items()}
    for what, (ending, _) in adapter.LEARNED.items():
        for name, x in getattr(adapter, what).items():
            tensors[f"{PREFIX}model.{name}.{ending}"] = adapter.from_peft(what, arrays.to_numpy(x))
    tensors |= adapter.extra
    Path(folder).mkdir(parents=True, exist_ok=True)
    contiguous = {key: np.array(arrays.to_numpy(x), order="C") for key, x in tensors.items()}
    save_file(contiguous, Path(folder) / WEIGHTS_FILE, metadata={"format": "pt"})
    (Path(folder) / CONFIG_FILE).write_text(json.dumps(dict(adapter.config), indent=2, sort_keys=True) + "\n")


def check_config(config: Mapping[str, Any]) -> type[Saved]:
    """The class of the method that a configuration of PEFT's names. ValueError names the key that is not right."""
    if config.get("peft_type") not in METHODS:
        raise ValueError(f"peft_type {config.get('peft_type')!r}; it must be one of {', '.join(METHODS)}")
    kind: type[Saved] = METHODS[config["peft_type"]]
    checks.integer("r", config.get("r"))
    if kind.ALPHA:
        checks.number(kind.ALPHA, config.get(kind.ALPHA))
    if kind.SHARED:
        checks.integer("projection_prng_key", config.get("projection_prng_key"), 0)
    for key in kind.FLAGS:
        checks.choice(key, config.get(key), (None, True, False))
    for key in kind.REFUSED:
        if config.get(key):
            raise ValueError(f"{key}: {config[key]!r} is not implemented; it must be false or left out")
    checks.choice("bias", config.get("bias", "none"), ("none", "all", f"{kind.METHOD.lower()}_only"))
    return kind


def assemble(
    kind: type[Saved], config: Mapping[str, Any], tensors: Tensors, shapes: Shapes = None, draw_dtype: Any = "bfloat16"
) -> Saved:
    """The saved adapter that ``tensors`` are, by PEFT's keys. ValueError names what is missing, unknown or at odds.

    What it keeps is copied: a file's other tensors, such as RandLoRA's bases once more for each layer, can go.
    """
    learned: dict[str, dict[str, Array]] = {what: {} for what in kind.LEARNED}
    shared: dict[str, Array] = {}
    extra: Tensors = {}
    for key, x in tensors.items():
        name, what = key.removeprefix(f"{PREFIX}model."), key.rpartition(".")[2]
        field = next((field for field, (ending, _) in kind.LEARNED.items() if name.endswith(f".{ending}")), None)
        if field is not None:
            ending, axes = kind.LEARNED[field]
            module = name.removesuffix(f".{ending}")
            if x.ndim != axes or 0 in x.shape:
                raise ValueError(f"{key} {x.shape}; it must have {axes} axes, none of them empty")
            if module in learned[field]:
                raise ValueError(f"{key}: another tensor is {ending} of {module!r} too; it must be the only one")
            learned[field][module] = kind.from_peft(field, np.array(x))
        elif what in kind.SHARED:
            one: Array = shared.setdefault(what, x)
            if not np.array_equal(one, x):
                raise ValueError(f"{key}: differs from another {what}; all modules must share one")
        elif _beside(name, x, config):
            extra[key] = np.array(x)
        else:
            wanted = f"{kind.METHOD}'s own, a bias where 'bias' says so, or of modules_to_save"
            raise ValueError(f"{key}: unknown; it must be {wanted}")
    ours, *others = learned.values()
    if not ours or any(ours.keys() != other.keys() for other in others):
        needed = " and ".join(ending for ending, _ in kind.LEARNED.values())
        raise ValueError(f"{len(tensors)} tensors; each module needs {needed}")
    known = _shapes_of(ours, shapes)
    if len(shared) == 1:
        raise ValueError(f"{min(shared)} alone; it must hold {' and '.join(kind.SHARED)}, or neither")
    given: dict[str, Any] = {**learned, "config": config, "extra": extra, "shapes": known}
    if shared:
        given["bases"] = kind.bases_from_peft(*(np.array(shared[key]) for key in kind.SHARED))
    elif kind.SHARED:
        listed = list(known.values()) if isinstance(shapes, Mapping) else list(shapes or ())
        given["bases"] = kind.draw(config, listed, draw_dtype)
    saved: Saved = kind(**given)
    saved.check()
    return saved


def _beside(name: str, x: Array, config: Mapping[str, Any]) -> bool:
    """Whether PEFT trains a tensor beside the adapter, or it counts something: an integer is no adapter's."""
    bias = name.endswith(".bias") and config.get("bias", "none") != "none"
    return bias or x.dtype.kind != "f" or any(f".{one}." in f".{name}" for one in config.get("modules_to_save") or ())


def _shapes_of(modules: Collection[str], shapes: Shapes) -> dict[str, Shape]:
    """The (out, in) of ``modules``, if they are known by name. ValueError names one that the base model has not."""
    if not isinstance(shapes, Mapping):
        return {}
    if odd := sorted(set(modules) - shapes.keys()):
        raise ValueError(f"{odd[0]}: no linear module of the base model{checks.nearest(odd[0], shapes)}")
    return {name: shapes[name] for name in modules}
