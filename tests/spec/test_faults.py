"""The proof of the block's specification can fail: one place of its source broken at a time, and each fault is seen."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from spec import parts, proof

from randlora_ref.spec import block

SOURCE = Path(block.__file__).read_text(encoding="utf-8")

FAULTS = """
ε outside the mean square's root
    keepdims=True) + eps)  # (…, k)
    keepdims=True)) + eps  # (…, k)
ε ten times as large
    keepdims=True) + eps)  # (…, k)
    keepdims=True) + 10 * eps)  # (…, k)
the norm's bias left out
    x_hat * weight + bias
    x_hat * weight
the norm's backward without its projection
    d_hat - x_hat * (x_hat * d_hat).mean(axis=-1, keepdims=True)
    d_hat
a sum for the mean in it
    (x_hat * d_hat).mean(axis=-1
    (x_hat * d_hat).sum(axis=-1
∂L/∂w of the norm by x, not by x̂
    sum(rows(dy * x_hat))
    sum(rows(dy * x))
LayerNorm's gradient not centred
    return dx - dx.mean(axis=-1, keepdims=True), d_w
    return dx, d_w
LayerNorm not centred in forward
    rms_norm(x - x.mean(axis=-1, keepdims=True), weight, bias, eps)  #
    rms_norm(x, weight, bias, eps)  #
the frequency's exponent halved
    theta ** (-2 * np
    theta ** (-1 * np
linear scaling the wrong way
    omega / scaling["factor"]
    omega * scaling["factor"]
llama3: low and high in each other's place
    (turns - low) / (high - low)
    (turns - high) / (low - high)
llama3: the kept part not clipped
    np.clip((turns - low) / (high - low), 0, 1)
    (turns - low) / (high - low)
llama3: wavelength without 2π
    * omega / (2 * math.pi)
    * omega
places from 1
    np.arange(size)[:, None]
    np.arange(1, size + 1)[:, None]
pairs of neighbours in place of halves
    np.split(x, 2, axis=-1)
    (x[..., ::2], x[..., 1::2])
turned the other way
    second * cos + first * sin]
    second * cos - first * sin]
rotary's backward not turned back
    (tables[0], -tables[1])
    tables
the causal mask transposed
    np.tril(seen)
    np.triu(seen)
a token does not see itself
    np.tril(seen)
    np.tril(seen, -1)
padding hides queries, not keys
    (mask != 0)[:, None, :]
    (mask != 0)[:, :, None]
padding without effect
    True if mask is None else (mask != 0)[:, None, :]
    True
what is hidden counts in the sum
    np.exp(np.where(seen, scores - top, -np.inf))
    np.exp(scores - top)
NaN where nothing is seen
    np.where(total == 0, 1, total)
    total
scores over h, not √h
    bKgth,bKsh->bKgts", q, k) / math.sqrt(q.shape[-1])
    bKgth,bKsh->bKgts", q, k) / q.shape[-1]
query heads dealt out in turn
        q = q.reshape(*k.shape[:2], -1, *q.shape[2:])  #
        q = q.reshape(len(k), -1, k.shape[1], *q.shape[2:]).swapaxes(1, 2)  #
softmax's backward without its mean
    (dP - (P * dP).sum(axis=-1, keepdims=True))
    dP
softmax's backward by columns
    (P * dP).sum(axis=-1
    (P * dP).sum(axis=-2
attention's backward without 1/√h
    keepdims=True)) / math.sqrt(q.shape[-1])  # (b
    keepdims=True))  # (b
∂L/∂k by the values
    bKgts,bKsh->bKgth", dS, k)
    bKgts,bKsh->bKgth", dS, v)
∂L/∂v by dS
    bKgts,bKgth->bKsh", P, do)
    bKgts,bKgth->bKsh", dS, do)
exact GELU's Φ by erf of x
    (-x / math.sqrt(2)) / 2
    (-x) / 2
exact GELU's φ wrong
    np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    np.exp(-x * x) / math.sqrt(2 * math.pi)
tanh-GELU's cube
    0.044715)
    0.044716)
quick GELU's factor
    "quick_gelu": (1.702,
    "quick_gelu": (1.7,
tanh-GELU's slope
    (1 + 3 * a * x * x)
    (1 + 2 * a * x * x)
σ′ without 1 − σ
    p * (1 - p) * c
    p * c
an activation's backward without x·p′
    dy * (p + x * slope)
    dy * p
the loss over all tokens
    (losses * counts).sum() / max(1, int(counts.sum()))
    (losses * counts).sum() / len(counts)
ignored labels count
    (losses * counts).sum()
    losses.sum()
NaN where no label counts
    (losses * counts).sum() / max(1, int(counts.sum()))
    (losses * counts).sum() / counts.sum()
the loss's gradient of ignored tokens
    - one_hot) * counts /
    - one_hot) /
