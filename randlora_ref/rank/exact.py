"""Rank modulo a prime, exactly, on float64 matrix products.

Two facts carry every proof. A finite float is m·2^e with integers m and e, so it has a residue modulo any odd
prime p. And a minor that is not zero modulo p is not zero: rank(M mod p) <= rank(M), *full modulo one prime
is full*. The other way, a minor is an integer (once a power of two is taken out), so if it vanishes modulo
primes whose product exceeds its Hadamard bound, it is zero.

Why nothing is ever rounded. Residues are integers in [0, p) with p < 2²², held in float64. A sum of 512 products
of two residues, and one residue more, is at most 512·(2²² − 4)² + 2²² < 2⁵³; so matrix products run in BLAS, 512
columns at a time. And x − p·floor(x/p) is x mod p for integers |x| < 2⁵³ − p: x/p lies 1/p or more below the next
integer, while its rounding error is below 2⁻⁵³·|x|/p < 1/p, so the floor is right, and p·floor(x/p) is exact.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from .. import arrays
from .factors import CHUNK, FLOATS, Floats, Matrix, Ring, Sum, evaluate, shape

Indices: TypeAlias = NDArray[np.intp]
Progress: TypeAlias = Callable[[str, float], None]  # what is being done, and the part of it that is done

PRIME_BITS = 21  # every prime used lies in [2²¹, 2²²)


def silent(what: str, part: float) -> None:
    """The ``Progress`` that tells nobody."""


@lru_cache
def primes() -> NDArray[np.int64]:
    """All 140,336 primes in [2²¹, 2²²), ascending."""
    low, high = 1 << PRIME_BITS, 1 << PRIME_BITS + 1
    is_prime = np.ones(high, dtype=bool)
    for q in range(2, 1 << (PRIME_BITS + 1) // 2):
        is_prime[q * q :: q] = False
    return low + np.flatnonzero(is_prime[low:])


def reduce(x: Floats, p: int) -> Floats:
    """``x`` modulo ``p``, in place: integers with |x| < 2⁵³ − p become residues in [0, p)."""
    height = max(1, arrays.BLOCK * len(x) // max(1, x.size))  # rows that stay in the cache
    for start in range(0, len(x), height):
        block = x[start : start + height]
        block -= p * np.floor(block / p)
    return x


def mantissas(values: Matrix) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Integers m and e with values = m·2^e, exactly, |m| < 2⁵³: of any finite float, subnormals too."""
    fraction, exponent = np.frexp(values.astype(np.float64))
    return np.ldexp(fraction, 53).astype(np.int64), exponent - 53


def residues(values: Matrix, p: int) -> Floats:
    """Residues in [0, p) of an array of finite floats, m·2^e mod p, or of integers; same shape, float64."""

    def of_floats(block: Matrix) -> Floats:
        mantissa, exponent = mantissas(block)
        low = int(exponent.min())
        powers = np.array([pow(2, e, p) for e in range(low, int(exponent.max()) + 1)])
        return reduce((mantissa % p * powers[exponent - low]).astype(np.float64), p)

    if values.dtype.kind == "f":
        return cast(Floats, arrays.by_rows(np, of_floats, values))
    return (values.astype(np.uint64 if values.dtype.kind == "u" else np.int64) % p).astype(np.float64)


def residue_ring(p: int) -> Ring:
    """The ring of residues modulo ``p``, for ``evaluate``."""
    return Ring(partial(residues, p=p), partial(reduce, p=p))


class Elimination(NamedTuple):
    """Rank and pivots: the minor on these rows and columns is not zero modulo p, every larger one is."""

    rank: int
    rows: Indices
    columns: Indices


def eliminate(matrix: Floats, p: int, progress: Progress = silent) -> Elimination:
    """Rank and pivots modulo ``p`` of a matrix of residues in [0, p); ``matrix`` is left as it was.

    Panels of 512 columns give their pivot rows R and W with rest = W·R; the same W takes the pivot rows from the
    columns to the right of the panel, in one matrix product: that is where the work is.
    """
    if matrix.shape[0] < matrix.shape[1]:
        turned = eliminate(np.ascontiguousarray(matrix.T), p, progress)
        return Elimination(turned.rank, turned.columns, turned.rows)
    width, done = matrix.shape[1], 0
    remaining = np.arange(len(matrix))
    rows, columns = [remaining[:0]], [remaining[:0]]
    while matrix.any():
        pivots, rest, pivot_columns, W = _pivots(matrix[:, :CHUNK], p)
        rows.append(remaining[pivots])
        columns.append(pivot_columns + done)
        matrix = reduce(matrix[rest, CHUNK:] - W @ matrix[pivots, CHUNK:], p)
        remaining, done = remaining[rest], done + CHUNK
        progress(f"elimination modulo {p}", 1 - max(0, 1 - done / width) ** 2)
    pivot_rows = np.concatenate(rows)
    return Elimination(len(pivot_rows), pivot_rows, np.concatenate(columns))


