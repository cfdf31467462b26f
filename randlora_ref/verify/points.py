"""A function at one point, by the code and by its specification, and what must hold there whatever the function is.

Every property takes a point and gives one figure, which its limit bounds: NaN fails, non-finite is infinite. Functions
of ``nn``, single layers, whole blocks and whole models are all points.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .. import arrays
from . import gauge
from .complex_step import directional
from .configurations import HOST, Backend
from .integers import adjoint_gap, small

Array = Any
Results = dict[str, Array]
LIMIT = 1e-12  # of a relative error in float64
UNDERFLOW = 1e-290  # smaller numbers lose digits that no formula can keep


@dataclass(frozen=True, eq=False)
class Point(ABC):
    """``values``: all that is differentiated, by name, float64 on the host; ``dy``: the cotangent of output "y".

    A subclass says what is computed. Outputs are by name, and gradients under the names of ``values``.
    ``size`` is the least scale on which results are compared: that of what they are differences of.
    """

    values: Results
    dy: Array
    size: float = field(default=0.0, kw_only=True)

    @abstractmethod
    def run(self, values: Results, dy: Array | None = None) -> Results:
        """The code, on any library and in any precision; ``dy`` None asks for outputs alone."""

    @abstractmethod
    def expected(self, values: Results, dy: Array) -> Results:
        """The specification, on NumPy."""

    def results(
        self, backend: Backend = HOST, dtype: str = "float64", values: Results | None = None, dy: Array | None = None
    ) -> Results:
        """What the code gives on ``backend`` in ``dtype``, brought back to the host; None: at the point's own."""
        own = {name: backend.array(x, dtype) for name, x in (self.values if values is None else values).items()}
        found = self.run(own, backend.array(self.dy if dy is None else dy, dtype))
        return {name: arrays.to_numpy(x) for name, x in found.items()}


class Property(NamedTuple):
    """What must hold: 0 <= ``figure`` <= ``limit``, which NaN is not; ``formula`` says whence the limit.

    ``figure`` is a number; until it is taken, what takes it of a subject, most often a point, on a backend.
    """

    name: str
    figure: Any
    limit: float
    formula: str

    def of(self, subject: Any, backend: Backend) -> "Property":
        """The property of one subject, its figure taken."""
        return self._replace(figure=float(self.figure(subject, backend)))

    @property
    def ok(self) -> bool:
        """Whether it holds; no figure is negative."""
        return bool(0 <= self.figure <= self.limit)


def differ(found: Results, right: Results) -> float:
    """How many entries of the tensors of ``right`` are others in ``found``; NaN is, and so is all of another shape."""
    alike = (np.shape(found[name]) == np.shape(x) and found[name] == x for name, x in right.items())
    return float(sum(np.sum(~np.asarray(same)) for same in alike))


def apart(found: Results, right: Results, names: Iterable[str], size: float = 0.0, share: float = 2.0**-10) -> float:
    """The worst max|a − b|/max(max|b|, ``share`` of the largest entry of all, ``size``) over the tensors ``names``."""
    scales = {name: float(np.max(np.abs(b), initial=0.0)) for name, b in right.items()}
    least = max(share * max(scales.values(), default=0.0), size, UNDERFLOW)
    return max((gauge.ratio(found[name], right[name], max(scales[name], least)) for name in names), default=0.0)


def aside(values: Results, count: int, ulp: float, seed: int) -> Iterator[Results]:
    """The ``values``, ``count`` times, each entry a few times ``ulp`` of itself aside, in their precision."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield {name: (x * (1 + ulp * rng.standard_normal(x.shape))).astype(x.dtype) for name, x in values.items()}


def conditioned(error: float, point: Point) -> float:
    """A relative error, over its limit's share of 4·what an ulp moves the specification by, where that is more.

    A nearly constant row of LayerNorm magnifies each rounding by up to 1/√ε, in any code.
    """
    if not error > LIMIT:
        return error
    right = point.expected(point.values, point.dy)
    near = (point.expected(values, point.dy) for values in aside(point.values, 4, 2.0**-52, seed=3))
    return error * LIMIT / max(LIMIT, 4 * max(apart(moved, right, right, point.size) for moved in near))


def alike(point: Point, backend: Backend, right: Results) -> float:
    """What the code gives beside ``right``, as far as rounding lets it."""
    return conditioned(apart(point.results(backend), right, right), point)


def specified(point: Point, backend: Backend, gradients: bool, share: float = 2.0**-10) -> float:
    """The outputs, or every gradient, that the specification gives, beside it."""
    found, right = point.results(backend), point.expected(point.values, point.dy)
    names = [name for name in right if (name in point.values) == gradients]
    return conditioned(apart(found, right, names, point.size, share), point)


def equal(point: Point, backend: Backend) -> float:
    """Entries that are not the specification's, in float64 and in float32."""
    right = point.expected(point.values, point.dy)
    return sum(differ(point.results(backend, dtype), right) for dtype in ("float64", "float32"))


