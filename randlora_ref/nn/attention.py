"""Softmax attention (arXiv 1706.03762, Eq. 1), causal or not, padded or not, with grouped queries (arXiv 2305.13245).

    S = q kᵀ/√h + M,   P = softmax(S) by rows,   o = P v,      M: 0 where seen, −∞ where not.

The queries of the g = H/K heads that share a key head are g·T rows of one product, so dk and dv sum over them. A row
that sees nothing has P = 0: o and every gradient through it are zero.
"""

import math
from typing import Any

from .. import arrays, checks

Array = Any


# ---------------------------------------------------------------------------------------------------------
# Kernels
# ---------------------------------------------------------------------------------------------------------


@arrays.blocked
def softmax(xp: Any, S: Array) -> Array:
    """P = exp(S)/Σ exp(S) of each row of S (rows, T), 0 where all of it is −∞; max S cancels."""
    S_max = xp.max(arrays.real(xp, S), axis=-1, keepdims=True)  # (rows, 1)
    weights = xp.exp(S - arrays.where(xp, S_max == -math.inf, 0.0, S_max))
    total = xp.sum(weights, axis=-1, keepdims=True)
    return weights / arrays.where(xp, total == 0, 1.0, total)


@arrays.blocked
def softmax_backward(xp: Any, dP: Array, P: Array, *, scale: float) -> Array:
    """scale·∂L/∂S of ∂L/∂P and P = softmax(S), both (rows, T): dS = P∘dP − P·⟨P, dP⟩, for ∂P_i/∂S_j = P_i(δ_ij − P_j).

    In this order exactly zero where P is one or zero. (⟨P, dP⟩ = ⟨do, o⟩ is shorter, but leaves a rounding there.)
    """
    PdP = P * dP
    return scale * (PdP - P * xp.sum(PdP, axis=-1, keepdims=True))


def attend(xp: Any, q: Array, k: Array, v: Array, mask: Array | None) -> tuple[Array, Any]:
    """o (B, H, T, h) of q (B, H, T, h), k and v (B, K, T, h), and q (B, K, g·T, h), k, v, P (B, K, g·T, T)."""
    shape, (batch, key_heads, size, width), shared = q.shape, k.shape, q.shape[1] // k.shape[1]
    q = xp.reshape(q, (batch, key_heads, shared * size, width))  # (B, K, g·T, h)
    S = (q / math.sqrt(width)) @ arrays.swap_last(k)  # (B, K, g·T, T)
    if mask is not None:
        S = xp.reshape(xp.reshape(S, (batch, key_heads, shared, size, size)) + mask, S.shape)
    P = softmax(xp, S)
    return xp.reshape(P @ v, shape), (q, k, v, P)


def attend_backward(xp: Any, do: Array, cache: Any) -> tuple[Array, Array, Array]:
    """dv = Pᵀ do, dP = do vᵀ; with dS/√h from it dq = dS k/√h, dk = dSᵀ q/√h."""
    q, k, v, P = cache
    shape, do = do.shape, xp.reshape(do, q.shape)  # (B, K, g·T, h)
    dS = softmax_backward(xp, do @ arrays.swap_last(v), P, scale=1 / math.sqrt(q.shape[-1]))  # (B, K, g·T, T)
    return xp.reshape(dS @ k, shape), arrays.swap_last(dS) @ q, arrays.swap_last(P) @ do


# ---------------------------------------------------------------------------------------------------------
# Doors
# ---------------------------------------------------------------------------------------------------------


def additive_mask(like: Array, size: int, *, causal: bool = False, mask: Array | None = None) -> Array | None:
    """M for ``size`` queries and as many keys, (B or 1, 1, 1, T or 1, T), real of the precision of ``like``; or None.

    ``mask`` (B, T), boolean or integer: zero at padding. ``causal``: query t sees keys 0 … t.
    """
    xp = checks.namespace(like=like, mask=mask)
    checks.floats(like=like)
    size, on_device, seen = checks.integer("size", size), arrays.on(arrays.device_of(like)), None
    if mask is not None:
        if arrays.dtype_name(mask) != "bool":
            checks.integers("mask", mask)
            mask = mask != 0
        checks.shaped(mask.ndim == 2 and mask.shape[1] == size, "mask", mask, f"(batch, {size})")
        seen = mask[:, None, None, None, :]
    if causal:
        position = xp.arange(size, **on_device)
        before = (position[None, :] <= position[:, None])[None, None, None, :, :]
        seen = before if seen is None else seen & before
    if seen is None:
        return None
    zero = xp.zeros((), dtype=getattr(xp, checks.precision("like", like)), **on_device)
    return arrays.where(xp, seen, zero, -math.inf)


def check_mask(mask: Array | None, batch: int, size: int) -> None:
    """A ValueError unless ``mask`` is None, or made for ``batch`` sequences of ``size`` tokens."""
    if mask is not None and (mask.ndim != 5 or mask.shape[0] not in (1, batch) or mask.shape[-1] != size):
        raise ValueError(f"mask: for {tuple(mask.shape)}; it must be for a batch of {batch} and {size} tokens")


def attention(q: Array, k: Array, v: Array, mask: Array | None = None) -> tuple[Array, Any]:
    """o (B, H, T, h) of queries q (B, H, T, h), keys and values k, v (B, K, T, h); H is a multiple of K.

    ``mask`` is what ``additive_mask`` makes. Query head i meets key head i div (H/K).
    """
    xp = checks.floats(q=q, k=k, v=v, mask=mask)
    well = q.ndim == k.ndim == 4 and k.shape[1] > 0 and q.shape[1] % k.shape[1] == 0
    checks.shaped(well, "k", k, f"(B, K, T, h), K a divisor of H of q (B, H, T, h) {tuple(q.shape)}")
    batch, _, size, width = q.shape
    checks.shape("k", k, (batch, k.shape[1], size, width))
    checks.shape("v", v, tuple(k.shape))
    check_mask(mask, batch, size)
    return attend(xp, q, k, v, mask)


def attention_backward(do: Array, cache: Any) -> tuple[Array, Array, Array]:
    """(∂L/∂q, ∂L/∂k, ∂L/∂v), of the shapes of q, k and v, of ∂L/∂o (B, H, T, h)."""
    (batch, key_heads, rows, width), size = checks.kept(cache, 4)[0].shape, cache[1].shape[2]
    xp = checks.cotangent("do", do, (batch, key_heads * rows // size, size, width), cache[0])
    return attend_backward(xp, do, cache)
