"""A and B from a seed: the package's own bases (dialect ``paper``), and the door to those of ``torch_bases``.

Stream 0 of Philox is A, entry A[k, i] at word i·r + k; stream j is B_j, j = 1 … n, entry B_j[o, k] at word o·r + k. So
a slice of larger bases is the smaller bases, and any tile can be made alone with the same bits on any device: integers
up to the last step, one rounding, and no reduction over the tensor. A dense entry is √3·(2·(w >> 8) + 1 − 2²⁴)/2²⁴,
uniform on ±√3, never zero; a ternary one is ±√(s/2) with probability 1/s each, else zero (§6.4; Li, Hastie, Church
2006). Both have unit variance.
"""

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, Literal

import numpy as np

from . import arrays, checks
from .dialects import Dialect, get_dialect
from .prng import WORDS_AT_A_TIME, philox_words
from .spec import sides
from .torch_bases import draw

Array = Any
Kind = Literal["dense", "sparse", "very_sparse", "normal"] | float
WORDS_AT_A_CALL = 1 << 22  # on other libraries, where a call starts kernels: 32 MiB for an array of words


@dataclass(frozen=True, eq=False)
class Bases:
    """The frozen pair: ``A`` (r, d_max) and ``B`` (n_max, D_max, r), shared by every layer that fits inside."""

    A: Array
    B: Array
    __repr__ = arrays.brief

    def __post_init__(self) -> None:
        checks.namespace(A=self.A, B=self.B)
        for name, basis, axes in (("A", self.A, ("r", "d")), ("B", self.B, ("n", "D", "r"))):
            checks.precision(name, basis)
            well = basis.ndim == len(axes) and 0 not in basis.shape
            checks.shaped(well, name, basis, f"({', '.join(axes)}), none of them 0")
        if self.A.shape[0] != self.B.shape[2]:
            raise ValueError(f"B: rank {self.B.shape[2]} (last axis); it must be A's, {self.A.shape[0]} (first axis)")

    def slice(self, n: int, D: int, d: int) -> "Bases":
        """One layer's part: the first n terms, D rows of each B_j and d columns of A. A ValueError if too small."""
        n, D, d = checks.integers_of(n=n, D=D, d=d)
        for name, has, needs in (("B", self.B.shape[0], n), ("B", self.B.shape[1], D), ("A", self.A.shape[1], d)):
            if has < needs:
                shapes = f"A {tuple(self.A.shape)}, B {tuple(self.B.shape)}"
                raise ValueError(f"bases: {shapes}; a layer of n = {n}, D = {D}, d = {d} needs {needs} in {name}")
        return Bases(self.A[:, :d], self.B[:n, :D, :])


def largest_shape(shapes: Sequence[tuple[int, int]], dialect: Dialect, context: int | None = None) -> tuple[int, int]:
    """(D_max, d_max) of the bases that layers of ``shapes`` (out, in) share, by the dialect's ``shared_sides``.

    PEFT takes the element-wise maximum of (out, in) first, so an up- and a down-projection together make d_max = D_max.
    """
    if dialect.shared_sides == "4*context, context":
        context = checks.integer("context", dialect.context if context is None else context)
        return 4 * context, context
    if dialect.shared_sides == "max(D), max(d)":
        return max(sides(shape)[0] for shape in shapes), max(sides(shape)[1] for shape in shapes)
    largest = max(out for out, _ in shapes), max(in_ for _, in_ in shapes)
    ordered = {"sorted max(out), max(in)": sides(largest), "max(in), max(out)": largest[::-1]}
    return ordered.get(dialect.shared_sides, largest)


