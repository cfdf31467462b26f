"""Losses: cross-entropy with ignored labels, and CLIP's symmetric contrastive loss.

    L = −(1/N)·Σ_t log softmax(z_t)[label_t] over the N rows that count;   ∂L/∂z_t = (softmax(z_t) − e_label)/N.

The rows that do not count have gradient zero. If none counts, L is 0 (PyTorch has NaN there).
"""

from typing import Any, NamedTuple

from .. import arrays, checks

Array = Any
IGNORED = -100


class LossCache(NamedTuple):
    """What backward needs of forward: z (T, V), labels (T,), and by rows (T, 1) max z, Σ exp(z − max z), 1/N or 0."""

    logits: Array
    labels: Array
    top: Array
    total: Array
    share: Array


def cross_entropy(
    logits: Array, labels: Array, *, ignored: int = IGNORED, checked: bool = False
) -> tuple[Array, LossCache]:
    """L, an array without axes, of ``logits`` (T, V) and integer ``labels`` (T,); label ``ignored`` does not count.

    IndexError if a label is out of range, unless the caller has ``checked``.
    """
    xp = checks.namespace(logits=logits, labels=labels)
    checks.floats(logits=logits)
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits: shape {tuple(logits.shape)}; it must be (T, V) with V >= 1")
    count, size = logits.shape
    ignored = checks.integer("ignored", ignored, least=-(2**63))
    checks.shape("labels", labels, (count,))
    if not checked:
        checks.index_range(labels=(labels, size, ignored))
    labels, device = arrays.astype(xp, labels, xp.int64), arrays.on(arrays.device_of(logits))

    def rows(z: Array) -> tuple[Array, ...]:
        top = xp.max(arrays.real(xp, z), axis=-1, keepdims=True)
        return top, xp.sum(xp.exp(z - top), axis=-1, keepdims=True)

    top, total = arrays.by_rows(xp, rows, logits)
    counts = labels != ignored
    place = xp.arange(count, dtype=xp.int64, **device) * size + arrays.where(xp, counts, labels, 0)
    chosen = xp.take(xp.reshape(logits, (-1,)), place)
    weight = arrays.astype(xp, counts, getattr(xp, checks.precision("logits", logits)))
    counted = xp.sum(weight)
    share = weight / arrays.where(xp, counted == 0, 1.0, counted)
    losses = xp.log(total[:, 0]) + (top[:, 0] - chosen)
    return xp.sum(share * losses), LossCache(logits, labels, top, total, share[:, None])


def cross_entropy_backward(cache: LossCache, dloss: Any = 1.0, *, through: Array | None = None) -> Array:
    """∂L/∂logits (T, V), times ``dloss``; with ``through`` W (V, k) the product ∂L/∂logits·W (T, k).

    Of a large vocabulary ∂L/∂logits is by far the largest array of a model; through W it is never held whole on NumPy.
    """
    logits, labels, top, total, share = cache
    xp, dloss = checks.floats(cache=logits, through=through), checks.scalar("dloss", dloss, logits)
    every = xp.arange(logits.shape[1], dtype=labels.dtype, **arrays.on(arrays.device_of(logits)))

    def rows(z: Array, labels: Array, top: Array, total: Array, share: Array) -> tuple[Array, ...]:
        p = xp.exp(z - top)  # max z is taken away first: z − log Σ exp z loses digits with the size of z
        p *= share / total
        p -= arrays.where(xp, labels[:, None] == every, share, 0.0)
        return (p,)

    def product(*xs: Array) -> tuple[Array, ...]:
        return (arrays.by_rows(xp, rows, *xs)[0] @ through,)

    whole = (logits, labels, top, total, share * dloss)
    return arrays.by_rows(xp, rows, *whole)[0] if through is None else arrays.by_rows(xp, product, *whole, step=128)[0]


def contrastive(texts: Array, images: Array, log_scale: Array) -> tuple[Array, Any]:
    """CLIP's loss (arXiv 2103.00020, Fig. 3) of unit vectors ``texts`` and ``images``, both (N, k): pairs by place.

    Z = exp(log_scale)·texts imagesᵀ; the loss is the mean of the cross-entropies of its rows and of its columns, each
    with the diagonal as labels. The cache's first entry is Z.
    """
    xp = checks.floats(texts=texts, images=images, log_scale=log_scale)
    if texts.ndim != 2:
        raise ValueError(f"texts: shape {tuple(texts.shape)}; it must be (N, k)")
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
    xp = checks.floats(cache=logits)
    half = 0.5 * checks.scalar("dloss", dloss, logits)
    dZ = cross_entropy_backward(text_cache, half) + cross_entropy_backward(image_cache, half).T
    return scale * (dZ @ images), scale * (dZ.T @ texts), xp.sum(dZ * logits)
