"""A single adapted layer as a point: the specification, RandLoRA and every other method on integers, RandLoRA on reals.

On integers every result is exact, in any order of contraction, on any library, in either precision (``integers``); on
reals float64 is held to the closed form, float32 to the gauge (``gauge``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from .. import arrays, checks, spec
from ..adapters import Adapter, RandLoRA
from . import gauge
from .complex_step import gradient
from .configurations import HOST, Backend, Choose, brought, draw_adapter, with_arrays
from .integers import fractions, small
from .points import GRADIENTS, OUTPUTS, REPEATS, STEP, Point, Property, Results

Array = Any
ROGUE = float(np.finfo(np.float32).max)  # what stands in stored bases where no layer may read: any sum shows it


# -- what an adapter has learned --------------------------------------------------------------------------


def with_learned(adapter: Adapter, values: Results, prefix: str = "") -> Adapter:
    """The adapter with its learned arrays from ``values``, in their library and precision; named "``prefix``array"."""
    own = {name: values[prefix + name] for name in adapter.LEARNED}
    like = own[adapter.LEARNED[0]]
    here, dtype = Backend.of(like), checks.precision("learned", like)
    if here.xp is not np or dtype != "float64":  # where it was made
        adapter = brought(adapter, here, dtype)
    return adapter.replace(**own)


def as_update(adapter: RandLoRA) -> spec.Update:
    """The adapter as the specification takes it."""
    bases, dialect = adapter.bases, adapter.dialect
    learned = adapter.lambda_, adapter.gamma, adapter.scaling
    return spec.Update(bases.A, bases.B, *learned, dialect.pairing, orientation=dialect.orientation)


def update(adapter: Adapter) -> Array:
    """ΔW (out, in) RandLoRA's by the specification."""
    if not isinstance(adapter, RandLoRA):
        return adapter.delta_weight()
    own = as_update(adapter)
    return spec.delta_weight(*own[:4], adapter.shape, own.scaling, own.pairing, own.orientation)


def pulled_back(adapter: Adapter, G: Array) -> Results:
    """The gradient of ⟨G, ΔW⟩ by every learned value, in the precision of ``G``: by the specification for RandLoRA.

    For the others by the complex step, entry by entry.
    """
    if isinstance(adapter, RandLoRA):
        own = as_update(adapter)
        return dict(zip(adapter.LEARNED, spec.pullback(G, *own[:6], own.orientation), strict=True))
    wide = brought(adapter, HOST, "float64")

    def loss(x: Array, name: str) -> Array:
        return np.sum(G * wide.replace(**{name: x}).delta_weight())

    return {name: gradient(partial(loss, name=name), getattr(wide, name)).astype(G.dtype) for name in wide.LEARNED}


# -- points -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Layer(Point):
    """An adapted layer. ``values``: x, weight, bias and what is learned; ``mask``: that of dropout, if there is one."""

    adapter: Any
    mask: Array | None

    def here(self, values: Results) -> tuple[Any, Array | None]:
        """Adapter and mask with the learned ``values``, in their library and precision."""
        x = values["x"]
        return with_learned(self.adapter, values), Backend.of(x).array(self.mask, checks.precision("x", x))

    def case(self, values: Results, dy: Array) -> dict[str, Any]:
        """The arguments of ``spec.backward``, and ``bias``, by name."""
        adapter, mask = self.here(values)
        return as_update(adapter)._asdict() | values | {"dy": dy, "dropout_mask": mask}

    def run(self, values: Results, dy: Array | None = None) -> Results:
        """y, ΔW and every gradient, by the adapter."""
        own, mask = self.here(values)
        y, cache = own.forward(values["x"], values["weight"], values["bias"], dropout_mask=mask)
        if dy is None:
            return {"y": y}
        dx, grads = own.backward(dy, cache, weight_grad=True)
        return {"y": y, "delta_weight": own.delta_weight(), "x": dx, **grads._asdict()}

    def expected(self, values: Results, dy: Array) -> Results:
        """The same by the specification; of other methods y, that of W0 + ΔW."""
        if isinstance(self.adapter, RandLoRA):
            return gauge.expected(self.case(values, dy))
        weight = values["weight"] + self.here(values)[0].delta_weight()
        return {"y": spec.linear(values["x"], weight, values["bias"])}


