"""Causal language models: a tower of texts, forward and backward, and what GPT-2 and Llama share around it."""

from typing import Any

from .. import arrays, nn
from .config import Tower
from .core import Array, Gradients, LabelledModel, Model, ModelCache


def text_tower(
    model: Model, tower: Tower, ids: Array, attention_mask: Array, token: Array = None, position_ids: Array = None
) -> tuple[Array, Any]:
    """y (B, T, k) of ``ids`` (B, T), or of embedded tokens (B, T, k), each seen by itself and those that follow.

    ``token`` (B, 1) is the place of one in each text: y (B, k) is of this one alone. ``position_ids`` (B, T): the rows
    of the learned positions; None counts from 0 in each text.
    """
    x, lookup, positions, tables, length, config = ids, None, None, None, ids.shape[1], tower.config
    if ids.ndim == 2:
        x, lookup = nn.embedding(ids, model.parameters(tower.outer["embed_tokens"])[0], checked=True)  # (B, T, k)
    if position_ids is not None:
        table = model.parameters(tower.outer["position_embeddings"])[0]
        rows, positions = nn.embedding(position_ids, table, checked=True)
        x = x + rows
    elif "position_embeddings" in tower.outer:
        x = x + model.parameters(tower.outer["position_embeddings"])[0][:length, :]
    else:
        scaling = config.get("rope_scaling")
        tables = nn.rotary_tables(x, length, tower.spec.head_width, config.get("rope_theta"), scaling)
    mask = nn.additive_mask(x, length, causal=True, mask=attention_mask)
    y, encoded = model.encode(tower, x, token, mask, tables)
    return y, (lookup, positions, encoded)


def text_tower_backward(
    model: Model, tower: Tower, dy: Array, cache: Any, grads: Gradients, inputs: bool = True
) -> Array:
    """∂L/∂x (B, T, k), x the embedded tokens, of ∂L/∂y; the modules' gradients go into ``grads``.

    Row t of the positions is added to token t of every text, so its gradient is the sum over the batch. The row of a
    ``pad_token_id`` gets none from the lookup, as in ``torch.nn.Embedding``.
    """
    xp, outer, (lookup, positions, encoded) = model.xp, tower.outer, cache
    dx = model.encode_backward(tower, dy, encoded, grads)
    if grads.weights is None:
        return dx
    if positions is not None:
        d_rows = nn.embedding_backward(dx, positions)
        model.accumulate(outer["position_embeddings"], nn.LinearGrads(d_rows, None), grads)
    elif "position_embeddings" in outer:
        beyond = xp.zeros_like(model.parameters(outer["position_embeddings"])[0][dx.shape[1] :, :])
        d_rows = arrays.concat(xp, [xp.sum(dx, axis=0), beyond], 0)
        model.accumulate(outer["position_embeddings"], nn.LinearGrads(d_rows, None), grads)
    d_table, pad = xp.zeros_like(model.parameters(outer["embed_tokens"])[0]), tower.config.get("pad_token_id")
    if lookup is not None:
        d_table = nn.embedding_backward(dx, lookup)
    if pad is not None:
        rows = xp.arange(d_table.shape[0], **arrays.on(arrays.device_of(d_table)))[:, None]
        d_table = arrays.where(xp, rows == pad % d_table.shape[0], 0.0, d_table)
    model.accumulate(outer["embed_tokens"], nn.LinearGrads(d_table, None), grads)
    return dx


class CausalModel(LabelledModel):
    """A tower of texts, a head without bias, and the loss of each next token."""

    tower_backward = text_tower_backward

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
        hidden, cache = text_tower(self, tower, ids, attention_mask, None, position_ids)  # (B, T, k)
        if labels is not None:
            labels = arrays.astype(xp, labels, xp.int64)  # a narrow type may not hold −100
            labels = arrays.concat(xp, [labels[:, 1:], xp.full_like(labels[:, :1], nn.IGNORED)], 1)
            labels = xp.reshape(labels, (-1,))
        return self.loss(hidden, cache, labels, checked=True)
