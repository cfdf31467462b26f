"""Updates as sums of products of stored factors: reading, checking, hashing and evaluating them.

A *sum* is a tuple of products, a *product* a tuple of factors, a factor a 2-D array (a matrix), a 1-D array
(a diagonal one) or again a sum. RandLoRA is n products (B_j, Λ_j, A, Γ_j) (Eq. 4), LoRA the one product
(B, A), VeRA (Λ_b, B, Λ_d, A), RandLoRA-a (§6.3) one product of two sums; a plain matrix M is ((M,),). The authors'
GPT-2 code reshapes its sum: ((Reshaped(sum, (out, in)),),).

``evaluate`` multiplies a sum out over a *ring*: residues modulo a prime, sizes for an error bound, or float64.
"""

import hashlib
import math
import zipfile
import zlib
from collections.abc import Callable
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from .. import arrays, checks
from ..arrays import Reshaped

Matrix: TypeAlias = NDArray[Any]
Floats: TypeAlias = NDArray[np.float64]
Factor: TypeAlias = "Matrix | Sum | Reshaped"
Product: TypeAlias = tuple[Factor, ...]
Sum: TypeAlias = tuple[Product, ...]

CHUNK = 512  # longest contraction between two calls of ``Ring.tidy``; rank/exact.py says why
MOST_BYTES = 1 << 31  # that a file of factors may unpack to
UNREADABLE = (OSError, EOFError, KeyError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)


class Ring(NamedTuple):
    """What ``evaluate`` computes with."""

    leaf: Callable[[Matrix], Floats]  # a stored array, as float64 values of the ring
    tidy: Callable[[Floats], Floats]  # bring sums and products back into range, in place
    weight: Callable[[Sum, Product], float] | None = None  # a number in front of one product of a sum; None: 1


FLOATS = Ring(leaf=lambda array: array.astype(np.float64), tidy=lambda x: x)  # rounded: for numerical figures only


# ---------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------


def read(source: Any) -> Sum:
    """The checked sum of products of an object with ``factors()``, of nested tuples, or of a 2-D array.

    Where ``source.scaling`` is there and is 0 the update is zero, and its sum is one product of zeros.
    Raises ValueError, naming the factor, for a wrong shape, an empty or a non-finite one; TypeError for complex
    numbers and whatever is not a number.
    """
    given = source.factors() if hasattr(source, "factors") else source
    terms = _read_sum(given) if isinstance(given, tuple | list) else ((read_array(given, "matrix", (2,)),),)
    checks.room("factors", *shape(terms), itemsize=8)
    if checks.number("scaling", float(getattr(source, "scaling", 1.0))):
        return terms
    rows, columns = shape(terms)
    return ((np.zeros((rows, 1)), np.zeros((1, columns))),)


def _read_sum(value: Any, name: str = "factors") -> Sum:
    """``value`` as a sum: neighbours fit, all products have one shape."""
    if not value or not all(isinstance(product, tuple | list) and product for product in value):
        raise ValueError(f"{name}: it must be a tuple of products, each a tuple of at least one factor")
    terms = tuple(_read_product(product, f"{name}[{i}]") for i, product in enumerate(value))
    for i, product in enumerate(terms):
        if (ends := shape((product,))) != shape(terms):
            raise ValueError(f"{name}[{i}]: shape {ends}; it must be {shape(terms)}, that of {name}[0]")
    return terms


def _read_product(value: Any, name: str) -> Product:
    factors = tuple(_read_factor(factor, f"{name}[{k}]") for k, factor in enumerate(value))
    for k, (left, right) in enumerate(pairwise(factors)):
        if (columns := shape(left)[1]) != (rows := shape(right)[0]):
            raise ValueError(f"{name}[{k + 1}]: {rows} rows; it must have {columns}, the columns of factor {k}")
    return factors


def _read_factor(value: Any, name: str) -> Factor:
    if isinstance(value, Reshaped):
        terms = _read_sum(value.terms, name)
        if math.prod(value.shape) != math.prod(shape(terms)):
            raise ValueError(f"{name}: {shape(terms)} reshaped to {value.shape}; it must have as many entries")
        return Reshaped(terms, value.shape)
    return _read_sum(value, name) if isinstance(value, tuple | list) else read_array(value, name)


