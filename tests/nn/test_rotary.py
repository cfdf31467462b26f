"""Rotary tables: Llama 3.1's stretched frequencies by the published rule, and what is refused."""

import math
from typing import Any

import numpy as np
import pytest

from randlora_ref import nn
from randlora_ref.nn.rotary import RotaryScaling


def frequencies(width: int, theta: float, factor: float, low: float, high: float, longest: int) -> list[float]:
    """Llama 3.1's rule, one frequency after the other, by wavelength."""
    found = []
    for i in range(width // 2):
        f = theta ** (-2 * i / width)
        wavelength = 2 * math.pi / f
        if wavelength > longest / low:
            f = f / factor
        elif wavelength >= longest / high:
            smooth = (longest / wavelength - low) / (high - low)
            f = (1 - smooth) * f / factor + smooth * f
        found.append(f)
    return found


def test_llama3(library: Any) -> None:
    """All three ranges of wavelengths are there, and the tables are those of the rule, on every library."""
    width, theta, numbers = 24, 1000.0, (7.0, 1.5, 4.5, 100)
    expected = np.array(frequencies(width, theta, *numbers))
    plain = np.array([theta ** (-2 * i / width) for i in range(width // 2)])
    stretch = plain / expected
    assert np.sum(stretch == 1) >= 2
    assert np.sum(np.abs(stretch - 7) < 1e-12) >= 2
    assert np.sum((stretch > 1.01) & (stretch < 6.99)) >= 2
    like = library.array(np.zeros((1,)))
    cos, sin = (library.host(x) for x in nn.rotary_tables(like, 60, width, theta, scaling=RotaryScaling(*numbers)))
    angles = np.arange(60)[:, None] * expected
    assert np.max(np.abs(cos - np.cos(angles))) <= 1e-13
    assert np.max(np.abs(sin - np.sin(angles))) <= 1e-13


def test_linear_and_precision() -> None:
    """Linear scaling divides every place by the factor; tables have the precision of ``like``, whatever θ's type."""
    for dtype in (np.float32, np.float64):
        like = np.zeros(1, dtype)
        cos, sin = nn.rotary_tables(like, 9, 6, np.float64(100.0), scaling=RotaryScaling(np.float32(4.0)))
        half_cos, half_sin = nn.rotary_tables(like, 33, 6, 100)
        assert cos.dtype == sin.dtype == dtype
        assert np.max(np.abs(cos[8] - half_cos[2])) <= 2 * np.finfo(dtype).eps
        assert np.max(np.abs(sin[4] - half_sin[1])) <= 2 * np.finfo(dtype).eps


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"width": 5}, ValueError, "width: 5"),
        ({"width": 0}, ValueError, "width: 0"),
        ({"width": -2}, ValueError, "width: -2"),
        ({"width": 6.0}, ValueError, "width: 6.0"),
        ({"size": -1}, ValueError, "size: -1"),
        ({"size": 2.5}, ValueError, "size: 2.5"),
        ({"size": True}, ValueError, "size: True"),
        ({"theta": 0.0}, ValueError, "theta: 0.0"),
        ({"theta": -3.0}, ValueError, "theta: -3.0"),
        ({"theta": math.nan}, ValueError, "theta: nan"),
        ({"theta": math.inf}, ValueError, "theta: inf"),
        ({"theta": "1e4"}, ValueError, "theta: '1e4'"),
        ({"theta": True}, ValueError, "theta: True"),
        ({"scaling": 2.0}, ValueError, "scaling: .*float"),
        ({"scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 9.0}}, ValueError, "rope_theta"),
        ({"like": np.zeros(1, np.float16)}, TypeError, "like: dtype float16"),
        ({"like": np.zeros(1, int)}, TypeError, "like: dtype int64"),
        ({"like": [1.0]}, TypeError, "like: list"),
    ],
)
def test_tables_refuse(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"like": np.zeros(1), "size": 4, "width": 6, "theta": 100.0, **change}
    with pytest.raises(error, match=message):
        nn.rotary_tables(**given)


@pytest.mark.parametrize("name", ["x", "dy"])
def test_rotation_refuses_by_its_argument(name: str) -> None:
    """Forward blames x, backward dy: another precision, float16, another shape."""
    turn = {"x": nn.rotary, "dy": nn.rotary_backward}[name]
    tables = nn.rotary_tables(np.zeros(1), 5, 6, 100.0)
    with pytest.raises(TypeError, match=f"{name}: dtype float32|cos: dtype float64"):
        turn(np.zeros((5, 6), np.float32), tables)
    with pytest.raises(TypeError, match=f"{name}: dtype float16"):
        turn(np.zeros((5, 6), np.float16), tables)
    with pytest.raises(ValueError, match=f"{name}: shape"):
        turn(np.zeros((4, 6)), tables)
    with pytest.raises(TypeError, match=f"{name}: matrix"):
        turn(np.zeros((5, 6)).view(np.matrix), tables)
