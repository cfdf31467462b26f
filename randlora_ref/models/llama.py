"""Llama (arXiv 2302.13971): RMSNorm, rotary positions, grouped queries, SwiGLU. Saved names are module names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .. import checks
from ..nn.rotary import RotaryScaling, read_scaling
from .config import Allowed, Config, Tower
from .towers import CausalModel

NAMES = {
    "embed_tokens": "model.embed_tokens", "layers": "model.layers", "norm": "model.norm", "head": "lm_head",
    "norm1": "input_layernorm", "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
    "o": "self_attn.o_proj", "norm2": "post_attention_layernorm", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}  # fmt: skip
DEFAULTS: dict[str, dict[str, int]] = {  # by model_type, of the models that compute this: where theirs are not Llama's
    "llama": {},
    "mistral": {"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072},
    "qwen2": {"vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768},
}


@dataclass(frozen=True)
class LlamaConfig(Config):
    """The keys that matter here of the ``config.json`` of a Llama, or a Mistral or Qwen2 without a sliding window.

    A Qwen2 (``model_type``) has biases on q, k and v alone. ``num_key_value_heads`` None: as many as heads.

    ``rope_scaling`` (in newer files ``rope_parameters``) is a mapping as in ``config.json``, of the type "default",
    "linear" or "llama3"; it is kept as ``rope_theta`` and a ``RotaryScaling``. ``pad_token_id``: the lookup leaves that
    row of the table without a gradient, as ``torch.nn.Embedding`` does, and a tied head's part of it stays; a negative
    one counts from the end.
    """

    BASE: ClassVar[str] = "model."
    ALIASES: ClassVar[dict[str, str]] = {"rope_parameters": "rope_scaling"}
    FIXED: ClassVar[Allowed] = {"partial_rotary_factor": (None, 1.0), "pretraining_tp": (1,)}
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
    model_type: str = "llama"

    @classmethod
    def _fields(cls, given: dict[str, Any]) -> dict[str, Any]:
        """With what `transformers` has for keys that the file of a Mistral or Qwen2 leaves out."""
        kind = given.setdefault("model_type", "llama")
        checks.choice("model_type", kind, DEFAULTS)
        given = super()._fields(DEFAULTS[kind] | given)
        used = kind == "mistral" or given.get("use_sliding_window")
        window = given.get("sliding_window", 4096) if used else None  # 4096 where a file leaves it out
        if window is not None or set(given.get("layer_types") or ()) - {"full_attention"}:
            raise ValueError(f"sliding_window: {window!r} is not implemented; it must be None, or not used")
        return given

    def __post_init__(self) -> None:
        checks.choice("model_type", self.model_type, DEFAULTS)
        if isinstance(self.rope_scaling, Mapping):
            given = dict(self.rope_scaling)
            object.__setattr__(self, "rope_theta", given.pop("rope_theta", self.rope_theta))
            object.__setattr__(self, "rope_scaling", read_scaling(given, self.max_position_embeddings))
        super().__post_init__()

    def towers(self) -> tuple[Tower]:
        """The one that it is."""
        attention = "qkv" if self.model_type == "qwen2" else "qkvo" * self.attention_bias
        biases = (*attention, *("gate", "up", "down") * self.mlp_bias)
        tower = self.tower(NAMES, self.vocab_size, biases, centred=False, gated=True)
        if (width := tower.spec.head_width) % 2:
            raise ValueError(f"head_dim: {width}; it must be even, for its coordinates are turned in pairs")
        if self.pad_token_id is not None and self.pad_token_id >= self.vocab_size:
            raise ValueError(f"pad_token_id: {self.pad_token_id}; it must be below vocab_size, {self.vocab_size}")
        return (tower,)


class Llama(CausalModel):
    """``LlamaForCausalLM`` of ``transformers``, with adapters, its Mistral and Qwen2 too. See ``CausalModel``."""

    CONFIG = LlamaConfig
