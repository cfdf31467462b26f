"""A single adapted layer as a point: the specification, RandLoRA and every other method on integers, RandLoRA on reals.

On integers every result is exact, in any order of contraction, on any library, in either precision (``integers``); on
reals float64 is held to the closed form, float32 to the gauge (``gauge``).
"""

from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import product
from typing import Any, NamedTuple, get_args

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
from .points import GRADIENTS, OUTPUTS, REPEATS, STEP, Point, Property, Results, specified, through

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


def with_learned(adapter: Adapter, values: Results) -> Adapter:
    """The adapter with what ``values`` has of its learned arrays by name, in their library and precision."""
    own = {name: values[name] for name in adapter.LEARNED}
    like = own[adapter.LEARNED[0]]
    where = Backend.of(like), checks.precision("learned", like)
    if where != (HOST, "float64"):  # where it was made
        adapter = brought(adapter, *where)
    return adapter.replace(**own)


def as_update(adapter: RandLoRA) -> spec.Update:
    """The adapter as the specification takes it, on the host, its bases in the precision of what it has learned."""
    A, B = (np.asarray(basis, adapter.gamma.dtype) for basis in (adapter.bases.A, adapter.bases.B))
    dialect = adapter.dialect
    learned = adapter.lambda_, adapter.gamma, adapter.scaling
    return spec.Update(A, B, *learned, dialect.pairing, orientation=dialect.orientation)


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


class Layer(NamedTuple):
    """RandLoRA with what ``case`` has, the arguments of ``spec.backward`` and the bias, in an order of contraction."""

    case: dict[str, Any]
    order: Any = None

    @property
    def values(self) -> Results:
        """What has a gradient."""
        return {name: self.case[name] for name in spec.Gradients._fields}

    def adapter(self) -> RandLoRA:
        """The adapter on the host in float64; what its bases have more than the layer needs is ``ROGUE``."""
        case, (out, in_), (n, r) = self.case, self.case["weight"].shape, self.case["lambda_"].shape
        (D, d), A, B = spec.sides((out, in_), case["orientation"]), case["A"].copy(), case["B"].copy()
        A[:, d:] = B[:, D:] = B[n:] = ROGUE
        own = {name: case[name] for name in ("lambda_", "gamma", "scaling")}
        dialect = replace(DIALECTS["paper"], pairing=case["pairing"], orientation=case["orientation"])
        sizes = {"out_features": out, "in_features": in_, "rank": r}
        return RandLoRA(bases=Bases(A, B), dialect=dialect, order=self.order, **sizes, **own)


def code(adapter: Adapter, mask: Array | None, values: Results, dy: Array | None) -> Results:
    """y, ΔW and every gradient of an adapted layer."""
    x, own = values["x"], with_learned(adapter, values)
    mask = Backend.of(x).array(mask, checks.precision("x", x))
    y, cache = own.forward(x, values["weight"], values["bias"], dropout_mask=mask)
    if dy is None:
        return {"y": y}
    dx, grads = own.backward(dy, cache, weight_grad=True)
    return {"y": y, "delta_weight": own.delta_weight(), "x": dx, **grads._asdict()}


def point(layer: Layer) -> Point:
    """RandLoRA beside the specification. What none may change, its bases and mask, is read-only."""

    def specification(values: Results, dy: Array) -> Results:
        return gauge.expected({**layer.case, **values, "dy": dy})

    adapter, mask = layer.adapter(), layer.case["dropout_mask"]
    for x in (adapter.bases.A, adapter.bases.B, mask):
        if x is not None:
            x.setflags(write=False)
    return Point(layer.values, layer.case["dy"], partial(code, adapter, mask), specification)


