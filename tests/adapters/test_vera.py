"""VeRA: from bases larger than the layer, its count, its start, what it refuses."""

import numpy as np
import pytest

from randlora_ref.adapters import VeRA, vera_bases


def test_start_is_pefts() -> None:
    adapter = VeRA.start(90, 54, 24, dtype="float64")
    assert not np.any(adapter.lambda_b)
    assert np.all(adapter.lambda_d == 0.1)
    assert 0.99 < np.max(np.abs(adapter.A)) * 3 <= 1  # sqrt(6 / 54)
    assert 0.99 < np.max(np.abs(adapter.B)) * 2 <= 1  # sqrt(6 / 24)


def test_shared_bases() -> None:
    bases = vera_bases([(4, 9), (7, 3)], 2, dtype="float64")
    assert [part.shape for part in bases] == [(2, 9), (7, 2)]
    one, other = (VeRA.start(*shape, 2, bases=bases, dtype="float64") for shape in ((4, 9), (7, 3)))
    assert one.A is other.A
    np.testing.assert_array_equal(vera_bases([(7, 9)], 2, dtype="float64")[1], bases[1])


def test_count() -> None:
    assert VeRA.start(768, 3072, 256).num_parameters() == 768 + 256


def test_bad_input() -> None:
    good = {
        "out_features": 5,
        "in_features": 3,
        "rank": 2,
        "A": np.ones((2, 3)),
        "B": np.ones((5, 2)),
        "lambda_b": np.ones(5),
        "lambda_d": np.ones(2),
    }
    with pytest.raises(ValueError, match=r"A: shape \(2, 2\); it must be \(2, 3\) or wider"):
        VeRA(**{**good, "A": np.ones((2, 2))})
    with pytest.raises(ValueError, match=r"d_initial: inf"):
        VeRA.start(5, 3, d_initial=float("inf"))
    with pytest.raises(ValueError, match=r"shapes: \[\]"):
        vera_bases([])


@pytest.mark.parametrize(("rows", "rank", "merged"), [(1, 5, False), (3, 40, False), (64, 2, False), (64, 40, True)])
@pytest.mark.parametrize("shape", [(12, 7), (7, 12)])
def test_both_ways_are_the_formula(shape: tuple[int, int], rows: int, rank: int, merged: bool) -> None:
    """Few rows or a small rank go through thin products, many rows of a large rank through W0 + ΔW."""
    rng = np.random.default_rng(rows)
    adapter = VeRA.start(*shape, rank, dtype="float64")
    adapter = adapter.replace(lambda_b=rng.normal(size=shape[0]), lambda_d=rng.normal(size=rank))
    x, W, dy = (rng.normal(size=size) for size in ((rows, shape[1]), shape, (rows, shape[0])))
    y, cache = adapter.forward(x, W, keep_merged=True)
    assert (cache.inner[0] == "merged") == merged
    dx, grads = adapter.backward(dy, cache)
    delta = np.einsum("o,ok,k,ki->oi", adapter.lambda_b, adapter.B, adapter.lambda_d, adapter.A)
    G = dy.T @ x
    np.testing.assert_allclose(y, x @ (W + delta).T, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(dx, dy @ (W + delta), rtol=1e-10, atol=1e-12)
    d_lambda_b = np.einsum("oi,ok,k,ki->o", G, adapter.B, adapter.lambda_d, adapter.A)
    d_lambda_d = np.einsum("oi,o,ok,ki->k", G, adapter.lambda_b, adapter.B, adapter.A)
    np.testing.assert_allclose(grads.lambda_b, d_lambda_b, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(grads.lambda_d, d_lambda_d, rtol=1e-9, atol=1e-11)
