"""Adapters in PEFT's files: what the real PEFT saves is read, and what is written the real PEFT reads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from randlora_ref.interop import load_peft, save_peft

pytestmark = pytest.mark.crosscheck
SHAPES = {"up": (24, 12), "down": (12, 24), "square": (12, 12)}


@pytest.fixture(autouse=True)
def _frameworks() -> None:
    pytest.importorskip("peft")


def build(**config: Any) -> Any:
    """A module with layers of ``SHAPES``, one inside another module, and PEFT around it, Λ and Γ made random."""
    import torch
    from peft import RandLoraConfig, get_peft_model

    cast = config.pop("autocast_adapter_dtype", True)
    torch.manual_seed(0)
    module = torch.nn.Module()
    module.inner = torch.nn.ModuleDict({name: torch.nn.Linear(i, o) for name, (o, i) in SHAPES.items()})
    settings = {"r": 5, "randlora_alpha": 20, "target_modules": list(SHAPES), "projection_prng_key": 11, **config}
    model = get_peft_model(module, RandLoraConfig(**settings), autocast_adapter_dtype=cast)
    for name, parameter in model.named_parameters():
        if "randlora" in name:
            torch.nn.init.normal_(parameter)
    return model


def updates(model: Any) -> dict[str, Any]:
    inner = model.base_model.model.inner
    return {name: inner[name].get_delta_weight("default").detach().float().numpy() for name in SHAPES}


def agree(adapter: Any, model: Any) -> None:
    assert set(adapter.lambda_) == {f"inner.{name}" for name in SHAPES}
    for name, right in updates(model).items():
        ours = adapter.layer(f"inner.{name}", SHAPES[name]).delta_weight()
        assert np.max(np.abs(ours - right)) <= 1e-5 * np.max(np.abs(right))


@pytest.mark.parametrize("kind", ["dense", "sparse", "very_sparse"])
def test_a_saved_adapter_is_read(tmp_path: Path, kind: str) -> None:
    model = build(sparse=kind == "sparse", very_sparse=kind == "very_sparse")
    model.save_pretrained(tmp_path)
    agree(load_peft(tmp_path), model)


def test_an_adapter_without_its_bases_draws_them(tmp_path: Path) -> None:
    with_bases = build()
    with_bases.save_pretrained(tmp_path / "with")
    with pytest.warns(UserWarning, match="projection"):
        build(save_projection=False).save_pretrained(tmp_path / "without")
    with pytest.raises(ValueError, match="shapes must list"):
        load_peft(tmp_path / "without")
    drawn = load_peft(tmp_path / "without", shapes=list(SHAPES.values())).bases
    saved = load_peft(tmp_path / "with").bases
    assert np.array_equal(drawn.A, saved.A)
    assert np.array_equal(drawn.B, saved.B)


def test_bfloat16_bases_come_as_float32_by_bits(tmp_path: Path) -> None:
    import torch

    model = build(autocast_adapter_dtype=False).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    adapter = load_peft(tmp_path)
    assert adapter.bases.A.dtype == np.float32
    B = model.base_model.randlora_B["default"].float().numpy().transpose(1, 0, 2)
    assert np.array_equal(adapter.bases.B, B)
    lambda_ = model.base_model.model.inner["up"].randlora_lambda["default"].detach().float().numpy().T
    assert np.array_equal(adapter.lambda_["inner.up"], lambda_)


def test_what_is_written_the_real_peft_reads(tmp_path: Path) -> None:
    import torch
    from peft import PeftModel

    model = build()
    model.save_pretrained(tmp_path / "theirs")
    save_peft(load_peft(tmp_path / "theirs"), tmp_path / "ours")
    base = torch.nn.Module()
    base.inner = torch.nn.ModuleDict({name: torch.nn.Linear(i, o) for name, (o, i) in SHAPES.items()})
    with pytest.warns(UserWarning, match="missing adapter keys"):  # the layers' copies of the bases, which it shares
        read = updates(PeftModel.from_pretrained(base, tmp_path / "ours"))
    for name, right in updates(model).items():
        assert np.array_equal(read[name], right)
    sizes = [(tmp_path / who / "adapter_model.safetensors").stat().st_size for who in ("ours", "theirs")]
    assert sizes[0] < sizes[1] / 2  # PEFT stores the bases once more for each layer
    again = load_peft(tmp_path / "ours")
    assert np.array_equal(again.bases.B, load_peft(tmp_path / "theirs").bases.B)
