"""LoRA and VeRA beside PEFT 0.21.2's own layers, in float64: starting values, output, every gradient, merging."""

from typing import Any

import numpy as np
import pytest

from randlora_ref.adapters import LoRA, VeRA, vera_bases

pytestmark = pytest.mark.crosscheck
SHAPES = [(7, 5), (4, 9), (6, 6)]
BATCHES = [(3,), (2, 5), (1, 1, 1)]


def peft_layer(shape: tuple[int, int], make_config: Any) -> tuple[Any, Any]:
    """A float64 linear layer of ``shape`` (out, in) and the same one with PEFT's adapter."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(shape[1], shape[0])).to(torch.float64)
    adapted = peft.get_peft_model(model, make_config(peft), autocast_adapter_dtype=False).to(torch.float64)
    return torch, adapted.base_model.model[0]


def close(found: Any, expected: Any, gauge: Any) -> None:
    """At most 16 unit roundoffs of the gauge, the same sums over absolute values."""
    assert found.shape == tuple(expected.shape)
    assert np.all(np.isfinite(found))
    error, limit = np.abs(found - expected), 16 * 2.0**-53 * gauge
    assert np.all(error <= limit), float(np.max(error / np.where(limit > 0, limit, 1)))


def compare(layer: Any, torch: Any, adapter: Any, names: dict[str, Any], batch: tuple[int, ...], seed: int) -> None:
    """Output and gradients of ``adapter`` against PEFT's ``layer``; ``names`` maps learned values to its parameters."""
    rng = np.random.default_rng(seed)
    for parameter in layer.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    x, dy = rng.normal(size=(*batch, adapter.shape[1])), rng.normal(size=(*batch, adapter.shape[0]))
    weight, bias = (p.detach().numpy() for p in (layer.base_layer.weight, layer.base_layer.bias))
    x_torch = torch.tensor(x, requires_grad=True)
    y_torch = layer(x_torch)
    y_torch.backward(torch.tensor(dy))
    y, cache = adapter.forward(x, weight, bias)
    dx, grads = adapter.backward(dy, cache, weight_grad=True)

    positive = absolute(adapter)
    y_gauge, cache = positive.forward(abs(x), abs(weight), abs(bias))
    dx_gauge, gauges = positive.backward(abs(dy), cache, weight_grad=True)
    close(y, y_torch.detach().numpy(), y_gauge)
    close(dx, x_torch.grad.numpy(), dx_gauge)
    close(grads.weight, layer.base_layer.weight.grad.numpy(), gauges.weight)
    close(grads.bias, layer.base_layer.bias.grad.numpy(), gauges.bias)
    for name, parameter in names.items():
        close(getattr(grads, name), parameter.grad.numpy(), getattr(gauges, name))
    close(adapter.delta_weight(), layer.get_delta_weight("default").detach().numpy(), positive.delta_weight())


def absolute(adapter: Any) -> Any:
    """The same adapter on absolute values: what it computes is the gauge of what ``adapter`` computes."""
    arrays = {name: abs(getattr(adapter, name)) for name in ("A", "B", *adapter.LEARNED)}
    numbers = {name: getattr(adapter, name) for name in ("rank", "alpha") if hasattr(adapter, name)}
    return type(adapter)(out_features=adapter.shape[0], in_features=adapter.shape[1], **arrays, **numbers)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shape", SHAPES)
def test_lora(shape: tuple[int, int], batch: tuple[int, ...]) -> None:
    torch, layer = peft_layer(shape, lambda peft: peft.LoraConfig(r=3, lora_alpha=5, target_modules=["0"]))
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    for seed in (0, 1):  # at the start, then at a generic point
        if seed:
            with torch.no_grad():
                B.copy_(torch.tensor(np.random.default_rng(9).normal(size=B.shape)))
        out_features, in_features = shape
        adapter = LoRA(
            out_features=out_features,
            in_features=in_features,
            rank=3,
            A=A.detach().numpy().copy(),
            B=B.detach().numpy().copy(),
            alpha=5,
        )
        assert adapter.scaling == layer.scaling["default"]
        compare(layer, torch, adapter, {"A": A, "B": B}, batch, seed)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shape", SHAPES)
