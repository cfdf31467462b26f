"""A causal language model: what GPT-2 and Llama share."""

from typing import Any, ClassVar

from .. import arrays
from ..nn import IGNORED, additive_mask, cross_entropy, rotary_tables
from .core import Gradients, Model, ModelCache

Array = Any


class CausalModel(Model):
    """Token embedding, blocks, a norm and a head, and the loss of each next token."""

    TOKENS: ClassVar[str]
    PLACES: ClassVar[str | None] = None  # the table of places; None: rotary
    NORM: ClassVar[str]

    def forward(
        self, ids: Array, labels: Array | None = None, *, attention_mask: Array | None = None
    ) -> tuple[Array | None, ModelCache]:
        """(L, cache): the mean loss of ``labels`` (B, T), each predicted from the tokens before; None without labels.

        ``ids`` (B, T) of integers, or embeddings (B, T, k). ``labels`` are not shifted; −100 is left out of the mean.
        ``attention_mask`` (B, T) is zero at padding. IndexError names a token or a label that is out of range.
        """
        self.check_tokens(self.config, ids=ids, labels=labels, attention_mask=attention_mask)
        (stack,), size, steps = self.config.stacks(), ids.shape[1], dict[str, Any]()
        x = self.embed(self.TOKENS, ids, steps)
        tables = None
        if self.PLACES is None:
            tables = rotary_tables(x, size, stack.spec.head_width, self.config.rope_theta, self.config.rope_scaling)
        else:
            x = x + self.tensors(self.PLACES)[0][:size, :]
        x = self.run(stack, x, steps, additive_mask(x, size, causal=True, mask=attention_mask), tables)
        logits = self.linear("lm_head", self.norm(self.NORM, x, steps, stack.spec), steps)
        if labels is None:
            return None, ModelCache(logits, None, steps)
        labels = arrays.astype(self.xp, labels, self.xp.int64)
        following = arrays.concat(self.xp, [labels[:, 1:], self.xp.full_like(labels[:, :1], IGNORED)], 1)
        loss, cache = cross_entropy(arrays.as_rows(self.xp, logits), self.xp.reshape(following, (-1,)), checked=True)
        return loss, ModelCache(logits, cache, steps)

    def backward(self, cache: ModelCache, *, weights: bool = False, inputs: bool = False) -> Gradients:
        """The gradients of L; ``weights`` adds every saved tensor's, ``inputs`` the embedded tokens' (B, T, k)."""
        grads, steps, (stack,) = Gradients(weights), cache.steps, self.config.stacks()
        head = steps["lm_head"]
        if weights or "lm_head" in self.adapters:
            dy = self.step_back("lm_head", self.xp.reshape(cache.d_logits(), cache.logits.shape), steps, grads)
        else:  # nothing of the head is learned, and it has no bias
            dy = self.xp.reshape(cache.d_logits(head.weight), head.x.shape)
        dy = self.run_back(stack, self.step_back(self.NORM, dy, steps, grads), steps, grads)
        if self.PLACES is not None:
            self.place_back(self.PLACES, dy, grads)
        self.embed_back(self.TOKENS, dy, steps, grads)
        grads.inputs = dy if inputs else None
        return grads
