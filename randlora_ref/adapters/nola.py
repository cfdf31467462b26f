"""NoLA (Koohpayegani et al., arXiv 2310.02556): two thin matrices, each a learned mix of frozen random ones.

    ΔW = s·(Σ_b c0[b] B_b)(Σ_b c1[b] A_b),    B_b (out, r), A_b (r, in) frozen,    2k learned values for k bases

So k, and not the layer's shape, settles the number of learned values; rank ΔW <= r. With L, R the two sums and
G = ∂L/∂ΔW:  ∂L/∂c0[b] = s·⟨G Rᵀ, B_b⟩,  ∂L/∂c1[b] = s·⟨Lᵀ G, A_b⟩.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from .. import arrays, checks
from .base import Factors, LowRank, options, uniform

Array = Any


class NoLAGrads(NamedTuple):
    """Gradients of the loss; ``weight`` is None unless asked for, ``bias`` None where the layer has none."""

    c0: Array
    c1: Array
    weight: Array | None
    bias: Array | None


@dataclass(frozen=True, eq=False, kw_only=True)
class NoLA(LowRank):
    """A NoLA adapter of one weight (out, in), from given arrays c0, c1 (k,), A (k, r, in) and B (k, out, r).

    Raises TypeError or ValueError that names the argument.
    """

    LEARNED: ClassVar[tuple[str, ...]] = ("c0", "c1")
    GRADS = NoLAGrads
    rank: int
    A: Array
    B: Array
    c0: Array
    c1: Array
    alpha: float = 1

    def __post_init__(self) -> None:
        (out_features, in_features), rank = (self.out_features, self.in_features), self.rank
        out_features, in_features, rank = checks.sizes(out_features, in_features, rank)
        checks.number("alpha", self.alpha)
        checks.namespace(c0=self.c0)
        if self.c0.ndim != 1 or self.c0.shape[0] < 1:
            raise ValueError(f"c0: shape {tuple(self.c0.shape)}; it must be (k,) with k >= 1 bases")
        k = self.c0.shape[0]
        self._check(
            c0=(self.c0, (k,)),
            c1=(self.c1, (k,)),
            A=(self.A, (k, rank, in_features)),
            B=(self.B, (k, out_features, rank)),
        )

    @classmethod
    def start(
        cls,
        out_features: int,
        in_features: int,
        rank: int = 1,
        *,
        num_bases: int = 1024,
        alpha: float = 1,
        seed: int = 0,
        dtype: str = "float32",
        xp: Any = np,
        device: Any = None,
    ) -> Self:
        """An adapter as the authors' vision code starts it: every coefficient 1/k. ΔW is small, and not zero.

        The bases have unit variance, as theirs; the draws are our own: with k bases, A_b[a, i] is word (i·k + b)·r + a
        of stream 1, and B_b[o, a] word (o·k + b)·r + a of stream 2. So a smaller layer's bases begin a larger one's.
        """
        out_features, in_features, rank = checks.sizes(out_features, in_features, rank)
        checks.integer("num_bases", num_bases)
        k, made = num_bases, options(dtype, xp, device)
        draws = {"seed": seed, "dtype": dtype, "xp": xp, "device": device}
        A = xp.reshape(uniform(in_features, k * rank, stream=1, **draws), (in_features, k, rank))
        B = xp.reshape(uniform(out_features, k * rank, stream=2, **draws), (out_features, k, rank))
        A = xp.reshape(arrays.permute(xp, A, (1, 2, 0)), (k, rank * in_features))  # one copy, then only views
        B = xp.reshape(arrays.permute(xp, B, (1, 0, 2)), (k, out_features * rank))
        return cls(
            out_features=out_features,
            in_features=in_features,
            rank=rank,
            A=xp.reshape(A, (k, rank, in_features)),
            B=xp.reshape(B, (k, out_features, rank)),
            c0=xp.full((k,), 1 / k, **made),
            c1=xp.full((k,), 1 / k, **made),
            alpha=alpha,
        )

    @property
    def scaling(self) -> float:
        """α/r."""
        return float(self.alpha / self.rank)

    def factors(self) -> Factors:
        """One product of two sums, (Σ_b B_b·c0[b])(Σ_b A_b·c1[b]), the coefficients as diagonals."""
        xp = checks.namespace(c0=self.c0)
        mixes = []
        for bases, c in ((self.B, self.c0), (self.A, self.c1)):
            width = bases.shape[2]
            mixes.append(tuple((bases[b, :, :], xp.broadcast_to(c[b : b + 1], (width,))) for b in range(c.shape[0])))
        return (tuple(mixes),)

    def _pair(self, xp: Any) -> tuple[Array, Array]:
        return self._mix(xp, self.c0, self.B), self._mix(xp, self.c1, self.A)

    def _pull_back_pair(self, xp: Any, dL: Array, dR: Array) -> tuple[Array, ...]:
        k = self.c0.shape[0]
        return tuple(
            xp.reshape(bases, (k, -1)) @ xp.reshape(cotangent, (-1,))
            for bases, cotangent in ((self.B, dL), (self.A, dR))
        )

    @staticmethod
    def _mix(xp: Any, c: Array, bases: Array) -> Array:
        """Σ_b c[b]·bases[b]."""
        return xp.reshape(c @ xp.reshape(bases, (c.shape[0], -1)), tuple(bases.shape[1:]))
