"""Standard fine-tuning: the update itself is learned, all out·in values of it.

    ΔW = delta,    ∂L/∂delta = G = Σ_t dy_t x_tᵀ

The upper end of every comparison with few learned values: any ΔW can be reached.
"""

from dataclasses import dataclass
from typing import Any, Self, Unpack

from .. import checks
from .base import Array, Arrays, Factors, LinearAdapter, Made, Maker


@dataclass(frozen=True, eq=False, kw_only=True)
class FullFineTuning(LinearAdapter, learned=("delta",)):
    """A learned ΔW (out, in) beside a weight that stays as it was, so that it is compared with other updates.

    Raises TypeError or ValueError that names the argument.
    """

    delta: Array

    @classmethod
    def start(cls, out_features: int, in_features: int, **made: Unpack[Made]) -> Self:
        """An adapter as training starts: ΔW = 0. Nothing is random, and there is no rank."""
        checks.sizes(out_features, in_features)
        delta = Maker(**made).full(0, out_features, in_features)
        return cls(out_features=out_features, in_features=in_features, delta=delta)

    def delta_weight(self) -> Array:
        """ΔW (out, in), the learned array itself."""
        return self.delta

    def factors(self) -> Factors:
        """One product of one factor, (ΔW,)."""
        return ((self.delta,),)

    def _pull_back_delta(self, xp: Any, dy: Array, x: Array) -> tuple[Array, ...]:
        """∂L/∂delta = G."""
        return (dy.T @ x,)

    def _arrays(self) -> Arrays:
        return {"delta": (self.delta, self.shape)}


FullGrads = FullFineTuningGrads = FullFineTuning.GRADS
