"""CLIP (arXiv 2103.00020): a causal text tower and an image tower, joined by a projection and a learned temperature.

Saved names are module names, "pre_layrnorm" included.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from .. import arrays, checks, nn
from .config import Allowed, Config, EncoderConfig, Module, Tower
from .core import Array, Gradients, Model, ModelCache
from .towers import tower_backward, tower_forward

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
            with checks.naming(name):
                given[key] = kind.from_dict({} if given.get(name) is None else given[name])
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
        text_embeds, text_parts = self._encode_text(ids, attention_mask, embeddings)
        image_embeds, image_parts = self._encode_image(pixels)
        checks.shape("pixels", pixels, (ids.shape[0], *pixels.shape[1:]))
        loss, cache = nn.contrastive(text_embeds, image_embeds, self.parameters(TEMPERATURE)[0])
        return loss, ModelCache(cache[0], cache, (text_parts, image_parts))

    def encode_text(self, ids: Array, *, attention_mask: Array | None = None, embeddings: Array | None = None) -> Array:
        """Unit vectors (B, projection_dim) of texts, given as in ``forward``."""
        return self._encode_text(ids, attention_mask, embeddings)[0]

    def encode_image(self, pixels: Array) -> Array:
        """Unit vectors (B, projection_dim) of images (B, C, H, W)."""
        return self._encode_image(pixels)[0]

    def logits(self, texts: Array, images: Array) -> Array:
        """exp(logit_scale)·texts imagesᵀ (N, M) of unit vectors (N, k) and (M, k): for each image the texts' scores."""
        scale = self.parameters(TEMPERATURE)[0]
        xp = checks.floats(logit_scale=scale, texts=texts, images=images)
        for name, x in (("texts", texts), ("images", images)):
            checks.shape(name, x, (*x.shape[:1], self.config.projection_dim))
        return xp.exp(scale) * (texts @ images.T)

    def _encode_text(self, ids: Array, mask: Array | None, embeddings: Array | None) -> tuple[Array, Any]:
        self.check_text(self.towers[0], ids, attention_mask=mask, embeddings=embeddings)
        xp, end = self.xp, self.config.text_config.eos_token_id
        tokens = ids if embeddings is None else embeddings
        ids = arrays.astype(xp, ids, xp.int64)  # a narrow type may not hold the end's number
        marks = ids if end == 2 else arrays.astype(xp, ids == end, xp.int64)  # 2 means: at the largest token
        positions = xp.arange(ids.shape[1], **arrays.on(arrays.device_of(ids)))
        pool = arrays.astype(xp, positions == xp.argmax(marks, axis=1)[:, None], getattr(xp, self.precision))
        return self._encode(self.towers[0], tokens, pool[:, :, None], mask)

    def _encode_image(self, pixels: Array) -> tuple[Array, Any]:
        self.check_images(self.towers[1], pixels)
        return self._encode(self.towers[1], pixels)

    def _encode(self, tower: Tower, *given: Array) -> tuple[Array, Any]:
        """Unit vectors (B, projection_dim) of what a tower makes of what it is ``given``, and both steps' caches."""
        projected, of_tower = tower_forward(self, tower, *given)
        unit, norm = nn.normalize(projected)
        return unit, (of_tower, norm)

    def backward(self, cache: ModelCache, *, weights: bool = False, inputs: bool = False) -> Gradients:
        """The gradients of L; ``weights`` adds every saved tensor's, ``inputs`` a ``CLIPInputs``."""
        checks.instance("cache", cache, ModelCache)
        grads, d_inputs = Gradients(weights), []
        *d_units, d_log_scale = nn.contrastive_backward(cache.loss)  # of texts and of images (B, projection_dim)
        self.accumulate(TEMPERATURE, nn.LinearGrads(d_log_scale, None), grads)
        for tower, d_unit, (of_tower, norm) in zip(self.towers, d_units, cache.parts, strict=True):
            d_projected = nn.normalize_backward(d_unit, norm)
            d_inputs.append(tower_backward(self, tower, d_projected, of_tower, grads, inputs))
        grads.inputs = CLIPInputs(*d_inputs) if inputs else None
        return grads