def _pivots(panel: Floats, p: int) -> tuple[Indices, Indices, Indices, Floats]:
    """(pivot rows, other rows, pivot columns, W) with panel[others] = W·panel[pivots] modulo ``p``.

    One column is solved by a division; two halves are joined: with others = W1·pivots1 in the left half, take
    W1·pivots1 from the right half, find W2 there, and the rows left over are
    W1·pivots1 + W2·(pivots2 − W1'·pivots1), where W1' are the rows of W1 that became pivots2.
    """
    every = np.arange(len(panel))
    if not panel.any():
        return every[:0], every, every[:0], np.empty((len(panel), 0))
    if panel.shape[1] == 1:
        pivot = int((panel[:, 0] != 0).argmax())
        rest = np.delete(every, pivot)
        inverse = pow(int(panel[pivot, 0]), -1, p)
        return every[pivot : pivot + 1], rest, every[:1], reduce(panel[rest] * inverse, p)
    half = panel.shape[1] // 2
    pivots1, rest1, columns1, W1 = _pivots(panel[:, :half], p)
    pivots2, rest2, columns2, W2 = _pivots(reduce(panel[rest1, half:] - W1 @ panel[pivots1, half:], p), p)
    W = np.hstack((reduce(W1[rest2] - W2 @ W1[pivots2], p), W2))
    return np.append(pivots1, rest1[pivots2]), rest1[rest2], np.append(columns1, half + columns2), W


def rank_modulo(terms: Sum, p: int, progress: Progress = silent, fold_seed: int | None = None) -> Elimination:
    """Rank and pivots of a sum of products modulo ``p``: never more than its rank.

    With ``fold_seed`` the rows are first multiplied by random numbers, ``default_rng(fold_seed).integers(1, p,
    rows)``, and those whose indices agree modulo the columns added up: d×d of work in place of D×d. Rank can
    only fall, so full still proves full; the pivot rows are then those of the folded matrix.
    """
    progress(f"forming the update modulo {p}", 0.0)
    fold = None if fold_seed is None else _folding(shape(terms), p, fold_seed)
    return eliminate(evaluate(terms, residue_ring(p), fold), p, progress)


def _folding(size: tuple[int, int], p: int, seed: int) -> Callable[[Floats], Floats]:
    """The linear map of (rows, k) to (columns, k) that ``rank_modulo`` describes."""
    rows, columns = size
    multipliers = np.random.default_rng(seed).integers(1, p, (rows, 1)).astype(np.float64)

    def fold(matrix: Floats) -> Floats:
        parts = np.zeros((-(-rows // columns) * columns, matrix.shape[1]))
        parts[:rows] = reduce(matrix * multipliers, p)
        return reduce(parts.reshape(-1, columns, matrix.shape[1]).sum(axis=0), p)

    return fold


# ---------------------------------------------------------------------------------------------------------
# Hadamard's bound: how large a minor can be
# ---------------------------------------------------------------------------------------------------------


def _exponents(factor: Any) -> tuple[int, int]:
    """(low, high): every entry is an integer times 2^low, and stored entries are at most 2^high in size."""
    factor = getattr(factor, "terms", factor)  # a reshaped sum has its entries
    if isinstance(factor, tuple):
        ends = [np.sum([_exponents(part) for part in product], axis=0) for product in factor]
        return int(min(low for low, _ in ends)), int(max(high for _, high in ends))
    largest = int(np.frexp(np.abs(factor.astype(np.float64)).max())[1])
    if factor.dtype.kind != "f":
        return 0, largest
    mantissa, exponent = mantissas(factor)
    lowest_bit = np.frexp((mantissa & -mantissa).astype(np.float64))[1] - 1 + exponent
    return int(lowest_bit.min(where=mantissa != 0, initial=largest)), largest


def minor_bits(terms: Sum, size: int) -> float:
    """log2 of a bound on every minor of order ``size`` of the sum, a power of two taken out to make it an integer.

    Hadamard: a determinant is at most the product of its rows' norms, or of its columns'. The norms are those of
    the sum of products of absolute values, scaled to be at most 1, computed in float64 and widened.
    """
    low, high = _exponents(terms)

    def leaf(array: Matrix) -> Floats:
        return np.ldexp(np.abs(array.astype(np.float64)), -_exponents(array)[1])

    def weight(siblings: Sum, product: tuple[Any, ...]) -> float:
        return float(np.ldexp(1.0, sum(_exponents(part)[1] for part in product) - _exponents(siblings)[1]))

    sizes = evaluate(terms, FLOATS._replace(leaf=leaf, weight=weight))
    smallest = 2.0**-500  # more than underflow can have lost
    largest = [np.sort(np.sqrt((sizes**2).sum(axis=axis)) + smallest)[::-1][:size] for axis in (0, 1)]
    return min(float(np.maximum(np.log2(norms) + (high - low) + 1e-6, 0).sum()) for norms in largest)
