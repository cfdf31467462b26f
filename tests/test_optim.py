"""SGD and AdamW as pure steps, by hand and on any array library."""

import math
from typing import Any

import numpy as np
import pytest

from randlora_ref.optim import START, State, adamw, sgd


def test_sgd_by_hand(library: Any) -> None:
    """θ = 4 with gradients 2 and 1, lr 1/2, momentum 1/2, decay 1/4: v = 3, then 1.5 + 1 + 0.625."""
    values, state = {"a": library.array(np.array([4.0]))}, START
    moved = []
    for gradient in (2.0, 1.0):
        grads = {"a": library.array(np.array([gradient]))}
        values, state = sgd(values, grads, state, lr=0.5, momentum=0.5, weight_decay=0.25)
        moved.append(float(library.host(values["a"])[0]))
    assert moved == [2.5, 0.9375]
    assert state.step == 2


def test_adamw_by_hand(library: Any) -> None:
    """Two steps of one number, written out as in Algorithm 2."""
    theta, m, v, lr, eps, decay = 1.5, 0.0, 0.0, 0.1, 1e-3, 0.2
    values, state = {("layer", "gamma"): library.array(np.array([theta]))}, START
    for t, g in ((1, 0.25), (2, -2.0)):
        theta -= lr * decay * theta
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        theta -= lr * (m / (1 - 0.8**t)) / (math.sqrt(v / (1 - 0.9**t)) + eps)
        grads = {("layer", "gamma"): library.array(np.array([g]))}
        values, state = adamw(values, grads, state, lr=lr, betas=(0.8, 0.9), eps=eps, weight_decay=decay)
    assert abs(float(library.host(values["layer", "gamma"])[0]) - theta) <= 4e-16 * abs(theta)


@pytest.mark.parametrize("step", [sgd, adamw])
def test_nothing_is_changed_and_the_same_step_gives_the_same(library: Any, step: Any) -> None:
    rng = np.random.default_rng(0)
    values = {key: library.array(rng.standard_normal((3, 2)).astype(np.float32)) for key in "ab"}
    grads = {key: library.array(rng.standard_normal((3, 2)).astype(np.float32)) for key in "ab"}
    before = {key: library.host(x).copy() for key, x in values.items()}
    first, state = step(values, grads, lr=0.1)
    second, _ = step(values, grads, lr=0.1)
    third, after = step(first, grads, state, lr=0.1)
    for key in "ab":
        assert np.array_equal(library.host(values[key]), before[key])
        assert np.array_equal(library.host(first[key]), library.host(second[key]))
        assert library.host(third[key]).dtype == np.float32
        assert not np.array_equal(library.host(third[key]), library.host(first[key]))
    assert (START, state.step, after.step) == (State(0, {}, {}), 1, 2)


@pytest.mark.parametrize("step", [sgd, adamw])
def test_bad_arguments(step: Any) -> None:
    x = np.ones(3)
    with pytest.raises(KeyError, match="'b'"):
        step({"b": x}, {"a": x}, lr=0.1)
    with pytest.raises(ValueError, match=r"grads\['b'\]: shape \(2,\)"):
        step({"b": x}, {"b": x[:2]}, lr=0.1)
    _, state = step({"a": x}, {"a": x}, lr=0.1)
    with pytest.raises(KeyError, match="'b'"):
        step({"b": x}, {"b": x}, state, lr=0.1)
