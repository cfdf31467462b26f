"""ViT for image classification (arXiv 2010.11929): patches, a class token, learned places, exact GELU.

``transformers`` 5.23 saves it under older names than those of its modules; ``SAVED`` is the map.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

from .. import arrays
from ..nn import BlockSpec, check_range, cross_entropy, cross_entropy_backward
from ..nn.loss import IGNORED
from .core import Config, Gradients, Model, Module, Stack, bare, check_config, module

Array = Any
ROLES = {
    "norm1": "layernorm_before",
    "q": "attention.q_proj",
    "k": "attention.k_proj",
    "v": "attention.v_proj",
    "o": "attention.o_proj",
    "norm2": "layernorm_after",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}
SAVED = {
    "q": "attention.attention.query",
    "k": "attention.attention.key",
    "v": "attention.attention.value",
    "o": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
PATCH, TOKEN, PLACES = (
    f"vit.embeddings.{name}" for name in ("patch_embeddings.projection", "cls_token", "position_embeddings")
)


@dataclass(frozen=True)
class ViTConfig(Config):
    """The keys of ViT's ``config.json`` that matter here; ``id2label`` gives ``num_labels``."""

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

    def __post_init__(self) -> None:
        self.stack()
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size: {self.image_size}; it must be a multiple of patch_size, {self.patch_size}")

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """As ``Config.from_dict``; the labels are counted in ``id2label``."""
        labels = {"num_labels": len(config["id2label"])} if "id2label" in config else {}
        return super().from_dict({**config, **labels})

    def stack(self) -> Stack:
        """The blocks."""
        names = ("intermediate_size", "num_hidden_layers", "image_size", "patch_size", "num_channels", "num_labels")
        heads = self.num_attention_heads
        sizes = {name: getattr(self, name) for name in names}
        kind = check_config("hidden_size", self.hidden_act, self.hidden_size, heads, **sizes)
        spec = BlockSpec(
            width=self.hidden_size,
            hidden=self.intermediate_size,
            heads=heads,
            key_heads=heads,
            head_width=self.hidden_size // heads,
            eps=self.layer_norm_eps,
            activation=kind,
            biases=frozenset(ROLES if self.qkv_bias else set(ROLES) - {"q", "k", "v"}),
        )
        return Stack("vit.layers", self.num_hidden_layers, spec, ROLES, "vit.encoder.layer", SAVED)

    def modules(self) -> Iterator[Module]:
        """Every module, in the order of the forward pass."""
        width, patch = self.hidden_size, self.patch_size
        yield module(PATCH, (width, self.num_channels, patch, patch), bias=True)
        yield bare(TOKEN, (1, 1, width))
        yield bare(PLACES, (1, (self.image_size // patch) ** 2 + 1, width))
        yield from self.stack().modules()
        yield module("vit.layernorm", (width,), bias=True)
        yield module("classifier", (self.num_labels, width), bias=True, linear=True)


class ViTCache(NamedTuple):
    """``logits`` (B, labels), the loss's cache, and what backward needs of every step."""

    logits: Array
    loss: Any
    steps: dict[str, Any]


class ViT(Model):
    """``ViTForImageClassification`` of ``transformers``, with adapters."""

    CONFIG = ViTConfig

    def forward(self, pixels: Array, labels: Array | None = None) -> tuple[Array | None, ViTCache]:
        """(L, cache) of ``pixels`` (B, C, H, W) and integer ``labels`` (B,), −100 left out; None without labels."""
        arrays.namespace(weights=next(iter(self.weights.values())), pixels=pixels, labels=labels)
        check_range(labels=(labels, self.config.num_labels, IGNORED))
        stack, steps = self.config.stack(), dict[str, Any]()
        x = self.run(stack, self.see(pixels, PATCH, TOKEN, PLACES, self.config.image_size, steps), steps)
        token = self.norm("vit.layernorm", x[:, 0, :], steps, stack.spec)  # the norm works by rows: one is enough
        logits = self.linear("classifier", token, steps)
        if labels is None:
            return None, ViTCache(logits, None, steps)
        loss, cache = cross_entropy(logits, labels, checked=True)
        return loss, ViTCache(logits, cache, steps)

    def backward(self, cache: ViTCache, *, weights: bool = False, inputs: bool = False) -> Gradients:
        """The gradients of L; ``weights`` adds every saved tensor's, ``inputs`` that of the pixels (B, C, H, W)."""
        if cache.loss is None:
            raise ValueError("cache: of a forward pass without labels; backward needs the loss")
        grads, steps = Gradients(weights), cache.steps
        dy = self.linear_back("classifier", cross_entropy_backward(cache.loss), steps, grads)
        dy = self.norm_back("vit.layernorm", dy, steps, grads)
        dy = self.run_back(self.config.stack(), self.first_back(dy, steps[PATCH]), steps, grads)
        pixels = self.see_back(dy, PATCH, TOKEN, PLACES, steps, grads) if weights or inputs else None
        grads.inputs = pixels if inputs else None
        return grads
