"""How large a rounding error may be: limits derived from the data, in the manner of Reference BLAS's testers.

The *gauge* G of a result is the same formula on absolute values: it bounds what cancels. An entry of a sum of m
products, rounded to unit roundoff u, is right if |error| <= 16·max(1, √(m/256))·u·G. (Reference BLAS asks for 16·u·G
whatever m is, which random positive data, added one by one, exceed at m = 10,000. The limit is for rounding errors of
either sign: the same number added m times one by one drifts, up to m·u·G, and no implementation should.)

Every comparison is written as "error <= limit", so NaN fails, and non-finite values fail first.
"""

from types import NoneType
from typing import Any

import numpy as np

from .. import spec

Array = Any
UPDATE = ("A", "B", "lambda_", "gamma", "scaling", "pairing", "orientation")  # what ΔW is made of
TINY = 2.0**-1074  # the least positive float64: an underflow is no rounding error


def limit(gauge: Array, contraction: int, u: float) -> Array:
    """16·max(1, √(m/256))·u·G for each entry, m the longest ``contraction``."""
    return 16 * max(1.0, (contraction / 256) ** 0.5) * u * gauge + TINY


def ratio(actual: Array, expected: Array, allowed: Array) -> float:
    """max |actual − expected| / allowed of host arrays; 1 or less passes. Infinite if non-finite or misshapen."""
    if np.shape(actual) != np.shape(expected) or not (np.all(np.isfinite(actual)) and np.all(np.isfinite(expected))):
        return float("inf")
    return float(np.max(np.abs(actual - expected) / allowed, initial=0.0))


def layer_gauges(case: dict[str, Any]) -> dict[str, Array]:
    """G of y, x, weight, bias, lambda_, gamma and delta_weight of a layer: ``spec`` on absolute values, in float64.

    ``case`` holds the arguments of ``spec.backward`` by name, with ``bias``.
    """
    kept = (str, NoneType)  # rules, and what is not there
    return expected({name: x if isinstance(x, kept) else np.abs(np.asarray(x, np.float64)) for name, x in case.items()})


def expected(case: dict[str, Any]) -> dict[str, Array]:
    """y, delta_weight and every gradient of a layer, by ``spec``, under the names of ``layer_gauges``."""
    arguments = {name: x for name, x in case.items() if name not in ("dy", "bias")}
    y = spec.forward(bias=case["bias"], **arguments)
    gradients = spec.backward(dy=case["dy"], **arguments)
    own = {name: case[name] for name in UPDATE if name in case}
    update = spec.delta_weight(shape=case["weight"].shape, **own)
    return {"y": y, "delta_weight": update, **gradients._asdict()}


def contraction(case: dict[str, Any]) -> int:
    """The longest sum in a layer: over a side of the weight, the n·r columns of the bases, or the rows."""
    rows = int(np.prod(case["x"].shape[:-1]))
    return int(max(*case["weight"].shape, case["lambda_"].size, rows))
