"""ViT for image classification (arXiv 2010.11929): patches, a class token, learned places, exact GELU.

``transformers`` 5.23 saves it under older names than those of its modules; ``SAVED`` is the map.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .. import checks
from ..nn import IGNORED, cross_entropy
from .config import Config, Module, Stack, bare, block_spec, module
from .core import Gradients, Model, ModelCache

Array = Any
ROLES = {
    "norm1": "layernorm_before", "q": "attention.q_proj", "k": "attention.k_proj", "v": "attention.v_proj",
    "o": "attention.o_proj", "norm2": "layernorm_after", "up": "mlp.fc1", "down": "mlp.fc2",
}  # fmt: skip
SAVED = {
    "q": "attention.attention.query", "k": "attention.attention.key", "v": "attention.attention.value",
    "o": "attention.output.dense", "up": "intermediate.dense", "down": "output.dense",
}  # fmt: skip
PATCH, TOKEN, PLACES = (
    f"vit.embeddings.{name}" for name in ("patch_embeddings.projection", "cls_token", "position_embeddings")
)


@dataclass(frozen=True)
class ViTConfig(Config):
    """The keys of ViT's ``config.json`` that matter here; ``id2label`` gives ``num_labels``.

    With one label `transformers` takes the mean squared error, which is refused here, as other problem types are.
    """

    MODEL_TYPE: ClassVar[str] = "vit"
    FIXED: ClassVar[dict[str, tuple[Any, ...]]] = {"problem_type": (None, "single_label_classification")}
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    num_labels: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    qkv_bias: bool = True

    @classmethod
    def _resolved(cls, given: dict[str, Any]) -> dict[str, Any]:
        if (names := given.get("id2label")) is not None:
            if not isinstance(names, Mapping) or given.get("num_labels", len(names)) != len(names):
                raise ValueError(f"id2label: {names!r}; it must be a mapping, of as many labels as num_labels says")
            given["num_labels"] = len(names)
        return given

    def stacks(self) -> tuple[Stack, ...]:
        """The blocks."""
        if self.num_labels == 1:
            raise ValueError("num_labels: 1; regression is not implemented, so it must be 2 or more")
        biases = set(ROLES) - (set() if self.qkv_bias else {"q", "k", "v"})
        numbers = (self.hidden_size, self.intermediate_size, self.num_attention_heads, self.layer_norm_eps)
        spec = block_spec(*numbers, self.hidden_act, biases)
        return (Stack("vit.layers", self.num_hidden_layers, spec, ROLES, "vit.encoder.layer", SAVED),)

    def modules(self) -> Iterator[Module]:
        """Every module, in the order of the forward pass."""
        width, patch = self.hidden_size, self.patch_size
        yield module(PATCH, (width, self.num_channels, patch, patch), bias=True)
        yield bare(TOKEN, (1, 1, width))
        yield bare(PLACES, (1, (self.image_size // patch) ** 2 + 1, width))
        yield from self.stacks()[0].modules()
        yield module("vit.layernorm", (width,), bias=True)
        yield module("classifier", (self.num_labels, width), bias=True, linear=True)


class ViT(Model):
    """``ViTForImageClassification`` of ``transformers``, with adapters."""

    CONFIG = ViTConfig

    def forward(self, pixels: Array, labels: Array | None = None) -> tuple[Array | None, ModelCache]:
        """(L, cache) of ``pixels`` (B, C, H, W) and integer ``labels`` (B,), −100 left out; None without labels."""
        self.check_floats(pixels=pixels)
        checks.namespace(pixels=pixels, labels=labels)
        checks.index_range(labels=(labels, self.config.num_labels, IGNORED))
        (stack,), steps = self.config.stacks(), dict[str, Any]()
        x = self.run(stack, self.see(pixels, PATCH, TOKEN, PLACES, self.config.image_size, steps), steps)
        token = self.norm("vit.layernorm", x[:, 0, :], steps, stack.spec)  # the norm works by rows: one is enough
        logits = self.linear("classifier", token, steps)
        if labels is None:
            return None, ModelCache(logits, None, steps)
        loss, cache = cross_entropy(logits, labels, checked=True)
        return loss, ModelCache(logits, cache, steps)

    def backward(self, cache: ModelCache, *, weights: bool = False, inputs: bool = False) -> Gradients:
        """The gradients of L; ``weights`` adds every saved tensor's, ``inputs`` that of the pixels (B, C, H, W)."""
        grads, steps, (stack,) = Gradients(weights), cache.steps, self.config.stacks()
        dy = self.step_back("classifier", cache.d_logits(), steps, grads)
        dy = self.step_back("vit.layernorm", dy, steps, grads)
        dy = self.run_back(stack, self.first_back(dy, steps[PATCH]), steps, grads)
        pixels = self.see_back(dy, PATCH, TOKEN, PLACES, steps, grads) if weights or inputs else None
        grads.inputs = pixels if inputs else None
        return grads
