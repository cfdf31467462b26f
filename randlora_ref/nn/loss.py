"""Losses: cross-entropy with ignored labels, and CLIP's symmetric contrastive loss.

    L = −(1/N)·Σ_t log softmax(z_t)[label_t] over the N rows that count;   ∂L/∂z_t = (softmax(z_t) − e_label)/N.

The rows that do not count have gradient zero. If none counts, L is 0 (PyTorch has NaN there).
"""

from typing import Any, NamedTuple

from .. import arrays, checks

Array = Any
IGNORED = -100


class LossCache(NamedTuple):
    """What backward needs of forward: z (T, V), labels (T,), log Σ exp z (T, 1), and 1/N or 0 by rows (T, 1)."""

    logits: Array
    labels: Array
    log_total: Array
    share: Array


def cross_entropy(
    logits: Array, labels: Array, *, ignored: int = IGNORED, checked: bool = False
) -> tuple[Array, LossCache]:
    """L, an array without axes, of ``logits`` (T, V) and integer ``labels`` (T,); label ``ignored`` does not count.

    IndexError if a label is out of range, unless the caller has ``checked``.
    """
    xp = checks.namespace(logits=logits, labels=labels)
    if logits.ndim != 2:
        raise ValueError(f"logits: shape {tuple(logits.shape)}; it must be (T, V)")
    count, size = logits.shape
    checks.shape("labels", labels, (count,))
    if not checked:
        checks.index_range(labels=(labels, size, ignored))
    labels, device = arrays.astype(xp, labels, xp.int64), arrays.on(arrays.device_of(logits))

    def rows(z: Array) -> tuple[Array, ...]:
        top = xp.max(arrays.real(xp, z), axis=-1, keepdims=True)
        return (top + xp.log(xp.sum(xp.exp(z - top), axis=-1, keepdims=True)),)

    (log_total,) = arrays.by_rows(xp, rows, logits)
    counts = labels != ignored
    place = xp.arange(count, dtype=xp.int64, **device) * size + xp.where(counts, labels, 0)
    chosen = xp.take(xp.reshape(logits, (-1,)), place)
    weight = arrays.astype(xp, counts, getattr(xp, checks.precision("logits", logits)))
    total = xp.sum(weight)
    share = weight / xp.where(total == 0, 1.0, total)
    return xp.sum(share * (log_total[:, 0] - chosen)), LossCache(logits, labels, log_total, share[:, None])


def cross_entropy_backward(cache: LossCache, dloss: Any = 1.0, *, through: Array | None = None) -> Array:
    """∂L/∂logits (T, V), times ``dloss``; with ``through`` W (V, k) the product ∂L/∂logits·W (T, k).

    Of a large vocabulary ∂L/∂logits is by far the largest array of a model; through W it is never held whole on NumPy.
    """
    logits, labels, log_total, share = cache
    xp = checks.namespace(logits=logits)
    every = xp.arange(logits.shape[1], dtype=labels.dtype, **arrays.on(arrays.device_of(logits)))

    def rows(z: Array, labels: Array, log_total: Array, share: Array) -> tuple[Array, ...]:
        p = xp.exp(z - log_total)
        p *= share
        p -= xp.where(labels[:, None] == every, share, 0.0)
        return (p,)

    def product(*xs: Array) -> tuple[Array, ...]:
        return (arrays.by_rows(xp, rows, *xs)[0] @ through,)

    whole = (logits, labels, log_total, share * dloss)
    return arrays.by_rows(xp, rows, *whole)[0] if through is None else arrays.by_rows(xp, product, *whole, step=128)[0]


def contrastive(texts: Array, images: Array, log_scale: Array) -> tuple[Array, Any]:
    """CLIP's loss (arXiv 2103.00020, Fig. 3) of unit vectors ``texts`` and ``images``, both (N, k): pairs by place.

    Z = exp(log_scale)·texts imagesᵀ; the loss is the mean of the cross-entropies of its rows and of its columns, each
    with the diagonal as labels. The cache's first entry is Z.
    """
    xp = checks.namespace(texts=texts, images=images, log_scale=log_scale)
    checks.shape("images", images, tuple(texts.shape))
    checks.shape("log_scale", log_scale, ())
    scale = xp.exp(log_scale)
    logits = scale * (texts @ images.T)
    labels = xp.arange(texts.shape[0], **arrays.on(arrays.device_of(texts)))
    by_text, text_cache = cross_entropy(logits, labels, checked=True)
    by_image, image_cache = cross_entropy(logits.T, labels, checked=True)
    return 0.5 * (by_text + by_image), (logits, texts, images, scale, text_cache, image_cache)


def contrastive_backward(cache: Any, dloss: Any = 1.0) -> tuple[Array, Array, Array]:
    """(∂L/∂texts, ∂L/∂images, ∂L/∂log_scale): dZ = ½(rows' + columns'ᵀ), and Z is its own slope in log_scale."""
    logits, texts, images, scale, text_cache, image_cache = cache
    xp = checks.namespace(logits=logits)
    half = 0.5 * dloss
    dZ = cross_entropy_backward(text_cache, half) + cross_entropy_backward(image_cache, half).T
    return scale * (dZ @ images), scale * (dZ.T @ texts), xp.sum(dZ * logits)
