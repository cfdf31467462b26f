"""Single precision at the ends of its range, beside the same formula in float64, whose range holds every square."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from randlora_ref import nn

U, TINY, LARGEST = 2.0**-24, float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
sizes = st.integers(-37, 37)  # powers of ten that float32 holds, with a digit to spare


def normal(data: Any, *shape: int) -> np.ndarray:
    return np.random.default_rng(data.draw(st.integers(0, 2**32 - 1))).standard_normal(shape)


@given(st.data())
def test_cross_entropy_at_any_spread_and_shift(library: Any, data: Any) -> None:
    """Each entry of ∂L/∂z within ((40·max(1, √(V/256)) + max z − z)·u·(p + onehot))/N + the least normal number."""
    rows, size = data.draw(st.integers(1, 5)), data.draw(st.sampled_from([1, 2, 7, 300, 5000]))
    spread, shift = data.draw(st.sampled_from([0.0, 1.0, 30.0, 1000.0])), data.draw(st.floats(-1000, 1000))
    z = (spread * normal(data, rows, size) + shift).astype(np.float32)
    labels = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=rows, max_size=rows)))
    loss, cache = nn.cross_entropy(library.array(z), library.array(labels))
    wide = z.astype(np.float64)
    below = np.max(wide, axis=1, keepdims=True) - wide
    p = np.exp(-below) / np.sum(np.exp(-below), axis=1, keepdims=True)
    onehot = np.arange(size) == labels[:, None]
    limit = (40 * max(1.0, math.sqrt(size / 256)) + below) * U * (p + onehot) / rows + TINY
    found = library.host(nn.cross_entropy_backward(cache))
    assert found.dtype == np.float32
    assert np.all(np.abs(found - (p - 1.0 * onehot) / rows) <= limit)
    right = below[np.arange(rows), labels] + np.log(np.sum(np.exp(-below), axis=1))
    assert abs(library.host(loss) - np.mean(right)) <= 16 * max(1.0, math.sqrt(size / 256)) * U * np.mean(1 + right)


@given(st.data())
def test_normalize_at_any_size(library: Any, data: Any) -> None:
    """A vector of any length has the length one, and its gradient is dy's part across it over that length."""
    size, width = 10.0 ** data.draw(sizes), data.draw(st.integers(1, 9))
    x, dy = (size * normal(data, 3, width)).astype(np.float32), normal(data, 3, width).astype(np.float32)
    x[2] = 0
    y, cache = nn.normalize(library.array(x))
    wide = x.astype(np.float64)
    length = np.sqrt(np.sum(wide**2, axis=1, keepdims=True))
    right = wide / np.where(length == 0, 1, length)
    assert np.all(np.abs(library.host(y) - right) <= 16 * U)
    assert not np.any(library.host(y)[2])
    with np.errstate(over="ignore"):
        dx = library.host(nn.normalize_backward(library.array(dy), cache))
    across = (dy - right * np.sum(right * dy, axis=1, keepdims=True)) / np.where(length == 0, 1, length)
    held = np.abs(across) < LARGEST / 2
    most = np.sum(np.abs(dy), axis=1, keepdims=True) / np.where(length == 0, 1, length)
    assert np.all((np.abs(dx - across) <= 32 * U * most + TINY)[held])


