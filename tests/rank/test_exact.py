"""Arithmetic modulo primes on float64: residues, products, elimination, Hadamard's bound."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from randlora_ref import arrays
from randlora_ref.rank import exact, factors

P = 4194301  # the largest prime below 2²²
SMALL_P = 2097169  # the least above 2²¹
primes = st.sampled_from([P, SMALL_P, 3145739])


def residue(x: Fraction, p: int) -> int:
    return x.numerator * pow(x.denominator, -1, p) % p


def determinant(rows: list[list[int]]) -> int:
    """By Leibniz' formula."""
    total = 0
    for order in itertools.permutations(range(len(rows))):
        sign = (-1) ** sum(a > b for a, b in itertools.combinations(order, 2))
        total += sign * math.prod(rows[i][j] for i, j in enumerate(order))
    return total


def rank_by_rows(rows: list[list[int]], p: int) -> int:
    """Rank modulo p on Python's integers, row by row."""
    rows, rank = [row[:] for row in rows], 0
    for column in range(len(rows[0])):
        pivot = next((i for i in range(rank, len(rows)) if rows[i][column] % p), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        inverse = pow(rows[rank][column], -1, p)
        for i in range(rank + 1, len(rows)):
            ratio = rows[i][column] * inverse % p
            rows[i] = [(a - ratio * b) % p for a, b in zip(rows[i], rows[rank], strict=True)]
        rank += 1
    return rank


def test_the_primes_are_all_of_them_between_two_powers_of_two() -> None:
    found = exact.primes()
    assert len(found) == 295947 - 155611  # pi(2^22) - pi(2^21)
    assert found[0] == SMALL_P
    assert found[-1] == P
    for p in [*found[:50], *found[-50:]]:
        assert all(p % q for q in range(2, 2049))


@given(st.data(), primes)
def test_reduce_is_floor_modulo_up_to_the_last_integer(data: st.DataObject, p: int) -> None:
    near = st.integers(0, 2**53 // p - 2).flatmap(lambda k: st.integers(-2, 2).map(lambda j: k * p + j))
    wide = st.integers(-(2**53) + p, 2**53 - p)
    integers = data.draw(st.lists(near | near.map(int.__neg__) | wide, min_size=1, max_size=20))
    integers = [max(x, -(2**53) + p) for x in integers]
    assert exact.reduce(np.array(integers, dtype=np.float64), p).tolist() == [x % p for x in integers]


def test_reduce_works_in_blocks_that_cover_everything() -> None:
    x = np.arange(3 * arrays.BLOCK + 17, dtype=np.float64)
    assert (exact.reduce(x.copy(), 101) == np.arange(x.size) % 101).all()
    wide = np.arange(4 * arrays.BLOCK, dtype=np.float64).reshape(2, -1)
    assert (exact.reduce(wide.copy(), 101) == np.arange(wide.size).reshape(wide.shape) % 101).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@given(st.data(), primes)
def test_residues_of_floats_are_those_of_their_fractions(dtype: str, data: st.DataObject, p: int) -> None:
    width = int(dtype[5:])
    finite = st.floats(width=width, allow_nan=False, allow_infinity=False)
    corners = st.sampled_from([float(np.finfo(dtype).max), float(np.finfo(dtype).smallest_subnormal), -0.0, 0.0])
    values = data.draw(hnp.arrays(dtype, hnp.array_shapes(max_dims=2), elements=finite | corners, fill=st.nothing()))
    expected = [residue(Fraction(float(x)), p) for x in values.ravel()]
    assert exact.residues(values, p).ravel().tolist() == expected


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "uint64", "bool"])
def test_residues_of_integers(dtype: str) -> None:
    ends = [0, 1] if dtype == "bool" else [np.iinfo(dtype).min, 0, 1, 100, np.iinfo(dtype).max]
    assert exact.residues(np.array(ends, dtype), P).tolist() == [int(x) % P for x in ends]


@pytest.mark.parametrize("inner", [1, 511, 512, 513, 1500])
def test_products_of_the_largest_residues_stay_exact(inner: int) -> None:
    left, right = np.full((2, inner), P - 1), np.full((inner, 3), P - 1)
    right[:, 1] = np.arange(inner)
    value = factors.evaluate(((left, right),), exact.residue_ring(P))
    expected = [
        [int(sum(int(a) * int(b) for a, b in zip(row, column, strict=True))) % P for column in right.T] for row in left
    ]
    assert value.tolist() == expected


@given(st.data(), primes)
def test_a_sum_of_products_has_the_residues_of_its_fractions(data: st.DataObject, p: int) -> None:
    draw = data.draw
    D, r, d = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 5))
    values = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-3, 3).map(float)

    def array(*shape: int) -> np.ndarray:
        return draw(hnp.arrays(np.float64, shape, elements=values, fill=st.nothing()))

    terms = (
        (array(D, r), array(r), array(r, d), array(d)),
        (array(D), ((array(D, r), array(r, d)), (array(D, d),))),
        (array(D, d), array(d, d), array(d)),
    )

    def exactly(i: int, j: int) -> Fraction:
        F = [[np.vectorize(Fraction, otypes=[object])(f) if not isinstance(f, tuple) else f for f in t] for t in terms]
        (b, lam, a, gam), (left, _), (m, q, diagonal) = F
        (b2, a2), (c,) = terms[1][1]
        b2, a2, c = (np.vectorize(Fraction, otypes=[object])(x) for x in (b2, a2, c))
        first = sum(b[i, k] * lam[k] * a[k, j] * gam[j] for k in range(r))
        second = left[i] * (sum(b2[i, k] * a2[k, j] for k in range(r)) + c[i, j])
        return first + second + sum(m[i, k] * q[k, j] for k in range(d)) * diagonal[j]

    value = factors.evaluate(terms, exact.residue_ring(p))
    assert value.tolist() == [[residue(exactly(i, j), p) for j in range(d)] for i in range(D)]


