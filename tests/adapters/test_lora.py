"""LoRA: its count, its start, what it refuses."""

import re

import numpy as np
import pytest

from randlora_ref.adapters import LoRA


def test_start_is_distributed_as_pefts() -> None:
    """B is zero; A is bounded by 1/√in, and as near to uniform as 999 of 1,000 samples (Kolmogorov)."""
    adapter = LoRA.start(50, 400, 16, dtype="float64")
    assert adapter.scaling == 0.5
    assert not np.any(adapter.B)
    assert 0.999 < np.max(np.abs(adapter.A)) * 20 <= 1
    share = np.sort(20 * adapter.A, axis=None) / 2 + 0.5
    assert np.max(np.abs(share - (np.arange(share.size) + 0.5) / share.size)) <= 1.95 / share.size**0.5
    assert np.any(LoRA.start(50, 400, 16, dtype="float64", seed=1).A != adapter.A)
    np.testing.assert_array_equal(LoRA.start(50, 400, 16, dtype="float16").A, adapter.A.astype("f4").astype("f2"))


def test_count() -> None:
    assert LoRA.start(768, 3072, 4).num_parameters() == 4 * (768 + 3072)


def test_bad_input() -> None:
    good = {"out_features": 5, "in_features": 3, "rank": 2, "A": np.ones((2, 3)), "B": np.ones((5, 2)), "alpha": 1}
    for alpha in (float("nan"), "8", None, True):
        with pytest.raises(ValueError, match=re.escape(f"alpha: {alpha!r}; it must be a finite number")):
            LoRA(**{**good, "alpha": alpha})
    with pytest.raises(ValueError, match=r"seed: -1; it must be"):
        LoRA.start(5, 3, seed=-1)
    for sizes in ((0, 3), (5, -3), (5, 3.0)):
        with pytest.raises(ValueError, match=r"shape: "):
            LoRA.start(*sizes)
    with pytest.raises(ValueError, match=r"rank: 0; it must be a positive integer"):
        LoRA.start(5, 3, 0)