dloss forgotten
    dloss * (softmax
    (softmax
the update left out of forward
        if update is not None:
        if False:
the bias left out
    x @ weight.T if bias is None else x @ weight.T + bias
    x @ weight.T
∂L/∂b forgotten where there is an update
    d_weight, d_bias, weight_cotangent(dy, x_adapter
    d_weight, None, weight_cotangent(dy, x_adapter
G of the whole x
    x if update.dropout_mask is None else x * update.dropout_mask
    x
Λ and Γ in each other's place
    d_lambda, d_gamma)
    d_gamma, d_lambda)
heads laid out the other way
    -1, width).swapaxes(1, 2)
    width, -1).transpose(0, 3, 1, 2)
heads joined without the transpose
    x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)
    x.reshape(x.shape[0], x.shape[2], -1)
the residual around attention dropped
    z = x + apply("o"
    z = apply("o"
the residual around the MLP dropped
    return z + apply(
    return apply(
the second residual from x
    return z + apply(
    return x + apply(
norm2 of x
    norm(z, *parameters["norm2"]
    norm(x, *parameters["norm2"]
norm2 with norm1's weight
    norm(z, *parameters["norm2"]
    norm(z, *parameters["norm1"]
q and k swapped in the fused projection
    np.split(apply("qkv", inner), 3, axis=-1) if
    np.take(np.split(apply("qkv", inner), 3, axis=-1), [1, 0, 2], axis=0) if
keys not turned
    q, k = rotary(q, tables), rotary(k, tables)
    q = rotary(q, tables)
values turned
    q, k = rotary(q, tables), rotary(k, tables)
    q, k, v = rotary(q, tables), rotary(k, tables), rotary(v, tables)
gate and up in each other's place
    activation(gate, kind.activation) * up  #
    activation(up, kind.activation) * gate  #
LayerNorm for RMSNorm
    norm = layer_norm if kind.centred else rms_norm
    norm = layer_norm
the mask not handed on
    attention(q, k, v, seen))
    attention(q, k, v))
backward: the residual around the MLP dropped
    dz = dy + back("norm2"
    dz = back("norm2"
backward: the residual around attention dropped
    return dz + back("norm1"
    return back("norm1"
backward: up's part alone
    d_inner = d_inner + back(
    back(
backward: gate without up
    activation_backward(d_hidden * up, gate
    activation_backward(d_hidden, gate
backward: q not turned back
    dq, dk = rotary_backward(dq, tables), rotary_backward(dk, tables)
    dk = rotary_backward(dk, tables)
backward: q, k, v from the last
    np.concatenate(parts, axis=-1)
    np.concatenate(parts[::-1], axis=-1)
backward: RMSNorm's for LayerNorm
    layer_norm_backward if kind.centred else rms_norm_backward
    rms_norm_backward
dtype of the tables ignored
    return np.cos(angles).astype(dtype)
    return np.cos(angles)
G twice as large without an update
    return RoleGradients(dy, dy @ weight, G, d_bias, G)
    return RoleGradients(dy, dy @ weight, G, d_bias, 2 * G)
"""
LINES = [line.removeprefix("    ") for line in FAULTS.strip("\n").split("\n")]
ALL = dict(zip(LINES[::3], zip(LINES[1::3], LINES[2::3], strict=True), strict=True))


def broken(old: str, new: str) -> Any:
    """``spec.block`` with one place of its source replaced."""
    assert SOURCE.count(old) == 1, f"{SOURCE.count(old)} places hold {old!r}"
    module = ModuleType(block.__name__)
    module.__package__ = block.__package__
    exec(compile(SOURCE.replace(old, new), "block.py", "exec"), vars(module))
    return module


def ratios(module: Any) -> Iterator[float]:
    """What the tests of this folder ask, of the seven fixed blocks and of every part."""
    for part in parts.ALL:
        yield from (ratio for _, ratio in part(module, 0))
    for case in proof.FIXED:
        yield proof.value_gap(module, case)
        yield proof.value_gap(module, case, "float32")
        yield proof.gradient_gap_by_differences(module, case)
        yield proof.gradient_gap(module, case if case.activation != "gelu" else replace(case, activation="silu"))


def seen(module: Any) -> bool:
    """Whether a ratio is over its limit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return any(not ratio <= 1 for ratio in ratios(module))


@pytest.mark.slow
def test_what_is_not_broken_passes() -> None:
    """The source as it is, taken the same way, passes all that the faults must fail."""
    assert not seen(broken("a transformer block", "one transformer block"))


@pytest.mark.slow
@pytest.mark.parametrize("fault", list(ALL))
def test_each_fault_is_seen(fault: str) -> None:
    """One place of the source broken: at least one ratio is over its limit."""
    assert seen(broken(*ALL[fault]))
