"""ViT for image classification (arXiv 2010.11929): patches, a class token, learned positions, exact GELU.

``transformers`` 5.23 saves its blocks under older names than those of their modules; ``SAVED_AS`` has them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .config import Allowed, EncoderConfig, Tower
from .core import Array, ModelCache
from .towers import LabelledModel, tower_forward

NAMES = {
    "patch_embed": "vit.embeddings.patch_embeddings.projection", "class_token": "vit.embeddings.cls_token",
    "position_embeddings": "vit.embeddings.position_embeddings", "layers": "vit.layers",
    "norm1": "layernorm_before", "q": "attention.q_proj", "k": "attention.k_proj", "v": "attention.v_proj",
    "o": "attention.o_proj", "norm2": "layernorm_after", "up": "mlp.fc1", "down": "mlp.fc2",
    "norm": "vit.layernorm", "head": "classifier",
}  # fmt: skip
SAVED_AS = {
    "layers": "vit.encoder.layer", "q": "attention.attention.query", "k": "attention.attention.key",
    "v": "attention.attention.value", "o": "attention.output.dense", "up": "intermediate.dense", "down": "output.dense",
}  # fmt: skip


@dataclass(frozen=True)
class ViTConfig(EncoderConfig):
    """The keys of ViT's ``config.json`` that matter here; ``id2label`` gives ``num_labels``.

    With one label `transformers` takes the mean squared error, which is refused here, as other problem types are.
    """

    BASE: ClassVar[str] = "vit."
    FIXED: ClassVar[Allowed] = {"model_type": ("vit",), "problem_type": (None, "single_label_classification")}
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    num_labels: int = 2
    qkv_bias: bool = True

    @classmethod
    def _fields(cls, given: dict[str, Any]) -> dict[str, Any]:
        if (names := given.get("id2label")) is not None:
            if not isinstance(names, Mapping) or given.get("num_labels", len(names)) != len(names):
                raise ValueError(f"id2label: {names!r}; it must be a mapping, of as many labels as num_labels says")
            given["num_labels"] = len(names)
        return given

    def towers(self) -> tuple[Tower]:
        """The one that it is."""
        if self.num_labels == 1:
            raise ValueError("num_labels: 1; regression is not implemented, so it must be 2 or more")
        biases = ("o", "up", "down", "patch_embed", "head", *"qkv" * self.qkv_bias)
        bare = {"class_token": 3, "position_embeddings": 3}
        return (self.tower(NAMES, self.num_labels, biases, bare=bare, saved_as=SAVED_AS),)


class ViT(LabelledModel):
    """``ViTForImageClassification`` of ``transformers``, with adapters."""

    CONFIG = ViTConfig

    def forward(self, pixels: Array, labels: Array | None = None) -> tuple[Array | None, ModelCache]:
        """(L, cache) of ``pixels`` (B, C, H, W) and integer ``labels`` (B,), −100 left out; None without labels."""
        (tower,) = self.towers
        self.check_images(tower, pixels)
        return self.loss(*tower_forward(self, tower, pixels), labels)
