"""Laws of scaling: what a wrong implementation has in place of s, out of its ratio to s on each case.

A law is c·n^a·r^b·d^e·D^f·s^g·rows^h, times what is asked for, its exponents few and small.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

Array = Any
VARIABLES = ("n", "r", "d", "D", "s", "rows")
NAMES = {
    "0": "adapter not applied",
    "-1": "of the opposite sign",
    "s^(-1)": "scaling left out",
    "s": "scaling applied twice",
    "s^(-2)": "scaling r/alpha",
    "r": "scaling alpha, not alpha/r",
    "n": "n times too large",
    "n^(-1/2)": "scaling over sqrt(n)",
    "r^(1/2)": "scaling times sqrt(r), as alpha/sqrt(r)",
    "2·n^(-1/2)·s^(-1)": "scaling 2/sqrt(n)",
    "r^(-1)·s^(-1)": "scaling 1/r",
    "rows^(-1)": "averaged over the rows",
}


_ALL = np.stack(np.meshgrid(*[(-2, -1, -0.5, 0, 0.5, 1)] * len(VARIABLES)), axis=-1).reshape(-1, len(VARIABLES))
EXPONENTS = _ALL[np.count_nonzero(_ALL, axis=1) <= 3]


class Law(NamedTuple):
    """A factor of each layer."""

    constant: float = 1.0
    exponents: tuple[float, ...] = (0.0,) * len(VARIABLES)

    def __call__(self, sizes: Array) -> float:
        """The factor of a layer, of the logarithms of its sizes."""
        return self.constant * float(np.exp(np.dot(self.exponents, sizes)))

    def times(self, other: "Law") -> "Law":
        """Both laws at once."""
        return Law(self.constant * other.constant, tuple(np.add(self.exponents, other.exponents).tolist()))

    @property
    def words(self) -> str:
        """What it is called, or its formula."""
        powers = [(name, Fraction(e)) for name, e in zip(VARIABLES, self.exponents, strict=True) if e]
        parts = [f"{self.constant:.6g}"] * (self.constant != 1 or not powers)
        formula = "·".join([*parts, *(name if e == 1 else f"{name}^({e})" for name, e in powers)])
        return NAMES.get(formula, f"scaling times {formula}")


ONE, ZERO = Law(), Law(0.0)


def laws(sizes: Sequence[Array], ratios: Sequence[tuple[float, float]]) -> list[Law]:
    """The simplest laws that give all ratios (NaN: the case says nothing), each within its relative tolerance.

    Where n, r and s are the same in all cases, one variable or a constant is all that can be said.
    """
    told = [not np.isnan(ratio) for ratio, _ in ratios]
    X, (ratio, tolerance) = np.array(sizes)[told], np.array(ratios)[told].T
    if np.all(np.abs(ratio - 1) <= tolerance):
        return [ONE]
    if not np.all(np.sign(ratio) == np.sign(ratio[0])) or not ratio[0]:
        return [] if np.any(ratio) else [ZERO]
    left, finest = np.log(np.abs(ratio))[:, None] - X @ EXPONENTS.T, int(np.argmin(tolerance))
    fits = np.all(np.abs(left - left[finest]) <= 2 * (tolerance + tolerance[finest])[:, None], axis=0)
    constant = np.abs(left[finest]) > 2 * tolerance[finest]
    size = np.count_nonzero(EXPONENTS, axis=1) + constant
    if len(np.unique(np.round(X[:, [0, 1, 4]], 9), axis=0)) < 2:
        fits &= size < 2
    best = np.flatnonzero(fits & (size == np.min(size[fits], initial=9)))
    values = np.sign(ratio[0]) * np.where(constant, np.exp(left[finest]), 1.0)
    return [Law(_simple(float(values[i])), tuple(EXPONENTS[i].tolist())) for i in best]


def _simple(value: float) -> float:
    """A small fraction where the value is one but for rounding."""
    near = float(Fraction(value).limit_denominator(64))
    return near if abs(near - value) <= 1e-6 * abs(value) else value
