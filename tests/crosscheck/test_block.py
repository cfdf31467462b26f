"""The stored block cases in PyTorch: a forward pass of its own functions, and gradients by its own differentiation."""

from collections.abc import Mapping
from typing import Any

import pytest

from randlora_ref.conformance import Case, check

pytestmark = pytest.mark.crosscheck

torch = pytest.importorskip("torch")
from crosscheck import torch_block  # noqa: E402  (needs PyTorch)

F = torch.nn.functional
Tensor = Any


def block(case: Case) -> Mapping[str, Any]:
    """All results of a block case in the dtype of its arrays."""
    if case.kind != "block":
        return dict.fromkeys(case.wanted, "unsupported: blocks alone")
    c, kind = case.with_arrays(torch.from_numpy), case.block
    learned = {"dx": c.x, **{f"dlambda.{role}": x for role, x in c.lambda_.items()}}
    learned |= {f"dgamma.{role}": x for role, x in c.gamma.items()}
    for value in learned.values():
        value.requires_grad_()

    weights = dict(c.weight)
    for role in c.A:
        shape = tuple(weights[role].shape)
        weights[role] = weights[role] + torch_block.delta_weight(*c.factors[role], shape, c.scaling, c.pairing)
    seen = torch.tensor(c.attention_mask, dtype=torch.bool)[:, None, None, :].expand(-1, 1, c.x.shape[1], -1)
    rotary = None if c.rope_theta is None else (c.rope_theta,)
    y = torch_block.forward(kind, c.x, weights, c.bias, seen.tril() if c.causal else seen, rotary)
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
