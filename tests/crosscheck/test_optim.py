"""AdamW and SGD beside torch's, for 100 steps in float64."""

from typing import Any

import numpy as np
import pytest

from randlora_ref.optim import START, adamw, sgd

pytestmark = pytest.mark.crosscheck


def gap(ours: Any, theirs: Any, options: dict[str, Any]) -> float:
    """The worst relative difference over 100 steps of two tensors with random gradients, one of them often zero."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    values = {"a": rng.standard_normal((4, 3)), "b": rng.standard_normal(5)}
    parameters = {key: torch.nn.Parameter(torch.from_numpy(x.copy())) for key, x in values.items()}
    optimiser, state, worst = theirs(torch)(parameters.values(), **options), START, 0.0
    options = {key: value for key, value in options.items() if key != "foreach"}
    for step in range(100):
        grads = {key: rng.standard_normal(x.shape) * (step % 3 > 0 or key == "a") for key, x in values.items()}
        for key, parameter in parameters.items():
            parameter.grad = torch.from_numpy(grads[key])
        optimiser.step()
        values, state = ours(values, grads, state, **options)
        for key, parameter in parameters.items():
            expected = parameter.detach().numpy()
            worst = max(worst, float(np.max(np.abs(values[key] - expected)) / np.max(np.abs(expected))))
    return worst


@pytest.mark.parametrize("decay", [0.0, 0.01, 0.3])
def test_adamw(decay: float) -> None:
    options = {"lr": 3e-2, "betas": (0.85, 0.97), "eps": 1e-6, "weight_decay": decay}
    assert gap(adamw, lambda torch: torch.optim.AdamW, options) <= 1e-14
    wrong = {"lr": 3e-2, "betas": (0.85, 0.97), "weight_decay": decay}
    assert gap(lambda *a, **k: adamw(*a, **{**k, "eps": 1e-3}), lambda torch: torch.optim.AdamW, wrong) > 1e-6


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd(momentum: float) -> None:
    options = {"lr": 3e-2, "momentum": momentum, "weight_decay": 0.1}
    assert gap(sgd, lambda torch: torch.optim.SGD, options) <= 1e-14
