"""A and B from a seed: the package's own bases, and PEFT's bit for bit, without PyTorch.

*Own* (dialect ``paper``). Stream 0 of Philox is A, entry A[k, i] at word i·r + k; stream j is B_j, j = 1 … n, entry
B_j[o, k] at word o·r + k. So a slice of larger bases is the smaller bases, and any tile can be made alone with the
same bits on any device: integers up to the last step, one rounding, and no reduction over the tensor. A dense entry
is √3·(2·(w >> 8) + 1 − 2²⁴)/2²⁴, uniform on ±√3, never zero; a ternary one is ±√(s/2) with probability 1/s each,
else zero (§6.4; Li, Hastie, Church 2006). Both have unit variance.

*PEFT's* (dialect ``peft``, PEFT 0.21.2). MT19937 in order: A, then B_1 … B_n. A dense draw is Kaiming uniform with
a = √5, in bfloat16 or float16, over the whole tensor's sample deviation, each step rounded to that type. A sparse
draw compares float32 uniforms with two thresholds and divides by the float32 deviation.
"""

import math
import numbers
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from . import arrays, checks
from .dialects import Dialect, get_dialect
from .prng import mt19937, mt19937_words, philox_words
from .spec import sides

Array = Any
Kind = Literal["dense", "sparse", "very_sparse"] | float
Floats = np.ndarray[Any, np.dtype[np.float32]]
WORDS_AT_A_TIME = 1 << 16  # a tile that stays in cache


@dataclass(frozen=True, eq=False)
class Bases:
    """The frozen pair: ``A`` (r, d_max) and ``B`` (n_max, D_max, r), shared by every layer that fits inside."""

    A: Array
    B: Array

    def __post_init__(self) -> None:
        checks.namespace(A=self.A, B=self.B)
        for name, basis in (("A", self.A), ("B", self.B)):
            checks.precision(name, basis)
        if self.A.ndim != 2 or 0 in self.A.shape:
            raise ValueError(f"A: shape {tuple(self.A.shape)}; it must be (r, d), none of them 0")
        if self.B.ndim != 3 or 0 in self.B.shape:
            raise ValueError(f"B: shape {tuple(self.B.shape)}; it must be (n, D, r), none of them 0")
        if self.A.shape[0] != self.B.shape[2]:
            raise ValueError(f"B: rank {self.B.shape[2]} (last axis); it must be A's, {self.A.shape[0]} (first axis)")

    def slice(self, n: int, D: int, d: int) -> "Bases":
        """One layer's part: the first n terms, D rows of each B_j and d columns of A. A ValueError if too small."""
        for name, has, needs in (("B", self.B.shape[0], n), ("B", self.B.shape[1], D), ("A", self.A.shape[1], d)):
            if has < needs:
                shapes = f"A {tuple(self.A.shape)}, B {tuple(self.B.shape)}"
                raise ValueError(f"bases: {shapes}; a layer of n = {n}, D = {D}, d = {d} needs {needs} in {name}")
        return Bases(self.A[:, :d], self.B[:n, :D, :])


def largest_shape(shapes: Sequence[tuple[int, int]], dialect: Dialect) -> tuple[int, int]:
    """(D_max, d_max) of the bases that layers of ``shapes`` (out, in) share.

    PEFT takes the element-wise maximum of (out, in) first, so an up- and a down-projection together make d_max = D_max.
    """
    if dialect.name == "peft":
        return sides((max(out for out, _ in shapes), max(in_ for _, in_ in shapes)))
    return max(sides(shape)[0] for shape in shapes), max(sides(shape)[1] for shape in shapes)


