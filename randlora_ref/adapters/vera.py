"""VeRA (Kopiczko et al., arXiv 2310.11454): two learned diagonals around a frozen random pair that layers share.

    ΔW = diag(λ_b) B diag(λ_d) A,    B (out, r), A (r, in) frozen,    out + r learned values, rank ΔW <= r

With G = ∂L/∂ΔW:  ∂L/∂λ_b[o] = Σ_{k,i} B[o,k] λ_d[k] A[k,i] G[o,i],  ∂L/∂λ_d[k] = Σ_{o,i} λ_b[o] B[o,k] A[k,i] G[o,i].

As many learned values as another method has ask for a large r, and many rows: then ΔW and G are formed, as in RandLoRA.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, Unpack

from .. import arrays, checks
from .base import Array, Arrays, Factors, LinearAdapter, Made, Maker


def vera_bases(
    shapes: Sequence[tuple[int, int]], rank: int = 256, *, seed: int = 0, **made: Unpack[Made]
) -> tuple[Array, Array]:
    """The frozen A (r, in_max) and B (out_max, r) that layers of ``shapes`` (out, in) share.

    Kaiming uniform as PEFT 0.21.2 has it, bounds √(6/in_max) and √(6/r) (measured); the draws are our own: A[k, i] is
    word i·r + k of stream 1, B[o, k] word o·r + k of stream 2. Raises ValueError for no shape, or a wrong one.
    """
    shapes = checks.layer_shapes(shapes)
    rank = checks.integer("rank", rank)
    rows, columns = (max(shape[axis] for shape in shapes) for axis in (0, 1))
    make = Maker(seed, **made)
    return make.uniform(columns, rank, (6 / columns) ** 0.5).T, make.uniform(rows, rank, (6 / rank) ** 0.5, stream=2)


@dataclass(frozen=True, eq=False, kw_only=True)
class VeRA(LinearAdapter, learned=("lambda_b", "lambda_d")):
    """A VeRA adapter of one weight (out, in), from given arrays lambda_b (out,) and lambda_d (r,).

    ``A`` and ``B`` may be larger than the layer, which takes the first in columns of A and the first out rows of B.
    Raises TypeError or ValueError that names the argument.
    """

    rank: int
    A: Array
    B: Array
    lambda_b: Array
    lambda_d: Array

    @classmethod
    def start(
        cls,
        out_features: int,
        in_features: int,
        rank: int = 256,
        *,
        bases: tuple[Array, Array] | None = None,
        d_initial: float = 0.1,
        seed: int = 0,
        **made: Unpack[Made],
    ) -> Self:
        """An adapter as PEFT 0.21.2 starts it: λ_b = 0, λ_d = 0.1, so ΔW = 0.

        ``bases`` (A, B) are shared ones, which settle ``xp`` and ``device``; None draws the layer's own.
        """
        out_features, in_features, rank = checks.sizes(out_features, in_features, rank)
        checks.number("d_initial", d_initial)
        if not (bases is None or (isinstance(bases, tuple) and len(bases) == 2)):
            raise TypeError(f"bases: {type(bases).__name__}; it must be a pair (A, B)")
        A, B = vera_bases([(out_features, in_features)], rank, seed=seed, **made) if bases is None else bases
        made["xp"], made["device"] = checks.namespace(A=A, B=B), arrays.device_of(A)
        make = Maker(seed, **made)
        size: dict[str, Any] = {"out_features": out_features, "in_features": in_features, "rank": rank}
        return cls(**size, A=A, B=B, lambda_b=make.full(0, out_features), lambda_d=make.full(d_initial, rank))

    @property
    def _own(self) -> tuple[Array, Array]:
        """A (r, in) and B (out, r), the layer's part of its bases."""
        return self.A[:, : self.in_features], self.B[: self.out_features, :]

    def delta_weight(self) -> Array:
        """ΔW (out, in)."""
        A, B = self._own
        return self.lambda_b[:, None] * ((B * self.lambda_d) @ A)

    def factors(self) -> Factors:
        """One product (λ_b, B, λ_d, A)."""
        A, B = self._own
        return ((self.lambda_b, B, self.lambda_d, A),)

    def _step(self, xp: Any, x: Array, masked: bool, keep: bool) -> tuple[Array, Any] | None:
        (out_features, in_features), T, r = self.shape, x.shape[0], self.rank
        if (T + 2 * r) * out_features * in_features <= 2 * T * r * (out_features + in_features):  # G, ΔW and G Aᵀ
            return None
        A, B = self._own
        z = x @ A.T  # (T, r)
        u = (z * self.lambda_d) @ B.T  # (T, out)
        return u * self.lambda_b, ("thin", z, u)

    def _step_back(self, xp: Any, dy: Array, x: Array, kept: Any) -> tuple[Array, tuple[Array, ...]]:
        """∂L/∂λ_b = Σ_t dy∘u and ∂L/∂λ_d = Σ_t v∘z, with v = (dy∘λ_b) B."""
        (A, B), (_, z, u) = self._own, kept
        v = (dy * self.lambda_b) @ B  # (T, r)
        return (v * self.lambda_d) @ A, (xp.sum(dy * u, axis=0), xp.sum(v * z, axis=0))  # (T, in)

    def _pull_back_delta(self, xp: Any, dy: Array, x: Array) -> tuple[Array, Array]:
        """∂L/∂λ_b = P λ_d and ∂L/∂λ_d = λ_b P from P = B∘(G Aᵀ) (out, r)."""
        A, B = self._own
        P = B * ((dy.T @ x) @ A.T)
        return P @ self.lambda_d, self.lambda_b @ P

    def _arrays(self) -> Arrays:
        (out, in_), r = self.shape, self.rank
        checks.namespace(A=self.A, B=self.B)
        checks.shaped(self.A.ndim == 2 and self.A.shape[1] >= in_, "A", self.A, f"({r}, {in_}) or wider")
        checks.shaped(self.B.ndim == 2 and self.B.shape[0] >= out, "B", self.B, f"({out}, {r}) or taller")
        A, B = self._own
        learned: Arrays = {"lambda_b": (self.lambda_b, (out,)), "lambda_d": (self.lambda_d, (r,))}
        return learned | {"A": (A, (r, in_)), "B": (B, (out, r))}


VeRAGrads = VeRA.GRADS
