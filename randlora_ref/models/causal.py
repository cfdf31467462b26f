"""Causal language models: what GPT-2 and Llama share."""

from .. import arrays, nn
from .core import Array, ModelCache
from .towers import LabelledModel, tower_forward


class CausalModel(LabelledModel):
    """A tower of texts, a head without bias, and the loss of each next token."""

    def forward(
        self, ids: Array, labels: Array | None = None, *, attention_mask: Array = None, position_ids: Array = None
    ) -> tuple[Array | None, ModelCache]:
        """(L, cache): the mean loss of ``labels`` (B, T), each predicted from the tokens before; None without labels.

        ``ids`` (B, T) of integers, or embeddings (B, T, k). ``labels`` are not shifted; −100 is left out of the mean.
        ``attention_mask`` (B, T) is zero at padding. ``position_ids`` (B, T) are for learned positions,
        which padding on the left moves: `transformers` generates with the number of tokens before each. IndexError
        names an id or a label that is out of range.
        """
        (tower,), xp = self.towers, self.xp
        beside = {"labels": labels, "attention_mask": attention_mask, "position_ids": position_ids}
        self.check_text(tower, ids, embeddable=True, **beside)
        logits, cache = tower_forward(self, tower, ids, mask=attention_mask, position_ids=position_ids)  # (B, T, V)
        if labels is not None:
            labels = arrays.astype(xp, labels, xp.int64)  # a narrow type may not hold −100
            labels = arrays.concat(xp, [labels[:, 1:], xp.full_like(labels[:, :1], nn.IGNORED)], 1)
            labels = xp.reshape(labels, (-1,))
        return self.loss(logits, cache, labels, checked=True)
