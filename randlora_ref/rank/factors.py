"""Updates as sums of products of stored factors: reading, checking, hashing and evaluating them.

A *sum* is a tuple of products, a *product* a tuple of factors, a factor a 2-D array (a matrix), a 1-D array
(a diagonal one) or again a sum. RandLoRA is n products (B_j, Λ_j, A, Γ_j) (Eq. 4), LoRA the one product
(B, A), VeRA (Λ_b, B, Λ_d, A), RandLoRA-a (§6.3) one product of two sums; a plain matrix M is ((M,),).

``evaluate`` multiplies a sum out over a *ring*: residues modulo a prime, sizes for an error bound, or float64.
"""

import hashlib
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from .. import arrays

Matrix: TypeAlias = NDArray[Any]
Floats: TypeAlias = NDArray[np.float64]
Factor: TypeAlias = "Matrix | Sum"
Product: TypeAlias = tuple[Factor, ...]
Sum: TypeAlias = tuple[Product, ...]

CHUNK = 512  # longest contraction between two calls of ``Ring.tidy``; rank/exact.py says why
UNREADABLE = (OSError, EOFError, KeyError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)


class Ring(NamedTuple):
    """What ``evaluate`` computes with."""

    leaf: Callable[[Matrix], Floats]  # a stored array, as float64 values of the ring
    tidy: Callable[[Floats], Floats]  # bring sums and products back into range, in place
    weight: Callable[[Sum, Product], float]  # a number in front of one product of a sum


# ---------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------


def read(source: Any) -> Sum:
    """The checked sum of products of an object with ``factors()``, of nested tuples, or of a 2-D array.

    Where ``source.scaling`` is there and is 0 the update is zero, and its sum is one product of zeros.
    Raises ValueError, naming the factor, for a wrong shape, an empty or a non-finite one; TypeError for complex
    numbers and whatever is not a number.
    """
    if not hasattr(source, "factors"):
        return _read_sum(source, "factors", {}) if isinstance(source, tuple | list) else ((_read_matrix(source),),)
    terms, scaling = _read_sum(source.factors(), "factors", {}), float(getattr(source, "scaling", 1.0))
    if not math.isfinite(scaling):
        raise ValueError(f"scaling: {scaling}; it must be finite")
    if scaling:
        return terms
    rows, columns = shape(terms)
    return ((np.zeros((rows, 1)), np.zeros((1, columns))),)


def _read_matrix(value: Any) -> Matrix:
    array = _read_array(value, "matrix")
    if array.ndim != 2:
        raise ValueError(f"matrix: {array.ndim} dimensions; it must have 2")
    return array


def _read_sum(value: Any, name: str, seen: dict[int, Matrix]) -> Sum:
    """``value`` as a sum: neighbours fit, all products have one shape. ``seen``: arrays already read, by identity."""
    if not value or not all(isinstance(product, tuple | list) and product for product in value):
        raise ValueError(f"{name}: it must be a tuple of products, each a tuple of at least one factor")
    terms: list[Product] = []
    for i, product in enumerate(value):
        factors = tuple(_read_factor(factor, f"{name}[{i}][{k}]", seen) for k, factor in enumerate(product))
        for k in range(1, len(factors)):
            columns, rows = shape(factors[k - 1])[1], shape(factors[k])[0]
            if columns != rows:
                raise ValueError(
                    f"{name}[{i}][{k}]: {rows} rows; it must have {columns}, the columns of factor {k - 1}"
                )
        ends = shape(factors[0])[0], shape(factors[-1])[1]
        if terms and ends != shape(tuple(terms)):
            raise ValueError(f"{name}[{i}]: shape {ends}; it must be {shape(tuple(terms))}, that of {name}[0]")
        terms.append(factors)
    return tuple(terms)


def _read_factor(value: Any, name: str, seen: dict[int, Matrix]) -> Factor:
    if isinstance(value, tuple | list):
        return _read_sum(value, name, seen)
    if id(value) not in seen:
        seen[id(value)] = _read_array(value, name)
    return seen[id(value)]