def draw_bases(
    dialect: str | Dialect = "paper",
    *,
    seed: int = 0,
    shapes: Sequence[tuple[int, int]],
    rank: int,
    kind: Kind = "dense",
    draw_dtype: Literal["bfloat16", "float16"] = "bfloat16",
    dtype: Literal["float32", "float64"] = "float32",
    xp: Any = np,
    device: Any = None,
) -> Bases:
    """The shared bases of layers of ``shapes`` (out, in), A (r, d_max) and B (n_max, D_max, r), in ``dtype``.

    ``kind`` is "dense", "sparse" (s = 6), "very_sparse" (s = √D_max; PEFT: 2√d_max) or, for ``paper``, any sparsity
    s >= 2. ``draw_dtype`` is the type PEFT draws dense bases in; their values are held in ``dtype``. PEFT's generator
    runs on the CPU, its bases are then moved to ``xp`` and ``device``.
    B is laid out in memory as (D_max, n_max, r), so that [B_1 … B_n] of a layer is a view.
    """
    dialect, seed = get_dialect(dialect), checks.seed(seed)
    rank, shapes = checks.integer("rank", rank), checks.layer_shapes(shapes)
    D, d = largest_shape(shapes, dialect)
    n = max(dialect.terms((D, d), rank), *(dialect.terms(shape, rank) for shape in shapes))
    checks.choice("dtype", dtype, ("float32", "float64"))
    if dialect.name == "peft":
        A, B = _peft_bases(seed, n, D, d, rank, kind, draw_dtype)
        A, B = (arrays.from_numpy(xp, part.astype(dtype, copy=False), device) for part in (A, B))
    else:
        A = tile(0, 0, d, seed=seed, rank=rank, kind=kind, D_max=D, dtype=dtype, xp=xp, device=device)
        B = xp.empty((D, n, rank), dtype=getattr(xp, dtype), **arrays.on(device))
        step = max(1, WORDS_AT_A_TIME // rank)
        for term in range(1, n + 1):
            for first in range(0, D, step):
                last = min(D, first + step)
                B[first:last, term - 1, :] = tile(
                    term, first, last, seed=seed, rank=rank, kind=kind, D_max=D, dtype=dtype, xp=xp, device=device
                )
    return Bases(A, arrays.permute(xp, B, (1, 0, 2)))


# ---------------------------------------------------------------------------------------------------------
# The package's own bases
# ---------------------------------------------------------------------------------------------------------


def tile(
    term: int,
    first: int,
    last: int,
    *,
    seed: int,
    rank: int,
    kind: Kind = "dense",
    D_max: int | None = None,
    dtype: str = "float32",
    xp: Any = np,
    device: Any = None,
) -> Array:
    """Columns ``first`` to ``last`` of A (r, last − first) for ``term`` 0, or those rows of B_term (last − first, r).

    ``D_max`` is needed by "very_sparse" alone, whose sparsity is √D_max.
    """
    checks.choice("dtype", dtype, ("float32", "float64"))
    words = philox_words(checks.seed(seed), term, first * rank, last * rank, xp, device)
    real = getattr(xp, dtype)
    if kind == "dense":
        odd = 2 * arrays.astype(xp, words >> 8, xp.int64) + (1 - 2**24)  # an odd integer of 24 bits, exact in float32
        unit, size = arrays.astype(xp, odd, real) * 2.0**-24, math.sqrt(3)
    else:
        s_squared = sparsity_squared(kind, D_max)
        threshold = math.isqrt(int(2**64 / s_squared))  # floor(2³²/s), exactly
        above, below = words >= 2**32 - threshold, words < threshold
        unit = arrays.astype(xp, above, real) - arrays.astype(xp, below, real)
        size = math.sqrt(math.sqrt(s_squared) / 2)
    entries = xp.reshape(unit * xp.asarray(size, dtype=real, **arrays.on(device)), (last - first, rank))
    return entries.T if term == 0 else entries


def sparsity_squared(kind: Kind, D_max: int | None) -> Fraction:
    """s² of a ternary kind, exactly: 36 for "sparse", max(D_max, 4) for "very_sparse", s² for a number s >= 2."""
    if kind == "sparse":
        return Fraction(36)
    if kind == "very_sparse" and D_max is not None:
        return Fraction(max(D_max, 4))
    if not isinstance(kind, numbers.Real) or isinstance(kind, bool) or not 2 <= kind < 2**32:
        raise ValueError(f"kind: {kind!r}; it must be 'dense', 'sparse', 'very_sparse' or a sparsity s in [2, 2**32)")
    return Fraction(float(kind)) ** 2


# ---------------------------------------------------------------------------------------------------------
# PEFT's bases
# ---------------------------------------------------------------------------------------------------------


def _peft_bases(seed: int, n: int, D: int, d: int, rank: int, kind: Kind, draw_dtype: str) -> tuple[Floats, Floats]:
    """A (r, d) and B (D, n, r), PEFT's order of the axes, in float32."""
    if kind not in ("dense", "sparse", "very_sparse"):
        raise ValueError(f"kind: {kind!r}; with PEFT's bases it must be 'dense', 'sparse' or 'very_sparse'")
    checks.choice("draw_dtype", draw_dtype, ("bfloat16", "float16"))
    generator = mt19937(seed)
    if kind == "dense":
        A, B = (_peft_dense(*sizes, generator, draw_dtype) for sizes in ((rank, 1, d), (D, n, rank)))
    else:
        q = 3.0 if kind == "sparse" else math.sqrt(d)
        A, B = (_peft_ternary(*sizes, generator, q) for sizes in ((rank, 1, d), (D, n, rank)))
    return A[:, 0, :], B


def _peft_dense(rows: int, terms: int, columns: int, generator: np.random.MT19937, draw_dtype: str) -> Floats:
    """A (r, 1, d) or B (D, n, r), drawn term by term with fan_in = ``columns``, over its own deviation.

    The 16-bit type has 2¹⁶ values, so the entries are kept as codes, and the deviation and the quotient are taken once
    for each value. u·2b − b is exact in float64; torch rounds it to float32 (a fused multiply-add), then to 16 bits,
    and turns what rounds up to the excluded bound b into −b.
    """
    bound = np.float32(math.sqrt(3.0) * (math.sqrt(2.0 / 6.0) / math.sqrt(columns)))
    values = np.arange(2**16, dtype=np.uint16)
    values = (values.astype(np.uint32) << 16).view(np.float32) if draw_dtype == "bfloat16" else values.view(np.float16)
    values = values.astype(np.float32, copy=False)
    upper, lower = _codes(np.array([bound, -bound]), draw_dtype)
    codes = np.empty((rows, terms, columns), dtype=np.uint16)
    counts = np.zeros(2**16, dtype=np.int64)
    for term, block in _blocks(rows, terms, columns):
        words = mt19937_words(generator, (block.stop - block.start) * columns) & np.uint32(0xFFFFFF)
        drawn = _codes((words * (2.0**-23 * float(bound)) - float(bound)).astype(np.float32), draw_dtype)
        drawn[drawn == upper] = lower
        counts += np.bincount(drawn, minlength=2**16)
        codes[block, term, :] = drawn.reshape(-1, columns)
    seen = np.flatnonzero(counts)
    deviation = _rounded(_deviation(values[seen].astype(np.float64), counts[seen]), draw_dtype)
    quotients = np.zeros(2**16, dtype=np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):  # a single draw has no deviation: NaN, as in PEFT
        quotients[seen] = _rounded(values[seen] / deviation, draw_dtype)
    result = np.empty(codes.shape, dtype=np.float32)
    for _, block in _blocks(rows, 1, terms * columns):  # block by block: take widens its indices to 64 bits
        np.take(quotients, codes[block], out=result[block], mode="clip")
    return result


def _peft_ternary(rows: int, terms: int, columns: int, generator: np.random.MT19937, q: float) -> Floats:
    """A (r, 1, d) or B (D, n, r), drawn in memory order: −1 below 1/(2q), +1 above 1 − 1/(2q), over its deviation."""
    low, high = np.float32(1 / (2 * q)), np.float32(1 - 1 / (2 * q))
    result = np.empty((rows, 1, terms * columns), dtype=np.float32)
    for _, block in _blocks(rows, 1, terms * columns):
        words = mt19937_words(generator, (block.stop - block.start) * terms * columns) & np.uint32(0xFFFFFF)
        uniform = words.astype(np.float32) * np.float32(2.0**-24)
        result[block, 0, :] = ((uniform > high).astype(np.int8) - (uniform < low)).reshape(-1, terms * columns)
    values = np.array([-1.0, 0.0, 1.0])
    counts = np.array([np.count_nonzero(result == value) for value in values])
    with np.errstate(divide="ignore", invalid="ignore"):  # all zeros: NaN, as in PEFT
        result /= np.float32(_deviation(values, counts))
    return result.reshape(rows, terms, columns)


def _blocks(rows: int, terms: int, columns: int) -> Iterator[tuple[int, slice]]:
    """Term by term, the rows in blocks small enough to stay in cache."""
    step = max(1, WORDS_AT_A_TIME // columns)
    for term in range(terms):
        for first in range(0, rows, step):
            yield term, slice(first, min(rows, first + step))


def _deviation(values: Array, counts: Array) -> np.float64:
    """The sample deviation (ddof 1) of ``values`` that occur ``counts`` times; NaN for a single one, as torch's."""
    total = int(counts.sum())
    mean = (counts @ values) / total
    return np.sqrt((counts @ (values - mean) ** 2) / (total - 1)) if total > 1 else np.float64(np.nan)


def _codes(x: Floats, draw_dtype: str) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """The 16 bits of each float32 value rounded to bfloat16 or float16, ties to even."""
    if draw_dtype == "float16":
        return x.astype(np.float16).view(np.uint16)
    bits = x.view(np.uint32)
    return ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)


def _rounded(x: Any, draw_dtype: str) -> Floats:
    """float32 values rounded to bfloat16 or float16, held in float32."""
    codes = _codes(np.atleast_1d(np.asarray(x, dtype=np.float32)), draw_dtype)
    if draw_dtype == "float16":
        return codes.view(np.float16).astype(np.float32)
    return (codes.astype(np.uint32) << 16).view(np.float32)
