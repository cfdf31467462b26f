"""A function at one point, by the code and by its specification, and what must hold there whatever the function is.

Every property takes a point and gives one figure, which its limit in ``PROPERTIES`` bounds: NaN fails, non-finite is
infinite. Functions of ``nn``, whole blocks and whole models are all points.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from .. import arrays
from .complex_step import directional
from .configurations import HOST, Backend

Array = Any
Results = dict[str, Array]
LIMIT = 1e-12  # of a relative error in float64
UNDERFLOW = 1e-290  # smaller numbers lose digits that no formula can keep


class Point(NamedTuple):
    """``values``: all that is differentiated, by name, float64 on the host; ``dy``: the cotangent of output "y".

    ``run(values, dy)`` is the code, on any library and in any precision, ``expected(values, dy)`` the specification, on
    NumPy. Both give outputs by name, and gradients under the names of ``values``; ``dy`` None asks for outputs alone.
    ``size`` is the least scale on which results are compared: that of what they are differences of.
    """

    values: Results
    dy: Array
    run: Callable[[Results, Array | None], Results]
    expected: Callable[[Results, Array | None], Results]
    size: float = 0.0

    def results(self, backend: Backend = HOST, dtype: str = "float64", dy: Array | None = None) -> Results:
        """What the code gives on ``backend`` in ``dtype``, brought back to the host."""
        dy = backend.array(self.dy if dy is None else dy, dtype)
        found = self.run({name: backend.array(x, dtype) for name, x in self.values.items()}, dy)
        return {name: arrays.to_numpy(x) for name, x in found.items()}


class Property(NamedTuple):
    """What must hold: ``figure(subject, backend)`` <= ``limit``, and whence the limit comes."""

    name: str
    figure: Callable[[Any, Backend], float]
    limit: float
    formula: str


def apart(found: Results, right: Results, names: Iterable[str], size: float = 0.0, share: float = 2.0**-10) -> float:
    """The worst max|a − b|/max(max|b|, ``share`` of the largest entry of all, ``size``) over the tensors ``names``."""
    largest = max((float(np.max(np.abs(b), initial=0.0)) for b in right.values()), default=0.0)
    worst = 0.0
    for name in names:
        a, b = np.asarray(found[name]), np.asarray(right[name])
        if a.shape != b.shape or not np.all(np.isfinite(a)) or not np.all(np.isfinite(b)):
            return float("inf")
        scale = max(float(np.max(np.abs(b), initial=0.0)), share * largest, size, UNDERFLOW)
        worst = max(worst, float(np.max(np.abs(a - b), initial=0.0)) / scale)
    return worst


def conditioned(error: float, point: Point) -> float:
    """A relative error, over its limit's share of 4·what an ulp moves the specification by, where that is more.

    A nearly constant row of LayerNorm magnifies each rounding by up to 1/√ε, in any code.
    """
    if not error > LIMIT:
        return error
    rng, right = np.random.default_rng(3), point.expected(point.values, point.dy)
    moved = 0.0
    for _ in range(4):
        values = {name: x * (1 + 2.0**-52 * rng.standard_normal(x.shape)) for name, x in point.values.items()}
        moved = max(moved, apart(point.expected(values, point.dy), right, right, point.size))
    return error * LIMIT / max(LIMIT, 4 * moved)


def alike(point: Point, backend: Backend, right: Results) -> float:
    """What the code gives beside ``right``, as far as rounding lets it."""
    return conditioned(apart(point.results(backend), right, right), point)


def outputs(point: Point, backend: Backend) -> float:
    """The outputs beside the specification's."""
    found, right = point.results(backend), point.expected(point.values, point.dy)
    return conditioned(apart(found, right, set(right) - set(point.values), point.size), point)


def gradients(point: Point, backend: Backend) -> float:
    """Every gradient that the specification gives, beside it."""
    found, right = point.results(backend), point.expected(point.values, point.dy)
    return conditioned(apart(found, right, set(right) & set(point.values), point.size), point)


def step_gaps(point: Point, names: Iterable[str] | None = None) -> dict[str, tuple[Array, Array, float]]:
    """By tensor of ``names`` (None: all): ⟨g, u⟩ and the complex step along three random u; the largest Σ|g∘u|."""
    rng, found, gaps = np.random.default_rng(0), point.results(), {}
    for name in point.values if names is None else names:
        value = point.values[name]

        def loss(x: Array, name: str = name) -> Array:
            return np.sum(point.dy * point.run(point.values | {name: x}, None)["y"])

        u = [rng.standard_normal(value.shape) for _ in range(3)]
        ours = [np.sum(found[name] * one) for one in u]
        sizes = [float(np.sum(np.abs(found[name] * one))) for one in u]
        gaps[name] = np.array(ours), np.array([directional(loss, value, one) for one in u]), max(sizes)
    return gaps