def read_array(value: Any, name: str, dimensions: tuple[int, ...] = (1, 2)) -> Matrix:
    """A finite array of real numbers with one of these numbers of ``dimensions``."""
    arrays.namespace_of(name, value)
    array = arrays.to_numpy(value)
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise TypeError(f"{name}: dtype {array.dtype}; it must be float16, float32, float64 or an integer type")
    if array.ndim not in dimensions or array.size == 0:
        allowed = " or ".join(map(str, dimensions))
        raise ValueError(f"{name}: shape {array.shape}; it must have {allowed} dimensions, none of them 0")
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
        checks.regular_file(Path(path))
        with zipfile.ZipFile(path) as packed, np.load(path, allow_pickle=False) as archive:
            if (size := sum(one.file_size for one in packed.infolist())) > MOST_BYTES:
                raise ValueError(f"it unpacks to {size} bytes; at most {MOST_BYTES} are read")
            return _stored_sum({name: np.asarray(archive[name]) for name in archive.files})
    except (*UNREADABLE, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: it must be an .npz of factors; {reason}") from None


def _stored_sum(stored: dict[str, Matrix]) -> Sum:
    if set(stored) == {"A", "B", "lambda_", "gamma"}:
        return randlora_factors(**stored)
    if set(stored) == {"matrix"}:
        return read(stored["matrix"])
    numbered = [f"factor{k}" for k in range(len(stored))]
    if not stored or set(stored) != set(numbered):
        raise ValueError(f"it holds {sorted(stored)}, not A, B, lambda_ and gamma, or factor0, factor1, …, or matrix")
    return _read_sum((tuple(stored[name] for name in numbered),))


def randlora_factors(A: Any, B: Any, lambda_: Any, gamma: Any) -> Sum:
    """The n products (B_j, Λ_j, A, Γ_j) of Eq. 4, of A (r, d), B (n, D, r), lambda_ (n, r), gamma (n, d)."""
    for name, array, dimensions in (("A", A, 2), ("B", B, 3), ("lambda_", lambda_, 2), ("gamma", gamma, 2)):
        arrays.namespace_of(name, array)
        if array.ndim != dimensions:
            raise ValueError(f"{name}: {array.ndim} dimensions; it must have {dimensions}")
        if name != "A" and len(array) != len(B):
            raise ValueError(f"{name}: {len(array)} terms; it must have {len(B)}, as many as B")
    return _read_sum(tuple((B[j], lambda_[j], A, gamma[j]) for j in range(len(B))))


# ---------------------------------------------------------------------------------------------------------
# Shape, cost, hash
# ---------------------------------------------------------------------------------------------------------


def is_thick(factor: Factor) -> bool:
    """Whether a factor is a matrix or a sum, and no diagonal."""
    return not isinstance(factor, np.ndarray) or factor.ndim == 2


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
            nested = factor.terms if isinstance(factor, Reshaped) else factor
            cost += work(nested) if isinstance(nested, tuple) else nested.size
            if k and is_thick(factor):
                cost += rows * math.prod(shape(factor))
    return cost


def sha256(terms: Sum) -> str:
    """SHA-256 of a sum: of the nesting, and of each array's dtype, shape and bytes in C order."""
    seen: dict[int, str] = {}  # a basis shared by all terms is read once

    def text(factor: Factor) -> str:
        if isinstance(factor, Reshaped):
            return f"{factor.shape}{text(factor.terms)}"
        if isinstance(factor, tuple):
            return "(" + "+".join("*".join(map(text, product)) for product in factor) + ")"
        if id(factor) not in seen:
            data = np.ascontiguousarray(factor, factor.dtype.newbyteorder("<"))
            seen[id(factor)] = hashlib.sha256(f"{data.dtype.str}{data.shape}".encode() + data.tobytes()).hexdigest()
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
    total: Any = 0
    lefts: list[Floats] = []
    rights: list[Floats] = []
    for product in terms:
        cut = _narrowest(product)
        left = _multiply(product[:cut] or product, ring)
        if ring.weight is not None:
            left = left * ring.weight(terms, product)
        left = np.diag(left) if left.ndim == 1 else left
        left = left if fold is None else fold(left)
        if not cut:
            total = ring.tidy(total + left)
            continue
        if lefts and sum(map(len, rights)) + left.shape[1] > CHUNK:
            total = _contract(np.hstack(lefts), np.vstack(rights), ring, total)
            lefts, rights = [], []
        lefts.append(left)
        rights.append(_multiply(product[cut:], ring))
    return _contract(np.hstack(lefts), np.vstack(rights), ring, total) if lefts else total


def _contract(left: Floats, right: Floats, ring: Ring, total: Any = 0) -> Floats:
    """total + left·right, CHUNK columns of ``left`` at a time."""
    for start in range(0, len(right), CHUNK):
        total = ring.tidy(total + left[:, start : start + CHUNK] @ right[start : start + CHUNK])
    return cast(Floats, total)


def _narrowest(product: Product) -> int:
    """After how many factors to cut a product: where it is narrowest, with a matrix on each side; or 0."""
    thick = [k for k, factor in enumerate(product) if is_thick(factor)]
    between = range(thick[0] + 1, thick[-1] + 1) if thick else ()
    return min(between, key=lambda k: shape(product[k])[0], default=0)


def _multiply(product: Product, ring: Ring) -> Floats:
    """A product from left to right; 1-D where all its factors are diagonals."""

    def times(left: Floats, right: Floats) -> Floats:
        if left.ndim == right.ndim == 2:
            return _contract(left, right, ring)
        return ring.tidy((left[:, None] if right.ndim == 2 else left) * right)

    return reduce(times, (_value(factor, ring) for factor in product))


def _value(factor: Factor, ring: Ring) -> Floats:
    """A factor in the ring."""
    if isinstance(factor, Reshaped):
        return np.reshape(evaluate(factor.terms, ring).ravel(), factor.shape, order="F")
    return evaluate(factor, ring) if isinstance(factor, tuple) else ring.leaf(factor)
