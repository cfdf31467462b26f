"""A second, slow oracle for rank: the factors as fractions, multiplied and eliminated by the schoolbook."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest


def fractions(factor: Any) -> list[list[Fraction]]:
    """A matrix, a diagonal or a sum of products, as rows of fractions."""
    if isinstance(factor, tuple):
        total = None
        for product in factor:
            value = fractions(product[0])
            for part in product[1:]:
                columns = list(zip(*fractions(part), strict=True))
                value = [[sum(a * b for a, b in zip(row, column, strict=True)) for column in columns] for row in value]
            total = value if total is None else [[a + b for a, b in zip(*rows)] for rows in zip(total, value)]  # noqa: B905
        return total
    rows = np.asarray(factor).tolist()
    if np.ndim(factor) == 1:
        return [[Fraction(x) if i == j else Fraction(0) for j in range(len(rows))] for i, x in enumerate(rows)]
    return [[Fraction(x) for x in row] for row in rows]


def rank_of(rows: list[list[Fraction]]) -> int:
    """Rank by Gaussian elimination on fractions."""
    rows, rank = [list(row) for row in rows], 0
    for column in range(len(rows[0])):
        pivot = next((i for i in range(rank, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        for i in range(rank + 1, len(rows)):
            ratio = rows[i][column] / rows[rank][column]
            if ratio:
                rows[i] = [a - ratio * b for a, b in zip(rows[i], rows[rank], strict=True)]
        rank += 1
    return rank


@pytest.fixture(scope="session")
def as_fractions() -> Callable[[Any], list[list[Fraction]]]:
    """A factor as rows of fractions."""
    return fractions


@pytest.fixture(scope="session")
def true_rank() -> Callable[[Any], int]:
    """The rank of a matrix or a sum of products, exactly."""
    return lambda factor: rank_of(fractions(factor))
