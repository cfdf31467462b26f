"""Parts of a transformer as pure pairs: ``f(…) -> (y, cache)`` and ``f_backward(dy, cache)``, derived beside the code.

A file has kernels, an equation each, of arrays that fit; then the doors, exported here, which check what they are given
once and call kernels. Nothing is changed in place, and the array library is that of the arguments.
"""

from ..adapters.base import LinearGrads
from ..checks import index_range as check_range
from .activation import activation, activation_backward, erf, gated, gated_backward
from .attention import additive_mask, attention, attention_backward
from .block import BlockSpec, block, block_backward
from .embedding import embedding, embedding_backward, patches, patches_backward
from .linear import linear, linear_backward
from .loss import IGNORED, contrastive, contrastive_backward, cross_entropy, cross_entropy_backward
from .norm import NormGrads, layer_norm, norm_backward, normalize, normalize_backward, rms_norm
from .rotary import rotary, rotary_backward, rotary_tables

__all__ = [
    "IGNORED", "BlockSpec", "LinearGrads", "NormGrads", "activation", "activation_backward", "additive_mask",
    "attention", "attention_backward", "block", "block_backward", "check_range", "contrastive", "contrastive_backward",
    "cross_entropy", "cross_entropy_backward", "embedding", "embedding_backward", "erf", "gated", "gated_backward",
    "layer_norm", "linear", "linear_backward", "norm_backward", "normalize", "normalize_backward", "patches",
    "patches_backward", "rms_norm", "rotary", "rotary_backward", "rotary_tables",
]  # fmt: skip
