"""Which linear layers a base model has, from its configuration alone."""

from pathlib import Path
from typing import Any

from .. import checks
from . import clip, gpt2, llama, vit
from .load import config_of, read_config, shapes_of

KINDS: dict[Any, Any] = dict.fromkeys(llama.DEFAULTS, llama.LlamaConfig)
KINDS |= {"gpt2": gpt2.GPT2Config, "vit": vit.ViTConfig, "clip": clip.CLIPConfig}


def layer_shapes(base: Any) -> dict[str, tuple[int, int]]:
    """The (out, in) of every linear module that can be adapted, by every name that it goes by.

    ``base``: a checkpoint's folder, a config.json, or a configuration as ``Model.from_state_dict`` takes it. ValueError
    for a model that is not here.
    """
    name = read_config(base).get("model_type")
    with checks.naming(base if isinstance(base, (str, Path)) else "base"):
        checks.choice("model_type", name, KINDS)
    return shapes_of(config_of(KINDS[name], base))
