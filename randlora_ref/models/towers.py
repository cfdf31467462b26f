"""A tower of texts or of images, forward and backward: each step is there if the tower has the role of it.

texts    embed_tokens                position_embeddings, or rotary             blocks, causal   norm   head
images   patch_embed, class_token    position_embeddings             pre_norm   blocks           norm   head
"""

from typing import Any

from .. import arrays, checks, nn
from .config import Tower
from .core import Array, Gradients, Model, ModelCache

Cache = dict[str, Any]  # by role, or by what is kept


def tower_forward(
    model: Model, tower: Tower, x: Array, pool: Array = None, mask: Array = None, position_ids: Array = None
) -> tuple[Array, Cache]:
    """y (B, T, V) of texts ``x``, ids (B, T) or embedded tokens (B, T, k); (B, V) of pixels (B, C, H, W).

    That is what becomes of the class token, beside N patches. ``pool`` (B, T, 1), one at a token of each text and else
    zero, picks that token: y is (B, V) too. ``mask`` (B, T) is zero at padding. ``position_ids`` (B, T): the rows of
    the learned positions; None counts from 0 in each text.
    """
    xp, spec, outer, config, tables = model.xp, tower.spec, tower.outer, tower.config, None
    norm = nn.layer_norm if spec.centred else nn.rms_norm
    tensors, cache = {role: model.parameters(one) for role, one in outer.items()}, Cache(blocks=[], pool=pool)
    if "patch_embed" in outer:
        kernel, bias = tensors["patch_embed"]  # (k, C, p, p), (k,) or None
        x, cache["patches"] = nn.patches(x, kernel.shape[2])  # (B, N, C·p·p)
        x, cache["patch_embed"] = nn.linear(x, xp.reshape(kernel, (kernel.shape[0], -1)), bias)  # (B, N, k)
        class_token = xp.broadcast_to(xp.reshape(tensors["class_token"][0], (1, 1, -1)), (x.shape[0], 1, x.shape[2]))
        x = arrays.concat(xp, [class_token, x], 1)  # (B, 1 + N, k)
    elif x.ndim == 2:
        x, cache["embed_tokens"] = nn.embedding(x, tensors["embed_tokens"][0], checked=True)  # (B, T, k)
    size = x.shape[1]
    if position_ids is not None:
        positions, cache["position_ids"] = nn.embedding(position_ids, tensors["position_embeddings"][0], checked=True)
        x = x + positions
    elif "position_embeddings" in outer:
        x = x + arrays.as_rows(xp, tensors["position_embeddings"][0])[:size, :]
    else:
        tables = nn.rotary_tables(x, size, spec.head_width, config.get("rope_theta"), config.get("rope_scaling"))
    if "embed_tokens" in outer:
        mask = nn.additive_mask(x, size, causal=True, mask=mask)
    if "pre_norm" in outer:
        x, cache["pre_norm"] = norm(x, *tensors["pre_norm"], spec.eps)
    for layer in tower.layers:
        parameters = {role: model.parameters(one) for role, one in layer.items()}
        adapters = {role: model.adapters[one.name] for role, one in layer.items() if one.name in model.adapters}
        x, block = nn.block(x, spec, parameters, adapters, mask, tables)
        cache["blocks"].append(block)
    if pool is not None:  # the norm works by rows, so one of each is enough
        x = xp.sum(x * pool, axis=1)  # (B, k)
    elif "class_token" in outer:
        x = x[:, 0, :]  # (B, k)
    x, cache["norm"] = norm(x, *tensors["norm"], spec.eps)
    y, cache["head"] = nn.linear(x, *tensors["head"], model.adapters.get(outer["head"].name))
    return y, cache