def step(point: Point, backend: Backend) -> float:
    """The complex step of a single function: relative to the derivative, a small one to 2⁻¹⁰ of the largest."""
    gaps = step_gaps(point)
    found, right = ({name: gap[side] for name, gap in gaps.items()} for side in (0, 1))
    return apart(found, right, gaps, point.size)


def drawn_step(point: Point, backend: Backend, names: Iterable[str] | None = None) -> float:
    """The complex step of a drawn block or model: |⟨g, u⟩ − step| over max(Σ|g∘u|, 1e-3·the largest gradient)."""
    gaps = step_gaps(point, names)
    sizes = [float(np.max(np.abs(x))) for name, x in point.results().items() if name in point.values]
    largest = max(point.size, *sizes)
    worst = [
        float(np.max(np.abs(ours - exact))) / max(size, 1e-3 * largest, np.finfo(float).tiny)
        for ours, exact, size in gaps.values()
    ]
    return max(worst) if np.all(np.isfinite(worst)) else float("inf")


def cotangent(point: Point, backend: Backend) -> float:
    """Gradients are linear in the cotangent, and exactly zero for a zero one."""
    other = np.random.default_rng(1).standard_normal(np.shape(point.dy))
    once, moved, both, zero = (
        point.results(backend, dy=dy) for dy in (point.dy, other, 2 * point.dy + other, 0 * other)
    )
    names = point.values.keys()
    if any(np.any(zero[name] != 0) for name in names):
        return float("inf")
    right = {name: 2 * once[name] + moved[name] for name in names}
    return conditioned(apart(both, right, names, 3 * point.size), point)


def single(point: Point, backend: Backend) -> float:
    """float32: the worst error over 2·the specification's own in float32 + 16·u, on the scale of each tensor.

    A tensor's scale is its largest entry, at least 1/16 of the largest of all, since what is small beside that is what
    rounding leaves of larger numbers. The specification's error is the largest of eight: here, and a few ulps aside.
    """
    rng, ours, theirs = np.random.default_rng(2), 0.0, 0.0
    dy = np.asarray(point.dy, np.float32)
    for shift in (0.0, *[2.0**-22] * 7):
        values = {
            name: (x * (1 + shift * rng.standard_normal(x.shape))).astype(np.float32)
            for name, x in point.values.items()
        }
        right = point.expected({name: x.astype(float) for name, x in values.items()}, dy.astype(float))
        if not shift:
            found = point._replace(values=values, dy=dy).results(backend, "float32")
            if any(found[name].dtype != np.float32 for name in right):
                return float("inf")
            ours = apart(found, right, right, max(point.size, 2.0**-100), 2.0**-4)
        theirs = max(theirs, apart(point.expected(values, dy), right, right, max(point.size, 2.0**-100), 2.0**-4))
    return ours / (2 * theirs + 16 * 2.0**-24)


def repeats(point: Point, backend: Backend) -> float:
    """Entries that differ between two runs, or between arguments before and after."""
    before = {name: x.copy() for name, x in point.values.items()}
    first, second = point.results(backend), point.results(backend)
    same = [np.sum(~(first[name] == second[name])) for name in first]
    return float(sum(same) + sum(np.sum(before[name] != x) for name, x in point.values.items()))


ALIKE = "max|a − b|/max(max|b|, largest/2¹⁰), or beside 4·what an ulp moves"
PROPERTIES: tuple[Property, ...] = (
    Property("outputs are the specification's", outputs, 1e-12, ALIKE),
    Property("gradients are the specification's", gradients, 1e-12, ALIKE),
    Property("linear in the cotangent, zero for zero", cotangent, 1e-12, ALIKE),
    Property("float32", single, 1, "2·the specification's own float32 error + 16·u"),
    Property("two runs, arguments unchanged: entries that differ", repeats, 0, "bits"),
)
STEP = Property("gradients by the complex step", step, 1e-12, ALIKE)
DRAWN_STEP = Property("gradients by the complex step", drawn_step, 1e-8, "over max(Σ|g∘u|, largest/10³)")
