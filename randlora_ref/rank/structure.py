"""Upper bounds on the rank of an update that its factors show without any elimination, each with its reason.

ΔW = 𝐁·diag(vec Λ)·K with 𝐁 = [B_1 … B_n] and K the column-wise Khatri-Rao product of Γ and A (row (j, k) of K is
Γ_j ∘ A[k]); so rank ΔW <= min(rank 𝐁, nnz Λ, rank K), and rank K <= rank(Γ)·rank(A). A zero column of the shared A is a
zero column of every A Γ_j, hence of ΔW.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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


class RandLoRAFactors(NamedTuple):
    """The arrays of Eq. 4 read back from n products (B_j, Λ_j, A, Γ_j)."""

    A: Matrix  # (r, d)
    B: Matrix  # (n, D, r)
    lambda_: Matrix  # (n, r)
    gamma: Matrix  # (n, d)


def predicted_rank(columns: int, zero_probability: float, rank: int) -> tuple[float, float]:
    """(mean, standard deviation) of the number of columns of A (rank, columns) that are not all zero, when its
    entries are zero independently: d(1 − P0^r). It is the rank of ΔW where nothing else lowers it."""
    dead = zero_probability**rank
    return columns * (1 - dead), math.sqrt(columns * dead * (1 - dead))


def as_randlora(terms: Sum) -> RandLoRAFactors | None:
    """The arrays of Eq. 4 if ``terms`` has its form with one shared A, else None."""
    arrays = [[factor for factor in product if not isinstance(factor, tuple)] for product in terms]
    if any([a.ndim for a in row] != [2, 1, 2, 1] for row in arrays) or any(len(p) != 4 for p in terms):
        return None
    first = arrays[0][2]
    if not all(row[2] is first or np.array_equal(row[2], first) for row in arrays[1:]):
        return None
    B, lambda_, gamma = (np.stack([row[k] for row in arrays]) for k in (0, 1, 3))
    return RandLoRAFactors(first, B, lambda_, gamma)


def bounds(terms: Sum) -> list[Bound]:
    """Every bound that counting gives, without arithmetic on the values."""
    rows, columns = shape(terms)
    found = [Bound(min(rows, columns), f"the update is {rows}×{columns}")]
    widths = [min(shape(factor)[1] for factor in product) for product in terms]
    found.append(Bound(sum(widths), f"the widths of {len(terms)} terms, {max(widths)} or less each, added up (n·r)"))
    live = [_live(product) for product in terms]
    channels = sum(min(int(mask.sum()) for mask in masks) for masks in live)
    found.append(Bound(channels, "nonzero channels through all terms: Λ's entries, and what meets them on both sides"))
    live_rows = int(np.logical_or.reduce([masks[0] for masks in live]).sum())
    live_columns = int(np.logical_or.reduce([masks[-1] for masks in live]).sum())
    found.append(Bound(live_columns, f"{columns - live_columns} of {columns} columns are zero in every term"))
    found.append(Bound(live_rows, f"{rows - live_rows} of {rows} rows are zero in every term"))
    if (eq4 := as_randlora(terms)) is not None:
        directions = _directions(eq4.gamma)
        alive = min(int((eq4.A != 0).any(axis=0).sum()), int((eq4.A != 0).any(axis=1).sum()))
        reason = f"rank(Γ)·rank(A) <= {directions}·{alive}: Γ has {directions} different rows that are not zero"
        found.append(Bound(directions * alive, reason))
    return found


def candidates(terms: Sum) -> list[Candidate]:
    """Bounds that need the exact rank of parts of the update, cheapest first; the last is the update itself."""
    parts: list[Candidate] = []
    if (eq4 := as_randlora(terms)) is not None:
        n, r = eq4.lambda_.shape
        channels = np.flatnonzero(eq4.lambda_.ravel())
        parts.append(Candidate("rank(Γ)·rank(A)", (((eq4.gamma,),), ((eq4.A,),))))
        if channels.size:
            bases = np.hstack(list(eq4.B))[:, channels]
            select = (channels[:, None] == np.arange(n * r)).astype(np.int8)  # rows of K where Λ is not zero
            khatri_rao: Sum = tuple((select[:, j * r : (j + 1) * r], eq4.A, eq4.gamma[j]) for j in range(n))
            parts.append(Candidate("rank [B_1 … B_n], columns where Λ is not zero", (((bases,),),)))
            parts.append(Candidate("rank K, rows where Λ is not zero", (khatri_rao,)))
    elif len(terms) == 1 and len(terms[0]) > 1:
        thick = [(k, factor) for k, factor in enumerate(terms[0]) if is_thick(factor)]
        parts += [Candidate(f"rank of factor {k}", (f if isinstance(f, tuple) else ((f,),),)) for k, f in thick]
    return [*parts, Candidate("every larger minor", (terms,))]


def _live(product: Product) -> list[Mask]:
    """For each place between factors, both ends included: which indices a nonzero path runs through."""
    forward, backward = [np.ones(shape(product[0])[0], dtype=bool)], [np.ones(shape(product[-1])[1], dtype=bool)]
    for factor in product:
        forward.append(_reach(factor, forward[-1]))
    for factor in reversed(product):
        backward.append(_reach(factor, backward[-1], transposed=True))
    return [f & b for f, b in zip(forward, reversed(backward), strict=True)]


def _reach(factor: Factor, mask: Mask, transposed: bool = False) -> Mask:
    """The columns that have a nonzero entry in the rows of ``mask``; of the transpose, if asked."""
    if isinstance(factor, tuple):
        reached = []
        for product in factor:
            end = mask
            for part in reversed(product) if transposed else product:
                end = _reach(part, end, transposed)
            reached.append(end)
        return np.asarray(np.logical_or.reduce(reached))
    nonzero = factor != 0
    if factor.ndim == 1:
        return np.asarray(mask & nonzero)
    return np.asarray((nonzero.T if transposed else nonzero)[mask].any(axis=0))


def _directions(rows: Matrix) -> int:
    """How many different rows that are not zero: at least the rank."""
    return len(np.unique(rows[(rows != 0).any(axis=1)], axis=0))
