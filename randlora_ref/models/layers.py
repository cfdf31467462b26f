"""Which linear layers a base model has, from its configuration alone."""

from typing import Any

from .. import checks
from .clip import CLIP
from .core import Model
from .gpt2 import GPT2
from .llama import DEFAULTS, Llama
from .load import config_of, read_config, shapes_of
from .vit import ViT

KINDS: dict[Any, type[Model]] = {"gpt2": GPT2, **dict.fromkeys(DEFAULTS, Llama), "vit": ViT, "clip": CLIP}


def layer_shapes(base: Any) -> dict[str, tuple[int, int]]:
    """The (out, in) of every linear module that can be adapted, by every name that it goes by.

    ``base``: a checkpoint's folder, a config.json, or a configuration as ``Model.from_state_dict`` takes it. ValueError
    for a model that is not here.
    """
    name = read_config(base).get("model_type")
    checks.choice("model_type", name, KINDS)
    return shapes_of(config_of(KINDS[name].CONFIG, base), KINDS[name].BASE)
