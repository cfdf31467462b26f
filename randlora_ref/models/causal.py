"""Causal language models: a tower of texts, forward and backward, and what GPT-2 and Llama share around it."""

from typing import Any

from .. import arrays, checks, nn
from .config import Tower
from .core import Array, Gradients, Model, ModelCache


def text_tower(
    model: Model, tower: Tower, ids: Array, attention_mask: Array, pool: Array = None, position_ids: Array = None
) -> tuple[Array, Any]:
    """y (B, T, k) of ``ids`` (B, T), or of embedded tokens (B, T, k), each seen by itself and those that follow.

    ``pool`` (B, T, 1), one at a token of each text and else zero, picks that token: y is (B, k). ``position_ids``
    (B, T): the rows of the learned positions; None counts from 0 in each text.
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
        tables = nn.rotary_tables(
            x, length, tower.spec.head_width, config.get("rope_theta"), config.get("rope_scaling")
        )
    mask = nn.additive_mask(x, length, causal=True, mask=attention_mask)
    x, blocks = model.blocks(tower, x, mask, tables)
    if pool is not None:
        x = model.xp.sum(x * pool, axis=1)  # (B, k); the norm works by rows: one of each text is enough
    y, norm = model.norm(tower.outer["norm"], x, tower.spec)
    return y, (ids, lookup, positions, blocks, pool, norm)


def text_tower_backward(model: Model, tower: Tower, dy: Array, cache: Any, grads: Gradients) -> Array:
    """∂L/∂x (B, T, k), x the embedded tokens, of ∂L/∂y; the modules' gradients go into ``grads``.

    Row t of the positions is added to token t of every text, so its gradient is the sum over the batch. The row of a
    ``pad_token_id`` gets none from the lookup, as in ``torch.nn.Embedding``.
    """
    xp, (ids, lookup, positions, blocks, pool, norm) = model.xp, cache
    dx = model.pull_back(nn.norm_backward, tower.outer["norm"], dy, norm, grads)
    if pool is not None:
        dx = dx[:, None, :] * pool  # (B, T, k)
    dx = model.blocks_backward(tower, dx, blocks, grads)
    if grads.weights is None:
        return dx
    if "position_embeddings" in tower.outer:
        if positions is None:
            beyond = xp.zeros_like(model.parameters(tower.outer["position_embeddings"])[0][dx.shape[1] :, :])
            d_positions = arrays.concat(xp, [xp.sum(dx, axis=0), beyond], 0)
        else:
            d_positions = nn.embedding_backward(dx, positions)
        model.accumulate(tower.outer["position_embeddings"], nn.LinearGrads(d_positions, None), grads)
    d_rows, pad = dx, tower.config.get("pad_token_id")
    if lookup is not None and pad is not None:
        padding = arrays.astype(xp, ids, xp.int64) == pad % tower.outer["embed_tokens"].shape[0]
        d_rows = arrays.where(xp, padding[:, :, None], 0.0, dx)
    table = model.parameters(tower.outer["embed_tokens"])[0]
    d_table = xp.zeros_like(table) if lookup is None else nn.embedding_backward(d_rows, lookup)
    model.accumulate(tower.outer["embed_tokens"], nn.LinearGrads(d_table, None), grads)
    return dx


class CausalModel(Model):
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
        hidden, tower_cache = text_tower(self, tower, ids, attention_mask, None, position_ids)  # (B, T, k)
        logits, head = self.linear(tower.outer["head"], hidden)  # (B, T, V)
        if labels is not None:
            labels = arrays.astype(xp, labels, xp.int64)  # a narrow type may not hold −100
            labels = arrays.concat(xp, [labels[:, 1:], xp.full_like(labels[:, :1], nn.IGNORED)], 1)
        return self.loss(logits, labels, tower_cache, head)

    def backward(self, cache: ModelCache, *, weights: bool = False, inputs: bool = False) -> Gradients:
        """The gradients of L; ``weights`` adds every saved tensor's, ``inputs`` the embedded tokens' (B, T, k)."""
        checks.instance("cache", cache, ModelCache)
        (tower,), (tower_cache, head), grads = self.towers, cache.parts, Gradients(weights)
        if weights or tower.outer["head"].name in self.adapters:
            d_logits = self.xp.reshape(cache.d_logits(), cache.logits.shape)
            d_hidden = self.pull_back(nn.linear_backward, tower.outer["head"], d_logits, head, grads)
        else:  # nothing of the head is learned: ∂L/∂logits W, without ∂L/∂logits
            d_hidden = cache.d_logits(self.parameters(tower.outer["head"])[0])
            d_hidden = self.xp.reshape(d_hidden, (*cache.logits.shape[:2], -1))
        dx = text_tower_backward(self, tower, d_hidden, tower_cache, grads)
        grads.inputs = dx if inputs else None
        return grads