@given(st.data())
def test_elimination_finds_the_rank_and_a_minor_that_shows_it(data: st.DataObject) -> None:
    m, c, inner = (data.draw(st.integers(1, k)) for k in (9, 9, 4))
    entries = st.integers(-2, 2) | st.integers(0, P - 1)
    left = data.draw(hnp.arrays(np.int64, (m, inner), elements=entries))
    right = data.draw(hnp.arrays(np.int64, (inner, c), elements=entries))
    matrix = np.array(
        [[sum(int(a) * int(b) for a, b in zip(row, column, strict=True)) % P for column in right.T] for row in left]
    )
    before = matrix.astype(np.float64)
    given_matrix = before.copy()
    given_matrix.setflags(write=False)
    found = exact.eliminate(given_matrix, P)
    assert found.rank == rank_by_rows(matrix.tolist(), P) == len(found.rows) == len(found.columns)
    if found.rank:
        minor = matrix[np.ix_(found.rows, found.columns)]
        assert determinant(minor.tolist()) % P != 0


@pytest.mark.parametrize(("m", "c"), [(1, 1), (700, 600), (600, 700), (513, 512), (40, 1100)])
def test_elimination_across_panels(m: int, c: int) -> None:
    rng = np.random.default_rng(m + c)
    k = max(1, min(m, c) * 9 // 10)
    left, right = rng.integers(0, 3, (m, k)), rng.integers(0, 3, (k, c))
    left[:, :k][:k] += 5 * np.eye(k, dtype=int)  # full rank k: certified below by the dominant diagonal of one block
    left[:k] = np.triu(left[:k])
    right[:, :k] = np.triu(right[:, :k]) * (1 - np.eye(k, dtype=int)) + np.eye(k, dtype=int)
    product = (left @ right) % P
    found = exact.eliminate(product.astype(np.float64), P)
    assert found.rank == k  # both factors hold a triangular block with a diagonal that is not zero
    assert len(set(found.rows.tolist())) == len(set(found.columns.tolist())) == k


def test_zero_and_progress() -> None:
    assert exact.eliminate(np.zeros((5, 3)), P).rank == 0
    seen: list[float] = []
    exact.eliminate(
        np.random.default_rng(0).integers(0, P, (1100, 1100)).astype(float), P, lambda _, part: seen.append(part)
    )
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_folding_rows_can_only_lower_the_rank() -> None:
    rng = np.random.default_rng(5)
    tall = rng.integers(-3, 4, (50, 8)).astype(float)
    assert exact.rank_modulo(((tall,),), P, fold_seed=1).rank == 8
    signed = np.vstack((np.eye(8), -np.eye(8)))  # plain sums of its rows would vanish
    assert exact.rank_modulo(((signed,),), P, fold_seed=1).rank == 8
    sparse = np.zeros((16, 8))
    sparse[0, 0] = sparse[8, 1] = 1  # both fold onto one row
    assert exact.rank_modulo(((sparse,),), P, fold_seed=1).rank == 1
    assert exact.rank_modulo(((sparse,),), P).rank == 2


@given(st.data())
def test_no_minor_exceeds_its_bound(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 4))
    entries = st.sampled_from([0.0, 1.0, -1.0, 2.0, -3.0, 5.0, 0.625, 2.0**-24, 65504.0, -1e300, 5e-324])
    left = data.draw(hnp.arrays(np.float64, (4, 3), elements=entries, fill=st.nothing()))
    right = data.draw(hnp.arrays(np.float64, (3, 5), elements=entries, fill=st.nothing()))
    terms = ((left, right), (left[:, :2], right[:2]))
    low = exact._exponents(terms)[0]
    product = [
        [
            sum(Fraction(left[i, k]) * Fraction(right[k, j]) * (2 if k < 2 else 1) for k in range(3))
            / Fraction(2) ** low
            for j in range(5)
        ]
        for i in range(4)
    ]
    assert all(x.denominator == 1 for row in product for x in row)
    bound = exact.minor_bits(terms, size)
    for rows in itertools.combinations(range(4), size):
        for columns in itertools.combinations(range(5), size):
            minor = determinant([[int(product[i][j]) for j in columns] for i in rows])
            assert minor == 0 or math.log2(abs(minor)) <= bound


def test_the_bound_is_tight_where_terms_differ_in_size() -> None:
    terms = ((np.full((1, 1), 2.0**-300),), (np.ones((1, 1)),))  # 2^-300·(2^300 + 1)
    assert exact.minor_bits(terms, 1) == pytest.approx(300, abs=0.01)


@pytest.mark.crosscheck
@given(st.integers(0, 2**32 - 1))
def test_elimination_agrees_with_flint(seed: int) -> None:
    flint = pytest.importorskip("flint")
    rng = np.random.default_rng(seed)
    m, c, k = rng.integers(1, 150, 3)
    product = (rng.integers(0, P, (m, k)).astype(object) @ rng.integers(0, P, (k, c)).astype(object)) % P
    theirs = flint.nmod_mat(int(m), int(c), [int(x) for x in product.ravel()], P).rank()
    assert exact.eliminate(product.astype(np.float64), P).rank == theirs
