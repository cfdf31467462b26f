"""A transformer block with RandLoRA from its forward pass alone, right and, by a ``fault`` in one place, wrong.

Written apart from ``spec`` and ``nn``: y by einsum, and every gradient by the complex step, all entries of x, Λ and Γ
at once, each moved by ih in a copy of its own on a leading axis. Gradients follow the fault, as a framework's own
differentiation makes them. ``wrong.py`` checks all of it.
"""

from collections.abc import Mapping
from math import erf, pi, sqrt
from typing import Any

import numpy as np

from randlora_ref.conformance import Case

Array = Any
STEP = 1e-30
FAULTS = (
    "no_attention_residual",
    "no_mlp_residual",
    "not_causal",
    "padding_seen",
    "key_heads_tiled",
    "scores_unscaled",
    "q_and_k_swapped",
    "rotary_neighbours",
    "rotary_of_another_theta",
    "norm2_eps_tenfold",
    "rms_without_eps",
    "rms_centred",
    "layer_norm_sample_deviation",
    "gelu_by_tanh",
    "activation_on_up",
    "norm1_twice",
    "no_adapter_of_o",
    "dlambda_o_unscaled",
    "dgamma_q_zero",
    "dx_without_residual",
)


def delta_weight(case: Case, role: str, lambda_: Array, gamma: Array) -> Array:
    """ΔW (…, out, in)."""
    A, B, (out_features, in_features) = case.A[role], case.B[role], case.weight[role].shape
    n, D, r = B.shape
    if case.pairing == "crossed":
        B = B.transpose(1, 0, 2).reshape(D, r, n).transpose(2, 0, 1)
    M = case.scaling * np.einsum("jok,...jk,ki,...ji->...oi", B, lambda_, A, gamma)
    return M if out_features >= in_features else M.swapaxes(-1, -2)


def norm(case: Case, x: Array, role: str, fault: str) -> Array:
    """LayerNorm or RMSNorm."""
    eps, size = case.block.eps, x.shape[-1]
    if fault == "norm2_eps_tenfold" and role == "norm2":
        eps = 10 * eps
    if case.block.centred or fault == "rms_centred":
        x = x - x.mean(-1, keepdims=True)
    elif fault == "rms_without_eps":
        eps = 0.0
    if case.block.centred and fault == "layer_norm_sample_deviation":
        size -= 1
    if fault == "norm1_twice":
        role = "norm1"
    return x / np.sqrt((x**2).sum(-1, keepdims=True) / size + eps) * case.weight[role] + case.bias.get(role, 0)


def activation(x: Array, kind: str, fault: str) -> Array:
    """The four kinds; an erf of complex numbers is its first two terms, all that a step of 1e-30 leaves."""
    if kind == "gelu" and fault != "gelu_by_tanh":
        a = x.real
        phi, slope = (1 + np.vectorize(erf)(a / sqrt(2))) / 2, np.exp(-(a**2) / 2) / sqrt(2 * pi)
        return a * phi + 1j * x.imag * (phi + a * slope)
    if kind in ("gelu", "gelu_tanh"):
        return x / 2 * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))
    return x / (1 + np.exp(-x * (1.702 if kind == "quick_gelu" else 1)))


def turned(x: Array, theta: float, fault: str) -> Array:
    """Rotary embedding of heads (…, T, heads, h): each pair of coordinates by its matrix of rotation."""
    half, theta = x.shape[-1] // 2, 2 * theta if fault == "rotary_of_another_theta" else theta
    angle = np.arange(x.shape[-3])[:, None, None] * theta ** (-np.arange(half) / half)
    pairs = x.reshape(*x.shape[:-1], 2, half)
    if fault == "rotary_neighbours":
        pairs = x.reshape(*x.shape[:-1], half, 2).swapaxes(-1, -2)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    pairs = np.einsum("cdtui,...tudi->...tuci", matrix, pairs)
    return (pairs.swapaxes(-1, -2) if fault == "rotary_neighbours" else pairs).reshape(x.shape)


