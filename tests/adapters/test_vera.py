"""VeRA: exact on integers, from bases larger than the layer, its count, its start, what it refuses."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from randlora_ref.adapters import VeRA, vera_bases


def arguments(case: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Shared bases two columns and one row larger than the layer: what the layer does not use is a rogue value."""
    (out_features, in_features), r = case.shape, case.rank
    learned = {"lambda_b": case.integers(out_features, salt=1), "lambda_d": case.integers(r, salt=2)}
    A, B = np.full((r, in_features + 2), 7777), np.full((out_features + 1, r), 7777)
    A[:, :in_features], B[:out_features] = (
        case.integers(r, in_features, salt=3),
        case.integers(out_features, r, salt=4),
    )
    return learned, {"A": A, "B": B}, {"rank": r}


def plain(shape: Any, lambda_b: Any, lambda_d: Any, A: Any, B: Any, rank: int) -> Any:
    return np.einsum("o,or,r,ri->oi", lambda_b, B[: shape[0]], lambda_d, A[:, : shape[1]])


METHOD = SimpleNamespace(cls=VeRA, arguments=arguments, plain=plain)


@given(data=st.data())
def test_forward_and_gradients_are_exact_on_integers(properties: Any, library: Any, data: Any) -> None:
    properties.forward_and_gradients(METHOD, library, data.draw(properties.cases))


@given(data=st.data())
def test_update_factors_merge_count_replace(properties: Any, library: Any, data: Any) -> None:
    properties.update(METHOD, library, data.draw(properties.cases))


@given(data=st.data())
def test_complex_values_pass_through(properties: Any, library: Any, data: Any) -> None:
    properties.complex_values(METHOD, library, data.draw(properties.cases))


def test_start_is_pefts(properties: Any, library: Any) -> None:
    adapter = properties.starts(lambda **other: VeRA.start(90, 54, 24, **other), library)
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


def test_bad_input(properties: Any) -> None:
    good = {
        "out_features": 5,
        "in_features": 3,
        "rank": 2,
        "A": np.ones((2, 3)),
        "B": np.ones((5, 2)),
        "lambda_b": np.ones(5),
        "lambda_d": np.ones(2),
    }
    properties.refusals(lambda: VeRA(**good), good)
    with pytest.raises(ValueError, match=r"A: shape \(2, 2\); it must be \(2, 3\) or wider"):
        VeRA(**{**good, "A": np.ones((2, 2))})
    with pytest.raises(ValueError, match=r"d_initial: inf"):
        VeRA.start(5, 3, d_initial=float("inf"))
    with pytest.raises(ValueError, match=r"shapes: \[\]"):
        vera_bases([])