class Specification(Layer):
    """The specification itself, in floats, beside exact rationals, and its other form beside Eq. 4."""

    def run(self, values: Results, dy: Array | None = None) -> Results:
        """In floats, ΔW by its other form too."""
        case = self.case(values, dy)
        update = {name: case[name] for name in gauge.UPDATE}
        return gauge.expected(case) | {"khatri_rao": spec.delta_weight_khatri_rao(shape=case["weight"].shape, **update)}

    def expected(self, values: Results, dy: Array) -> Results:
        """In rationals, by Eq. 4 alone."""
        case = self.case(values, dy)
        exact = {name: fractions(x) for name, x in case.items() if isinstance(x, np.ndarray)}
        right = gauge.expected({**case, **exact, "scaling": Fraction(case["scaling"])})
        return right | {"khatri_rao": right["delta_weight"]}


def draw_layer(method: str, choose: Choose, real: bool = False, sides: Sequence[int] = (7, 5, 10, 1, 24)) -> Layer:
    """A wide, tall or square layer and any leading axes, adapted by a ``method``; ``sides`` to choose from.

    On integers, ΔW scaled by a power of two, or on ``real`` normal numbers that float32 holds. Bases and mask, which
    none may change, are read-only; what RandLoRA's bases have more than the layer needs is ``ROGUE``.
    """
    shape, leading = (choose(sides), choose(sides)), choose(((4,), (7,), (), (2, 1, 3), (0,), (33,)))
    chosen = draw_adapter(choose, (method,))
    if method == "randlora":
        chosen = chosen._replace(options={**chosen.options, "scaling": 0.5})
    else:  # LoRA's 8/r and NoLA's 1/r are powers of two as they are
        chosen = chosen._replace(rank=2, options={"scale": 0.5} if method == "randlora_a" else {})
    rng = np.random.default_rng(chosen.seed)

    def fill(x: Array) -> Array:
        return np.asarray(rng.standard_normal(x.shape), np.float32).astype(float) if real else small(rng, *x.shape)

    adapter: Any = with_arrays(chosen.adapter(shape), fill)
    x, dy = (fill(np.empty((*leading, side))) for side in shape[::-1])
    values = {"x": x, "weight": fill(np.empty(shape)), "bias": fill(np.empty(shape[:1]))}
    values |= {name: getattr(adapter, name) for name in adapter.LEARNED}
    frozen = [2.0 * rng.integers(0, 2, x.shape)]  # the mask for p = 1/2: what is kept counts twice
    if method == "randlora":
        A, B = adapter.bases.A, adapter.bases.B
        A[:, adapter.d :] = B[:, adapter.D :] = B[adapter.n :] = ROGUE
        frozen += [A, B]
    for array in frozen:
        array.setflags(write=False)
    return Layer(values, dy, adapter, choose((None, None, frozen[0])))


def draw_specification(method: str, choose: Choose) -> Specification:
    """The same on small sides: rationals are slow."""
    return Specification(**vars(draw_layer(method, choose, sides=(7, 5, 10, 1))))


# -- on reals ---------------------------------------------------------------------------------------------


def gauged(layer: Layer, backend: Backend) -> float:
    """float32: the worst error over its limit."""
    case, u = layer.case(layer.values, layer.dy), arrays.unit_roundoff("float32")
    found, right, sizes = layer.results(backend, "float32"), gauge.expected(case), gauge.layer_gauges(case)
    m = gauge.contraction(case)
    return max(gauge.ratio(found[name], right[name], gauge.limit(sizes[name], m, u)) for name in right)


def unmerged(layer: Layer, backend: Backend) -> float:
    """unmerge after merge beside W0, relative to what was added and taken away."""
    own, weight = brought(layer.adapter, backend, "float64"), layer.values["weight"]
    back, sizes = own.unmerge(own.merge(backend.array(weight))), gauge.layer_gauges(layer.case(layer.values, layer.dy))
    return gauge.ratio(arrays.to_numpy(back), weight, np.max(sizes["delta_weight"] + np.abs(weight)))


def closed(one: Property) -> Property:
    """The property where no sum cancels: relative to the largest entry of the tensor itself."""
    return one._replace(figure=partial(one.figure, share=0.0), limit=1e-13, formula="max|a − b|/max|b|")


ON_REALS = (
    *(closed(OUTPUTS), closed(GRADIENTS), STEP, REPEATS),
    Property("float32 by the gauge", gauged, 1, "16·max(1, √(m/256))·u·G"),
    Property("unmerge after merge", unmerged, 4 * arrays.unit_roundoff("float64"), "4u"),
)
