"""Standard fine-tuning: its count, its start, what it refuses."""

import numpy as np
import pytest

from randlora_ref.adapters import FullFineTuning


def test_without_dropout_its_gradient_is_the_weights() -> None:
    rng = np.random.default_rng(0)
    adapter = FullFineTuning.start(5, 3, dtype="float64")
    _, cache = adapter.forward(rng.normal(size=(4, 3)), rng.normal(size=(5, 3)))
    _, grads = adapter.backward(rng.normal(size=(4, 5)), cache, weight_grad=True)
    np.testing.assert_array_equal(grads.delta, grads.weight)


def test_start_and_count() -> None:
    adapter = FullFineTuning.start(6, 5, dtype="float64")
    assert adapter.num_parameters() == 30


def test_bad_input() -> None:
    with pytest.raises(TypeError, match="seed"):
        FullFineTuning.start(5, 3, seed=1)
    good = {"out_features": 5, "in_features": 3, "delta": np.ones((5, 3))}
    with pytest.raises(ValueError, match=r"delta: shape \(3, 5\); it must be \(5, 3\)"):
        FullFineTuning(**{**good, "delta": np.ones((3, 5))})
