"""Softmax attention (arXiv 1706.03762, Eq. 1), causal or not, padded or not, with grouped queries (arXiv 2305.13245).

    S = q kᵀ/√h + M,   P = softmax(S) by rows,   o = P v,      M: 0 where seen, −∞ where not.

Backward: dv = Pᵀ do and dP = do vᵀ. A row of softmax has ∂P_i/∂S_j = P_i(δ_ij − P_j), so dS = P∘dP − P·⟨P, dP⟩, in
this order exactly zero where P is one or zero. (⟨P, dP⟩ = ⟨do, o⟩ is shorter, but leaves a rounding there.) Then
dq = dS k/√h, dk = dSᵀ q/√h. Query heads that share a key head are one more axis, over which dk and dv are summed. A
row that sees nothing has P = 0: o and every gradient through it are zero.
"""

import math
from typing import Any, NamedTuple

from .. import arrays, checks

Array = Any


class AttentionCache(NamedTuple):
    """What backward needs of forward, with heads split as (B, key heads, queries per key head, T, h)."""

    q: Array
    k: Array
    v: Array
    probabilities: Array


def additive_mask(like: Array, size: int, *, causal: bool = False, mask: Array | None = None) -> Array | None:
    """M for ``size`` queries and as many keys, (B or 1, 1, 1, T or 1, T), real of the precision of ``like``; or None.

    ``mask`` (B, T), boolean or integer: zero at padding. ``causal``: query t sees keys 0 … t.
    """
    xp = checks.namespace(like=like, mask=mask)
    checks.floats(like=like)
    size, seen = checks.integer("size", size), None
    if mask is not None:
        boolean = arrays.dtype_name(mask) == "bool"
        if not boolean:
            checks.integers("mask", mask)
        if mask.ndim != 2 or mask.shape[1] != size:
            raise ValueError(f"mask: shape {tuple(mask.shape)}; it must be (batch, {size})")
        seen = (mask if boolean else mask != 0)[:, None, None, None, :]
    if causal:
        place = xp.arange(size, **arrays.on(arrays.device_of(like)))
        before = (place[None, :] <= place[:, None])[None, None, None, :, :]
        seen = before if seen is None else seen & before
    if seen is None:
        return None
    zero = xp.zeros((), dtype=getattr(xp, checks.precision("like", like)), **arrays.on(arrays.device_of(like)))
    return arrays.where(xp, seen, zero, -math.inf)


def attention(q: Array, k: Array, v: Array, mask: Array | None = None) -> tuple[Array, AttentionCache]:
    """o (B, H, T, h) of queries q (B, H, T, h), keys and values k, v (B, K, T, h); H is a multiple of K.

    ``mask`` is what ``additive_mask`` makes. Query head i meets key head i div (H/K).
    """
    xp = checks.floats(q=q, k=k, v=v, mask=mask)
    if q.ndim != 4 or k.ndim != 4 or k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"k: shape {tuple(k.shape)}; it must be (B, K, T, h), K a divisor of H of q (B, H, T, h) {tuple(q.shape)}"
        )
    batch, heads, size, width = q.shape
    checks.shape("k", k, (batch, k.shape[1], size, width))
    checks.shape("v", v, tuple(k.shape))
    if mask is not None and (mask.shape[0] not in (1, batch) or mask.shape[-1] != size):
        raise ValueError(f"mask: for {tuple(mask.shape)}; it must be for a batch of {batch} and {size} tokens")
    q = xp.reshape(q * (1 / math.sqrt(width)), (batch, k.shape[1], heads // k.shape[1], size, width))
    k, v = k[:, :, None, :, :], v[:, :, None, :, :]
    probabilities = softmax(xp, q @ arrays.swap_last(k), mask)
    out = probabilities @ v
    return xp.reshape(out, (batch, heads, size, width)), AttentionCache(q, k, v, probabilities)


def softmax(xp: Any, scores: Array, mask: Array | None) -> Array:
    """P of scores S (…, T, T) without M, which is added here; S is the caller's own and is overwritten."""
    if mask is not None:
        scores += mask
    top = xp.max(arrays.real(xp, scores), axis=-1, keepdims=True)
    scores -= arrays.where(xp, top == -math.inf, 0.0, top)
    weights = xp.exp(scores)
    total = xp.sum(weights, axis=-1, keepdims=True)
    weights /= arrays.where(xp, total == 0, 1.0, total)
    return weights


def attention_backward(do: Array, cache: AttentionCache) -> tuple[Array, Array, Array]:
    """(∂L/∂q, ∂L/∂k, ∂L/∂v), of the shapes of q, k and v, of ∂L/∂o (B, H, T, h)."""
    q, k, v, probabilities = cache
    xp = checks.floats(cache=q, do=do)
    shape = (q.shape[0], q.shape[1] * q.shape[2], *q.shape[3:])
    checks.shape("do", do, shape)
    do = xp.reshape(do, q.shape)
    dv = xp.sum(arrays.swap_last(probabilities) @ do, axis=2)
    dS = do @ arrays.swap_last(v)
    dS *= probabilities
    dS -= probabilities * xp.sum(dS, axis=-1, keepdims=True)
    dk = xp.sum(arrays.swap_last(dS) @ q, axis=2)
    dq = dS @ k
    dq *= 1 / math.sqrt(q.shape[-1])
    return xp.reshape(dq, shape), dk, dv
