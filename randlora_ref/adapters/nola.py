"""NoLA (Koohpayegani et al., arXiv 2310.02556): two thin matrices, each a learned mix of frozen random ones.

    ΔW = s·(Σ_b c0[b] B_b)(Σ_b c1[b] A_b),    B_b (out, r), A_b (r, in) frozen,    2k learned values for k bases

So k, and not the layer's shape, settles the number of learned values; rank ΔW <= r. With L, R the two sums and
G = ∂L/∂ΔW:  ∂L/∂c0[b] = s·⟨G Rᵀ, B_b⟩,  ∂L/∂c1[b] = s·⟨Lᵀ G, A_b⟩.
"""

from dataclasses import dataclass
from typing import Any, Self, Unpack

from .. import arrays, checks
from .base import Array, Arrays, Factors, LowRankByAlpha, Made, Maker, terms


@dataclass(frozen=True, eq=False, kw_only=True)
class NoLA(LowRankByAlpha, learned=("c0", "c1")):
    """A NoLA adapter of one weight (out, in), from given arrays c0, c1 (k,), A (k, r, in) and B (k, out, r).

    Raises TypeError or ValueError that names the argument.
    """

    A: Array
    B: Array
    c0: Array
    c1: Array
    alpha: float = 1

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
        **made: Unpack[Made],
    ) -> Self:
        """An adapter as the authors' vision code starts it: every coefficient 1/k. ΔW is small, and not zero.

        The bases have unit variance, as theirs; the draws are our own: with k bases, A_b[a, i] is word (i·k + b)·r + a
        of stream 1, and B_b[o, a] word (o·k + b)·r + a of stream 2. So a smaller layer's bases begin a larger one's.
        """
        out_features, in_features, rank = checks.sizes(out_features, in_features, rank)
        k, make = checks.integer("num_bases", num_bases), Maker(seed, **made)
        bases = (
            arrays.swap_last(make.stack(k, in_features, rank, stream=1)),
            make.stack(k, out_features, rank, stream=2),
        )
        A, B = (make.xp.reshape(make.xp.reshape(x, (k, -1)), x.shape) for x in bases)  # one copy, then views alone
        size: dict[str, Any] = {"out_features": out_features, "in_features": in_features, "rank": rank}
        return cls(**size, A=A, B=B, c0=make.full(1 / k, k), c1=make.full(1 / k, k), alpha=alpha)

    def factors(self) -> Factors:
        """One product of two sums, (Σ_b B_b·c0[b])(Σ_b A_b·c1[b]), the coefficients as diagonals."""
        xp = checks.namespace(c0=self.c0)

        def mix(bases: Array, c: Array) -> Factors:
            return tuple((bases[b, :, :], xp.broadcast_to(c[b : b + 1], bases.shape[2:])) for b in range(c.shape[0]))

        return ((mix(self.B, self.c0), mix(self.A, self.c1)),)

    def _pair(self, xp: Any) -> tuple[Array, Array]:
        return self._mix(xp, self.c0, self.B), self._mix(xp, self.c1, self.A)

    def _pull_back_pair(self, xp: Any, dL: Array, dR: Array) -> tuple[Array, ...]:
        """∂L/∂c0[b] = ⟨∂L/∂L, B_b⟩ and ∂L/∂c1[b] = ⟨∂L/∂R, A_b⟩."""
        pairs = ((self.B, dL), (self.A, dR))
        return tuple(xp.reshape(bases, (bases.shape[0], -1)) @ xp.reshape(d, (-1,)) for bases, d in pairs)

    @staticmethod
    def _mix(xp: Any, c: Array, bases: Array) -> Array:
        """Σ_b c[b]·bases[b]."""
        return xp.reshape(c @ xp.reshape(bases, (c.shape[0], -1)), tuple(bases.shape[1:]))

    def _arrays(self) -> Arrays:
        (out_features, in_features), r, k = self.shape, self.rank, terms("c0", self.c0)
        learned: Arrays = {"c0": (self.c0, (k,)), "c1": (self.c1, (k,))}
        return learned | {"A": (self.A, (k, r, in_features)), "B": (self.B, (k, out_features, r))}


NoLAGrads = NoLA.GRADS
