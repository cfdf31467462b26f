"""VeRA (Kopiczko et al., arXiv 2310.11454): two learned diagonals around a frozen random pair that layers share.

    ΔW = diag(λ_b) B diag(λ_d) A,    B (out, r), A (r, in) frozen,    out + r learned values, rank ΔW <= r

With G = ∂L/∂ΔW:  ∂L/∂λ_b[o] = Σ_{k,i} B[o,k] λ_d[k] A[k,i] G[o,i],  ∂L/∂λ_d[k] = Σ_{o,i} λ_b[o] B[o,k] A[k,i] G[o,i].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from .. import arrays, checks
from .base import Factors, LinearAdapter, options, uniform

Array = Any


class VeRAGrads(NamedTuple):
    """Gradients of the loss; ``weight`` is None unless asked for, ``bias`` None where the layer has none."""

    lambda_b: Array
    lambda_d: Array
    weight: Array | None
    bias: Array | None


def vera_bases(
    shapes: Sequence[tuple[int, int]],
    rank: int = 256,
    *,
    seed: int = 0,
    dtype: str = "float32",
    xp: Any = np,
    device: Any = None,
) -> tuple[Array, Array]:
    """The frozen A (r, in_max) and B (out_max, r) that layers of ``shapes`` (out, in) share.

    Kaiming uniform as PEFT 0.21.2 has it, bounds √(6/in_max) and √(6/r) (measured); the draws are our own: A[k, i] is
    word i·r + k of stream 1, B[o, k] word o·r + k of stream 2. Raises ValueError for no shape, or a wrong one.
    """
    shapes = checks.layer_shapes(shapes)
    checks.integer("rank", rank)
    rows, columns = (max(shape[axis] for shape in shapes) for axis in (0, 1))
    A = uniform(columns, rank, (6 / columns) ** 0.5, stream=1, seed=seed, dtype=dtype, xp=xp, device=device).T
    return A, uniform(rows, rank, (6 / rank) ** 0.5, stream=2, seed=seed, dtype=dtype, xp=xp, device=device)


@dataclass(frozen=True, eq=False, kw_only=True)
class VeRA(LinearAdapter):
    """A VeRA adapter of one weight (out, in), from given arrays lambda_b (out,) and lambda_d (r,).

    ``A`` and ``B`` may be larger than the layer, which takes the first in columns of A and the first out rows of B.
    Raises TypeError or ValueError that names the argument.
    """

    LEARNED: ClassVar[tuple[str, ...]] = ("lambda_b", "lambda_d")
    GRADS = VeRAGrads
    rank: int
    A: Array
    B: Array
    lambda_b: Array
    lambda_d: Array

    def __post_init__(self) -> None:
        out_features, in_features, rank = self.out_features, self.in_features, self.rank
        out_features, in_features, rank = checks.sizes(out_features, in_features, rank)
        checks.namespace(A=self.A, B=self.B)
        if self.A.ndim != 2 or self.A.shape[1] < in_features:
            raise ValueError(f"A: shape {tuple(self.A.shape)}; it must be ({rank}, {in_features}) or wider")
        if self.B.ndim != 2 or self.B.shape[0] < out_features:
            raise ValueError(f"B: shape {tuple(self.B.shape)}; it must be ({out_features}, {rank}) or taller")
        A, B = self._own
        self._check(
            lambda_b=(self.lambda_b, (out_features,)),
            lambda_d=(self.lambda_d, (rank,)),
            A=(A, (rank, in_features)),
            B=(B, (out_features, rank)),
        )

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
        dtype: str = "float32",
        xp: Any = np,
        device: Any = None,
    ) -> Self:
        """An adapter as PEFT 0.21.2 starts it: λ_b = 0, λ_d = 0.1, so ΔW = 0.

        ``bases`` (A, B) are shared ones, which settle ``xp`` and ``device``; None draws the layer's own.
        """
        out_features, in_features, rank = checks.sizes(out_features, in_features, rank)
        checks.number("d_initial", d_initial)
        if bases is None:
            bases = vera_bases([(out_features, in_features)], rank, seed=seed, dtype=dtype, xp=xp, device=device)
        xp, device = checks.namespace(A=bases[0], B=bases[1]), arrays.device_of(bases[0])
        made = options(dtype, xp, device)
        return cls(
            out_features=out_features,
            in_features=in_features,
            rank=rank,
            A=bases[0],
            B=bases[1],
            lambda_b=xp.zeros((out_features,), **made),
            lambda_d=xp.full((rank,), d_initial, **made),
        )

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

    def _apply(self, xp: Any, p: Array, weight: Array | None, keep_merged: bool) -> tuple[Array, Any]:
        A, B = self._own
        z = p @ A.T
        u = (z * self.lambda_d) @ B.T
        step = u * self.lambda_b
        return (step if weight is None else p @ weight.T + step), (z, u)

    def _pull_back(
        self, xp: Any, q: Array, p: Array, weight: Array | None, inner: Any
    ) -> tuple[Array, tuple[Array, ...]]:
        """∂L/∂λ_b = Σ_t q∘u and ∂L/∂λ_d = Σ_t v∘z, with v = (q∘λ_b) B."""
        (A, B), (z, u) = self._own, inner
        v = (q * self.lambda_b) @ B
        step = (v * self.lambda_d) @ A
        learned = (xp.sum(q * u, axis=0), xp.sum(v * z, axis=0))
        return (step if weight is None else q @ weight + step), learned
