"""Certificates: right on every matrix of known rank, honest where they cannot be, and checkable by others."""

import hashlib
import io
import json
import math
import pickle
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from randlora_ref import spec
from randlora_ref.rank import (
    RankCertificate,
    certify_rank,
    load_factors,
    randlora_factors,
    rank_after_steps,
    spectrum,
)
from randlora_ref.rank.certify import shuffled_primes

Rank = Callable[[Any], int]
integers = st.integers(-4, 4).map(float)


def dense(D: int, d: int, r: int, n: int, dtype: str = "float32", seed: int = 0) -> list[np.ndarray]:
    """Random A (r, d), B (n, D, r), Λ (n, r), Γ (n, d)."""
    rng = np.random.default_rng(seed)
    return [rng.uniform(-1.7, 1.7, shape).astype(dtype) for shape in ((r, d), (n, D, r), (n, r), (n, d))]


def proven(certificate: RankCertificate, rank: int) -> bool:
    """Exact, and of this rank."""
    return certificate.exact and certificate.rank == rank and certificate.details["error_bound"] == 0


# ---------------------------------------------------------------------------------------------------------
# Right every time
# ---------------------------------------------------------------------------------------------------------


@given(data=st.data())
def test_plain_matrices(data: st.DataObject, true_rank: Rank) -> None:
    m, k, c = (data.draw(st.integers(1, 7)) for _ in range(3))
    left, right = (data.draw(hnp.arrays(np.float64, s, elements=integers)) for s in ((m, k), (k, c)))
    matrix = left @ right  # small integers: exact
    certificate = certify_rank(matrix)
    assert proven(certificate, true_rank(matrix))
    assert certificate.full == (certificate.rank == min(m, c))


@given(data=st.data(), dtype=st.sampled_from(["float16", "float32", "float64"]))
def test_randlora_updates_of_every_kind_of_float(data: st.DataObject, dtype: str, true_rank: Rank) -> None:
    n, r, d = (data.draw(st.integers(1, k)) for k in (3, 3, 5))
    D = data.draw(st.integers(d, 7))
    wild = st.floats(width=int(dtype[5:]), allow_nan=False, allow_infinity=False)
    entries = st.sampled_from([0.0, 1.0, -1.0]) | wild
    arrays = [
        data.draw(hnp.arrays(dtype, s, elements=entries, fill=st.nothing()))
        for s in ((r, d), (n, D, r), (n, r), (n, d))
    ]
    terms = randlora_factors(*arrays)
    assert proven(certify_rank(terms), true_rank(terms))


