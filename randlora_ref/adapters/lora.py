"""LoRA (Hu et al., arXiv 2106.09685): a learned product of two thin matrices.

    ΔW = (α/r)·B A,    B (out, r),  A (r, in),    r·(out + in) learned values, rank ΔW <= r

With G = ∂L/∂ΔW:  ∂L/∂B = (α/r)·G Aᵀ,  ∂L/∂A = (α/r)·Bᵀ G.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from .. import checks
from .base import Factors, LowRank, options, uniform

Array = Any


class LoRAGrads(NamedTuple):
    """Gradients of the loss; ``weight`` is None unless asked for, ``bias`` None where the layer has none."""

    A: Array
    B: Array
    weight: Array | None
    bias: Array | None


@dataclass(frozen=True, eq=False, kw_only=True)
class LoRA(LowRank):
    """A LoRA adapter of one weight (out, in), from given arrays A (r, in) and B (out, r).

    Raises TypeError or ValueError that names the argument.
    """

    LEARNED: ClassVar[tuple[str, ...]] = ("A", "B")
    GRADS = LoRAGrads
    rank: int
    A: Array
    B: Array
    alpha: float

    def __post_init__(self) -> None:
        checks.sizes(self.out_features, self.in_features, self.rank)
        checks.number("alpha", self.alpha)
        out_features, in_features = self.shape
        self._check(A=(self.A, (self.rank, in_features)), B=(self.B, (out_features, self.rank)))

    @classmethod
    def start(
        cls,
        out_features: int,
        in_features: int,
        rank: int = 8,
        *,
        alpha: float = 8,
        seed: int = 0,
        dtype: str = "float32",
        xp: Any = np,
        device: Any = None,
    ) -> Self:
        """An adapter as PEFT 0.21.2 starts it: A Kaiming uniform with a = √5, so on ±1/√in, and B = 0.

        A[k, i] is drawn as word i·r + k of stream 1.
        """
        out_features, in_features, rank = checks.sizes(out_features, in_features, rank)
        A = uniform(in_features, rank, in_features**-0.5, seed=seed, dtype=dtype, xp=xp, device=device).T
        B = xp.zeros((out_features, rank), **options(dtype, xp, device))
        return cls(out_features=out_features, in_features=in_features, rank=rank, A=A, B=B, alpha=alpha)

    @property
    def scaling(self) -> float:
        """α/r."""
        return float(self.alpha / self.rank)

    def factors(self) -> Factors:
        """One product (B, A)."""
        return ((self.B, self.A),)

    def _pair(self, xp: Any) -> tuple[Array, Array]:
        return self.B, self.A

    def _pull_back_pair(self, xp: Any, dL: Array, dR: Array) -> tuple[Array, ...]:
        return dR, dL
