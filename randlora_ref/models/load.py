"""Checkpoints and live state dicts of ``transformers`` as a model's weights, with an adapter of PEFT's on them.

Every name that a tensor goes by leads to the one under which it is saved: that of the module, with PEFT's prefix, or
without the prefix of a whole model (``transformer.``), as base models are saved. Two names of one tensor, such as a
tied head's and its table's, must hold the same numbers.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import arrays, checks
from ..interop.peft import assemble, check_config, load_peft
from ..interop.saved import PREFIX, Saved
from ..interop.tensors import Tensors, read_checkpoint, read_json, to_host
from .config import Config, Module

Array = Any
ADAPTER = re.compile(r"(^|\.)(randlora|lora|vera)_")  # tensors of an adapter in a live state dict
BUFFERS = re.compile(r"\.attn\.(bias|masked_bias)$|(^|\.)(inv_freq|original_inv_freq|position_ids)$")  # no weights
WRAPPED = re.compile(r"\.base_layer(?=\.)|\.modules_to_save(\.default)?(?=\.)")  # what PEFT puts into a name


def read_config(config: Any, what: str) -> dict[str, Any]:
    """The keys of a configuration: an object of ``transformers`` or PEFT, a mapping, a JSON file or its folder."""
    if isinstance(config, (str, Path)):
        path = Path(config)
        return read_json(path / "config.json" if path.is_dir() else path, what)
    keys = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(keys, Mapping):
        raise TypeError(f"config: {config!r}; it must be {what}, its mapping, or the path of its file")
    return dict(keys)


def config_of(kind: type[Any], config: Any) -> Any:
    """A ``kind``, of one or of what ``read_config`` takes. ValueError names the key, and the file if it is one."""
    if isinstance(config, kind):
        return config
    keys = read_config(config, f"a {kind.__name__}")
    try:
        return kind.from_dict(keys)
    except ValueError as error:
        raise ValueError(f"{config}: {error}" if isinstance(config, (str, Path)) else str(error)) from None


def modules_of(config: Config, base: str) -> dict[str, Module]:
    """The modules by every name that they go by. ``base``: the prefix of a whole model, which a base model has not."""
    modules = list(config.modules())
    own = {one.name for one in modules}
    pairs = [(name, one) for one in modules for name in (one.name, one.saved) if name == one.name or name not in own]
    return {name.removeprefix(prefix): one for prefix in ("", base) for name, one in pairs}


def names_of(config: Config, base: str) -> dict[str, str]:
    """The saved name of a tensor, by every name that it goes by."""
    return {
        name if one.bare else f"{name}.{part}": saved
        for name, one in modules_of(config, base).items()
        for part, (saved, _) in one.tensors.items()
    }


def shapes_of(config: Config, base: str) -> dict[str, tuple[int, int]]:
    """The (out, in) of every linear module, by every name that it goes by."""
    return {name: one.shape[:2] for name, one in modules_of(config, base).items() if one.linear}  # type: ignore[misc]


def weight_names(tensors: Mapping[str, Any]) -> dict[str, str]:
    """The model's own name of each tensor, by PEFT's key; what PEFT keeps of an untrained original is left out."""
    keys = [key for key in tensors if ".original_module." not in key]
    return {key: WRAPPED.sub("", key.removeprefix(f"{PREFIX}model.")) for key in keys}


def gather(tensors: Mapping[str, Array], names: Mapping[str, str]) -> Tensors:
    """``tensors`` by saved name, without buffers. ValueError for two names of one that hold different numbers."""
    found: Tensors = {}
    for key, own in weight_names(tensors).items():
        if own not in names and BUFFERS.search(own):
            continue
        saved, x = names.get(own, own), tensors[key]
        one: Array = found.setdefault(saved, x)
        if one is not x and not np.array_equal(one, x):
            raise ValueError(f"{key!r} differs from another tensor that is {saved!r} too; they must be equal")
    return found


def from_pretrained(kind: Any, folder: str | Path, adapter: Any, **made: Any) -> Any:
    """``Model.from_pretrained``."""
    config = config_of(kind.CONFIG, Path(folder) / "config.json")
    return build(kind, str(folder), config, read_checkpoint(Path(folder)), adapter, **made)


def from_state_dict(kind: Any, config: Any, state_dict: Mapping[str, Any], adapter: Any, **made: Any) -> Any:
    """``Model.from_state_dict``."""
    config = config_of(kind.CONFIG, config)
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict: {type(state_dict).__name__}; it must be a mapping of tensors by name")
    live = {key: to_host(f"state_dict: {key}", x) for key, x in state_dict.items()}
    own = {key.replace(".default", ""): live.pop(key) for key in list(live) if ADAPTER.search(key)}
    if own and adapter is None:
        raise ValueError(f"state_dict: {min(own)!r} is an adapter's; adapter must be its configuration or its folder")
    if hasattr(adapter, "to_dict") or isinstance(adapter, Mapping):
        settings = {key: getattr(x, "value", x) for key, x in read_config(adapter, "PEFT's").items()}  # enums
        adapter = assemble(check_config(settings), settings, own, shapes_of(config, kind.BASE))
    return build(kind, "state_dict", config, live, adapter, **made)


def build(
    kind: Any, what: str, config: Any, tensors: Tensors, adapter: Any, *, dtype: str | None, xp: Any, device: Any
) -> Any:
    """The model of ``kind`` with weights ``tensors``, and with an adapter that is saved in a folder, or read."""
    checks.choice("dtype", dtype, (None, "float32", "float64"))
    shapes = shapes_of(config, kind.BASE)
    saved: Saved | None = load_peft(adapter, shapes) if isinstance(adapter, (str, Path)) else adapter
    learned = [] if saved is None else [x for field in saved.LEARNED for x in getattr(saved, field).values()]
    try:
        weights, adapters = gather(tensors, names_of(config, kind.BASE)), {}
        for name, x in weights.items():
            if x.dtype.kind != "f":
                raise ValueError(f"{name} of dtype {x.dtype}; it must be of floats")
        found = {arrays.dtype_name(x) for x in (*weights.values(), *learned)}
        dtype = dtype or ("float64" if "float64" in found else "float32")
        if saved is not None:
            config, weights = trained_beside(kind.BASE, config, weights, saved.extra)
            saved, modules = saved.to(dtype, xp, device), modules_of(config, kind.BASE)
            adapters = {modules[name].name: saved.layer(name, shapes[name]) for name in saved.modules}
        weights = {name: arrays.from_numpy(xp, x.astype(dtype, copy=False), device) for name, x in weights.items()}
        return kind(config, weights, adapters)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{what}: {error.args[0]}") from None


def trained_beside(base: str, config: Any, weights: Tensors, extra: Mapping[str, Array]) -> tuple[Any, Tensors]:
    """The configuration and the weights with what was trained beside an adapter in the place of the checkpoint's.

    A head, or its table, that was trained by itself is tied no longer.
    """
    own = weight_names({key: x for key, x in extra.items() if x.dtype.kind == "f"})
    if getattr(config, "tie_word_embeddings", False):
        head, table = (f"{config.towers()[0].outer[role].name}.weight" for role in ("head", "embed_tokens"))
        if {head, table} & {name if name in (head, table) else f"{base}{name}" for name in own.values()}:
            config, weights = replace(config, tie_word_embeddings=False), {**weights, head: weights[table]}
    names = names_of(config, base)
    return config, weights | gather({key: extra[key] for key in own}, names)