def tower_backward(
    model: Model, tower: Tower, dy: Array, cache: Cache, grads: Gradients, inputs: bool, head: bool = True
) -> Array:
    """∂L/∂x of ∂L/∂y, x the embedded tokens (B, T, k) or the pixels; the modules' gradients go into ``grads``.

    Without the ``head``, ``dy`` is that of what the head reads. Pixels have theirs if ``inputs`` or the weights'
    gradients are asked for. The class token and the learned positions are added to every image and text: their
    gradients are sums over the batch. The row of a ``pad_token_id`` gets none from the lookup, as in
    ``torch.nn.Embedding``.
    """
    xp, outer = model.xp, tower.outer

    def table(role: str, gradient: Array) -> None:
        model.accumulate(outer[role], nn.LinearGrads(gradient, None), grads)

    if head:
        dy = model.pull_back(nn.linear_backward, outer["head"], dy, cache["head"], grads)
    dx = model.pull_back(nn.norm_backward, outer["norm"], dy, cache["norm"], grads)
    if cache["pool"] is not None:
        dx = dx[:, None, :] * cache["pool"]  # (B, T, k)
    elif "class_token" in outer:
        others = (*cache["patch_embed"].x.shape[:2], dx.shape[1])  # (B, N, k)
        zeros = xp.zeros(others, dtype=dx.dtype, **arrays.on(arrays.device_of(dx)))
        dx = arrays.concat(xp, [dx[:, None, :], zeros], 1)  # (B, 1 + N, k)
    for layer, block in zip(reversed(tower.layers), reversed(cache["blocks"]), strict=True):
        dx, by_role = nn.block_backward(dx, block, weight_grad=grads.weights is not None)
        for role, values in by_role.items():
            model.accumulate(layer[role], values, grads)
    if "pre_norm" in outer:
        dx = model.pull_back(nn.norm_backward, outer["pre_norm"], dx, cache["pre_norm"], grads)
    if grads.weights is not None:
        if "position_ids" in cache:
            table("position_embeddings", nn.embedding_backward(dx, cache["position_ids"]))
        elif "position_embeddings" in outer:
            beyond = arrays.as_rows(xp, model.parameters(outer["position_embeddings"])[0])[dx.shape[1] :, :]
            d_rows = xp.sum(dx, axis=0)  # (T, k)
            if "class_token" in outer:
                table("class_token", d_rows[0, :])
            if beyond.shape[0]:
                d_rows = arrays.concat(xp, [d_rows, xp.zeros_like(beyond)], 0)
            table("position_embeddings", d_rows)
        if "embed_tokens" in outer:
            d_table, pad = xp.zeros_like(model.parameters(outer["embed_tokens"])[0]), tower.config.get("pad_token_id")
            if "embed_tokens" in cache:
                d_table = nn.embedding_backward(dx, cache["embed_tokens"])
            if pad is not None:
                ids = xp.arange(d_table.shape[0], **arrays.on(arrays.device_of(dx)))[:, None]
                d_table = arrays.where(xp, ids == pad % d_table.shape[0], 0.0, d_table)
            table("embed_tokens", d_table)
    if "patch_embed" in outer and (inputs or grads.weights is not None):
        dx = model.pull_back(nn.linear_backward, outer["patch_embed"], dx[:, 1:, :], cache["patch_embed"], grads)
        return nn.patches_backward(dx, cache["patches"])
    return dx


class LabelledModel(Model):
    """A tower whose head gives the logits of labels."""

    def loss(self, logits: Array, cache: Any, labels: Array | None, **checked: bool) -> tuple[Array | None, ModelCache]:
        """(L, cache) of what the tower gave, ``logits`` (…, V) and its ``cache``; L is None without labels."""
        loss, of_loss = None, None
        if labels is not None:
            loss, of_loss = nn.cross_entropy(arrays.as_rows(self.xp, logits), labels, **checked)
        return loss, ModelCache(logits, of_loss, cache)

    def backward(self, cache: ModelCache, *, weights: bool = False, inputs: bool = False) -> Gradients:
        """The gradients of L; ``weights`` adds every saved tensor's.

        ``inputs`` adds those of the embedded tokens (B, T, k), or of the pixels (B, C, H, W).
        """
        checks.instance("cache", cache, ModelCache)
        if cache.loss is None:
            raise ValueError("cache: of a forward pass without labels; backward needs the loss")
        (tower,), grads = self.towers, Gradients(weights)
        weight, bias = self.parameters(tower.outer["head"])
        learned = weights or bias is not None or tower.outer["head"].name in self.adapters  # else through is enough
        d_rows = nn.cross_entropy_backward(cache.loss, through=None if learned else weight)
        dy = self.xp.reshape(d_rows, (*cache.logits.shape[:-1], d_rows.shape[-1]))
        d_inputs = tower_backward(self, tower, dy, cache.parts, grads, inputs, head=learned)
        grads.inputs = d_inputs if inputs else None
        return grads


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
