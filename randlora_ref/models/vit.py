"""ViT for image classification (arXiv 2010.11929): patches, a class token, learned positions, exact GELU.

``transformers`` 5.23 saves its blocks under older names than those of their modules; ``SAVED_AS`` has them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .. import arrays, checks, nn
from .config import Allowed, EncoderConfig, Tower
from .core import Array, Gradients, Model, ModelCache

NAMES = {
    "patch_embed": "vit.embeddings.patch_embeddings.projection", "class_token": "vit.embeddings.cls_token",
    "position_embeddings": "vit.embeddings.position_embeddings", "layers": "vit.layers",
    "norm1": "layernorm_before", "q": "attention.q_proj", "k": "attention.k_proj", "v": "attention.v_proj",
    "o": "attention.o_proj", "norm2": "layernorm_after", "up": "mlp.fc1", "down": "mlp.fc2",
    "norm": "vit.layernorm", "head": "classifier",
}  # fmt: skip
SAVED_AS = {
    "vit.layers": "vit.encoder.layer", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
    "q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value", "o_proj": "output.dense",
}  # fmt: skip


@dataclass(frozen=True)
class ViTConfig(EncoderConfig):
    """The keys of ViT's ``config.json`` that matter here; ``id2label`` gives ``num_labels``.

    With one label `transformers` takes the mean squared error, which is refused here, as other problem types are.
    """

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


def image_tower(model: Model, tower: Tower, pixels: Array) -> tuple[Array, Any]:
    """y (B, k) of ``pixels`` (B, C, H, W): what becomes of the class token, beside N patches of p×p pixels."""
    xp, spec, pre_norm = model.xp, tower.spec, None
    kernel, bias = model.parameters(tower.outer["patch_embed"])  # (k, C, p, p), (k,) or None
    x, patches = nn.patches(pixels, kernel.shape[2])  # (B, N, C·p·p)
    x, patch_embed = nn.linear(x, xp.reshape(kernel, (kernel.shape[0], -1)), bias)  # (B, N, k)
    class_token = xp.reshape(model.parameters(tower.outer["class_token"])[0], (1, 1, -1))
    x = arrays.concat(xp, [xp.broadcast_to(class_token, (x.shape[0], 1, x.shape[2])), x], 1)  # (B, 1 + N, k)
    x = x + model.parameters(tower.outer["position_embeddings"])[0]
    if "pre_norm" in tower.outer:
        x, pre_norm = model.norm(tower.outer["pre_norm"], x, spec)
    x, blocks = model.blocks(tower, x)
    y, norm = model.norm(tower.outer["norm"], x[:, 0, :], spec)  # the norm works by rows: the class token's is enough
    return y, (patches, patch_embed, pre_norm, blocks, tuple(x.shape), norm)


def image_tower_backward(model: Model, tower: Tower, dy: Array, cache: Any, grads: Gradients, inputs: bool) -> Array:
    """∂L/∂pixels (B, C, H, W) of ∂L/∂y (B, k), or None if neither ``inputs`` nor weights' gradients are asked for.

    The class token and the positions are added to every image: their gradients are sums over the batch.
    """
    xp, (patches, patch_embed, pre_norm, blocks, (batch, count, width), norm) = model.xp, cache
    dx = model.pull_back(nn.norm_backward, tower.outer["norm"], dy, norm, grads)
    others = xp.zeros((batch, count - 1, width), dtype=dx.dtype, **arrays.on(arrays.device_of(dx)))
    dx = arrays.concat(xp, [dx[:, None, :], others], 1)  # (B, 1 + N, k)
    dx = model.blocks_backward(tower, dx, blocks, grads)
    if "pre_norm" in tower.outer:
        dx = model.pull_back(nn.norm_backward, tower.outer["pre_norm"], dx, pre_norm, grads)
    if grads.weights is None and not inputs:
        return None
    d_positions = xp.sum(dx, axis=0)  # (1 + N, k)
    model.accumulate(tower.outer["position_embeddings"], nn.LinearGrads(d_positions, None), grads)
    model.accumulate(tower.outer["class_token"], nn.LinearGrads(d_positions[0, :], None), grads)
    dx = model.pull_back(nn.linear_backward, tower.outer["patch_embed"], dx[:, 1:, :], patch_embed, grads)
    return nn.patches_backward(dx, patches)  # of (B, N, C·p·p)


class ViT(Model):
    """``ViTForImageClassification`` of ``transformers``, with adapters."""

    CONFIG = ViTConfig
    BASE = "vit."

    def forward(self, pixels: Array, labels: Array | None = None) -> tuple[Array | None, ModelCache]:
        """(L, cache) of ``pixels`` (B, C, H, W) and integer ``labels`` (B,), −100 left out; None without labels."""
        (tower,) = self.towers
        self.check_images(tower, pixels)
        checks.namespace(pixels=pixels, labels=labels)
        if labels is not None:
            checks.shape("labels", labels, tuple(pixels.shape[:1]))
        checks.index_range(labels=(labels, self.config.num_labels, nn.IGNORED))
        hidden, tower_cache = image_tower(self, tower, pixels)  # (B, k)
        logits, head = self.linear(tower.outer["head"], hidden)  # (B, num_labels)
        return self.loss(logits, labels, tower_cache, head)

    def backward(self, cache: ModelCache, *, weights: bool = False, inputs: bool = False) -> Gradients:
        """The gradients of L; ``weights`` adds every saved tensor's, ``inputs`` that of the pixels (B, C, H, W)."""
        (tower,), (tower_cache, head), grads = self.towers, cache.parts, Gradients(weights)
        d_hidden = self.pull_back(nn.linear_backward, tower.outer["head"], cache.d_logits(), head, grads)
        d_pixels = image_tower_backward(self, tower, d_hidden, tower_cache, grads, inputs)
        grads.inputs = d_pixels if inputs else None
        return grads
