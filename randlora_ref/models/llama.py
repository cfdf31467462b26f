"""Llama (arXiv 2302.13971): RMSNorm, rotary places, grouped queries, SwiGLU. Saved names are module names."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from .causal import CausalModel
from .core import Config, Module, Stack, block_spec, module

ROLES = {
    "norm1": "input_layernorm", "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
    "o": "self_attn.o_proj", "norm2": "post_attention_layernorm", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}  # fmt: skip


@dataclass(frozen=True)
class LlamaConfig(Config):
    """The keys of Llama's ``config.json`` that matter here. ``num_key_value_heads`` None: as many as heads."""

    MODEL_TYPE: ClassVar[str] = "llama"
    FIXED: ClassVar[dict[str, tuple[Any, ...]]] = {"rope_scaling": (None,), "pretraining_tp": (1,)}
    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """As ``Config.from_dict``; of ``rope_parameters``, the default kind and its theta."""
        rope = dict(config.get("rope_parameters") or {})
        if rope.pop("rope_type", "default") != "default":
            raise ValueError(f"rope_type: {config['rope_parameters']['rope_type']!r}; rope scaling is not implemented")
        theta = {"rope_theta": rope.pop("rope_theta")} if "rope_theta" in rope else {}
        if rope:
            raise ValueError(f"rope_parameters: {next(iter(rope))!r} is not implemented; it must be left out")
        return super().from_dict({**config, **theta})

    def stacks(self) -> tuple[Stack, ...]:
        """The blocks."""
        numbers = (self.hidden_size, self.intermediate_size, self.num_attention_heads, self.rms_norm_eps)
        biases = (*"qkvo" * self.attention_bias, *("gate", "up", "down") * self.mlp_bias)
        keys: dict[str, Any] = {"key_heads": self.num_key_value_heads, "head_width": self.head_dim}
        spec = block_spec(*numbers, self.hidden_act, biases, **keys, centred=False, gated=True)
        return (Stack("model.layers", self.num_hidden_layers, spec, ROLES),)

    def modules(self) -> Iterator[Module]:
        """Every module, in the order of the forward pass."""
        yield module("model.embed_tokens", (self.vocab_size, self.hidden_size))
        yield from self.stacks()[0].modules()
        yield module("model.norm", (self.hidden_size,))
        saved = "model.embed_tokens" if self.tie_word_embeddings else "lm_head"
        yield module("lm_head", (self.vocab_size, self.hidden_size), saved=saved, linear=True)


class Llama(CausalModel):
    """``LlamaForCausalLM`` of ``transformers``, with adapters. See ``CausalModel.forward`` and ``backward``."""

    CONFIG = LlamaConfig
    TOKENS = "model.embed_tokens"
    NORM = "model.norm"
