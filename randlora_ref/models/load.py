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
from ..adapters import Adapter
from ..interop.peft import PREFIX, assemble, check_config, read_peft
from ..interop.saved import Saved
from ..interop.tensors import Array, Tensors, read_json, to_host
from .config import Config, Module

ADAPTER = re.compile(r"(^|\.)(randlora|lora|vera)_")  # tensors of an adapter in a live state dict
BUFFERS = re.compile(r"\.attn\.(bias|masked_bias)$|(^|\.)(inv_freq|original_inv_freq|position_ids)$")  # no weights
WRAPPED = re.compile(r"\.(base_layer|original_module|modules_to_save(\.default)?)(?=\.)")  # PEFT's part of a name


def read_config(config: Any) -> dict[str, Any]:
    """The keys of a configuration: an object of ``transformers`` or PEFT, a mapping, a JSON file or its folder."""
    if isinstance(config, (str, Path)):
        path = Path(config)
        return read_json(path / "config.json" if path.is_dir() else path, "a model's configuration")
    keys = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(keys, Mapping):
        raise TypeError(f"config: {config!r}; it must be a configuration, its mapping, or the path of its file")
    return {key: getattr(x, "value", x) for key, x in keys.items()}  # some of PEFT's are enumerations


def config_of(kind: type[Any], config: Any) -> Any:
    """A ``kind``, of one or of what ``read_config`` takes. ValueError names the key, and the file if it is one."""
    if isinstance(config, kind):
        return config
    keys = read_config(config)
    with checks.naming(config if isinstance(config, (str, Path)) else "config"):
        return kind.from_dict(keys)


def modules_of(config: Config) -> dict[str, Module]:
    """The modules by every name that they go by, with the prefix of a whole model and, as base models have, without."""
    modules = list(config.modules())
    own = {one.name for one in modules}
    pairs = [(name, one) for one in modules for name in (one.name, one.saved) if name == one.name or name not in own]
    return {name.removeprefix(prefix): one for prefix in ("", config.BASE) for name, one in pairs}


def shapes_of(config: Config) -> dict[str, tuple[int, int]]:
    """The (out, in) of every linear module, by every name that it goes by."""
    return {name: one.shape[:2] for name, one in modules_of(config).items() if one.linear}  # type: ignore[misc]


def gather(tensors: Mapping[str, Array], config: Config) -> Tensors:
    """``tensors`` by saved name, without buffers.

    ValueError for two names of one that hold different numbers, and for one that is not of floats.
    """
    names, found = dict[str, str](), Tensors()
    for name, one in modules_of(config).items():
        names |= {name if one.bare else f"{name}.{part}": saved for part, (saved, _) in one.tensors.items()}
    for key, x in tensors.items():
        own = own_name(key)
        if own not in names and BUFFERS.search(own):
            continue
        first: Array = found.setdefault(names.get(own, own), x)
        if first is not x and not np.array_equal(first, x):
            raise ValueError(f"{key!r} differs from another name of {names.get(own)!r}; they must be equal")
        if x.dtype.kind != "f":
            raise ValueError(f"{key!r} of dtype {x.dtype}; it must be of floats")
    return found


def own_name(key: str) -> str:
    """The model's name of a tensor, by PEFT's key of it."""
    return WRAPPED.sub("", key.removeprefix(f"{PREFIX}model."))


def live_tensors(config: Config, state_dict: Mapping[str, Any], adapter: Any) -> tuple[Tensors, Any]:
    """The weights of a live state dict, and the ``adapter``: the one given, or that of PEFT's configuration.

    ValueError for an adapter's tensors with neither.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"{type(state_dict).__name__}; it must be a mapping of tensors by name")
    live = {str(key): to_host(str(key), x) for key, x in state_dict.items()}
    own = {key.replace(".default", ""): live.pop(key) for key in list(live) if ADAPTER.search(key)}
    if own and adapter is None:
        raise ValueError(f"{min(own)!r} is an adapter's; adapter must be its configuration or its folder")
    if hasattr(adapter, "to_dict") or isinstance(adapter, Mapping):
        settings = read_config(adapter)
        adapter = assemble(check_config(settings), settings, own, shapes_of(config), "bfloat16")
    return live, adapter


def parts(
    config: Config, tensors: Tensors, adapter: Any, dtype: Any = None, xp: Any = np, device: Any = None
) -> tuple[Config, Tensors, dict[str, Adapter]]:
    """What a model is made of: ``tensors`` as its weights, and an adapter that is saved in a folder, or read."""
    checks.choice("dtype", dtype, (None, "float32", "float64"))
    shapes, modules, adapters = shapes_of(config), modules_of(config), {}
    saved: Saved | None = read_peft(adapter, shapes) if isinstance(adapter, (str, Path)) else adapter
    trained = {key: x for key, x in tensors.items() if ".modules_to_save." in key}
    weights = gather({key: x for key, x in tensors.items() if key not in trained}, config)
    learned = [] if saved is None else [x for field in saved.LEARNED for x in getattr(saved, field).values()]
    widest = "float64" if "float64" in map(arrays.dtype_name, (*weights.values(), *learned)) else "float32"
    with checks.naming(adapter if isinstance(adapter, (str, Path)) else "adapter"):
        if saved is not None:
            saved, trained = saved.to(dtype or widest, xp, device), {**trained, **saved.extra}
            adapters = {modules[name].name: saved.layer(name, shapes[name]) for name in saved.modules}
        config, weights = trained_beside(config, weights, trained)
    weights = {key: arrays.from_numpy(xp, x.astype(dtype or widest, copy=False), device) for key, x in weights.items()}
    return config, weights, adapters


def trained_beside(config: Any, weights: Tensors, extra: Mapping[str, Array]) -> tuple[Any, Tensors]:
    """The configuration and the weights with what was trained beside an adapter in place of what is untrained.

    A head, or its table, that was trained by itself is tied to the other no longer.
    """
    trained = {key: arrays.to_numpy(x) for key, x in extra.items() if ".original_module." not in key}
    trained = {key: x for key, x in trained.items() if x.dtype.kind == "f"}  # a counter is no weight
    if config.get("tie_word_embeddings"):
        head, table = (f"{config.towers()[0].outer[role].name}.weight" for role in ("head", "embed_tokens"))
        if {head, table, table.removeprefix(config.BASE)} & set(map(own_name, trained)):
            config, weights = replace(config, tie_word_embeddings=False), {**weights, head: weights[table]}
    return config, weights | gather(trained, config)
