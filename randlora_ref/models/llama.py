"""Llama (arXiv 2302.13971): RMSNorm, rotary positions, grouped queries, SwiGLU. Saved names are module names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..nn.rotary import RotaryScaling, read_scaling
from .causal import CausalModel
from .config import Allowed, Config, Tower

NAMES = {
    "embed_tokens": "model.embed_tokens", "layers": "model.layers", "norm": "model.norm", "head": "lm_head",
    "norm1": "input_layernorm", "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
    "o": "self_attn.o_proj", "norm2": "post_attention_layernorm", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}  # fmt: skip


@dataclass(frozen=True)
class LlamaConfig(Config):
    """The keys of Llama's ``config.json`` that matter here. ``num_key_value_heads`` None: as many as heads.

    ``rope_scaling`` (in newer files ``rope_parameters``) is a mapping as in ``config.json``, of the type "default",
    "linear" or "llama3"; it is kept as ``rope_theta`` and a ``RotaryScaling``. ``pad_token_id``: the lookup leaves that
    row of the table without a gradient, as ``torch.nn.Embedding`` does, and a tied head's part of it stays; a negative
    one counts from the end.
    """

    ALIASES: ClassVar[dict[str, str]] = {"rope_parameters": "rope_scaling"}
    FIXED: ClassVar[Allowed] = {"model_type": ("llama",), "partial_rotary_factor": (None, 1.0), "pretraining_tp": (1,)}
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
    pad_token_id: int | None = None
    rope_scaling: RotaryScaling | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.rope_scaling, Mapping):
            given = dict(self.rope_scaling)
            object.__setattr__(self, "rope_theta", given.pop("rope_theta", self.rope_theta))
            object.__setattr__(self, "rope_scaling", read_scaling(given, self.max_position_embeddings))
        super().__post_init__()

    def towers(self) -> tuple[Tower]:
        """The one that it is."""
        biases = (*"qkvo" * self.attention_bias, *("gate", "up", "down") * self.mlp_bias)
        saved_as = {NAMES["head"]: NAMES["embed_tokens"]} if self.tie_word_embeddings else {}
        tower = self.tower(NAMES, self.vocab_size, biases, saved_as=saved_as, centred=False, gated=True)
        if (width := tower.spec.head_width) % 2:
            raise ValueError(f"head_dim: {width}; it must be even, for its coordinates are turned in pairs")
        if self.pad_token_id is not None and self.pad_token_id >= self.vocab_size:
            raise ValueError(f"pad_token_id: {self.pad_token_id}; it must be below vocab_size, {self.vocab_size}")
        return (tower,)


class Llama(CausalModel):
    """``LlamaForCausalLM`` of ``transformers``, with adapters. See ``CausalModel.forward`` and ``backward``."""

    CONFIG = LlamaConfig
