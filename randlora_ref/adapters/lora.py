"""LoRA (Hu et al., arXiv 2106.09685): a learned product of two thin matrices.

    ΔW = (α/r)·B A,    B (out, r),  A (r, in),    r·(out + in) learned values, rank ΔW <= r

With G = ∂L/∂ΔW:  ∂L/∂B = (α/r)·G Aᵀ,  ∂L/∂A = (α/r)·Bᵀ G.
"""

from dataclasses import dataclass
from typing import Any, Self, Unpack

from .. import checks
from .base import Array, Arrays, Factors, LowRankByAlpha, Made, Maker


@dataclass(frozen=True, eq=False, kw_only=True)
class LoRA(LowRankByAlpha, learned=("A", "B")):
    """A LoRA adapter of one weight (out, in), from given arrays A (r, in) and B (out, r).

    Raises TypeError or ValueError that names the argument.
    """

    A: Array
    B: Array

    @classmethod
    def start(
        cls,
        out_features: int,
        in_features: int,
        rank: int = 8,
        *,
        alpha: float = 8,
        seed: int = 0,
        **made: Unpack[Made],
    ) -> Self:
        """An adapter as PEFT 0.21.2 starts it: A Kaiming uniform with a = √5, so on ±1/√in, and B = 0.

        A[k, i] is drawn as word i·r + k of stream 1.
        """
        out_features, in_features, rank = checks.sizes(out_features, in_features, rank)
        make = Maker(seed, **made)
        A, B = make.uniform(in_features, rank, in_features**-0.5).T, make.full(0, out_features, rank)
        return cls(out_features=out_features, in_features=in_features, rank=rank, A=A, B=B, alpha=alpha)

    def factors(self) -> Factors:
        """One product (B, A)."""
        return ((self.B, self.A),)

    def _pair(self, xp: Any) -> tuple[Array, Array]:
        return self.B, self.A

    def _pull_back_pair(self, xp: Any, dL: Array, dR: Array) -> tuple[Array, ...]:
        return dR, dL

    def _arrays(self) -> Arrays:
        (out_features, in_features), r = self.shape, self.rank
        return {"A": (self.A, (r, in_features)), "B": (self.B, (out_features, r))}


LoRAGrads = LoRA.GRADS
