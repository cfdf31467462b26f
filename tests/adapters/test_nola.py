"""NoLA: its count, its start, what it refuses."""

import numpy as np
import pytest

from randlora_ref.adapters import NoLA


def test_start_is_the_papers_code() -> None:
    adapter = NoLA.start(9, 7, 2, num_bases=50, dtype="float64")
    assert np.all(adapter.c0 == 1 / 50)
    assert np.all(adapter.c1 == 1 / 50)
    default = NoLA.start(6, 5)
    assert default.A.shape == (1024, 1, 5)
    assert default.B.shape == (1024, 6, 1)
    assert default.scaling == 1
    assert np.all(default.c0 == np.float32(1 / 1024))
    assert abs(np.std(default.A) - 1) < 0.02


def test_bases_of_a_smaller_layer_begin_those_of_a_larger() -> None:
    small, large = NoLA.start(4, 3, 2, num_bases=5), NoLA.start(9, 8, 2, num_bases=5)
    np.testing.assert_array_equal(small.A, large.A[:, :, :3])
    np.testing.assert_array_equal(small.B, large.B[:, :4, :])


def test_count() -> None:
    assert NoLA.start(77, 33).num_parameters() == 2048


def test_bad_input() -> None:
    good = {
        "out_features": 5,
        "in_features": 3,
        "rank": 2,
        "A": np.ones((4, 2, 3)),
        "B": np.ones((4, 5, 2)),
        "c0": np.ones(4),
        "c1": np.ones(4),
    }
    with pytest.raises(ValueError, match=r"c1: shape \(3,\); it must be \(4,\)"):
        NoLA(**{**good, "c1": np.ones(3)})
    for wrong in (0, 2.0, True):
        with pytest.raises(ValueError, match=rf"num_bases: {wrong}; it must be a positive integer"):
            NoLA.start(5, 3, num_bases=wrong)
    with pytest.raises(ValueError, match=r"alpha: nan"):
        NoLA.start(5, 3, num_bases=2, alpha=float("nan"))