def _read_array(value: Any, name: str) -> Matrix:
    arrays.namespace_of(name, value)
    array = np.asarray(arrays.to_numpy(value))
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise TypeError(f"{name}: dtype {array.dtype}; it must be float16, float32, float64 or an integer type")
    if array.ndim not in (1, 2) or array.size == 0:
        raise ValueError(f"{name}: shape {array.shape}; it must have 1 or 2 dimensions, none of them 0")
    if not np.isfinite(array).all():
        place = np.argwhere(~np.isfinite(array))[0].tolist()
        raise ValueError(f"{name}: {array[tuple(place)]} at {place}; every value must be finite")
    return array


def load_factors(path: str | Path) -> Sum:
    """The factors in a ``.npz``: A (r, d), B (n, D, r), lambda_ (n, r), gamma (n, d) of a literal RandLoRA
    update; or factor0, factor1, … of a product, diagonals 1-D; or one matrix.

    No pickle is read, so a file can run no code. Raises ValueError, in one line, for what cannot be read.
    """
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):
                raise ValueError("it is no whole .npz")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                return _stored_sum({name: np.asarray(archive[name]) for name in archive.files})
    except (*UNREADABLE, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: it must be an .npz of factors; {reason}") from None


def _stored_sum(stored: dict[str, Matrix]) -> Sum:
    if set(stored) == {"A", "B", "lambda_", "gamma"}:
        return randlora_factors(**stored)
    if set(stored) == {"matrix"}:
        return ((_read_matrix(stored["matrix"]),),)
    numbered = [f"factor{k}" for k in range(len(stored))]
    if not stored or set(stored) != set(numbered):
        raise ValueError(f"it holds {sorted(stored)}, not A, B, lambda_ and gamma, or factor0, factor1, …, or matrix")
    return _read_sum((tuple(stored[name] for name in numbered),), "factors", {})


def randlora_factors(A: Any, B: Any, lambda_: Any, gamma: Any) -> Sum:
    """The n products (B_j, Λ_j, A, Γ_j) of Eq. 4, of A (r, d), B (n, D, r), lambda_ (n, r), gamma (n, d)."""
    dimensions = {"A": (A, 2), "B": (B, 3), "lambda_": (lambda_, 2), "gamma": (gamma, 2)}
    for name, (array, wanted) in dimensions.items():
        if array.ndim != wanted:
            raise ValueError(f"{name}: {array.ndim} dimensions; it must have {wanted}")
        if name != "A" and array.shape[0] != len(B):
            raise ValueError(f"{name}: {array.shape[0]} terms; it must have {len(B)}, as many as B")
    return _read_sum(tuple((B[j], lambda_[j], A, gamma[j]) for j in range(len(B))), "factors", {})


# ---------------------------------------------------------------------------------------------------------
# Shape, cost, hash
# ---------------------------------------------------------------------------------------------------------


def is_thick(factor: Factor) -> bool:
    """Whether a factor is a matrix or a sum, and no diagonal."""
    return isinstance(factor, tuple) or factor.ndim == 2


def shape(factor: Factor) -> tuple[int, int]:
    """(rows, columns); a diagonal is square."""
    if isinstance(factor, tuple):
        return shape(factor[0][0])[0], shape(factor[0][-1])[1]
    return (factor.shape[0], factor.shape[-1])


def work(terms: Sum) -> int:
    """What one prime costs, in multiply-adds at most: evaluating, eliminating, a million per column of upkeep."""
    rows, columns = shape(terms)
    cost = min(rows, columns) * (rows * columns + 10**6)
    for product in terms:
        for k, factor in enumerate(product):
            height, width = shape(factor)
            cost += work(factor) if isinstance(factor, tuple) else factor.size
            if k and is_thick(factor):
                cost += rows * height * width
    return cost


def sha256(terms: Sum) -> str:
    """SHA-256 of a sum: of the nesting, and of each array's dtype, shape and bytes in C order."""
    seen: dict[int, str] = {}  # a basis shared by all terms is read once

    def text(factor: Factor) -> str:
        if isinstance(factor, tuple):
            return "(" + "+".join("*".join(map(text, product)) for product in factor) + ")"
        if id(factor) not in seen:
            header = f"{factor.dtype.newbyteorder('<').str}{factor.shape}".encode()
            data = np.ascontiguousarray(factor, factor.dtype.newbyteorder("<"))
            seen[id(factor)] = hashlib.sha256(header + data.tobytes()).hexdigest()
        return seen[id(factor)]

    return hashlib.sha256(text(terms).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------------
# Evaluating
# ---------------------------------------------------------------------------------------------------------


def evaluate(terms: Sum, ring: Ring, fold: Callable[[Floats], Floats] | None = None) -> Floats:
    """The matrix of a sum over a ring. ``fold`` is a linear map applied from the left, early and cheaply.

    Each product is cut where it is narrowest, and narrow products are joined, [L_1 … L_n]·[R_1; …; R_n], into
    contractions of up to CHUNK columns: for RandLoRA, B_jΛ_j beside each other and AΓ_j below each other.
    """
    total: Floats | None = None
    for left, right in _joined(terms, ring, fold or (lambda matrix: matrix)):
        total = _accumulate(total, left, ring) if right is None else _contract(left, right, ring, total)
    return cast(Floats, total)


def _accumulate(total: Floats | None, part: Floats, ring: Ring) -> Floats:
    return ring.tidy(part if total is None else np.add(total, part, out=total))


def _contract(left: Floats, right: Floats, ring: Ring, total: Floats | None = None) -> Floats:
    """total + left·right, CHUNK columns of ``left`` at a time; ``total`` is overwritten."""
    for start in range(0, len(right), CHUNK):
        total = _accumulate(total, left[:, start : start + CHUNK] @ right[start : start + CHUNK], ring)
    return cast(Floats, total)


def _joined(terms: Sum, ring: Ring, fold: Callable[[Floats], Floats]) -> Iterator[tuple[Floats, Floats | None]]:
    """Pairs (L, R) whose products add up to the sum; R is None where L is a whole product."""
    lefts: list[Floats] = []
    rights: list[Floats] = []
    for product in terms:
        cut, weight = _narrowest(product), ring.weight(terms, product)
        left = _multiply(product[:cut] or product, ring)
        if weight != 1:
            left = left * weight
        if not cut:
            yield fold(np.diag(left) if left.ndim == 1 else left), None
            continue
        if lefts and sum(part.shape[1] for part in lefts) + left.shape[1] > CHUNK:
            yield np.hstack(lefts), np.vstack(rights)
            lefts, rights = [], []
        lefts.append(fold(left))
        rights.append(_multiply(product[cut:], ring))
    if lefts:
        yield np.hstack(lefts), np.vstack(rights)


def _narrowest(product: Product) -> int:
    """After how many factors to cut a product: where it is narrowest, with a matrix on each side; or 0."""
    thick = [k for k, factor in enumerate(product) if is_thick(factor)]
    if len(thick) < 2:
        return 0
    return min(range(thick[0] + 1, thick[-1] + 1), key=lambda k: shape(product[k])[0])


def _multiply(product: Product, ring: Ring) -> Floats:
    """A product from left to right; 1-D where all its factors are diagonals."""
    result: Floats | None = None
    for factor in product:
        value = evaluate(factor, ring) if isinstance(factor, tuple) else ring.leaf(factor)
        if result is None:
            result = value
        elif result.ndim == 2 and value.ndim == 2:
            result = _contract(result, value, ring)
        else:
            result = ring.tidy((result[:, None] if value.ndim == 2 else result) * value)
    return cast(Floats, result)


def as_float64(source: Any) -> Floats:
    """The update in float64, for the numerical figures only: its products and sums are rounded."""
    return evaluate(read(source), Ring(lambda a: a.astype(np.float64), lambda a: a, lambda *_: 1.0))
