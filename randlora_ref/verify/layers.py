"""A single adapted layer as a point: the specification, RandLoRA and every other method on integers, RandLoRA on reals.

On integers every result is exact, in any order of contraction, on any library, in either precision (``integers``); on
reals float64 is held to the closed form, float32 to the gauge (``gauge``).
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import product
from typing import Any, get_args

import numpy as np

from .. import arrays, checks, spec
from ..adapters import Adapter, RandLoRA
from ..adapters.randlora import ORDERS
from ..bases import Bases
from ..dialects import DIALECTS
from . import gauge
from .complex_step import gradient
from .configurations import HOST, SEEDS, Backend, Choose, Chosen, brought, with_arrays
from .integers import fractions, layer_case, small
from .points import GRADIENTS, OUTPUTS, REPEATS, STEP, Point, Property, Results

Array = Any
# (out, in), r, n, leading axes: wide, tall, square, r∤d, r = d, r > d, n = 1, r = 1, no rows, many axes
SHAPES: tuple[tuple[tuple[int, int], int, int, tuple[int, ...]], ...] = (
    ((5, 11), 2, 3, (7,)),
    ((11, 5), 2, 3, (7,)),
    ((6, 6), 2, 3, (7,)),
    ((7, 10), 3, 3, (2, 1, 3)),
    ((9, 4), 4, 2, (5,)),
    ((3, 8), 5, 2, (5,)),
    ((8, 3), 3, 1, ()),
    ((5, 7), 1, 5, (4,)),
    ((7, 5), 2, 3, (0,)),
    ((1, 1), 1, 1, (1,)),
    ((40, 24), 4, 6, (33,)),
    ((24, 40), 4, 6, (33,)),
)
LAYERS = tuple(product(ORDERS, ("literal", "crossed"), SHAPES))
SMALL = tuple(product((None,), ("literal", "crossed"), SHAPES[:-2]))  # rationals are slow
OTHERS = {"LoRA": "lora", "VeRA": "vera", "NoLA": "nola", "FullFineTuning": "full", "RandLoRAa": "randlora_a"}
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
    """RandLoRA. ``values``: x, weight, bias and what is learned; ``mask``: that of dropout, if there is one."""

    adapter: Any
    mask: Array | None = None

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
        """The same by the specification."""
        return gauge.expected(self.case(values, dy))


class OtherLayer(Layer):
    """Any other method: y is that of W0 + ΔW."""

    def expected(self, values: Results, dy: Array) -> Results:
        """y alone."""
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


def draw_layer(what: Any, choose: Choose, real: bool = False, kind: type[Layer] = Layer) -> Layer:
    """One of ``LAYERS`` on integers, or on ``real`` normal numbers that float32 holds.

    Bases and mask, which none may change, are read-only; what the bases have more than the layer needs is ``ROGUE``.
    """
    order, pairing, (shape, r, n, leading) = what
    rng, mask = np.random.default_rng(choose(SEEDS)), choose((False, False, True))
    orientation = choose([one for one in get_args(spec.Orientation) if one != "reshape" or order in (None, "merged")])
    case, (D, d) = layer_case(rng, shape, r, n, leading, mask, orientation=orientation), spec.sides(shape, orientation)
    if real:
        rng = np.random.default_rng(choose(SEEDS))
        drawn = {name: rng.standard_normal(x.shape) for name, x in case.items() if isinstance(x, np.ndarray)}
        case |= {name: np.asarray(x, np.float32).astype(np.float64) for name, x in drawn.items()}
    case["A"][:, d:] = case["B"][:, D:] = case["B"][n:] = ROGUE
    for name in ("A", "B", "dropout_mask"):
        if case[name] is not None:
            case[name].setflags(write=False)
    adapter = RandLoRA(
        out_features=shape[0], in_features=shape[1], rank=r, order=order, bases=Bases(case["A"], case["B"]),
        dialect=replace(DIALECTS["paper"], pairing=pairing, orientation=orientation),
        **{name: case[name] for name in ("lambda_", "gamma", "scaling")},
    )  # fmt: skip
    return kind({name: case[name] for name in spec.Gradients._fields}, case["dy"], adapter, case["dropout_mask"])


def draw_other(method: str, shape: tuple[int, int], choose: Choose) -> Layer:
    """Any other method on integers, ΔW scaled by a power of two."""
    rng = np.random.default_rng(choose(SEEDS))
    options = {"scale": 0.5} if method == "RandLoRAa" else {}
    adapter = with_arrays(Chosen(OTHERS[method], 2, True, 0, options).adapter(shape), lambda x: small(rng, *x.shape))
    values = {"x": small(rng, 4, shape[1]), "weight": small(rng, *shape), "bias": small(rng, shape[0])}
    values |= {name: getattr(adapter, name) for name in adapter.LEARNED}
    return OtherLayer(values, small(rng, 4, shape[0]), adapter)


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