def draw_bases(
    dialect: str | Dialect = "paper",
    *,
    seed: int = 0,
    shapes: Sequence[tuple[int, int]] = (),
    rank: int,
    kind: Kind = "dense",
    draw_dtype: Literal["bfloat16", "float16", "float32"] | None = None,
    dtype: Literal["float32", "float64"] = "float32",
    context: int | None = None,
    xp: Any = np,
    device: Any = None,
) -> Bases:
    """The shared bases of layers of ``shapes`` (out, in), A (r, d_max) and B (n_max, D_max, r), in ``dtype``.

    ``kind`` is "dense", "sparse" (s = 6), "very_sparse" (s = √D_max; PEFT and the official fork: 2√d_max), "normal"
    (vision; to 3e-7, torch's logarithm and cosine are its own) or, for ``paper``, any sparsity s >= 2. ``draw_dtype``
    is the type PEFT draws dense bases in, "bfloat16" unless it says "float16"; values are held in ``dtype``, in which
    ``paper`` draws. ``context``, the network's context length, stands for ``shapes`` in nlg. Torch's generator runs on
    the CPU, its bases are then moved to ``xp`` and ``device``.
    B is laid out in memory as (D_max, n_max, r), so that [B_1 … B_n] of a layer is a view.

    Raises ValueError for a kind that the dialect has not, or that no seed determines (nlg's and vision's sparse ones).
    """
    dialect, seed, rank = get_dialect(dialect), checks.seed(seed), checks.integer("rank", rank)
    checks.library(xp)
    shapes = checks.layer_shapes(shapes, 0 if dialect.counted_side == "context" else 1)
    D, d = largest_shape(shapes, dialect, context)
    n = max(dialect.terms(shape, rank, context=context) for shape in [(D, d), *shapes])
    checks.choice("dtype", dtype, ("float32", "float64"))
    checks.room("shapes", D, n, rank)
    if dialect.generator != "philox":
        if dialect.generator == "torch_terms_first" and dialect.max_terms:
            n = max(n, dialect.max_terms)  # drawn whatever the layers need; all enter the deviation
        drawn = draw(dialect.generator, seed, n, D, d, rank, kind, draw_dtype)
        A, B = (arrays.from_numpy(xp, part.astype(dtype, copy=False), device) for part in drawn)
    else:
        checks.choice("draw_dtype", draw_dtype, (None,), "; these are drawn in dtype")
        rows = partial(_rows, xp, device, seed, rank, kind, D, dtype)
        A, B = rows(range(1), range(d))[:, 0, :].T, rows(range(1, n + 1), range(D))
    return Bases(A, arrays.permute(xp, B, (1, 0, 2)))


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
    checks.library(xp)
    rank, (term, first) = checks.integer("rank", rank), checks.integers_of(0, term=term, first=first)
    last = checks.integer("last", last, first)
    checks.index_range(term=(np.asarray(min(term, 2**62)), 2**32, None))
    checks.room("last", last - first, rank, itemsize=8)
    terms, places = range(term, term + 1), range(first, last)
    rows = _rows(xp, device, checks.seed(seed), rank, kind, D_max, dtype, terms, places)[:, 0, :]
    return rows.T if term == 0 else rows


def _rows(
    xp: Any, device: Any, seed: int, r: int, kind: Kind, D_max: int | None, dtype: str, terms: range, rows: range
) -> Array:
    """``rows`` (columns of A) of every one of ``terms``, (rows, terms, r), drawn some at a time."""
    n, where = len(terms), arrays.on(device, xp)
    result = xp.empty((len(rows), n, r), dtype=getattr(xp, dtype), **where)
    streams = terms.start if n == 1 else xp.arange(terms.start, terms.stop, dtype=xp.uint64, **where)[:, None]
    step = max(1, (WORDS_AT_A_TIME if xp is np else WORDS_AT_A_CALL) // (n * r))
    for first in range(0, len(rows), step):
        part = rows[first : first + step]
        words = philox_words(seed, streams, part.start * r, part.stop * r, xp, device)  # (n, part·r)
        drawn = xp.reshape(_entries(xp, words, kind, D_max, dtype), (n, len(part), r))
        result[first : first + len(part), :, :] = arrays.permute(xp, drawn, (1, 0, 2))
    return result


def _entries(xp: Any, words: Array, kind: Kind, D_max: int | None, dtype: str) -> Array:
    """The entry of each word, ``dtype``(unit)·``dtype``(size): unit is odd/2²⁴ or a sign, exact; size √3 or √(s/2)."""
    real = getattr(xp, dtype)
    if isinstance(kind, str) and kind == "dense":
        odd = 2 * arrays.astype(xp, words >> 8, xp.int64) + (1 - 2**24)  # an odd integer of 24 bits, exact in float32
        unit, size = arrays.astype(xp, odd, real) * 2.0**-24, math.sqrt(3)
    else:
        s_squared = sparsity_squared(kind, D_max)
        threshold = math.isqrt(int(2**64 / s_squared))  # floor(2³²/s), exactly
        above, below = words >= 2**32 - threshold, words < threshold
        unit = arrays.astype(xp, above, real) - arrays.astype(xp, below, real)
        size = math.sqrt(math.sqrt(s_squared) / 2)
    return unit * size


def sparsity_squared(kind: Kind, D_max: int | None) -> Fraction:
    """s² of a ternary kind, exactly: 36 for "sparse", max(D_max, 4) for "very_sparse", s² for a number s >= 2."""
    word = kind if isinstance(kind, str) else ""
    if word == "sparse":
        return Fraction(36)
    if word == "very_sparse" and D_max is not None:
        return Fraction(max(D_max, 4))
    if not isinstance(kind, numbers.Real) or isinstance(kind, bool) or not 2 <= kind < 2**32:
        raise ValueError(f"kind: {kind!r}; it must be 'dense', 'sparse', 'very_sparse' or a sparsity s in [2, 2**32)")
    return Fraction(float(kind)) ** 2
