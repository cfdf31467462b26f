"""The exact tier: on small integers every result of a layer is an integer that a float holds, so nothing is rounded.

A, B in {−1, 0, 1}, everything else in {−3 … 3}, s a power of two: sums stay far below 2²⁴, hence float32 and float64
give the very same values in any order of summation, on any device, and the tolerance is zero.

A function that is affine in an argument p has f(p + u) − f(p) linear in u, so its gradient satisfies

    ⟨dy, f(p + u) − f(p)⟩ = ⟨∂L/∂p, u⟩

*exactly* on integers, for every u: a proof of the gradient at that point, with no step size and no tolerance.
"""

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.random import Generator

Array = Any


def small(rng: Generator, *shape: int, size: int = 3) -> Array:
    """Integers in [−size, size], held in float64."""
    return rng.integers(-size, size + 1, shape).astype(np.float64)


def adjoint_gap(cotangent: Array, change: Array, gradient: Array, step: Array) -> float:
    """⟨dy, f(p + u) − f(p)⟩ − ⟨∂L/∂p, u⟩, of host arrays: exactly 0 for a right gradient of an f affine in p."""
    return float(np.sum(cotangent * change) - np.sum(gradient * step))


def fractions(x: Array) -> Array:
    """An object array of the exact values of a host array of finite floats or integers."""
    return np.array([Fraction(value) for value in np.ravel(x).tolist()], dtype=object).reshape(np.shape(x))


def fraction_rank(matrix: Array) -> int:
    """The rank of a matrix of fractions, by the schoolbook's elimination: apart from ``rank``, which it judges."""
    rows, rank = list(matrix), 0
    for column in range(matrix.shape[1]):
        pivot = next((i for i in range(rank, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        for i in range(rank + 1, len(rows)):
            if rows[i][column]:
                rows[i] = rows[i] - rows[i][column] / rows[rank][column] * rows[rank]
        rank += 1
    return rank