@settings(max_examples=20)
@given(data=st.data(), fault=st.sampled_from(["equal gamma", "zero lambda", "dead columns", "one short", "none"]))
def test_faults_of_known_rank(data: st.DataObject, fault: str, true_rank: Rank) -> None:
    r, n = data.draw(st.integers(1, 3)), data.draw(st.integers(2, 3))
    d = n * r
    A, B, lambda_, gamma = dense(d + data.draw(st.integers(0, 3)), d, r, n, seed=data.draw(st.integers(0, 2**20)))
    expected = d
    if fault == "equal gamma":
        gamma[:] = gamma[0]
        expected = r
    if fault == "zero lambda":
        lambda_[0, 0] = lambda_[n - 1, r - 1] = 0
        expected = d - 2
    if fault == "dead columns":
        A[:, : d // 2] = 0
        expected = d - d // 2
    if fault == "one short":
        B[1, :, 0] = 2 * B[0, :, 0]
        expected = d - 1
    terms = randlora_factors(A, B, lambda_, gamma)
    assert true_rank(terms) == expected
    certificate = certify_rank(terms)
    assert proven(certificate, expected)
    assert certificate.full == (fault == "none")


@pytest.mark.parametrize(
    ("D", "d", "r"), [(65, 64, 5), (200, 150, 16), (150, 150, 150), (300, 100, 32), (130, 120, 200)]
)
def test_dense_bases_are_full(D: int, d: int, r: int) -> None:
    certificate = certify_rank(randlora_factors(*dense(D, d, r, -(-d // r))))
    assert proven(certificate, d)
    assert certificate.full
    assert certificate.method == "full_modulo_prime"
    assert len(certificate.primes) == 1


def test_the_floor_of_d_over_r_is_not_enough() -> None:
    certificate = certify_rank(randlora_factors(*dense(100, 100, 32, 100 // 32)))
    assert proven(certificate, 96)
    assert certificate.method == "structure"
    assert "n·r" in certificate.details["above"]["reason"]


def test_structure_alone_does_not_decide_but_primes_do() -> None:
    A, gamma = np.array([[1.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    B = np.array([[[1.0], [0.0]], [[0.0], [1.0]], [[1.0], [0.0]]])
    certificate = certify_rank(randlora_factors(A, B, np.ones((3, 1)), gamma))
    assert proven(certificate, 1)
    assert certificate.method == "hadamard"
    assert min(bound["value"] for bound in certificate.details["bounds"][:-1]) == 2


@pytest.mark.parametrize("part", ["gamma", "A", "B"])
def test_a_dependent_part_of_a_large_update_is_found_and_proven(part: str) -> None:
    A, B, lambda_, gamma = dense(160, 150, 15, 10)
    if part == "gamma":
        gamma[5] = gamma[4] * 2  # rank(Γ) = 9
    elif part == "A":
        A[2] = A[1] - 0 * A[0]  # rank(A) = 14
    else:
        B[:, :, 1:] = B[:, :, :1] * np.float32(0.5)  # rank 𝐁 = 10
    certificate = certify_rank(randlora_factors(A, B, lambda_, gamma))
    assert proven(certificate, {"gamma": 135, "A": 140, "B": 10}[part])
    assert certificate.method == "hadamard"


def test_up_to_64_by_64_it_is_always_decided() -> None:
    A, B, lambda_, gamma = dense(64, 64, 4, 16, "float64")
    B[3, :, 2] = B[2, :, 1]
    certificate = certify_rank(randlora_factors(A, B, lambda_, gamma), work_limit=0)
    assert proven(certificate, 63)
    rng = np.random.default_rng(0)
    matrix = rng.integers(-9, 10, (64, 63)) @ rng.integers(-9, 10, (63, 64)) * 2.0**-1074
    assert proven(certify_rank(matrix, work_limit=0), 63)


def test_lora_vera_and_products_of_sums() -> None:
    rng = np.random.default_rng(2)
    B, A = rng.normal(size=(30, 5)), rng.normal(size=(5, 20))
    assert proven(certify_rank(((B, A),)), 5)
    A[4] = 3 * A[3]
    assert certify_rank(((B.copy(), A),)).rank == 5  # 3·x is rounded: the rows are not multiples of each other
    A[4] = 4 * A[3]
    assert proven(certify_rank(((B, A),)), 4)
    lambda_b, lambda_d = rng.normal(size=30), np.array([1.0, 0, 2, 0, 5])
    assert proven(certify_rank(((lambda_b, B, lambda_d, A),)), 3)
    halves = rng.normal(size=(3, 30, 4)), rng.normal(size=(3, 4, 20))
    of_sums = (tuple((b,) for b in halves[0]), tuple((a,) for a in halves[1]))
    assert proven(certify_rank((of_sums,)), 4)
    assert proven(certify_rank(tuple((b, a) for b, a in zip(*halves, strict=True))), 12)
    assert proven(certify_rank(((np.array([1.0, 0, 3]),),)), 2)


@pytest.mark.crosscheck
@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_integer_matrices_agree_with_flint(seed: int) -> None:
    flint = pytest.importorskip("flint")
    rng = np.random.default_rng(seed)
    m, c, k = rng.integers(1, 60, 3)
    matrix = rng.integers(-5, 6, (m, k)) @ rng.integers(-5, 6, (k, c))
    theirs = flint.fmpz_mat(int(m), int(c), matrix.ravel().tolist()).rank()
    assert proven(certify_rank(matrix), theirs)


# ---------------------------------------------------------------------------------------------------------
# Honest, and checkable
# ---------------------------------------------------------------------------------------------------------


def test_past_the_limit_it_says_probable_with_its_bound() -> None:
    matrix = dense(90, 90, 90, 1)[0]
    matrix[0] = matrix[1]
    undecided = certify_rank(matrix, work_limit=0)
    assert not undecided.exact
    assert undecided.method == "at_most_probable"
    assert undecided.rank == 89
    assert 0 < undecided.details["error_bound"] < 0.01
    assert undecided.details["above"]["value"] == 90
    assert "error" in undecided.lines()[0]
    more = certify_rank(matrix, work_limit=10**9)
    assert more.method == "at_most_probable"
    assert 0 < more.details["error_bound"] < undecided.details["error_bound"]
    assert proven(certify_rank(matrix, work_limit=math.inf), 89)


@pytest.mark.parametrize("count", [1, 2])
def test_unlucky_primes_are_corrected(count: int) -> None:
    """An entry is the product of the first primes that the seed draws: modulo each of them the rank is one less."""
    luckless = [int(p) for p in shuffled_primes(0)[:count]]
    certificate = certify_rank(np.diag([float(math.prod(luckless))] + [1.0] * 69))
    assert proven(certificate, 70)
    assert set(luckless) <= set(certificate.primes)
    assert certificate.details["below"]["prime"] not in luckless
    assert certificate.details["above"]["value"] == 70


def test_a_part_that_is_dependent_modulo_one_prime_only_gives_no_bound() -> None:
    A, B, lambda_, gamma = (np.rint(a) for a in dense(80, 72, 36, 2, "float64"))
    lambda_[:], gamma[0], B = 1, 1, B + 3 * np.eye(80)[:, :72].reshape(80, 2, 36).transpose(1, 0, 2)
    gamma[1] = 1 + float(shuffled_primes(0)[0]) * np.arange(1, 73)  # equal to gamma[0] modulo the first prime
    assert proven(certify_rank(randlora_factors(A, B, lambda_, gamma)), 72)


def test_the_lower_bound_can_be_checked_again_by_hand(as_fractions: Callable[[Any], list[list[Fraction]]]) -> None:
    for D, d in ((9, 9), (20, 9)):
        A, B, lambda_, gamma = dense(D, d, 3, 3)
        B[2, :, 2] = B[1, :, 0]
        terms = randlora_factors(A, B, lambda_, gamma)
        certificate = certify_rank(terms)
        assert certificate.rank == 8
        below, p = certificate.details["below"], certificate.details["below"]["prime"]
        rows = [[x.numerator * pow(x.denominator, -1, p) % p for x in row] for row in as_fractions(terms)]
        minor = [[rows[i][j] for j in below["columns"]] for i in below["rows"]]
        assert len(minor) == len(minor[0]) == 8
        for k in range(8):  # elimination in the given order of pivots
            inverse = pow(minor[k][k], -1, p)
            for i in range(k + 1, 8):
                minor[i] = [(a - minor[i][k] * inverse * b) % p for a, b in zip(minor[i], minor[k], strict=True)]


def test_a_folded_lower_bound_can_be_checked_again(as_fractions: Callable[[Any], list[list[Fraction]]]) -> None:
    terms = randlora_factors(*dense(20, 9, 3, 3))
    below = certify_rank(terms, seed=5).details["below"]
    p = below["prime"]
    assert below["fold_seed"] == 5
    multipliers = np.random.default_rng(5).integers(1, p, 20).tolist()
    rows = [[x.numerator * pow(x.denominator, -1, p) % p for x in row] for row in as_fractions(terms)]
    folded = [[sum(multipliers[i] * rows[i][j] for i in range(k, 20, 9)) % p for j in range(9)] for k in range(9)]
    minor = [[folded[i][j] for j in below["columns"]] for i in below["rows"]]
    for k in range(9):
        inverse = pow(minor[k][k], -1, p)
        for i in range(k + 1, 9):
            minor[i] = [(a - minor[i][k] * inverse * b) % p for a, b in zip(minor[i], minor[k], strict=True)]


def test_json_carries_it_and_a_person_can_read_it() -> None:
    certificate = certify_rank(randlora_factors(*dense(12, 10, 5, 2)))
    again = json.loads(json.dumps(certificate.to_json()))
    assert set(again) == {"rank", "full", "exact", "method", "primes", "details"}
    assert again["rank"] == 10
    assert str(certificate).splitlines() == certificate.lines()
    assert "rank 10 of 10 (full, exact)" in str(certificate)
    assert "rank 0 of 3" in str(certify_rank(np.zeros((3, 4))))


def test_hash_is_of_content_type_and_shape() -> None:
    A, B, lambda_, gamma = dense(6, 5, 2, 3)

    def digest(*arrays: np.ndarray) -> str:
        return str(certify_rank(randlora_factors(*arrays)).details["sha256"])

    first = digest(A, B, lambda_, gamma)
    assert digest(A.copy(), np.asfortranarray(B), lambda_, gamma.astype(">f4")) == first
    assert digest(A, B, lambda_, gamma.astype("f8")) != first
    gamma[2, 4] = np.nextafter(gamma[2, 4], np.float32(9))
    assert digest(A, B, lambda_, gamma) != first
    matrix = np.ones((1, 1))
    inner = hashlib.sha256(b"<f8(1, 1)" + matrix.tobytes()).hexdigest()
    assert certify_rank(matrix).details["sha256"] == hashlib.sha256(f"({inner})".encode()).hexdigest()


def test_arguments_stay_as_they_were_and_progress_is_told() -> None:
    arrays = dense(80, 70, 7, 10)
    arrays[3][1] = arrays[3][0]
    before = [a.copy() for a in arrays]
    for a in arrays:
        a.setflags(write=False)
    seen: list[tuple[str, float]] = []
    certify_rank(randlora_factors(*arrays), progress=lambda what, part: seen.append((what, part)))
    assert all((a == b).all() for a, b in zip(arrays, before, strict=True))
    assert seen
    assert all(0 <= part <= 1 for _, part in seen)


# ---------------------------------------------------------------------------------------------------------
# Objects with factors(), descent
# ---------------------------------------------------------------------------------------------------------


def test_an_object_with_factors_and_its_scaling() -> None:
    factors = randlora_factors(*dense(8, 6, 2, 3))
    assert proven(certify_rank(SimpleNamespace(factors=lambda: factors)), 6)
    assert proven(certify_rank(SimpleNamespace(factors=lambda: factors, scaling=1e-300)), 6)
    assert proven(certify_rank(SimpleNamespace(factors=lambda: factors, scaling=0.0)), 0)
    with pytest.raises(ValueError, match="scaling"):
        certify_rank(SimpleNamespace(factors=lambda: factors, scaling=math.nan))


@pytest.mark.parametrize("pairing", ["literal", "crossed"])
@pytest.mark.parametrize(("start", "expected"), [("lambda 0", [0, 4, 24, 24]), ("gamma 0", [0, 24, 24])])
@pytest.mark.parametrize("shape", [(30, 24), (24, 30)])
def test_rank_over_the_first_steps(
    pairing: spec.Pairing, start: str, expected: list[int], shape: tuple[int, int]
) -> None:
    A, B, lambda_, gamma = dense(30, 24, 4, 6)
    lambda_[:], gamma[:] = (0, 1 / 24) if start == "lambda 0" else (1 / 6, 0)
    descent = rank_after_steps(A, B, lambda_, gamma, shape, len(expected) - 1, pairing=pairing)
    assert [c.rank for c in descent.certificates] == expected
    assert [spectrum(factors).rank for factors in descent.factors] == expected
    assert all(c.exact for c in descent.certificates)
    assert list(descent.losses) == sorted(descent.losses, reverse=True)
    assert descent.losses[0] > descent.losses[-1]


def test_descent_from_any_array_library(library: Any) -> None:
    """The same certificates, down to the hash of the factors, and losses as from NumPy's arrays."""
    own = dense(30, 24, 4, 6)
    expected, found = (
        rank_after_steps(*(take(x) for x in own), (30, 24), 1, pairing="crossed") for take in (np.array, library.array)
    )
    assert found.certificates == expected.certificates
    assert found.losses == expected.losses


@pytest.mark.parametrize(
    ("kwargs", "word"), [({"steps": -1}, "steps"), ({"steps": 1, "largest_move": 0.0}, "largest_move")]
)
def test_descent_refuses(kwargs: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        rank_after_steps(*dense(4, 4, 2, 2), (4, 4), **kwargs)


# ---------------------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------------------

B23, A34 = np.ones((2, 3)), np.ones((3, 4))


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (((B23, A34 * np.nan),), ValueError, r"factors\[0\]\[1\]: nan at \[0, 0\]"),
        (((B23, np.array([1, np.inf, 1]), A34),), ValueError, r"factors\[0\]\[1\]: inf at \[1\]"),
        (((B23, A34.T),), ValueError, r"factors\[0\]\[1\]: 4 rows; it must have 3"),
        (((B23, A34), (B23,)), ValueError, r"factors\[1\]: shape \(2, 3\); it must be \(2, 4\)"),
        (((B23, (((A34.T,),))),), ValueError, r"factors\[0\]\[1\]: 4 rows"),
        ((), ValueError, "factors: it must be a tuple of products"),
        (((),), ValueError, "factors: it must be a tuple of products"),
        (((np.ones((0, 3)), A34),), ValueError, r"factors\[0\]\[0\]: shape \(0, 3\)"),
        (((np.ones((2, 2, 2)),),), ValueError, r"factors\[0\]\[0\]: shape \(2, 2, 2\)"),
        (((B23 * 1j, A34),), TypeError, r"factors\[0\]\[0\]: dtype complex128"),
        (((B23.astype(object), A34),), TypeError, r"factors\[0\]\[0\]: dtype object"),
        (np.full((2, 2), np.inf), ValueError, "matrix: inf at"),
        (np.ones(3), ValueError, r"matrix: shape \(3,\); it must have 2 dimensions"),
        (np.ones((0, 3)), ValueError, "matrix: shape"),
        ("text", TypeError, "matrix"),
    ],
)
def test_bad_factors_are_named(bad: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        certify_rank(bad)


@pytest.mark.parametrize("limit", [-1, math.nan])
def test_bad_work_limit(limit: float) -> None:
    with pytest.raises(ValueError, match="work_limit"):
        certify_rank(np.eye(2), work_limit=limit)


@pytest.mark.parametrize(("index", "word"), [(1, "lambda_: 2 terms"), (2, "lambda_"), (3, "gamma")])
def test_randlora_factors_must_fit(index: int, word: str) -> None:
    arrays = dense(6, 5, 2, 3)
    arrays[index] = arrays[index][:-1] if index > 1 else np.ones((2, 6, 2))
    with pytest.raises(ValueError, match=word.split(":")[0]):
        randlora_factors(*arrays)


def test_npz_of_each_layout(tmp_path: Path) -> None:
    A, B, lambda_, gamma = dense(6, 5, 2, 3)
    for name, arrays, rank in (
        ("randlora", {"A": A, "B": B, "lambda_": lambda_, "gamma": gamma}, 5),
        ("product", {"factor0": B[0], "factor1": lambda_[0], "factor2": A}, 2),
        ("matrix", {"matrix": np.eye(3)}, 3),
    ):
        np.savez(tmp_path / name, **arrays)
        assert proven(certify_rank(load_factors(tmp_path / f"{name}.npz")), rank)


def damaged(path: Path, fault: str) -> None:
    """Write a file that must be refused."""
    good = io.BytesIO()
    np.savez(good, matrix=np.arange(10000.0).reshape(100, 100))
    data = good.getvalue()
    if fault == "truncated":
        data = data[:-200]
    if fault == "flipped":
        data = data[:3000] + bytes([data[3000] ^ 1]) + data[3001:]
    if fault == "pickled":
        objects = io.BytesIO()
        np.savez(objects, matrix=np.array([[Trap()]], dtype=object))
        data = objects.getvalue()
    if fault == "bare pickle":
        data = pickle.dumps(Trap())
    if fault == "single array":
        single = io.BytesIO()
        np.save(single, np.eye(2))
        data = single.getvalue()
    if fault == "other names":
        other = io.BytesIO()
        np.savez(other, weights=np.eye(2))
        data = other.getvalue()
    if fault == "no arrays":
        empty = io.BytesIO()
        zipfile.ZipFile(empty, "w").close()
        data = empty.getvalue()
    if fault == "text inside":
        text = io.BytesIO()
        with zipfile.ZipFile(text, "w") as archive:
            archive.writestr("matrix.npy", "no array")
        data = text.getvalue()
    if fault == "huge header":
        huge = io.BytesIO()
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000000), }".ljust(117) + b"\n"
        with zipfile.ZipFile(huge, "w") as archive:
            archive.writestr("matrix.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        data = huge.getvalue()
    if fault == "empty":
        data = b""
    if fault == "not finite":
        bad = io.BytesIO()
        np.savez(bad, matrix=np.array([[np.nan]]))
        data = bad.getvalue()
    path.write_bytes(data)


class Trap:
    """Unpickling it raises something that no reader of factors catches."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (sprung, ())


def sprung() -> None:
    raise SystemExit("a file ran code")


FAULTS = (
    "truncated, flipped, pickled, bare pickle, single array, other names, no arrays, text inside, huge header, empty"
)


@pytest.mark.parametrize("fault", [*FAULTS.split(", "), "not finite"])
def test_damaged_files_give_one_line_and_run_nothing(fault: str, tmp_path: Path) -> None:
    path = tmp_path / "factors.npz"
    damaged(path, fault)
    with pytest.raises(ValueError, match=r"factors\.npz") as caught:
        load_factors(path)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.npz"):
        load_factors(tmp_path / "nowhere.npz")