def attention(case: Case, q: Array, k: Array, v: Array, fault: str) -> Array:
    """The heads' outputs side by side, of projections (…, T, heads·h)."""
    size, h = q.shape[-2], case.block.head_width
    q, k, v = (z.reshape(*z.shape[:-1], -1, h) for z in (q, k, v))
    if case.rope_theta is not None:
        q, k = turned(q, case.rope_theta, fault), turned(k, case.rope_theta, fault)
    queries = q.shape[-2] // k.shape[-2]
    if fault == "key_heads_tiled":
        k, v = (np.concatenate([z] * queries, -2) for z in (k, v))
    else:
        k, v = (np.repeat(z, queries, -2) for z in (k, v))
    scores = np.einsum("...thd,...shd->...hts", q, k) / (1 if fault == "scores_unscaled" else sqrt(h))
    hidden = np.zeros((len(case.attention_mask), 1, size, size), dtype=bool)
    if case.causal and fault != "not_causal":
        hidden |= np.triu(np.ones((size, size), dtype=bool), 1)
    if fault != "padding_seen":
        hidden |= np.array(case.attention_mask)[:, None, None, :] == 0
    weights = np.exp(scores - scores.real.max(-1, keepdims=True)) * ~hidden
    mixed = np.einsum("...hts,...shd->...thd", weights / weights.sum(-1, keepdims=True), v)
    return mixed.reshape(*mixed.shape[:-2], -1)


def forward(case: Case, x: Array, learned: Mapping[str, tuple[Array, Array]], fault: str) -> Array:
    """y (…, b, T, k)."""

    def linear(role: str, x: Array) -> Array:
        weight = case.weight[role]
        if role in learned and not (role == "o" and fault == "no_adapter_of_o"):
            weight = weight + delta_weight(case, role, *learned[role])
        return np.einsum("...bti,...oi->...bto", x, weight) + case.bias.get(role, 0)

    kind, inner = case.block, norm(case, x, "norm1", fault)
    q, k, v = np.split(linear("qkv", inner), 3, -1) if kind.fused else (linear(role, inner) for role in "qkv")
    if kind.fused and fault == "q_and_k_swapped":
        q, k = k, q
    z = linear("o", attention(case, q, k, v, fault)) + (0 if fault == "no_attention_residual" else x)
    inner = norm(case, z, "norm2", fault)
    gate, up = linear("gate", inner) if kind.gated else 1, linear("up", inner)
    if kind.gated and fault != "activation_on_up":
        gate, up = up, gate
    return linear("down", gate * activation(up, kind.activation, fault)) + (0 if fault == "no_mlp_residual" else z)


def block(case: Case, fault: str = "") -> Mapping[str, Any]:
    """All results of a block case."""
    if case.kind != "block":
        return dict.fromkeys(case.wanted, "unsupported: blocks alone")
    values = {"dx": case.x}
    values |= {f"dlambda.{role}": x for role, x in case.lambda_.items()}
    values |= {f"dgamma.{role}": x for role, x in case.gamma.items()}
    ends = np.cumsum([x.size for x in values.values()])
    flat = np.concatenate([np.ravel(x) for x in values.values()])
    parts = np.split(flat + 1j * STEP * np.eye(flat.size), ends[:-1], axis=1)
    moved = {name: part.reshape(-1, *values[name].shape) for name, part in zip(values, parts, strict=True)}
    learned = {role: (moved[f"dlambda.{role}"], moved[f"dgamma.{role}"]) for role in case.A}
    y = forward(case, moved["dx"], learned, fault)
    slopes = np.split(np.sum(case.dy * y.imag, axis=(-3, -2, -1)) / STEP, ends[:-1])
    results = {name: slope.reshape(values[name].shape) for name, slope in zip(values, slopes, strict=True)}
    if fault == "dlambda_o_unscaled" and "o" in case.A:
        results["dlambda.o"] = results["dlambda.o"] / case.scaling
    if fault == "dgamma_q_zero" and "q" in case.A:
        results["dgamma.q"] = 0 * results["dgamma.q"]
    if fault == "dx_without_residual":
        results["dx"] = results["dx"] - case.dy
    return {"y": y[0].real, **results}