def adjoint(point: Point, backend: Backend) -> float:
    """|⟨dy, f(p + u) − f(p)⟩ − ⟨∂L/∂p, u⟩| of integers, for each p that f is affine in: exact (``integers``)."""
    rng, found, gaps = np.random.default_rng(0), point.results(backend), 0.0
    for name, value in point.values.items():
        u = small(rng, *value.shape)
        y = point.results(backend, values=point.values | {name: value + u})["y"]
        gaps += abs(adjoint_gap(point.dy, y - found["y"], found[name], u))
    return gaps


def step(point: Point, backend: Backend, names: Iterable[str] | None = None, share: float = 1.0) -> float:
    """⟨g, u⟩ beside the complex step along three random u, for each tensor of ``names`` (None: all), on the host.

    Relative to the derivative, a small one to 2⁻¹⁰ of the largest derivative or entry of a gradient, or to ``share`` of
    the point's own scale.
    """
    rng, found, ours, exact = np.random.default_rng(0), point.results(), Results(), Results()
    for name in point.values if names is None else names:

        def loss(x: Array, name: str = name) -> Array:
            return np.sum(point.dy * point.run(point.values | {name: x})["y"])

        ways = [rng.standard_normal(point.values[name].shape) for _ in range(3)]
        ours[name] = np.array([np.sum(found[name] * u) for u in ways])
        exact[name] = np.array([directional(loss, point.values[name], u) for u in ways])
    largest = max(float(np.max(np.abs(found[name]), initial=0.0)) for name in point.values)
    return apart(ours, exact, ours, max(share * point.size, 2.0**-10 * largest))


def cotangent(point: Point, backend: Backend) -> float:
    """Gradients are linear in the cotangent (exactly, of integers), and exactly zero for a zero one."""
    other = small(np.random.default_rng(1), *point.dy.shape)
    cotangents = (point.dy, other, 2 * point.dy + other, 0 * other)
    once, moved, both, zero = (point.results(backend, dy=dy) for dy in cotangents)
    if any(np.any(zero[name] != 0) for name in point.values):
        return float("inf")
    right = {name: 2 * once[name] + moved[name] for name in point.values}
    return conditioned(apart(both, right, right, 3 * point.size), point)


def single(point: Point, backend: Backend) -> float:
    """float32: the worst error over 2·the specification's own in float32 + 16·u, on the scale of each tensor.

    A tensor's scale is its largest entry, at least 1/16 of the largest of all, since what is small beside that is what
    rounding leaves of larger numbers. The specification's error is the largest of 64, here and a few ulps aside, of
    which as many are taken as it takes to be enough: where much cancels, errors of either code vary threefold.
    """
    dy, theirs = np.asarray(point.dy, np.float32), 0.0

    def error(found: Results, values: Results) -> float:
        right = point.expected({name: x.astype(float) for name, x in values.items()}, dy.astype(float))
        return apart(found, right, right, max(point.size, 2.0**-100), 2.0**-4)

    found, here = point.results(backend, "float32"), {name: x.astype(np.float32) for name, x in point.values.items()}
    ours = error(found, here) if all(x.dtype == np.float32 for x in found.values()) else float("inf")
    for values in (here, *aside(here, 63, 2.0**-22, seed=2)):
        theirs = max(theirs, error(point.expected(values, dy), values))
        if ours <= 2 * theirs + 16 * 2.0**-24:
            break
    return ours / (2 * theirs + 16 * 2.0**-24)


def repeats(point: Point, backend: Backend) -> float:
    """Entries that differ between two runs, or between arguments before and after."""
    arguments = point.values | {"dy": point.dy}
    before = {name: x.copy() for name, x in arguments.items()}
    first, second = point.results(backend), point.results(backend)
    return differ(first, second) + differ(before, arguments)


ALIKE = "max|a − b|/max(max|b|, largest/2¹⁰), or beside 4·what an ulp moves"
OUTPUTS = Property("outputs are the specification's", partial(specified, gradients=False), LIMIT, ALIKE)
GRADIENTS = Property("gradients are the specification's", partial(specified, gradients=True), LIMIT, ALIKE)
# 2·g(dy) + g(u) − g(2·dy + u): g stands there four times, each time right to LIMIT.
COTANGENT = Property("linear in the cotangent, zero for zero", cotangent, 4 * LIMIT, ALIKE)
SINGLE = Property("float32", single, 1, "2·the specification's own float32 error + 16·u")
REPEATS = Property("two runs, arguments unchanged: entries that differ", repeats, 0, "bits")
PROPERTIES = (OUTPUTS, GRADIENTS, COTANGENT, SINGLE, REPEATS)
STEP = Property("gradients by the complex step", step, LIMIT, "over max(|derivative|, largest gradient/2¹⁰)")
drawn_step = partial(step, share=2.0**-10)  # through a whole block or model
DRAWN_STEP = STEP._replace(figure=drawn_step, limit=1e-8)
EXACT = (  # on integers
    Property("results beside the specification, entries that differ", equal, 0, "integers"),
    Property("every gradient by the exact adjoint, sum of gaps", adjoint, 0, "integers"),
    COTANGENT._replace(limit=0, formula="integers"),
    REPEATS,
)
