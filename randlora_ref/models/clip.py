"""CLIP (arXiv 2103.00020): a causal text tower and an image tower, joined by a projection and a learned temperature.

Saved names are module names, "pre_layrnorm" included.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from .. import arrays, checks
from ..nn import additive_mask, contrastive, contrastive_backward, normalize, normalize_backward
from .config import Config, Module, Stack, bare, block_spec, module
from .core import Gradients, Model, ModelCache

Array = Any
ROLES = {
    "norm1": "layer_norm1", "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
    "o": "self_attn.out_proj", "norm2": "layer_norm2", "up": "mlp.fc1", "down": "mlp.fc2",
}  # fmt: skip
WORDS, TEXT_PLACES, TEXT_NORM = (
    f"text_model.{name}" for name in ("embeddings.token_embedding", "embeddings.position_embedding", "final_layer_norm")
)
PATCH, TOKEN, PLACES = (
    f"vision_model.embeddings.{name}" for name in ("patch_embedding", "class_embedding", "position_embedding")
)
PRE_NORM, POST_NORM = "vision_model.pre_layrnorm", "vision_model.post_layernorm"


@dataclass(frozen=True)
class Tower(Config):
    """The keys that both towers' configurations share."""

    PREFIX: ClassVar[str]
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def stacks(self) -> tuple[Stack, ...]:
        """The blocks."""
        numbers = (self.hidden_size, self.intermediate_size, self.num_attention_heads, self.layer_norm_eps)
        spec = block_spec(*numbers, self.hidden_act, ROLES)
        return (Stack(f"{self.PREFIX}.encoder.layers", self.num_hidden_layers, spec, ROLES),)


@dataclass(frozen=True)
class TextConfig(Tower):
    """The keys of ``text_config``. The text's vector is taken at ``eos_token_id``; 2 means at the largest token."""

    MODEL_TYPE: ClassVar[str] = "clip_text_model"
    PREFIX: ClassVar[str] = "text_model"
    vocab_size: int = 49408
    max_position_embeddings: int = 77
    eos_token_id: int = 49407


@dataclass(frozen=True)
class VisionConfig(Tower):
    """The keys of ``vision_config``."""

    MODEL_TYPE: ClassVar[str] = "clip_vision_model"
    PREFIX: ClassVar[str] = "vision_model"
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    num_channels: int = 3


