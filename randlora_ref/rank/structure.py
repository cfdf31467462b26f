"""Upper bounds on the rank of an update that its factors show without any elimination, each with its reason.

ΔW = 𝐁·diag(vec Λ)·K with 𝐁 = [B_1 … B_n] and K the column-wise Khatri-Rao product of Γ and A (row (j, k) of K is
Γ_j ∘ A[k]); so rank ΔW <= min(rank 𝐁, nnz Λ, rank K), and rank K <= rank(Γ)·rank(A). A zero column of the shared A is a
zero column of every A Γ_j, hence of ΔW.
"""

import math
from functools import partial, reduce
from itertools import accumulate
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from .. import checks
from ..arrays import Reshaped
from .factors import Factor, Matrix, Product, Sum, is_thick, shape

Mask = NDArray[np.bool_]


class Bound(NamedTuple):
    """rank <= value, because."""

    value: int
    reason: str


class Candidate(NamedTuple):
    """rank <= the product of the ranks of these sums: a bound once those ranks are known."""

    reason: str
    sums: tuple[Sum, ...]


def predicted_rank(columns: int, zero_probability: float, rank: int) -> tuple[float, float]:
    """(mean, standard deviation) of the number of columns of A (rank, columns) that are not all zero, when its
    entries are zero independently: d(1 − P0^r). It is the rank of ΔW where nothing else lowers it."""
    columns, rank = checks.integers_of(columns=columns, rank=rank)
    dead = checks.number("zero_probability", zero_probability, least=0.0, below=math.nextafter(1, 2)) ** rank
    return columns * (1 - dead), math.sqrt(columns * dead * (1 - dead))


def as_randlora(terms: Sum) -> tuple[Matrix, Matrix, Matrix, Matrix] | None:
    """A (r, d), B (n, D, r), Λ (n, r) and Γ (n, d) if ``terms`` has the form of Eq. 4 with one shared A, else None.

    Or the transposed form, (Γ_j, Aᵀ, Λ_j, B_jᵀ), that a wide layer has.
    """
    if all([getattr(factor, "ndim", None) for factor in product] == [1, 2, 1, 2] for product in terms):
        terms = tuple(tuple(factor.T for factor in product[::-1]) for product in cast(Any, terms))
    if any([getattr(factor, "ndim", None) for factor in product] != [2, 1, 2, 1] for product in terms):
        return None
    by_place: Any = zip(*terms, strict=True)
    B, lambda_, A, gamma = by_place
    if not all(other is A[0] or np.array_equal(other, A[0]) for other in A):
        return None
    return A[0], np.stack(B), np.stack(lambda_), np.stack(gamma)


def bounds(terms: Sum) -> list[Bound]:
    """Every bound that counting gives, without arithmetic on the values."""
    rows, columns = shape(terms)
    widths = [min(shape(factor)[1] for factor in product) for product in terms]
    live = [_live(product) for product in terms]
    channels = sum(min(int(mask.sum()) for mask in masks) for masks in live)
    live_rows, live_columns = (int(np.logical_or.reduce([masks[end] for masks in live]).sum()) for end in (0, -1))
    counted = [
        Bound(min(rows, columns), f"the update is {rows}×{columns}"),
        Bound(sum(widths), f"the widths of {len(terms)} terms, {max(widths)} or less each, added up (n·r)"),
        Bound(channels, "nonzero channels through all terms: Λ's entries, and what meets them on both sides"),
        Bound(live_columns, f"{columns - live_columns} of {columns} columns are zero in every term"),
        Bound(live_rows, f"{rows - live_rows} of {rows} rows are zero in every term"),
    ]
    if (eq4 := as_randlora(terms)) is not None:
        A, _, _, gamma = eq4
        directions = _directions(gamma)
        alive = min(int((A != 0).any(axis=axis).sum()) for axis in (0, 1))
        reason = f"rank(Γ)·rank(A) <= {directions}·{alive}: Γ has {directions} different rows that are not zero"
        counted.append(Bound(directions * alive, reason))
    return counted


def candidates(terms: Sum) -> list[Candidate]:
    """Bounds that need the exact rank of parts of the update, cheapest first; the last is the update itself."""
    parts: list[Candidate] = []
    if (eq4 := as_randlora(terms)) is not None:
        A, B, lambda_, gamma = eq4
        n, r = lambda_.shape
        channels = np.flatnonzero(lambda_)
        parts.append(Candidate("rank(Γ)·rank(A)", (((gamma,),), ((A,),))))
        if channels.size:
            bases = np.hstack(list(B))[:, channels]
            select = (channels[:, None] == np.arange(n * r)).astype(np.int8)  # rows of K where Λ is not zero
            khatri_rao: Sum = tuple((select[:, j * r : (j + 1) * r], A, gamma[j]) for j in range(n))
            parts.append(Candidate("rank [B_1 … B_n], columns where Λ is not zero", (((bases,),),)))
            parts.append(Candidate("rank K, rows where Λ is not zero", (khatri_rao,)))
    elif len(terms) == 1 and len(terms[0]) > 1:
        thick = [(k, factor) for k, factor in enumerate(terms[0]) if is_thick(factor)]
        parts += [Candidate(f"rank of factor {k}", (f if isinstance(f, tuple) else ((f,),),)) for k, f in thick]
    return [*parts, Candidate("every larger minor", (terms,))]


def _live(product: Product) -> list[Mask]:
    """For each place between factors, both ends included: which indices a nonzero path runs through."""
    rows, columns = shape((product,))
    from_left = accumulate(product, _reach, initial=np.ones(rows, dtype=bool))
    from_right = accumulate(product[::-1], partial(_reach, back=True), initial=np.ones(columns, dtype=bool))
    return [left & right for left, right in zip(from_left, reversed(list(from_right)), strict=True)]


def _reach(mask: Mask, factor: Factor, back: bool = False) -> Mask:
    """The columns of a factor that have a nonzero entry in the rows of ``mask``; through a sum, by any product.

    ``back``: the rows that have one in the columns of ``mask``.
    """
    if isinstance(factor, Reshaped):  # where its entries go is not followed
        return np.full(factor.shape[not back], bool(mask.any()))
    if isinstance(factor, tuple):
        ways = [reduce(partial(_reach, back=back), product[::-1] if back else product, mask) for product in factor]
        return np.asarray(np.logical_or.reduce(ways))
    live = factor.T != 0 if back else factor != 0
    return np.asarray(mask & live if live.ndim == 1 else live[mask].any(axis=0))


def _directions(rows: Matrix) -> int:
    """How many different rows that are not zero: at least the rank."""
    return len(np.unique(rows[(rows != 0).any(axis=1)], axis=0))
