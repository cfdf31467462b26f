"""CLIP (arXiv 2103.00020): a causal text tower and an image tower, joined by a projection and a learned temperature.

Saved names are module names, "pre_layrnorm" included.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from .. import arrays, checks, nn
from .causal import text_tower, text_tower_backward
from .config import Allowed, Config, EncoderConfig, Module, Tower
from .core import Array, Gradients, Model, ModelCache
from .vit import image_tower, image_tower_backward

NAMES = {
    "norm1": "layer_norm1", "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
    "o": "self_attn.out_proj", "norm2": "layer_norm2", "up": "mlp.fc1", "down": "mlp.fc2",
}  # fmt: skip
TEXT_NAMES = NAMES | {
    "embed_tokens": "text_model.embeddings.token_embedding", "layers": "text_model.encoder.layers",
    "position_embeddings": "text_model.embeddings.position_embedding",
    "norm": "text_model.final_layer_norm", "head": "text_projection",
}  # fmt: skip
VISION_NAMES = NAMES | {
    "patch_embed": "vision_model.embeddings.patch_embedding", "layers": "vision_model.encoder.layers",
    "class_token": "vision_model.embeddings.class_embedding", "pre_norm": "vision_model.pre_layrnorm",
    "position_embeddings": "vision_model.embeddings.position_embedding",
    "norm": "vision_model.post_layernorm", "head": "visual_projection",
}  # fmt: skip
BIASES = ("q", "k", "v", "o", "up", "down")
TEMPERATURE = Module("logit_scale", (), bare=True)


@dataclass(frozen=True)
class TextConfig(EncoderConfig):
    """The keys of ``text_config``. The text's vector is taken at ``eos_token_id``; 2 means at the largest token."""

    FIXED: ClassVar[Allowed] = {"model_type": ("clip_text_model",)}
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_attention_heads: int = 8
    vocab_size: int = 49408
    max_position_embeddings: int = 77
    eos_token_id: int = 49407


@dataclass(frozen=True)
class VisionConfig(EncoderConfig):
    """The keys of ``vision_config``."""

    FIXED: ClassVar[Allowed] = {"model_type": ("clip_vision_model",)}
    image_size: int = 224
    patch_size: int = 32
    num_channels: int = 3


@dataclass(frozen=True)
class CLIPConfig(Config):
    """The keys of CLIP's ``config.json`` that matter here.

    ``from_dict`` reads ``text_config_dict`` in place of ``text_config``, where it is given, and ``vision_config_dict``
    likewise: keys that it leaves out are the defaults, whatever the other says, as in `transformers` 5.24.
    """

    FIXED: ClassVar[Allowed] = {"model_type": ("clip",)}
    text_config: TextConfig = field(default_factory=TextConfig)
    vision_config: VisionConfig = field(default_factory=VisionConfig)
    projection_dim: int = 512

    @classmethod
    def _fields(cls, given: dict[str, Any]) -> dict[str, Any]:
        for key, kind in (("text_config", TextConfig), ("vision_config", VisionConfig)):
            name = key if given.get(f"{key}_dict") is None else f"{key}_dict"
            try:
                given[key] = kind.from_dict({} if given.get(name) is None else given[name])
            except (TypeError, ValueError) as error:
                raise type(error)(f"{name}: {error}") from None
        return given

    def towers(self) -> tuple[Tower, Tower]:
        """Of texts and of images."""
        texts = self.text_config.tower(TEXT_NAMES, self.projection_dim, BIASES)
        return texts, self.vision_config.tower(VISION_NAMES, self.projection_dim, BIASES, bare={"class_token": 1})

    def modules(self) -> Iterator[Module]:
        """Every module that has tensors: the temperature, and the towers'."""
        yield TEMPERATURE
        yield from super().modules()


class CLIPInputs(NamedTuple):
    """Gradients of the embedded tokens (B, T, k) and of the pixels (B, C, H, W)."""

    embeddings: Array
    pixels: Array


class CLIP(Model):
    """``CLIPModel`` of ``transformers``, with adapters."""

    CONFIG = CLIPConfig

    def forward(
        self, ids: Array, pixels: Array, *, attention_mask: Array | None = None, embeddings: Array | None = None
    ) -> tuple[Array, ModelCache]:
        """(L, cache): the contrastive loss of texts ``ids`` (B, T) and images ``pixels`` (B, C, H, W), pairs by place.

        ``attention_mask`` (B, T) is zero at padding; ``embeddings`` (B, T, k) stand for the embedded tokens.
        IndexError names a token that is out of range.
        """
        texts, images = self.towers
        self.check_text(texts, ids, attention_mask=attention_mask, embeddings=embeddings)
        self.check_images(images, pixels)
        checks.shape("pixels", pixels, (ids.shape[0], *pixels.shape[1:]))
        tokens, pool = ids if embeddings is None else embeddings, self._end_of_text(ids)
        hidden, text_cache = text_tower(self, texts, tokens, attention_mask, pool)  # (B, k)
        projected, text_head = self.linear(texts.outer["head"], hidden)  # (B, projection_dim)
        text_embeds, text_unit = nn.normalize(projected)
        hidden, image_cache = image_tower(self, images, pixels)  # (B, k)
        projected, image_head = self.linear(images.outer["head"], hidden)  # (B, projection_dim)
        image_embeds, image_unit = nn.normalize(projected)
        loss, cache = nn.contrastive(text_embeds, image_embeds, self.parameters(TEMPERATURE)[0])
        parts = text_cache, text_head, text_unit, image_cache, image_head, image_unit
        return loss, ModelCache(cache[0], cache, parts)

    def backward(self, cache: ModelCache, *, weights: bool = False, inputs: bool = False) -> Gradients:
        """The gradients of L; ``weights`` adds every saved tensor's, ``inputs`` a ``CLIPInputs``."""
        (texts, images), grads = self.towers, Gradients(weights)
        text_cache, text_head, text_unit, image_cache, image_head, image_unit = cache.parts
        d_text_embeds, d_image_embeds, d_log_scale = nn.contrastive_backward(cache.loss)
        self.accumulate(TEMPERATURE, nn.LinearGrads(d_log_scale, None), grads)
        d_projected = nn.normalize_backward(d_image_embeds, image_unit)
        d_hidden = self.pull_back(nn.linear_backward, images.outer["head"], d_projected, image_head, grads)
        d_pixels = image_tower_backward(self, images, d_hidden, image_cache, grads, inputs)
        d_projected = nn.normalize_backward(d_text_embeds, text_unit)
        d_hidden = self.pull_back(nn.linear_backward, texts.outer["head"], d_projected, text_head, grads)
        d_embeddings = text_tower_backward(self, texts, d_hidden, text_cache, grads)
        grads.inputs = CLIPInputs(d_embeddings, d_pixels) if inputs else None
        return grads

    def _end_of_text(self, ids: Array) -> Array:
        """1 at the first end of text, or at the largest token where eos_token_id is 2, else 0: (B, T, 1)."""
        xp, end = self.xp, self.config.text_config.eos_token_id
        ids = arrays.astype(xp, ids, xp.int64)  # a narrow type may not hold the end's number
        marks = ids if end == 2 else arrays.astype(xp, ids == end, xp.int64)
        positions = xp.arange(ids.shape[1], **arrays.on(arrays.device_of(ids)))
        pool = positions == xp.argmax(marks, axis=1)[:, None]
        return arrays.astype(xp, pool, getattr(xp, self.precision))[:, :, None]