@dataclass(frozen=True)
class CLIPConfig(Config):
    """The keys of CLIP's ``config.json`` that matter here.

    ``from_dict`` reads ``text_config_dict`` in place of ``text_config``, where it is given, and ``vision_config_dict``
    likewise: keys that it leaves out are the defaults, whatever the other says, as in `transformers` 5.24.
    """

    MODEL_TYPE: ClassVar[str] = "clip"
    text_config: TextConfig = field(default_factory=TextConfig)
    vision_config: VisionConfig = field(default_factory=VisionConfig)
    projection_dim: int = 512

    @classmethod
    def _resolved(cls, given: dict[str, Any]) -> dict[str, Any]:
        for key, kind in (("text_config", TextConfig), ("vision_config", VisionConfig)):
            name = key if given.get(f"{key}_dict") is None else f"{key}_dict"
            try:
                given[key] = kind.from_dict({} if given.get(name) is None else given[name])
            except (TypeError, ValueError) as error:
                raise type(error)(f"{name}: {error}") from None
        return given

    def stacks(self) -> tuple[Stack, ...]:
        """The blocks of the text tower, and of the image tower."""
        return self.text_config.stacks() + self.vision_config.stacks()

    def modules(self) -> Iterator[Module]:
        """Every module."""
        text, vision = self.text_config, self.vision_config
        width, patch = vision.hidden_size, vision.patch_size
        for stack in self.stacks():
            yield from stack.modules()
        yield bare("logit_scale", ())
        yield module(WORDS, (text.vocab_size, text.hidden_size))
        yield module(TEXT_PLACES, (text.max_position_embeddings, text.hidden_size))
        yield module(TEXT_NORM, (text.hidden_size,), bias=True)
        yield module("text_projection", (self.projection_dim, text.hidden_size), linear=True)
        yield module(PATCH, (width, vision.num_channels, patch, patch))
        yield bare(TOKEN, (width,))
        yield module(PLACES, ((vision.image_size // patch) ** 2 + 1, width))
        yield module(PRE_NORM, (width,), bias=True)
        yield module(POST_NORM, (width,), bias=True)
        yield module("visual_projection", (self.projection_dim, width), linear=True)


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
        self.check_tokens(self.config.text_config, ids=ids, attention_mask=attention_mask, embeddings=embeddings)
        self.check_floats(pixels=pixels)
        checks.shape("pixels", pixels, (ids.shape[0], *pixels.shape[1:]))
        size, steps = ids.shape[1], dict[str, Any]()
        text, vision = self.config.stacks()
        x = self.embed(WORDS, ids if embeddings is None else embeddings, steps) + self.tensors(TEXT_PLACES)[0][:size, :]
        x = self.run(text, x, steps, additive_mask(x, size, causal=True, mask=attention_mask))
        steps["chosen"] = self._chosen(ids)
        x = self.xp.sum(x * steps["chosen"], axis=1)  # the norm works by rows: one of each text is enough
        x = self.norm(TEXT_NORM, x, steps, text.spec)
        texts, steps["texts"] = normalize(self.linear("text_projection", x, steps))
        x = self.see(pixels, PATCH, TOKEN, PLACES, self.config.vision_config.image_size, steps)
        x = self.run(vision, self.norm(PRE_NORM, x, steps, vision.spec), steps)
        x = self.norm(POST_NORM, x[:, 0, :], steps, vision.spec)
        images, steps["images"] = normalize(self.linear("visual_projection", x, steps))
        loss, cache = contrastive(texts, images, self.tensors("logit_scale")[0])
        return loss, ModelCache(cache[0], cache, steps)

    def _chosen(self, ids: Array) -> Array:
        """1 at the first end of text, or at the largest token where eos_token_id is 2, else 0: (B, T, 1)."""
        xp, end = self.xp, self.config.text_config.eos_token_id
        ids = arrays.astype(xp, ids, xp.int64)  # a narrow type may not hold the end's number
        marks = ids if end == 2 else arrays.astype(xp, ids == end, xp.int64)
        places = xp.arange(ids.shape[1], **arrays.on(arrays.device_of(ids)))
        return arrays.astype(xp, places == xp.argmax(marks, axis=1)[:, None], getattr(xp, self.precision))[:, :, None]

    def backward(self, cache: ModelCache, *, weights: bool = False, inputs: bool = False) -> Gradients:
        """The gradients of L; ``weights`` adds every saved tensor's, ``inputs`` a ``CLIPInputs``."""
        grads, steps = Gradients(weights), cache.steps
        text, vision = self.config.stacks()
        d_texts, d_images, d_scale = contrastive_backward(cache.loss)
        self.keep_weight("logit_scale", d_scale, grads)
        dy = self.step_back("text_projection", normalize_backward(d_texts, steps["texts"]), steps, grads)
        dy = self.step_back(TEXT_NORM, dy, steps, grads)[:, None, :] * steps["chosen"]
        words = self.run_back(text, dy, steps, grads)
        self.place_back(TEXT_PLACES, words, grads)
        self.embed_back(WORDS, words, steps, grads)
        dy = self.step_back("visual_projection", normalize_backward(d_images, steps["images"]), steps, grads)
        dy = self.first_back(self.step_back(POST_NORM, dy, steps, grads), steps[PATCH])
        dy = self.step_back(PRE_NORM, self.run_back(vision, dy, steps, grads), steps, grads)
        pixels = self.see_back(dy, PATCH, TOKEN, PLACES, steps, grads) if weights or inputs else None
        grads.inputs = CLIPInputs(words, pixels) if inputs else None
        return grads
