"""One small configuration of each model, with weights and inputs, for the tests that need no more than an example."""

from typing import Any

import numpy as np

from randlora_ref import models

LAYERS = {"intermediate_size": 20, "num_hidden_layers": 2}
TEXT = LAYERS | {"hidden_size": 12, "vocab_size": 13, "max_position_embeddings": 7}
VISION = LAYERS | {"hidden_size": 15, "num_attention_heads": 3, "image_size": 8, "patch_size": 4}
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "GPT-2": (models.GPT2, {"vocab_size": 13, "n_positions": 7, "n_embd": 12, "n_layer": 2, "n_head": 3}),
    "Llama": (models.Llama, TEXT | {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4}),
    "ViT": (models.ViT, VISION | {"num_labels": 5}),
    "CLIP": (
        models.CLIP,
        {
            "text_config": TEXT | {"num_attention_heads": 3, "eos_token_id": 5},
            "projection_dim": 7,
            "vision_config": VISION,
        },
    ),
}


def build(name: str, **keys: Any) -> tuple[Any, Any, dict[str, np.ndarray], dict[str, Any]]:
    """The class, a configuration, weights and inputs, on the host in float64."""
    rng, (kind, own) = np.random.default_rng(0), MODELS[name]
    config = kind.CONFIG.from_dict({**own, **keys})
    shapes = {saved: shape for one in config.modules() for saved, shape in one.tensors.values()}
    weights = {
        saved: 0.2 * rng.standard_normal(shape) + ("norm" in saved or "ln_" in saved) for saved, shape in shapes.items()
    }
    ids, mask = rng.integers(0, 13, (3, 6)), np.array([[1] * 6, [1] * 4 + [0] * 2, [0] * 2 + [1] * 4])
    pixels = rng.standard_normal((3, 3, 8, 8))
    given: dict[str, Any] = {"ids": ids, "labels": np.where(mask, ids, -100), "attention_mask": mask}
    if name == "ViT":
        given = {"pixels": pixels, "labels": np.array([0, 4, 3])}
    if name == "CLIP":
        given = {"ids": ids, "pixels": pixels, "attention_mask": mask}
    return kind, config, weights, given
