"""A transformer block with RandLoRA in PyTorch, of its own functions: another implementation, in its conventions."""

import math
from collections.abc import Mapping
from typing import Any

import torch

F = torch.nn.functional
Tensor = Any
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
}


def delta_weight(
    A: Tensor, B: Tensor, lambda_: Tensor, gamma: Tensor, shape: tuple[int, int], scaling: float, pairing: str,
    orientation: str = "paper",
) -> Tensor:  # fmt: skip
    """Eq. 4; crossed as PEFT flattens the two; transposed or reshaped as the authors' codes do."""
    n, D, r = B.shape
    left = B.permute(1, 0, 2).reshape(D, n * r)
    right = lambda_[:, :, None] * A * gamma[:, None, :]
    right = (right if pairing == "literal" else right.transpose(0, 1)).reshape(n * r, -1)
    M, (out, in_) = scaling * left @ right, shape
    if orientation == "reshape":
        return M.reshape(in_, out).T
    return M.T if orientation != "never" and out < in_ + (orientation == "square_transposed") else M


def rotated(x: Tensor, theta: float, scaling: Mapping[str, Any] | None = None) -> Tensor:
    """x cos + rotate_half(x) sin, as ``transformers`` has it, of heads (b, H, T, h)."""
    h = x.shape[-1]
    frequency = theta ** (-torch.arange(0, h, 2, dtype=torch.float64) / h)
    if scaling is not None:
        slow = frequency / scaling["factor"]
        if scaling["rope_type"] == "llama3":
            length, wavelength = scaling["original_max_position_embeddings"], 2 * math.pi / frequency
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            smooth = (length / wavelength - low) / (high - low)
            between = (1 - smooth) * slow + smooth * frequency
            slow = torch.where(wavelength > length / low, slow, between)
            slow = torch.where(wavelength < length / high, frequency, slow)
        frequency = slow
    angle = torch.outer(torch.arange(x.shape[-2], dtype=torch.float64), frequency)
    cos, sin = (torch.cat([part, part], -1).to(x.dtype) for part in (angle.cos(), angle.sin()))
    return x * cos + torch.cat([-x[..., h // 2 :], x[..., : h // 2]], -1) * sin


def forward(
    kind: Any, x: Tensor, weights: Mapping[str, Tensor], biases: Mapping[str, Tensor | None], seen: Tensor, rotary: Any
) -> Tensor:
    """y of x (b, T, k): ``weights`` W0 + ΔW by role, ``seen`` (b, 1, T, T), ``rotary`` (θ, scaling) or None."""

    def linear(role: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[role], biases.get(role))

    def norm(role: str, x: Tensor) -> Tensor:
        weight, bias = weights[role], biases.get(role)
        if kind.centred:
            return F.layer_norm(x, (kind.width,), weight, bias, kind.eps)
        y = F.rms_norm(x, (kind.width,), weight, kind.eps)
        return y if bias is None else y + bias

    inner = norm("norm1", x)
    parts = linear("qkv", inner).chunk(3, -1) if kind.fused else [linear(role, inner) for role in "qkv"]
    q, k, v = (part.unflatten(-1, (-1, kind.head_width)).transpose(1, 2) for part in parts)
    if rotary is not None:
        q, k = rotated(q, *rotary), rotated(k, *rotary)
    out = F.scaled_dot_product_attention(q, k, v, seen, enable_gqa=True)
    z = x + linear("o", out.transpose(1, 2).flatten(2))
    inner, act = norm("norm2", z), ACTIVATIONS[kind.activation]
    hidden = act(linear("gate", inner)) * linear("up", inner) if kind.gated else act(linear("up", inner))
    return z + linear("down", hidden)
