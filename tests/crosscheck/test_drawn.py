"""Drawn configurations in PyTorch, ``transformers`` and PEFT, float64: the blocks and models that all tests draw."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from crosscheck import test_models as fixed
from hypothesis import assume, given, settings
from strategies import drawn

from randlora_ref.adapters import NoLA, RandLoRA, RandLoRAa, VeRA
from randlora_ref.verify import models, points
from randlora_ref.verify.block import BlockCase, by_role, draw_block
from randlora_ref.verify.configurations import Choose
from randlora_ref.verify.models import draw_model

torch = pytest.importorskip("torch")
from crosscheck import torch_block  # noqa: E402  (needs PyTorch)

pytestmark = [*fixed.pytestmark]
Tensor = Any
LIMIT = 1e-10


def update(adapter: Any, learned: dict[str, Tensor]) -> Tensor:
    """ΔW (out, in) of each method, its frozen arrays the adapter's."""
    kind, shape = type(adapter).__name__, adapter.shape
    if isinstance(adapter, RandLoRA):
        n, d = learned["gamma"].shape
        D = shape[0] if adapter.dialect.orientation == "never" else max(shape)
        A, B = torch.tensor(adapter.bases.A[:, :d]), torch.tensor(adapter.bases.B[:n, :D])
        numbers = adapter.scaling, adapter.dialect.pairing, adapter.dialect.orientation
        return torch_block.delta_weight(A, B, learned["lambda_"], learned["gamma"], shape, *numbers)
    frozen = {name: torch.tensor(getattr(adapter, name)) for name in ("A", "B") if hasattr(adapter, name)}
    A, B = (learned.get(name, frozen.get(name)) for name in ("A", "B"))
    if isinstance(adapter, VeRA):
        A, B = A[:, : shape[1]], B[: shape[0]]
        return learned["lambda_b"].diag() @ B @ learned["lambda_d"].diag() @ A
    if isinstance(adapter, NoLA):
        left, right = (c[:, None, None] * basis for c, basis in ((learned["c0"], B), (learned["c1"], A)))
        return adapter.scaling * left.sum(0) @ right.sum(0)
    if isinstance(adapter, RandLoRAa):
        left = (B @ torch.diag_embed(learned["lambda_"])).sum(0)
        M = adapter.scaling * left @ (A @ torch.diag_embed(learned["gamma"])).sum(0)
        return M if shape[0] >= shape[1] else M.T
    return learned["delta"] if kind == "FullFineTuning" else adapter.scaling * B @ A


def by_autograd(case: BlockCase) -> dict[str, np.ndarray]:
    """The block's output, and the gradient of everything by PyTorch's own differentiation."""
    made = case.build()
    values = {name: torch.tensor(x, requires_grad=True) for name, x in made.values.items()}
    weights = {role: values[f"{role}.weight"] for role in by_role(made.values)}
    for role, one in made.adapters.items():
        weights[role] = weights[role] + update(one, {name: values[f"{role}.{name}"] for name in one.LEARNED})
    mask = made.given.get("attention_mask", np.ones((case.batch, case.size)))
    seen = torch.tensor(mask, dtype=torch.bool)[:, None, None, :].expand(-1, 1, case.size, -1)
    y = torch_block.forward(
        case.spec, values["x"], weights, {role: values.get(f"{role}.bias") for role in weights},
        seen.tril() if case.causal else seen, case.rotary,
    )  # fmt: skip
    y.backward(torch.tensor(made.dy))
    return {"y": y.detach().numpy()} | {
        name: np.zeros(x.shape) if x.grad is None else x.grad.numpy() for name, x in values.items()
    }


@settings(max_examples=100)
@given(drawn(draw_block))
def test_blocks_in_torch(case: BlockCase) -> None:
    """Outputs and every gradient of any block with any adapters: its conventions are PyTorch's."""
    assert points.alike(case.build(), points.HOST, by_autograd(case)) <= LIMIT


def test_a_block_in_another_convention_is_seen() -> None:
    """A scale of 1/h in place of 1/√h under the scores."""
    with pytest.MonkeyPatch.context() as patch:
        original = torch.nn.functional.scaled_dot_product_attention
        scaled = lambda q, *rest, **options: original(q / q.shape[-1] ** 0.5, *rest, **options)  # noqa: E731
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", scaled)
        with pytest.raises(AssertionError):
            test_blocks_in_torch()


NAMES = {
    "GPT-2": ("gpt2", "GPT2LMHeadModel", "GPT2Config"),
    "Llama": ("llama", "LlamaForCausalLM", "LlamaConfig"),
    "ViT": ("vit", "ViTForImageClassification", "ViTConfig"),
    "CLIP": ("clip", "CLIPModel", "CLIPConfig"),
}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1}


@pytest.mark.parametrize("kind", NAMES)
def test_models_in_transformers_and_peft(
    kind: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of any configuration with PEFT's RandLoRA in any of its layers: loss, logits, every gradient.

    Every token sees one at least, and some label counts: of the rest ``transformers`` makes NaN or a convention. CLIP's
    loss of a single pair, or of vectors of one number, has no gradient but rounding.
    """
    name, *theirs = NAMES[kind]

    def draw(choose: Choose) -> Any:
        case = draw_model(kind, choose)
        size, keys = max(2, case.size), dict(case.keys)
        if "head_dim" in keys:  # theirs wants a multiple, where it is not used
            keys["hidden_size"] += -keys["hidden_size"] % keys["num_attention_heads"]
        mask = case.mask and tuple((1, *row[1:], 1)[:size] for row in case.mask)
        case = replace(case, keys=keys, embedded=False, mask=mask, size=size, adapters={}, labels="all")
        modules = [one for one in case.build().modules if "head" not in one]
        return case, sorted({choose(modules) for _ in range(choose((3, 1, len(modules))))})

    @settings(max_examples=40)
    @given(drawn(draw))
    def check(drawn_case: Any) -> None:
        case, targets = drawn_case
        assume(kind != "CLIP" or (case.batch > 1 and case.keys["projection_dim"] > 1))
        model = case.build()
        keys = {key: value for key, value in case.keys.items() if value is not None}
        keys = keys if kind in ("ViT", "CLIP") else SPECIAL | keys
        mask = {} if kind == "ViT" else {"attention_mask": np.ones((case.batch, case.size))}
        given = {key: x.astype(np.int64) for key, x in (mask | model.given).items()} | model.inputs
        monkeypatch.setitem(fixed.CONFIGS, name, (models.KINDS[kind], *theirs, keys))
        monkeypatch.setattr(fixed, "example", lambda _: given)
        fixed.randlora(name, tmp_path_factory.mktemp(name), LIMIT, targets)

    check()