@pytest.mark.parametrize("function", [nn.layer_norm, nn.rms_norm])
@given(st.data())
def test_norms_at_any_size(library: Any, function: Any, data: Any) -> None:
    """Rows of any size, constant ones and zeros among them, and any ε: what float64 computes, to a gauge."""
    size, width = 10.0 ** data.draw(sizes), data.draw(st.sampled_from([1, 2, 7, 64, 600]))
    eps = data.draw(st.sampled_from([1e-12, 1e-6, 1e-5, 0.5]))
    x, dy = (size * normal(data, 4, width)).astype(np.float32), normal(data, 4, width).astype(np.float32)
    x[1], x[2] = 0, np.float32(size)
    x[3] += np.float32(data.draw(st.sampled_from([0.0, 3.0]))) * np.float32(size)
    weight, bias = normal(data, width).astype(np.float32), normal(data, width).astype(np.float32)
    y, cache = function(*(library.array(part) for part in (x, weight, bias)), eps)
    wide = x.astype(np.float64)
    c = wide - np.mean(wide, axis=1, keepdims=True) * (function is nn.layer_norm)
    root = np.sqrt(np.mean(c**2, axis=1, keepdims=True) + eps)
    x_hat = c / root
    # c errs by its mean's rounding, which is all there is of it in a constant row
    m = max(1.0, math.sqrt(width / 256))
    slip = 16 * m * U * (np.max(np.abs(wide), axis=1, keepdims=True) / root + np.abs(x_hat))
    g = dy.astype(np.float64) * weight
    if np.max(slip) < 1e-2:  # else nothing is left of a row but rounding
        limit = slip * np.abs(weight) + 4 * U * (np.abs(x_hat * weight) + np.abs(bias)) + TINY
        assert np.all(np.abs(library.host(y) - (x_hat * weight + bias)) <= limit)
        dx = library.host(nn.norm_backward(library.array(dy), cache)[0])
        right = (g - np.mean(g, axis=1, keepdims=True) * (function is nn.layer_norm)) / root
        right = right - x_hat * np.mean(x_hat * g, axis=1, keepdims=True) / root
        most = (np.abs(g) + np.mean(np.abs(g), axis=1, keepdims=True)) * (1 + x_hat**2 + np.mean(x_hat**2)) / root
        held = np.abs(right) < LARGEST / 2
        assert np.all((np.abs(dx - right) <= 8 * (slip + 4 * U) * most * width**0.5 + TINY)[held])
    assert np.all(np.isfinite(library.host(y)))


@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh", "quick_gelu", "silu"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_activations_far_out(library: Any, kind: str, dtype: Any) -> None:
    """Far to the right f(x) = x with slope 1, far to the left both are 0: to the largest number there is."""
    largest = float(np.finfo(dtype).max)
    x = np.array([50.0, 1e3, 2e19, 1e30, 3e38, largest], dtype)
    with np.errstate(under="ignore"):
        for sign in (1, -1):
            value, slope = (library.host(part) for part in nn.activation(library.array(sign * x), kind))
            assert np.all(np.abs(value - (x if sign > 0 else 0)) <= 1e-18 * (sign < 0))
            assert np.all(np.abs(slope - (sign > 0)) <= 1e-18)


@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh", "quick_gelu", "silu"])
def test_complex_activations_far_out(library: Any, kind: str) -> None:
    """Where the complex step looks as well: the real part is the real function's, the imaginary part its slope's."""
    x = np.array([50.0, -50.0, 1e3, -1e3, 1e30, -1e30])
    with np.errstate(under="ignore"):
        value = library.host(nn.activation(library.array(x + 1e-30j), kind)[0])
        right, slope = (library.host(part) for part in nn.activation(library.array(x), kind))
    assert np.all(np.abs(value.real - right) <= 1e-15 * np.abs(right))
    assert np.all(np.abs(value.imag / 1e-30 - slope) <= 1e-15)


@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh", "quick_gelu", "silu"])
def test_activations_do_not_jump_where_they_are_cut(library: Any, kind: str) -> None:
    """Around the places beyond which a slope is constant, neighbours have neighbouring values and slopes."""
    for place in (10.0, 22.0, 800.0, 800 / 1.702, 27.5 * math.sqrt(2), 13 * math.sqrt(2)):
        for sign in (1, -1):
            x = sign * (place + np.array([-1e-9, 0.0, 1e-9]))
            value, slope = (library.host(part) for part in nn.activation(library.array(x), kind))
            assert np.all(np.abs(np.diff(value)) <= 2e-9)
            assert np.all(np.abs(np.diff(slope)) <= 1e-9)
