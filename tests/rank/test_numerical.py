"""Singular values and the figures read off them."""

import builtins
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from randlora_ref.rank import certify_rank, plot_spectra, spectrum


def rotated(values: list[float], seed: int = 0) -> np.ndarray:
    """A matrix with these singular values."""
    rng = np.random.default_rng(seed)
    k = len(values)
    left, right = (np.linalg.qr(rng.normal(size=(k + 2, k)))[0] for _ in range(2))
    return (left * values) @ right.T


def test_figures_of_a_known_spectrum() -> None:
    figures = spectrum(rotated([4.0, 2.0, 1.0, 1e-3]), threshold=0.5)
    np.testing.assert_allclose(figures.values, [4, 2, 1, 1e-3, 0, 0], atol=1e-14)
    assert figures.rank == 3
    assert figures.threshold == 0.5
    assert figures.stable_rank == pytest.approx((16 + 4 + 1 + 1e-6) / 16)
    share = np.array([4, 2, 1, 1e-3]) / 7.001
    assert figures.effective_rank == pytest.approx(np.prod(share**-share))
    assert spectrum(np.eye(7)).effective_rank == pytest.approx(7)
    assert spectrum(np.eye(7)).stable_rank == pytest.approx(7)


def test_a_matrix_of_any_array_library(library: Any) -> None:
    """The same figures, and it is said that they are of the stored matrix."""
    matrix = np.random.default_rng(0).standard_normal((4, 5))
    found, expected = spectrum(library.array(matrix)), spectrum(matrix)
    assert np.array_equal(found.values, expected.values)
    assert found.source == expected.source == "of the stored matrix"


def test_default_threshold_is_stated_and_scales() -> None:
    for scale in (1e-200, 1.0, 1e200):
        figures = spectrum(scale * rotated([3.0, 1.0]))
        assert figures.rank == 2
        assert figures.threshold == pytest.approx(scale * 3 * 4 * 2.0**-52)


@pytest.mark.parametrize("exponent", [-1060, -600, 0, 600, 1015])
def test_figures_at_the_ends_of_the_range(exponent: int) -> None:
    """Values near the overflow threshold or among the subnormal numbers have the rank of their unscaled matrix."""
    matrix = np.ldexp(np.array([[3.0, 0, 0], [0, 2.0, 0], [0, 0, 0], [0, 0, 0]]), exponent)
    figures = spectrum(matrix)
    assert figures.values.tolist() == [math.ldexp(3, exponent), math.ldexp(2, exponent), 0]
    assert figures.rank == 2
    assert figures.stable_rank == pytest.approx(13 / 9)
    assert figures.effective_rank == pytest.approx(0.6**-0.6 * 0.4**-0.4)
    assert spectrum(matrix, threshold=math.ldexp(2.5, exponent)).rank == 1
    largest = spectrum(np.full((3, 3), 1e308))  # σ is 3e308, beyond float64
    assert (largest.rank, largest.values[0]) == (1, math.inf)


def test_rounding_makes_a_stored_product_full_where_its_factors_are_not() -> None:
    rng = np.random.default_rng(0)
    factors = ((rng.normal(size=(12, 3)), rng.normal(size=(3, 12))),)
    stored = (factors[0][0] @ factors[0][1]).astype(np.float32)
    assert certify_rank(factors).rank == 3
    assert certify_rank(stored).rank == 12
    assert spectrum(factors).rank == 3
    assert "stored matrix" in spectrum(stored).source
    assert "rounded to float64" in spectrum(factors).source


def test_zero_matrix() -> None:
    figures = spectrum(np.zeros((3, 2)))
    assert (figures.rank, figures.stable_rank, figures.effective_rank) == (0, 0.0, 0.0)


def test_json_and_lines() -> None:
    figures = spectrum(np.eye(3, dtype=np.float16))
    assert json.loads(json.dumps(figures.to_json()))["values"] == [1.0, 1.0, 1.0]
    assert "numerical rank 3 of 3" in figures.lines()[0]


@pytest.mark.parametrize("threshold", [-1.0, float("nan"), float("inf")])
def test_a_bad_threshold_is_named(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        spectrum(np.eye(2), threshold)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_overflow_of_the_product_is_said() -> None:
    big = np.full((2, 2), 1e300)
    with pytest.raises(ValueError, match="overflows"):
        spectrum(((big, big),))
    assert certify_rank(((big, big),)).rank == 1


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "spectra.png"
    plot_spectra({"identity": spectrum(np.eye(4)), "deficient": spectrum(rotated([2.0, 1.0]))}, path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_plot_without_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"randlora-ref\[plot\]"):
        plot_spectra({}, tmp_path / "x.png")
