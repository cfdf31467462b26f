"""Standard fine-tuning: exact on integers, its count, its start, what it refuses."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from randlora_ref.adapters import FullFineTuning


def arguments(case: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    return {"delta": case.integers(*case.shape, salt=1)}, {}, {}


def plain(shape: Any, delta: Any) -> Any:
    return delta


METHOD = SimpleNamespace(cls=FullFineTuning, arguments=arguments, plain=plain)


@given(data=st.data())
def test_forward_and_gradients_are_exact_on_integers(properties: Any, library: Any, data: Any) -> None:
    properties.forward_and_gradients(METHOD, library, data.draw(properties.cases))


@given(data=st.data())
def test_update_factors_merge_count_replace(properties: Any, library: Any, data: Any) -> None:
    properties.update(METHOD, library, data.draw(properties.cases))


@given(data=st.data())
def test_complex_values_pass_through(properties: Any, library: Any, data: Any) -> None:
    properties.complex_values(METHOD, library, data.draw(properties.cases))


def test_without_dropout_its_gradient_is_the_weights() -> None:
    rng = np.random.default_rng(0)
    adapter = FullFineTuning.start(5, 3, dtype="float64")
    _, cache = adapter.forward(rng.normal(size=(4, 3)), rng.normal(size=(5, 3)))
    _, grads = adapter.backward(rng.normal(size=(4, 5)), cache, weight_grad=True)
    np.testing.assert_array_equal(grads.delta, grads.weight)


def test_start_and_count(properties: Any, library: Any) -> None:
    adapter = properties.starts(lambda **other: FullFineTuning.start(6, 5, **other), library)
    assert adapter.num_parameters() == 30


def test_bad_input(properties: Any) -> None:
    good = {"out_features": 5, "in_features": 3, "delta": np.ones((5, 3))}
    properties.refusals(lambda: FullFineTuning(**good), good)
    with pytest.raises(ValueError, match=r"delta: shape \(3, 5\); it must be \(5, 3\)"):
        FullFineTuning(**{**good, "delta": np.ones((3, 5))})
