"""Standard fine-tuning: the update itself is learned, all out·in values of it.

    ΔW = delta,    ∂L/∂delta = G = Σ_t dy_t x_tᵀ

The upper end of every comparison with few learned values: any ΔW can be reached.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from .. import checks
from .base import Factors, LinearAdapter, options

Array = Any


class FullGrads(NamedTuple):
    """Gradients of the loss; ``weight`` is None unless asked for, ``bias`` None where the layer has none."""

    delta: Array
    weight: Array | None
    bias: Array | None


@dataclass(frozen=True, eq=False, kw_only=True)
class FullFineTuning(LinearAdapter):
    """A learned ΔW (out, in) beside a weight that stays as it was, so that it is compared with other updates.

    Raises TypeError or ValueError that names the argument.
    """

    LEARNED: ClassVar[tuple[str, ...]] = ("delta",)
    GRADS = FullGrads
    delta: Array

    def __post_init__(self) -> None:
        checks.sizes(self.out_features, self.in_features)
        self._check(delta=(self.delta, self.shape))

    @classmethod
    def start(
        cls, out_features: int, in_features: int, *, dtype: str = "float32", xp: Any = np, device: Any = None
    ) -> Self:
        """An adapter as training starts: ΔW = 0. Nothing is random, and there is no rank."""
        checks.sizes(out_features, in_features)
        delta = xp.zeros((out_features, in_features), **options(dtype, xp, device))
        return cls(out_features=out_features, in_features=in_features, delta=delta)

    def delta_weight(self) -> Array:
        """ΔW (out, in), the learned array itself."""
        return self.delta

    def factors(self) -> Factors:
        """One product of one factor, (ΔW,)."""
        return ((self.delta,),)

    def _apply(self, xp: Any, p: Array, weight: Array | None, keep_merged: bool) -> tuple[Array, Any]:
        """One product through W0 + ΔW, where dropout does not part the two."""
        return p @ self._total(weight).T, None

    def _pull_back(
        self, xp: Any, q: Array, p: Array, weight: Array | None, inner: Any
    ) -> tuple[Array, tuple[Array, ...]]:
        return q @ self._total(weight), (q.T @ p,)

    def _total(self, weight: Array | None) -> Array:
        return self.delta if weight is None else weight + self.delta
