"""Bounds that factors show by themselves: never too low, and each finds what it is for."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from randlora_ref.rank import predicted_rank, randlora_factors, structure


def draw_randlora(data: st.DataObject, zeros: bool = True) -> tuple[np.ndarray, ...]:
    """A (r, d), B (n, D, r), Λ (n, r), Γ (n, d) of small integers, zeros among them."""
    n, r, d = (data.draw(st.integers(1, k)) for k in (4, 3, 5))
    D = data.draw(st.integers(d, 7))
    entries = st.sampled_from([0, 0, 1, -1, 2] if zeros else [1, -1, 2, 3])
    return tuple(
        data.draw(hnp.arrays(np.float32, shape, elements=entries, fill=st.nothing()))
        for shape in ((r, d), (n, D, r), (n, r), (n, d))
    )


def values(terms: Any) -> dict[str, int]:
    """The bounds by the first words of their reasons."""
    found = structure.bounds(terms)
    names = ("shape", "widths", "channels", "columns", "rows", "directions")
    return {name: bound.value for name, bound in zip(names, found, strict=False)}


@given(data=st.data())
def test_no_bound_is_below_the_rank(data: st.DataObject, true_rank: Callable[[Any], int]) -> None:
    terms = randlora_factors(*draw_randlora(data))
    rank = true_rank(terms)
    for bound in structure.bounds(terms):
        assert bound.value >= rank, bound.reason
    for candidate in structure.candidates(terms):
        assert np.prod([true_rank(part) for part in candidate.sums]) >= rank, candidate.reason


@given(data=st.data())
def test_khatri_rao_form_has_the_rank_of_the_update_where_the_bases_are_independent(
    data: st.DataObject, true_rank: Callable[[Any], int]
) -> None:
    A, _, lambda_, gamma = draw_randlora(data)
    n, r = lambda_.shape
    B = np.eye(n * r, dtype=np.float32).reshape(n * r, n, r).transpose(1, 0, 2)  # columns e_1 … e_nr
    terms = randlora_factors(A, B, lambda_, gamma)
    ranks = {c.reason: [true_rank(part) for part in c.sums] for c in structure.candidates(terms)}
    if lambda_.any():
        assert ranks["rank K, rows where Λ is not zero"] == [true_rank(terms)]
        assert ranks["rank [B_1 … B_n], columns where Λ is not zero"] == [np.count_nonzero(lambda_)]


def test_each_bound_finds_what_it_is_for() -> None:
    rng = np.random.default_rng(0)
    n, r, D, d = 3, 4, 20, 13
    A, B, lambda_, gamma = (rng.integers(1, 9, s).astype(float) for s in ((r, d), (n, D, r), (n, r), (n, d)))
    assert values(randlora_factors(A, B, lambda_, gamma)) == {
        "shape": 13, "widths": 12, "channels": 12, "columns": 13, "rows": 20, "directions": 12,
    }  # fmt: skip
    dead = A.copy()
    dead[:, 2:10] = 0
    assert values(randlora_factors(dead, B, lambda_, gamma))["columns"] == 5
    some = lambda_.copy()
    some[0, :3] = some[2, 1] = 0
    assert values(randlora_factors(A, B, some, gamma))["channels"] == 8
    equal = gamma.copy()
    equal[:] = gamma[0]
    assert values(randlora_factors(A, B, lambda_, equal))["directions"] == 4
    equal[1] = 0
    assert values(randlora_factors(A, B, lambda_, equal))["directions"] == 4
    flat = B.copy()
    flat[:, 3:] = 0
    assert values(randlora_factors(A, flat, lambda_, gamma))["rows"] == 3


def test_a_channel_blocked_on_either_side_does_not_count() -> None:
    left, middle, right = np.ones((5, 4)), np.array([0.0, 1, 1, 1]), np.ones((4, 5))
    left[:, 1] = 0
    right[2] = 0
    assert values(((left, middle, right),))["channels"] == 1
    nested = ((left, middle), (np.zeros((5, 4)),))
    assert values(((nested, right),))["channels"] == 1
    nested = ((np.eye(3), np.eye(3)),)
    assert values(((np.array([1.0, 0, 1]), nested),))["channels"] == 2
    assert values(((nested, np.array([1.0, 0, 0])),))["rows"] == 1


def test_counting_does_not_decide_this_one() -> None:
    A, gamma = np.array([[1.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    B = np.array([[[1.0], [0.0]], [[0.0], [1.0]], [[1.0], [0.0]]])
    found = structure.bounds(randlora_factors(A, B, np.ones((3, 1)), gamma))
    assert min(bound.value for bound in found) == 2  # the rank is 1: see test_certify.py


@pytest.mark.parametrize(("columns", "zero_probability", "rank"), [(400, 2 / 3, 6), (300, 0.93, 6), (200, 0.99, 6)])
def test_predicted_rank_is_the_mean_and_deviation_of_live_columns(
    columns: int, zero_probability: float, rank: int
) -> None:
    rng = np.random.default_rng(3)
    live = [(rng.random((rank, columns)) >= zero_probability).any(axis=0).sum() for _ in range(2000)]
    mean, deviation = predicted_rank(columns, zero_probability, rank)
    assert abs(np.mean(live) - mean) < 5 * deviation / 2000**0.5
    assert abs(np.std(live) / deviation - 1) < 0.1


def test_predicted_rank_at_the_ends() -> None:
    assert predicted_rank(10, 0.0, 3) == (10, 0)
    assert predicted_rank(10, 1.0, 3) == (0, 0)


def test_eq4_is_recognised_by_form_and_shared_basis_only() -> None:
    rng = np.random.default_rng(1)
    A, B, lambda_, gamma = (rng.normal(size=s) for s in ((2, 4), (2, 6, 2), (2, 2), (2, 4)))
    terms = randlora_factors(A, B, lambda_, gamma)
    eq4 = structure.as_randlora(terms)
    assert eq4 is not None
    assert all((x == y).all() for x, y in zip(eq4, (A, B, lambda_, gamma), strict=True))
    copied = tuple((b, lam, a.copy(), gam) for b, lam, a, gam in terms)
    assert structure.as_randlora(copied) is not None
    copied[1][2][0, 0] += 1
    assert structure.as_randlora(copied) is None  # A_j unshared
    assert structure.as_randlora(((B[0], A),)) is None
    assert structure.as_randlora(((((B[0], A),), lambda_[0], A, gamma[0]),)) is None
