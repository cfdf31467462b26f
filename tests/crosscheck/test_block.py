"""The stored block cases in PyTorch: a forward pass of its own functions, and gradients by its own differentiation."""

from collections.abc import Mapping
from typing import Any

import pytest

from randlora_ref.conformance import Case, check

pytestmark = pytest.mark.crosscheck

torch = pytest.importorskip("torch")
F = torch.nn.functional
Tensor = Any
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
}


def delta_weight(case: Case, A: Tensor, B: Tensor, lambda_: Tensor, gamma: Tensor, shape: tuple[int, int]) -> Tensor:
    """Eq. 4; crossed as PEFT flattens the two."""
    n, D, r = B.shape
    left = B.permute(1, 0, 2).reshape(D, n * r)
    right = lambda_[:, :, None] * A * gamma[:, None, :]
    right = (right if case.pairing == "literal" else right.transpose(0, 1)).reshape(n * r, -1)
    return case.scaling * (left @ right if shape[0] >= shape[1] else (left @ right).T)


def rotated(x: Tensor, theta: float) -> Tensor:
    """x cos + rotate_half(x) sin, as ``transformers`` has it, of heads (b, H, T, h)."""
    h = x.shape[-1]
    frequency = theta ** (-torch.arange(0, h, 2, dtype=torch.float64) / h)
    angle = torch.outer(torch.arange(x.shape[-2], dtype=torch.float64), frequency)
    cos, sin = (torch.cat([part, part], -1).to(x.dtype) for part in (angle.cos(), angle.sin()))
    return x * cos + torch.cat([-x[..., h // 2 :], x[..., : h // 2]], -1) * sin


def block(case: Case) -> Mapping[str, Any]:
    """All results of a block case in the dtype of its arrays."""
    if case.kind != "block":
        return dict.fromkeys(case.wanted, "unsupported: blocks alone")
    c, kind = case.with_arrays(torch.from_numpy), case.block
    learned = {"dx": c.x, **{f"dlambda.{role}": x for role, x in c.lambda_.items()}}
    learned |= {f"dgamma.{role}": x for role, x in c.gamma.items()}
    for value in learned.values():
        value.requires_grad_()

    def linear(role: str, x: Tensor) -> Tensor:
        weight = c.weight[role]
        if role in c.A:
            weight = weight + delta_weight(c, *c.factors[role], tuple(weight.shape))
        return F.linear(x, weight, c.bias.get(role))

    def norm(role: str, x: Tensor) -> Tensor:
        weight, bias = c.weight[role], c.bias.get(role)
        if kind.centred:
            return F.layer_norm(x, (kind.width,), weight, bias, kind.eps)
        y = F.rms_norm(x, (kind.width,), weight, kind.eps)
        return y if bias is None else y + bias

    inner = norm("norm1", c.x)
    parts = linear("qkv", inner).chunk(3, -1) if kind.fused else [linear(role, inner) for role in "qkv"]
    q, k, v = (part.unflatten(-1, (-1, kind.head_width)).transpose(1, 2) for part in parts)
    if c.rope_theta is not None:
        q, k = rotated(q, c.rope_theta), rotated(k, c.rope_theta)
    seen = torch.tensor(c.attention_mask, dtype=torch.bool)[:, None, None, :].expand(-1, 1, c.x.shape[1], -1)
    seen = seen.tril() if c.causal else seen
    out = F.scaled_dot_product_attention(q, k, v, seen, enable_gqa=True)
    z = c.x + linear("o", out.transpose(1, 2).flatten(2))
    inner, act = norm("norm2", z), ACTIVATIONS[kind.activation]
    hidden = act(linear("gate", inner)) * linear("up", inner) if kind.gated else act(linear("up", inner))
    y = z + linear("down", hidden)
    y.backward(c.dy)
    return {"y": y.detach().numpy(), **{name: value.grad.numpy() for name, value in learned.items()}}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_torch_passes_the_blocks(dtype: str) -> None:
    """Every stored block, within the limit of either precision: its conventions are PyTorch's."""
    report = check(block, ["block"], dtype=dtype)
    assert report.passed, "\n".join(report.lines())
    assert report.passed_cases == 7


def test_torch_in_another_convention_fails() -> None:
    """RMSNorm with eps outside the root: the blocks that have one fail, and no other."""

    def outside(x: Tensor, shape: Any, weight: Tensor, eps: float) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True).sqrt() + eps) * weight

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "rms_norm", outside)
        failed = {failure.case.id for failure in check(block, ["block"]).failures}
    assert failed == {"block-002-llama", "block-005-rms-plain-fused", "block-007-start"}
