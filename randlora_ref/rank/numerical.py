"""Rank as floating point sees it: singular values, and what is read off them. Estimates, never proofs.

A stored ΔW is full rank almost always, from its rounding alone, so none of these figures says what rank the factors
have (``certify_rank`` does); they say how much of it is large. Figures from factors are of their product formed in
float64 and say so.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import arrays, checks
from .factors import FLOATS, Floats, evaluate, read


@dataclass(frozen=True)
class Spectrum:
    """Singular values σ_1 >= σ_2 >= …, and figures read off them."""

    values: Floats  # (min(out, in),)
    threshold: float
    rank: int  # σ_i > threshold
    stable_rank: float  # Σσ²/σ_1²
    effective_rank: float  # exp of the entropy of σ/Σσ (Roy & Vetterli, 2007)
    source: str  # what was decomposed
    __repr__ = arrays.brief

    def to_json(self) -> dict[str, Any]:
        """The fields as plain Python values."""
        fields = {"numerical_rank" if name == "rank" else name: value for name, value in self.__dict__.items()}
        return {**fields, "values": self.values.tolist()}

    def lines(self) -> list[str]:
        """For a person."""
        return [
            f"numerical rank {self.rank} of {len(self.values)} (singular values above {self.threshold:.3g})",
            f"stable rank {self.stable_rank:.1f}, effective rank {self.effective_rank:.1f}",
            f"singular values {self.values[0]:.3g} … {self.values[-1]:.3g}, {self.source}",
        ]


@np.errstate(over="ignore", invalid="ignore")
def spectrum(source: Any, threshold: float | None = None) -> Spectrum:
    """The spectrum of a matrix, nested tuples of factors, or an object with ``factors()``.

    ``threshold`` defaults to σ_1·max(out, in)·2⁻⁵², LAPACK's habit for float64. Without the adapter's scaling.
    A power of two is taken out first, so that no square overflows or vanishes; a σ beyond float64 is infinite.
    Raises ValueError for a threshold that is negative or not finite, for factors whose product overflows, and as
    ``certify_rank`` does for bad ones.
    """
    if threshold is not None:
        threshold = checks.number("threshold", threshold, least=0.0)
    matrix = evaluate(read(source), FLOATS)
    if not np.isfinite(matrix).all():
        raise ValueError("factors: their product overflows float64; certify_rank decides its rank all the same")
    exponent = int(np.frexp(np.max(np.abs(matrix)))[1])
    scaled = np.linalg.svd(np.ldexp(matrix, -exponent), compute_uv=False).astype(np.float64)
    values = np.ldexp(scaled, exponent)
    if threshold is None:
        threshold = float(np.ldexp(scaled[0] * max(matrix.shape) * 2.0**-52, exponent))
    largest, total = scaled[0] or 1.0, scaled.sum() or 1.0
    share = scaled[scaled > 0] / total
    of_factors = "of the product of the factors, rounded to float64"
    return Spectrum(
        values=values,
        threshold=threshold,
        rank=int((values > threshold).sum()),
        stable_rank=float(((scaled / largest) ** 2).sum()),
        effective_rank=math.exp(-float((share * np.log(share)).sum())) if share.size else 0.0,
        source="of the stored matrix" if hasattr(source, "ndim") else of_factors,
    )


def plot_spectra(spectra: Mapping[str, Spectrum], path: str | Path) -> None:
    """Draw named spectra on one logarithmic plot and write it to ``path``. Needs the ``plot`` extra."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plotting needs matplotlib: pip install 'randlora-ref[plot]'") from None
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, item in spectra.items():
        positive = item.values[item.values > 0]
        axes.semilogy(np.arange(1, len(positive) + 1), positive, label=f"{name}: rank {item.rank}")
    axes.set(xlabel="index", ylabel="singular value")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
