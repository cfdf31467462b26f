"""``randlora-ref verify``: the audit of this package on this machine, a figure and a limit for each property."""

import hashlib
import math
import platform
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import __version__, arrays, prng, spec
from ..adapters import FullFineTuning, LoRA, NoLA, RandLoRA, RandLoRAa, VeRA
from ..adapters.randlora import ORDERS, Order
from ..bases import Bases, draw_bases, tile
from . import block, complex_step, functions, gauge, integers, models, points, ranks
from .configurations import Backend, build_model, draw_block, draw_model, generator

Array = Any
# (out, in), r, n, leading axes: wide, tall, square, r∤d, r = d, r > d, n = 1, r = 1, no rows, many axes
LAYERS: tuple[tuple[tuple[int, int], int, int, tuple[int, ...]], ...] = (
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
# SHA-256 of A then B, as PEFT 0.21.2 drew them: layers (5, 3) and (4, 7), r = 2, projection_prng_key 11
PEFT_BASES = {
    "dense": "e6646dc8bd9a6239f51e83e9091373110b5eb17a77494f62f97609797379f0f1",
    "sparse": "9b9e3ce92580f8a7d0770a54786c9826f14e30329ad8d420e7c0ca42b4166aee",
    "very_sparse": "4cb91108ab4a9aac86d048867d89d2dc498ad49112d0be8a25a73105c91f38ed",
}


# Arrays of every other adapter, each with its axes: out, in, D, d, the rank r, n terms or bases.
BASELINES: dict[Any, dict[str, str]] = {
    LoRA: {"A": "ri", "B": "or"},
    VeRA: {"A": "ri", "B": "or", "lambda_b": "o", "lambda_d": "r"},
    NoLA: {"A": "nri", "B": "nor", "c0": "n", "c1": "n"},
    FullFineTuning: {"delta": "oi"},
    RandLoRAa: {"A": "nrd", "B": "nDr", "lambda_": "nr", "gamma": "nd"},
}


class Property(NamedTuple):
    """One thing audited: it holds if 0 <= ``figure`` <= ``limit``, as NaN is not. ``formula`` says whence the limit."""

    name: str
    figure: float
    limit: float
    formula: str

    @property
    def ok(self) -> bool:
        """Whether it holds; no figure is negative."""
        return 0 <= self.figure <= self.limit


def randlora(backend: Backend, case: dict[str, Any], dtype: str, **changes: Any) -> RandLoRA:
    """The adapter of a case of ``integers.layer_case``, its arrays brought to ``backend`` in ``dtype``."""
    own = {name: backend.array(case[name], dtype) for name in ("A", "B", "lambda_", "gamma")} | changes
    (out, in_), bases = case["weight"].shape, Bases(own.pop("A"), own.pop("B"))
    own |= {"scaling": case["scaling"], "dialect": "paper" if case["pairing"] == "literal" else "peft"}
    return RandLoRA(out_features=out, in_features=in_, rank=case["lambda_"].shape[1], bases=bases, **own)


def run(backend: Backend, case: dict[str, Any], dtype: str, order: Order | None = None) -> dict[str, Array]:
    """Every result of the fast layer as float64 on the host, under the names of ``gauge.expected``."""
    layer = randlora(backend, case, dtype, order=order)
    x, weight, bias, mask, dy = (backend.array(case[k], dtype) for k in ("x", "weight", "bias", "dropout_mask", "dy"))
    y, cache = layer.forward(x, weight, bias, dropout_mask=mask)
    dx, grads = layer.backward(dy, cache, weight_grad=True)
    results = {"y": y, "delta_weight": layer.delta_weight(), "x": dx, **grads._asdict()}
    return {name: arrays.to_numpy(result).astype(np.float64) for name, result in results.items()}


def properties(
    backend: Backend | None = None, seed: int = 0, parts: Collection[str] | None = None
) -> Iterator[Property]:
    """Every property of the ``PARTS`` asked for (None: all), one by one, on ``backend`` (None: NumPy)."""
    backend = Backend(np) if backend is None else backend
    for name in PARTS if parts is None else parts:
        try:
            for found in PARTS[name](backend, np.random.default_rng(seed)):
                yield found._replace(figure=float(found.figure))
        except Exception as error:  # what stops an audit is a finding of the audit
            yield Property(f"{name}: stopped by {type(error).__name__}: {error}", math.inf, 0, "no error")


def cases(rng: np.random.Generator, layers: tuple[Any, ...] = LAYERS) -> Iterator[dict[str, Any]]:
    """Integer cases over all ``layers``, both pairings, with and without a dropout mask."""
    for index, (shape, rank, n, leading) in enumerate(layers):
        for pairing in ("literal", "crossed"):
            yield integers.layer_case(rng, shape, rank, n, leading, pairing, mask=index % 3 == 2)


def specification(backend: Backend, rng: np.random.Generator) -> Iterator[Property]:
    """``spec`` in floats against exact rationals, against its other form, and its gradients by the exact adjoint."""
    wrong = forms = gap = 0.0
    for case in cases(rng, LAYERS[:-2]):  # rationals are slow
        floats = gauge.expected(case)
        exact = {name: _fractions(x) if isinstance(x, np.ndarray) else x for name, x in case.items()}
        rationals = gauge.expected(exact | {"scaling": Fraction(case["scaling"])})
        wrong += sum(np.sum(rationals[name] != floats[name]) for name in floats)
        other = spec.delta_weight_khatri_rao(shape=case["weight"].shape, **{name: case[name] for name in gauge.UPDATE})
        forms += np.sum(other != floats["delta_weight"])
        arguments = {name: x for name, x in case.items() if name != "dy"}
        for name in ("x", "weight", "bias", "lambda_", "gamma"):

            def f(p: Array, name: str = name, arguments: dict[str, Any] = arguments) -> Array:
                return spec.forward(**(arguments | {name: p}))

            step = integers.small(rng, *case[name].shape)
            gap += abs(integers.adjoint_gap(f, case[name], floats[name], step, case["dy"]))
    yield Property("spec: float64 against exact rationals, entries that differ", wrong, 0, "integers")
    yield Property("spec: Khatri-Rao form against Eq. 4, entries that differ", forms, 0, "integers")
    yield Property("spec: every gradient by the exact adjoint, sum of gaps", gap, 0, "integers")


def _fractions(x: Array) -> Array:
    return np.array([Fraction(value) for value in x.ravel().tolist()], dtype=object).reshape(x.shape)


def streams(backend: Backend, rng: np.random.Generator) -> Iterator[Property]:
    """Known answers of both generators, PEFT's bases, and the same native bits from any size, tile and backend."""
    words = prng.philox_words(0, 0, 0, 4).tolist()
    philox = words != [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    yield Property("Philox4x32-10: Random123's known answer, faults", philox, 0, "bits")
    last = int(prng.mt19937_words(prng.mt19937(5489), 10000)[-1])
    yield Property("MT19937: word 10000 as the C++ standard has it, faults", last != 4123659995, 0, "bits")
    wrong = differ = 0
    for kind, known in PEFT_BASES.items():
        bases = draw_bases("peft", seed=11, shapes=[(5, 3), (4, 7)], rank=2, kind=kind)  # type: ignore[arg-type]
        wrong += hashlib.sha256(bases.A.tobytes() + bases.B.tobytes()).hexdigest() != known
    yield Property("bases of PEFT: kinds that differ from its recorded draw", wrong, 0, "bits")
    for sparsity in ("dense", "sparse", "very_sparse", 100):
        for dtype in ("float32", "float64"):
            drawn: dict[str, Any] = {"seed": 2**63 + 5, "rank": 4, "kind": sparsity, "dtype": dtype}
            here = draw_bases(shapes=[(70, 30)], xp=backend.xp, device=backend.device, **drawn)
            larger = draw_bases(shapes=[(70, 40)], **drawn).slice(8, 70, 30)
            rows = tile(3, 17, 29, D_max=70, **drawn)
            A, B = arrays.to_numpy(here.A), arrays.to_numpy(here.B)
            differ += np.sum(larger.A != A) + np.sum(larger.B != B) + np.sum(rows != B[2, 17:29])
    yield Property("bases of our own: this backend, a slice, a tile; entries that differ", differ, 0, "bits")


def exact_layer(backend: Backend, rng: np.random.Generator) -> Iterator[Property]:
    """The fast layer on integers: equal to ``spec``, linear in the cotangent, blind to padding, no argument changed."""
    wrong = padded = linear = changed = 0.0
    for case in cases(rng):
        expected = gauge.expected(case)
        before = {name: x.copy() for name, x in case.items() if isinstance(x, np.ndarray)}
        for dtype in ("float32", "float64"):
            for order in ORDERS:
                wrong += _differ(run(backend, case, dtype, order), expected)
        rogue = {name: case[name].copy() for name in ("A", "B")}
        D, d = spec.sides(case["weight"].shape)
        rogue["A"][:, d:], rogue["B"][:, D:], rogue["B"][len(case["lambda_"]) :] = 3e38, 3e38, 3e38
        padded += _differ(run(backend, case | rogue, "float32"), expected)
        dy = integers.small(rng, *case["dy"].shape)
        cotangents = (dy, 2 * case["dy"] + dy, 0 * dy)
        once, twice, zero = (run(backend, case | {"dy": cotangent}, "float64") for cotangent in cotangents)
        for name in ("x", "weight", "bias", "lambda_", "gamma"):
            linear += np.sum(twice[name] != 2 * expected[name] + once[name]) + np.sum(zero[name] != 0)
        changed += sum(np.sum(case[name] != x) for name, x in before.items())
    yield Property("layer: every order against spec, entries that differ", wrong, 0, "integers")
    yield Property("layer: bases padded with 3e38, entries that differ", padded, 0, "integers")
    yield Property("layer: linear in the cotangent, zero for zero, entries that differ", linear, 0, "integers")
    yield Property("layer: arguments changed, entries", changed, 0, "integers")


def _differ(results: dict[str, Array], expected: dict[str, Array]) -> float:
    return float(sum(np.sum(~(results[name] == expected[name])) for name in expected))


def real_layer(backend: Backend, rng: np.random.Generator) -> Iterator[Property]:
    """The fast layer on real numbers: closed form in float64, gauge in float32, complex step, merge, determinism."""
    worst = ratio = step = repeat = back = 0.0
    for case in cases(rng):
        real = case | {name: rng.standard_normal(x.shape) for name, x in case.items() if isinstance(x, np.ndarray)}
        rounded = {
            name: x.astype(np.float32).astype(np.float64) for name, x in real.items() if isinstance(x, np.ndarray)
        }
        expected, gauges, m = gauge.expected(real), gauge.layer_gauges(real), gauge.contraction(real)
        expected32 = gauge.expected(real | rounded)
        for order in ORDERS:
            results, results32 = run(backend, real, "float64", order), run(backend, real | rounded, "float32", order)
            for name, b in expected.items():
                worst = max(worst, gauge.relative_error(results[name], b, gauges[name], 2.0**-53))
                allowed = gauge.limit(gauges[name], m, 2.0**-24)
                ratio = max(ratio, gauge.ratio(results32[name], expected32[name], allowed))
            again = run(backend, real, "float64", order)
            repeat += _differ(again, results)
        step = max(step, _complex_step(backend, rng, real, expected))
        layer, weight = randlora(backend, real, "float64"), backend.array(real["weight"], "float64")
        unmerged = arrays.to_numpy(layer.unmerge(layer.merge(weight)))
        size = gauges["delta_weight"] + abs(real["weight"])
        back = max(back, gauge.relative_error(unmerged, real["weight"], size, 1.0))
    yield Property("layer, float64: worst relative error of a gradient, to the closed form", worst, 1e-13, "fixed")
    yield Property("layer, float32: worst |error| over its limit", ratio, 1, "16·max(1, √(m/256))·u·G")
    yield Property("layer, float64: worst relative error to the complex step", step, 1e-12, "fixed")
    yield Property("layer, float64: unmerge after merge, worst relative error", back, 4 * 2.0**-53, "4u")
    yield Property("layer: entries that differ between two runs", repeat, 0, "bits")


def _complex_step(backend: Backend, rng: np.random.Generator, case: dict[str, Any], expected: dict[str, Any]) -> float:
    """The worst relative error of ⟨gradient, u⟩ to the complex step along a random u, for x, Λ and Γ."""
    worst = 0.0
    for name in ("x", "lambda_", "gamma"):

        def loss(p: Array, name: str = name) -> Array:
            moved = backend.array(p, "complex128")
            layer = randlora(backend, case, "float64", **({} if name == "x" else {name: moved}))
            x = moved if name == "x" else backend.array(case["x"], "float64")
            weight, bias, mask = (backend.array(case[k], "float64") for k in ("weight", "bias", "dropout_mask"))
            y, _ = layer.forward(x, weight, bias, dropout_mask=mask)
            return np.sum(case["dy"] * arrays.to_numpy(y))

        u = rng.standard_normal(case[name].shape)
        exact, size = complex_step.directional(loss, case[name], u), np.sum(abs(expected[name] * u))
        worst = max(worst, gauge.relative_error(np.sum(expected[name] * u), exact, size, 1.0))
    return worst


def other_adapters(backend: Backend, rng: np.random.Generator) -> Iterator[Property]:
    """Every gradient of every other adapter by the exact adjoint, on integers."""
    for kind, sizes in BASELINES.items():
        gap = 0.0
        for out, in_ in ((5, 7), (7, 5)):
            side = {"o": out, "i": in_, "D": max(out, in_), "d": min(out, in_), "r": 2, "n": 3}
            own = {name: integers.small(rng, *(side[letter] for letter in letters)) for name, letters in sizes.items()}
            case = {"x": integers.small(rng, 4, in_), "weight": integers.small(rng, out, in_)}
            case |= {"bias": integers.small(rng, out), **own}
            numbers: dict[str, Any] = {} if kind is FullFineTuning else {"rank": 2}
            numbers |= {"alpha": 2} if kind in (LoRA, NoLA) else {"scale": 0.5} if kind is RandLoRAa else {}

            def run(case: dict[str, Array], kind: Any = kind, own: Any = own, numbers: Any = numbers) -> Any:
                here = {name: backend.array(x, "float64") for name, x in case.items()}
                (out, in_), arrays_of = case["weight"].shape, {name: here[name] for name in own}
                layer = kind(out_features=out, in_features=in_, **arrays_of, **numbers)
                return layer, *layer.forward(here["x"], here["weight"], here["bias"])

            layer, y, cache = run(case)
            dy = integers.small(rng, *y.shape)
            dx, grads = layer.backward(backend.array(dy, "float64"), cache, weight_grad=True)
            for name, gradient in {"x": dx, **grads._asdict()}.items():
                step = integers.small(rng, *case[name].shape)

                def f(p: Array, name: str = name, case: Any = case, run: Any = run) -> Array:
                    return arrays.to_numpy(run(case | {name: p})[1])

                gap += abs(integers.adjoint_gap(f, case[name], arrays.to_numpy(gradient), step, dy))
        yield Property(f"{kind.__name__}: every gradient by the exact adjoint, sum of gaps", gap, 0, "integers")


# What is drawn, and how often.
DRAWN = {"nn": 8 * [*functions.FUNCTIONS], "block": 16 * [""], "models": 8 * [*models.KINDS]}


def drawn(what: str, backend: Backend, rng: np.random.Generator) -> Iterator[Property]:
    """Each property's worst figure over all drawn of ``what``, and where.

    The complex step is the first half's, on the host alone.
    """
    found: dict[points.Property, list[tuple[float, str]]] = {}
    for index, name in enumerate(DRAWN[what]):
        case: Any = None
        of_case: tuple[points.Property, ...] = ()
        choose, of_place, step = generator(rng), points.PROPERTIES, points.DRAWN_STEP
        if what == "nn":
            place, step = functions.FUNCTIONS[name](choose, rng), points.STEP
        elif what == "block":
            case, of_case = draw_block(choose), block.INVARIANCES
            place = block.point(case)
        else:
            case, of_place, of_case = build_model(draw_model(name)(choose)), models.PROPERTIES, models.OF_MODELS
            place = models.point(case)
        for one in (*of_place, *of_case, *[step] * (backend.xp is np and 2 * index < len(DRAWN[what]))):
            found.setdefault(one, []).append((one.figure(case if one in of_case else place, backend), name))
    for one, figures in found.items():
        figure, name = max(figures, key=lambda pair: (math.isnan(pair[0]), pair[0]))
        where = f", most in {name}" if name and figure else ""
        yield Property(f"{what}: {one.name}{where}", figure, one.limit, one.formula)


def certified(backend: Any, rng: np.random.Generator) -> Iterator[Property]:
    """Certificates of drawn adapters beside elimination in fractions, and the law of the first steps inside a block."""
    choose = generator(rng)
    for one, count in zip((*ranks.PROPERTIES, ranks.LAW), (100, 100, 30, 4), strict=True):
        draw = ranks.draw_descent if one is ranks.LAW else ranks.draw_factors
        yield Property(one.name, sum(one.figure(draw(choose), backend) for _ in range(count)), one.limit, one.formula)


PARTS: dict[str, Callable[[Backend, np.random.Generator], Iterator[Property]]] = {
    "spec": specification,
    "bases": streams,
    "layer": lambda backend, rng: chain(exact_layer(backend, rng), real_layer(backend, rng)),
    "adapters": other_adapters,
    **{what: partial(drawn, what) for what in DRAWN},
    "rank": certified,
}


def backends() -> tuple[dict[str, Backend], dict[str, str]]:
    """NumPy, and CuPy where it finds a GPU, by name; and what is installed and cannot be audited, with the reason."""
    usable = {"numpy": Backend(np)}
    try:
        import cupy

        if not cupy.cuda.runtime.getDeviceCount():
            raise RuntimeError("no device")
        return {**usable, "cupy": Backend(cupy)}, {}
    except Exception as error:  # not installed, broken, no driver, no device
        absent = isinstance(error, ModuleNotFoundError) and error.name == "cupy"
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return usable, {} if absent else {"cupy": f"installed and not audited: {reason}"}


def machine(backends: Mapping[str, Backend]) -> dict[str, Any]:
    """What computes: versions by name, the processor, NumPy's BLAS, and the current GPU of a backend that has one."""
    blas, info = np.show_config(mode="dicts")["Build Dependencies"]["blas"], Path("/proc/cpuinfo")
    names = re.findall("^model name\\s*: (.+)", info.read_text(), re.MULTILINE) if info.exists() else []
    versions = {"randlora_ref": __version__, "python": platform.python_version(), "numpy": np.__version__}
    found = {"processor": [*names, platform.machine()][0], "blas": f"{blas['name']} {blas['version']}"}
    if "cupy" in backends:
        cupy = backends["cupy"].xp
        versions["cupy"] = cupy.__version__
        found["gpu"] = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    return {"versions": versions, **found}
