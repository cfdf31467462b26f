"""GPT-2 (Radford et al., 2019): learned positions, LayerNorm first, one projection for q, k and v, a tied head.

Its checkpoints hold linear weights as (in, out) ("Conv1D"). They are turned where modules are listed, here, and
everywhere else a weight is (out, in). Saved names are module names.
"""

from dataclasses import dataclass
from typing import ClassVar

from .config import Allowed, Config, Tower
from .towers import CausalModel

NAMES = {
    "embed_tokens": "transformer.wte", "position_embeddings": "transformer.wpe", "layers": "transformer.h",
    "norm1": "ln_1", "qkv": "attn.c_attn", "o": "attn.c_proj", "norm2": "ln_2", "up": "mlp.c_fc", "down": "mlp.c_proj",
    "norm": "transformer.ln_f", "head": "lm_head",
}  # fmt: skip
BIASES = ("qkv", "o", "up", "down")


@dataclass(frozen=True)
class GPT2Config(Config):
    """The keys of GPT-2's ``config.json`` that matter here; ``n_inner`` None is 4·``n_embd``.

    ``from_dict`` takes the names that other models have for four of them as well, as `transformers` does; both
    spellings at once, and different, are refused (there the other name wins).
    """

    BASE: ClassVar[str] = "transformer."
    FIXED: ClassVar[Allowed] = {
        "model_type": ("gpt2",), "add_cross_attention": (False,), "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,), "reorder_and_upcast_attn": (False,),
    }  # fmt: skip
    ALIASES: ClassVar[dict[str, str]] = {
        "num_attention_heads": "n_head",
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "max_position_embeddings": "n_positions",
    }
    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True

    def towers(self) -> tuple[Tower]:
        """The one that it is."""
        return (self.tower(NAMES, self.vocab_size, BIASES, transposed=True, fused=True),)


class GPT2(CausalModel):
    """``GPT2LMHeadModel`` of ``transformers``, with adapters. See ``CausalModel.forward`` and ``backward``."""

    CONFIG = GPT2Config
