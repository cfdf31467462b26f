"""The paper's ablations of RandLoRA (§6.3): what is lost when the update's rank is cut, at the same learned numbers.

*RandLoRA-a* sums each side before multiplying, so n terms do not add up to more than rank r:

    ΔW = s·L R,   L = Σ_i B_i Λ_i (D, r),   R = Σ_i A_i Γ_i (r, d),   or its transpose where out < in

with A_i not shared and n·(r + d) learned values, as many as RandLoRA of that rank has.
With G_M = ∂L/∂(L R)/s:  ∂L/∂Λ_i[k] = s·Σ_o B_i[o,k] (G_M Rᵀ)[o,k],  ∂L/∂Γ_i[j] = s·Σ_k A_i[k,j] (Lᵀ G_M)[k,j].

*RandLoRA-b* is RandLoRA with bases of half the rank and no more terms, see ``randlora_b``.
"""

from dataclasses import dataclass, replace
from typing import Any, Self, Unpack

from .. import arrays, checks
from ..dialects import Dialect, get_dialect
from ..spec import is_transposed, number_of_terms, sides
from .base import Array, Arrays, Factors, LowRank, Made, Maker, terms
from .randlora import RandLoRA


@dataclass(frozen=True, eq=False, kw_only=True)
class RandLoRAa(LowRank, learned=("lambda_", "gamma")):
    """A RandLoRA-a adapter of one weight (out, in), with D and d its larger and smaller side, from given arrays.

    lambda_ (n, r) and gamma (n, d) are learned, A (n, r, d) and B (n, D, r) frozen. ``scale`` is s, stated nowhere:
    None takes ours, 2/n, with which an entry of ΔW varies as RandLoRA's does with 2/√n (L and R are n terms each).
    Raises TypeError or ValueError that names the argument.
    """

    A: Array
    B: Array
    lambda_: Array
    gamma: Array
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.scale is not None:
            checks.number("scale", self.scale)
        super().__post_init__()

    @classmethod
    def start(
        cls,
        out_features: int,
        in_features: int,
        rank: int = 32,
        *,
        scale: float | None = None,
        terms: int | None = None,
        seed: int = 0,
        **made: Unpack[Made],
    ) -> Self:
        """An adapter as our RandLoRA starts: n = ceil(d/r) unless ``terms`` is given, Λ = 0 and Γ = 1/d, so ΔW = 0.

        The bases have unit variance: A_i[k, j] is word (j·n + i)·r + k of stream 1, B_i[o, k] word (o·n + i)·r + k of
        stream 2, i from 0.
        """
        out_features, in_features, rank = checks.sizes(out_features, in_features, rank)
        shape, make = (out_features, in_features), Maker(seed, **made)
        (D, d), n = sides(shape), checks.integer("terms", number_of_terms(shape, rank) if terms is None else terms)
        size: dict[str, Any] = {"out_features": out_features, "in_features": in_features, "rank": rank}
        A, B = arrays.swap_last(make.stack(n, d, rank, stream=1)), make.stack(n, D, rank, stream=2)
        lambda_, gamma = make.full(0, n, rank), make.full(1 / d, n, d)
        return cls(**size, A=A, B=B, lambda_=lambda_, gamma=gamma, scale=scale)

    @property
    def n(self) -> int:
        """The number of terms on each side."""
        return int(self.lambda_.shape[0])

    @property
    def scaling(self) -> float:
        """s, the number in front of the product: ``scale``, or 2/n."""
        return 2 / self.n if self.scale is None else float(self.scale)

    def factors(self) -> Factors:
        """One product of two sums, of (B_i, Λ_i) and of (A_i, Γ_i), or both transposed and turned round if out < in."""
        left = [(self.B[i, :, :], self.lambda_[i, :]) for i in range(self.n)]
        right = [(self.A[i, :, :], self.gamma[i, :]) for i in range(self.n)]
        if is_transposed(self.shape):
            left, right = ([(diagonal, M.T) for M, diagonal in side] for side in (right, left))
        return ((tuple(left), tuple(right)),)

    def _pair(self, xp: Any) -> tuple[Array, Array]:
        L = xp.sum(self.B * self.lambda_[:, None, :], axis=0)
        R = xp.sum(self.A * self.gamma[:, None, :], axis=0)
        return (R.T, L.T) if is_transposed(self.shape) else (L, R)

    def _pull_back_pair(self, xp: Any, dL: Array, dR: Array) -> tuple[Array, ...]:
        if is_transposed(self.shape):
            dL, dR = dR.T, dL.T
        return xp.sum(self.B * dL, axis=1), xp.sum(self.A * dR, axis=1)

    def _arrays(self) -> Arrays:
        (D, d), r, n = sides(self.shape), self.rank, terms("lambda_", self.lambda_, self.rank)
        learned: Arrays = {"lambda_": (self.lambda_, (n, r)), "gamma": (self.gamma, (n, d))}
        return learned | {"A": (self.A, (n, r, d)), "B": (self.B, (n, D, r))}


RandLoRAaGrads = RandLoRAa.GRADS


def randlora_b(
    out_features: int, in_features: int, rank: int = 32, *, dialect: str | Dialect = "paper", **other: Any
) -> RandLoRA:
    """RandLoRA-b as training starts: RandLoRA's n terms for ``rank`` r, by the dialect, each of rank r // 2.

    Table 2 has it at rank 384 where RandLoRA has 768, so it is the update's rank that is halved: here to at most
    n·(r // 2), about d/2. With n terms n·(r + d) learned values become n·(r // 2 + d): fewer by about d/2 of n·d, a
    fraction 1/(2n + 2). Keeping n is our reading; §6.3 fixes the two numbers and not the way there.
    Other options are those of ``RandLoRA.start``. Raises ValueError for a ``rank`` below 2.
    """
    out_features, in_features, rank = checks.sizes(out_features, in_features, rank)
    if rank < 2:
        raise ValueError(f"rank: {rank}; it must be at least 2, to be halved")
    dialect = get_dialect(dialect)
    n = dialect.terms((out_features, in_features), rank)
    return RandLoRA.start(out_features, in_features, rank // 2, dialect=replace(dialect, num_terms=n), **other)