def specification(layer: Layer) -> Point:
    """The specification itself, in floats, beside exact rationals, and its other form beside Eq. 4."""

    def floats(values: Results, dy: Array | None) -> Results:
        here, dtype = Backend.of(values["x"]), checks.precision("x", values["x"])
        own = {name: here.array(x, dtype) for name, x in layer.case.items() if isinstance(x, np.ndarray)}
        case = {**layer.case, **own, **values} | ({} if dy is None else {"dy": dy})
        update = {name: case[name] for name in gauge.UPDATE}
        other = spec.delta_weight_khatri_rao(shape=case["weight"].shape, **update)
        return gauge.expected(case) | {"khatri_rao": other}

    def rationals(values: Results, dy: Array) -> Results:
        case = {**layer.case, **values, "dy": dy}
        exact = {name: fractions(x) for name, x in case.items() if isinstance(x, np.ndarray)}
        right = gauge.expected({**case, **exact, "scaling": Fraction(case["scaling"])})
        return right | {"khatri_rao": right["delta_weight"]}

    return Point(layer.values, layer.case["dy"], floats, rationals)


def draw_layer(what: Any, choose: Choose) -> Layer:
    """One of ``LAYERS`` on integers."""
    order, pairing, (shape, r, n, leading) = what
    rng, mask = np.random.default_rng(choose(SEEDS)), choose((False, False, True))
    orientation = choose([one for one in get_args(spec.Orientation) if one != "reshape" or order in (None, "merged")])
    return Layer(layer_case(rng, shape, r, n, leading, mask, pairing=pairing, orientation=orientation), order)


def draw_real(what: Any, choose: Choose) -> Layer:
    """One of ``LAYERS`` on normal numbers that float32 holds."""
    layer, rng = draw_layer(what, choose), np.random.default_rng(choose(SEEDS))
    given = {name: x for name, x in layer.case.items() if isinstance(x, np.ndarray)}
    real = {name: np.asarray(rng.standard_normal(x.shape), np.float32) for name, x in given.items()}
    return layer._replace(case=layer.case | {name: x.astype(np.float64) for name, x in real.items()})


def draw_method(method: str, shape: tuple[int, int], choose: Choose) -> Point:
    """Any other method on integers, ΔW scaled by a power of two: y is that of W0 + ΔW."""
    rng = np.random.default_rng(choose(SEEDS))
    options = {"scale": 0.5} if method == "RandLoRAa" else {}
    adapter = with_arrays(Chosen(OTHERS[method], 2, True, 0, options).adapter(shape), lambda x: small(rng, *x.shape))
    values = {"x": small(rng, 4, shape[1]), "weight": small(rng, *shape), "bias": small(rng, shape[0])}

    def merged(values: Results, dy: Array) -> Results:
        weight = values["weight"] + with_learned(adapter, values).delta_weight()
        return {"y": spec.linear(values["x"], weight, values["bias"])}

    values |= {name: getattr(adapter, name) for name in adapter.LEARNED}
    return Point(values, small(rng, 4, shape[0]), partial(code, adapter, None), merged)


# -- on reals ---------------------------------------------------------------------------------------------


def gauged(layer: Layer, backend: Backend) -> float:
    """float32: the worst error over its limit."""
    found, right = point(layer).results(backend, "float32"), gauge.expected(layer.case)
    sizes, m, u = gauge.layer_gauges(layer.case), gauge.contraction(layer.case), arrays.unit_roundoff("float32")
    return max(gauge.ratio(found[name], right[name], gauge.limit(sizes[name], m, u)) for name in right)


def unmerged(layer: Layer, backend: Backend) -> float:
    """unmerge after merge beside W0, relative to what was added and taken away."""
    own, weight = brought(layer.adapter(), backend, "float64"), layer.case["weight"]
    back = arrays.to_numpy(own.unmerge(own.merge(backend.array(weight))))
    return gauge.ratio(back, weight, np.max(gauge.layer_gauges(layer.case)["delta_weight"] + np.abs(weight)))


CLOSED: dict[str, Any] = {"limit": 1e-13, "formula": "max|a − b|/max|b|"}  # where no sum cancels
ON_REALS = (
    *through(point, [OUTPUTS._replace(figure=partial(specified, gradients=False, share=0.0), **CLOSED)]),
    *through(point, [GRADIENTS._replace(figure=partial(specified, gradients=True, share=0.0), **CLOSED)]),
    *through(point, [STEP, REPEATS]),
    Property("float32 by the gauge", gauged, 1, "16·max(1, √(m/256))·u·G"),
    Property("unmerge after merge", unmerged, 4 * arrays.unit_roundoff("float64"), "4u"),
)
