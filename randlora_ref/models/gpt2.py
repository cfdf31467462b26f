"""GPT-2 (Radford et al., 2019): learned places, LayerNorm first, one projection for q, k and v, a tied head.

Its checkpoints hold linear weights as (in, out) ("Conv1D"). They are turned where modules are listed, here, and
everywhere else a weight is (out, in). Saved names are module names.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from .causal import CausalModel
from .config import Config, Module, Stack, block_spec, module

ROLES = {
    "norm1": "ln_1", "qkv": "attn.c_attn", "o": "attn.c_proj", "norm2": "ln_2", "up": "mlp.c_fc", "down": "mlp.c_proj",
}  # fmt: skip


@dataclass(frozen=True)
class GPT2Config(Config):
    """The keys of GPT-2's ``config.json`` that matter here; ``n_inner`` None is 4·``n_embd``.

    ``from_dict`` takes the names that other models have for four of them as well, as `transformers` does; both
    spellings at once, and different, are refused (there the other name wins).
    """

    MODEL_TYPE: ClassVar[str] = "gpt2"
    FIXED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "add_cross_attention": (False,), "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False,),
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

    @property
    def max_position_embeddings(self) -> int:
        """The longest input."""
        return self.n_positions

    def stacks(self) -> tuple[Stack, ...]:
        """The blocks."""
        numbers = (self.n_embd, self.n_inner or 4 * self.n_embd, self.n_head, self.layer_norm_epsilon)
        spec = block_spec(*numbers, self.activation_function, ROLES, fused=True)
        return (Stack("transformer.h", self.n_layer, spec, ROLES, transposed=True),)

    def modules(self) -> Iterator[Module]:
        """Every module, in the order of the forward pass."""
        yield module("transformer.wte", (self.vocab_size, self.n_embd))
        yield module("transformer.wpe", (self.n_positions, self.n_embd))
        yield from self.stacks()[0].modules()
        yield module("transformer.ln_f", (self.n_embd,), bias=True)
        saved = "transformer.wte" if self.tie_word_embeddings else "lm_head"
        yield module("lm_head", (self.vocab_size, self.n_embd), saved=saved, linear=True)


class GPT2(CausalModel):
    """``GPT2LMHeadModel`` of ``transformers``, with adapters. See ``CausalModel.forward`` and ``backward``."""

    CONFIG = GPT2Config
    TOKENS = "transformer.wte"
    PLACES = "transformer.wpe"
    NORM = "transformer.ln_f"
