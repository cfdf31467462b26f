"""Losses: cross-entropy with ignored labels, and CLIP's symmetric contrastive loss.

    L = −(1/N)·Σ_t log softmax(z_t)[label_t] over the N rows that count.

The rows that do not count have gradient zero. If none counts, L is 0 (PyTorch has NaN there).
"""

from typing import Any

from .. import arrays, checks

Array = Any
IGNORED = -100
LOGIT_ROWS = 128  # rows of ∂L/∂z at a time on their way through a product: a matrix that BLAS is quick with, yet small


# ---------------------------------------------------------------------------------------------------------
# Kernels
# ---------------------------------------------------------------------------------------------------------


@arrays.blocked
def max_and_exp_sum(xp: Any, z: Array) -> tuple[Array, Array]:
    """max z and Σ exp(z − max z) by rows, (T, 1) both: apart, as z − log Σ exp z loses digits with the size of z."""
    z_max = xp.max(arrays.real(xp, z), axis=-1, keepdims=True)
    return z_max, xp.sum(xp.exp(z - z_max), axis=-1, keepdims=True)


def mean_loss(xp: Any, z: Array, labels: Array, ignored: int = IGNORED) -> tuple[Array, Any]:
    """L = Σ_t share_t·(log Σ exp(z_t − max z_t) + max z_t − z_t[label_t]) of logits z (T, V) and labels (T,).

    The cache: z, and by rows (T, 1) the label, max z, Σ exp(z − max z), and the share, 1/N or 0.
    """
    label, device = arrays.astype(xp, labels, xp.int64), arrays.on(arrays.device_of(z))
    z_max, exp_sum = max_and_exp_sum(xp, z)
    counts = label != ignored  # (T,)
    position = xp.arange(z.shape[0], dtype=xp.int64, **device) * z.shape[1] + arrays.where(xp, counts, label, 0)
    chosen = xp.take(xp.reshape(z, (-1,)), position)[:, None]  # (T, 1)
    weight = arrays.astype(xp, counts, z_max.dtype)[:, None]
    total = xp.sum(weight)
    share = weight / arrays.where(xp, total == 0, 1.0, total)  # (T, 1)
    return xp.sum(share * (xp.log(exp_sum) + (z_max - chosen))), (z, label[:, None], z_max, exp_sum, share)


@arrays.blocked
def logits_backward(
    xp: Any, z: Array, label: Array, z_max: Array, exp_sum: Array, share: Array, *, classes: Array
) -> Array:
    """∂L/∂z (T, V) = share∘(softmax(z) − e_label), as d log Σ exp(z) = ⟨softmax(z), dz⟩; ``classes`` are 0 … V − 1."""
    p = xp.exp(z - z_max) * (share / exp_sum)
    return p - arrays.where(xp, label == classes, share, 0.0)


def mean_loss_backward(xp: Any, cache: Any, dloss: Any, through: Array | None = None) -> Array:
    """∂L/∂z (T, V), or its product with ``through`` (V, k), a number of rows at a time."""
    *rows, share = cache
    rows.append(share * dloss)
    classes = xp.arange(rows[0].shape[1], dtype=xp.int64, **arrays.on(arrays.device_of(share)))
    if through is None:
        return logits_backward(xp, *rows, classes=classes)

    def product(*rows: Array) -> Array:
        return logits_backward(xp, *rows, classes=classes) @ through  # in cache, each few rows of a block

    return arrays.by_rows(xp, product, *rows, step=LOGIT_ROWS)


# ---------------------------------------------------------------------------------------------------------
# Doors
# ---------------------------------------------------------------------------------------------------------


def cross_entropy(logits: Array, labels: Array, *, ignored: int = IGNORED, checked: bool = False) -> tuple[Array, Any]:
    """L, an array without axes, of ``logits`` (T, V) and integer ``labels`` (T,); label ``ignored`` does not count.

    IndexError if a label is out of range, unless the caller has ``checked``.
    """
    xp = checks.namespace(logits=logits, labels=labels)
    checks.floats(logits=logits)
    checks.shaped(logits.ndim == 2 and logits.shape[1] > 0, "logits", logits, "(T, V) with V >= 1")
    ignored = checks.integer("ignored", ignored, least=-(2**63))
    checks.shape("labels", labels, tuple(logits.shape[:1]))
    if not checked:
        checks.index_range(labels=(labels, logits.shape[1], ignored))
    return mean_loss(xp, logits, labels, ignored)


def cross_entropy_backward(cache: Any, dloss: Any = 1.0, *, through: Array | None = None) -> Array:
    """∂L/∂logits (T, V), times ``dloss``; with ``through`` W (V, k) the product ∂L/∂logits·W (T, k).

    Of a large vocabulary ∂L/∂logits is by far the largest array of a model; through W it is never held whole on NumPy.
    """
    xp = checks.floats(cache=checks.kept(cache, 5)[0], through=through)
    if through is not None:
        classes = cache[0].shape[1]
        checks.shaped(through.ndim == 2 and through.shape[0] == classes, "through", through, f"({classes}, k)")
    return mean_loss_backward(xp, cache, checks.scalar("dloss", dloss, cache[0]), through)


def contrastive(texts: Array, images: Array, log_scale: Array) -> tuple[Array, Any]:
    """CLIP's loss (arXiv 2103.00020, Fig. 3) of unit vectors ``texts`` and ``images``, both (N, k), in pairs.

    Z = exp(log_scale)·texts imagesᵀ; the loss is the mean of the cross-entropies of its rows and of its columns, each
    with the diagonal as labels. The cache's first entry is Z.
    """
    xp = checks.floats(texts=texts, images=images, log_scale=log_scale)
    checks.shaped(texts.ndim == 2 and texts.shape[0] > 0, "texts", texts, "(N, k) with N >= 1")
    checks.shape("images", images, tuple(texts.shape))
    checks.shape("log_scale", log_scale, ())
    scale = xp.exp(log_scale)
    logits = scale * (texts @ images.T)  # (N, N)
    labels = xp.arange(texts.shape[0], **arrays.on(arrays.device_of(texts)))
    by_text, text_cache = mean_loss(xp, logits, labels)
    by_image, image_cache = mean_loss(xp, logits.T, labels)
    return 0.5 * (by_text + by_image), (logits, texts, images, scale, text_cache, image_cache)


def contrastive_backward(cache: Any, dloss: Any = 1.0) -> tuple[Array, Array, Array]:
    """(∂L/∂texts, ∂L/∂images, ∂L/∂log_scale): dZ = ½(rows' + columns'ᵀ), and Z is its own slope in log_scale."""
    logits, texts, images, scale, text_cache, image_cache = checks.kept(cache, 6)
    xp, half = checks.floats(cache=logits), 0.5 * checks.scalar("dloss", dloss, logits)
    dZ = mean_loss_backward(xp, text_cache, half) + mean_loss_backward(xp, image_cache, half).T  # (N, N)
    return scale * (dZ @ images), scale * (dZ.T @ texts), xp.sum(dZ * logits)