def test_vera(shape: tuple[int, int], batch: tuple[int, ...]) -> None:
    torch, layer = peft_layer(shape, lambda peft: peft.VeraConfig(r=3, target_modules=["0"]))
    learned = {"lambda_b": layer.vera_lambda_b["default"], "lambda_d": layer.vera_lambda_d["default"]}
    for seed in (0, 1):
        if seed:
            with torch.no_grad():
                for parameter in learned.values():
                    parameter.copy_(torch.tensor(np.random.default_rng(9).normal(size=parameter.shape)))
        adapter = VeRA(
            out_features=shape[0],
            in_features=shape[1],
            rank=3,
            A=layer.vera_A["default"].numpy().copy(),
            B=layer.vera_B["default"].numpy().copy(),
            **{name: parameter.detach().numpy().copy() for name, parameter in learned.items()},
        )
        compare(layer, torch, adapter, learned, batch, seed)


def test_starting_values_and_defaults() -> None:
    """What is constant is equal; what is random has the same bounds, nearly reached, and the same deviation."""
    peft = pytest.importorskip("peft")
    shape, r = (90, 400), 24
    ours = LoRA.start(*shape, r, alpha=7)
    _, layer = peft_layer(shape, lambda peft: peft.LoraConfig(r=r, lora_alpha=7, target_modules=["0"]))
    assert ours.scaling == layer.scaling["default"]
    np.testing.assert_array_equal(ours.B, layer.lora_B["default"].weight.detach().numpy())
    alike(ours.A, layer.lora_A["default"].weight.detach().numpy())
    assert (LoRA.start(*shape).rank, LoRA.start(*shape).alpha) == (peft.LoraConfig().r, peft.LoraConfig().lora_alpha)

    vera = VeRA.start(*shape, r)
    _, layer = peft_layer(shape, lambda peft: peft.VeraConfig(r=r, target_modules=["0"]))
    np.testing.assert_array_equal(vera.lambda_b, layer.vera_lambda_b["default"].detach().numpy())
    np.testing.assert_array_equal(vera.lambda_d, layer.vera_lambda_d["default"].detach().float().numpy())
    alike(vera.A, layer.vera_A["default"].numpy())
    alike(vera.B, layer.vera_B["default"].numpy())
    assert VeRA.start(*shape).rank == peft.VeraConfig().r


def test_shared_vera_bases_have_the_largest_sizes() -> None:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    model = torch.nn.Sequential(torch.nn.Linear(9, 4), torch.nn.Linear(4, 12))
    adapted = peft.get_peft_model(model, peft.VeraConfig(r=3, target_modules=["0", "1"]))
    layer = adapted.base_model.model[1]
    A, B = vera_bases([(4, 9), (12, 4)], 3)
    assert A.shape == tuple(layer.vera_A["default"].shape)
    assert B.shape == tuple(layer.vera_B["default"].shape)
    lambda_b = np.arange(12.0, dtype=np.float32)
    with torch.no_grad():
        layer.vera_lambda_b["default"].copy_(torch.tensor(lambda_b))
    shared = (layer.vera_A["default"].numpy().copy(), layer.vera_B["default"].numpy().copy())
    ours = VeRA.start(12, 4, 3, bases=shared).replace(lambda_b=lambda_b)
    expected = layer.get_delta_weight("default").detach().numpy()
    np.testing.assert_allclose(ours.delta_weight(), expected, rtol=0, atol=16 * 2.0**-24 * np.abs(expected).max())


def alike(ours: Any, theirs: Any) -> None:
    """Two uniform samples of one size on the same ±bound: 1 % in the largest entry, 5 % in the deviation."""
    assert ours.shape == theirs.shape
    assert np.abs(ours).max() == pytest.approx(np.abs(theirs).max(), rel=0.01)
    assert ours.std() == pytest.approx(theirs.std(), rel=0.05)
