"""``randlora-ref verify``: the audit of this package on this machine, a figure and a limit for each property."""

import hashlib
import math
import platform
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import __version__, arrays, prng
from ..bases import draw_bases, tile
from . import block, functions, invariances, layers, models, points, ranks
from .configurations import Backend, Choose, build_block, build_model, draw_block, draw_model, generator
from .points import Property

# SHA-256 of A then B, as PEFT 0.21.2 drew them: layers (5, 3) and (4, 7), r = 2, projection_prng_key 11
PEFT_BASES = {
    "dense": "e6646dc8bd9a6239f51e83e9091373110b5eb17a77494f62f97609797379f0f1",
    "sparse": "9b9e3ce92580f8a7d0770a54786c9826f14e30329ad8d420e7c0ca42b4166aee",
    "very_sparse": "4cb91108ab4a9aac86d048867d89d2dc498ad49112d0be8a25a73105c91f38ed",
}


def philox(_: Any, backend: Backend) -> float:
    """Words that are not Random123's known answer."""
    return float(np.sum(prng.philox_words(0, 0, 0, 4) != (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)))


def mersenne_twister(_: Any, backend: Backend) -> float:
    """Whether word 10000 is not what the C++ standard says."""
    return float(prng.mt19937_words(prng.mt19937(5489), 10000)[-1] != 4123659995)


def peft_bases(_: Any, backend: Backend) -> float:
    """Kinds of PEFT's bases that are not its recorded draw."""
    wrong = 0
    for kind, known in PEFT_BASES.items():
        bases = draw_bases("peft", seed=11, shapes=[(5, 3), (4, 7)], rank=2, kind=kind)  # type: ignore[arg-type]
        wrong += hashlib.sha256(bases.A.tobytes() + bases.B.tobytes()).hexdigest() != known
    return wrong


def own_bases(drawn: tuple[Any, str], backend: Backend) -> float:
    """Entries of our own bases that another size, a tile or this backend draws otherwise."""
    kind, dtype = drawn
    asked: dict[str, Any] = {"seed": 2**63 + 5, "rank": 4, "kind": kind, "dtype": dtype}
    here = draw_bases(shapes=[(70, 30)], xp=backend.xp, device=backend.device, **asked)
    larger = draw_bases(shapes=[(70, 40)], **asked).slice(8, 70, 30)
    A, B = arrays.to_numpy(here.A), arrays.to_numpy(here.B)
    right = {"A": larger.A, "B": larger.B, "tile": tile(3, 17, 29, D_max=70, **asked)}
    return points.differ({"A": A, "B": B, "tile": B[2, 17:29]}, right)


class Part(NamedTuple):
    """A part of the audit: what is drawn of each name of ``DRAWN``, its point, and the properties of both."""

    draw: Callable[[Any, Choose], Any]
    point: Callable[[Any], Any] | None = None
    of_point: tuple[Property, ...] = ()
    of_subject: tuple[Property, ...] = ()


KNOWN_ANSWERS = (
    Property("Philox4x32-10, as Random123 has it: words that differ", philox, 0, "bits"),
    Property("MT19937, word 10000 as the C++ standard has it: differs", mersenne_twister, 0, "bits"),
    Property("bases of PEFT, its recorded draw: kinds that differ", peft_bases, 0, "bits"),
)
OWN_BASES = Property("this backend, a slice, a tile: entries that differ", own_bases, 0, "bits")
# On NumPy alone, of the first half that is drawn: they are slow, or know no backend.
ON_HOST = (*KNOWN_ANSWERS, points.STEP, points.DRAWN_STEP)
# What is drawn in each part, and how often.
DRAWN: dict[str, list[Any]] = {
    "spec": list(product(layers.SHAPES[:-2], ("literal", "crossed"), (None,))),  # rationals are slow
    "known answers": [""],
    "bases of our own": list(product(("dense", "sparse", "very_sparse", 100), ("float32", "float64"))),
    "layer": list(layers.LAYERS),
    "layer on reals": list(layers.LAYERS),
    **{name: [(5, 7), (7, 5)] for name in layers.OTHERS},
    "nn": 8 * [*functions.FUNCTIONS],
    "block": 16 * [""],
    "models": 8 * [*models.KINDS],
    "rank": 100 * [""],
    "rank after steps": 4 * [""],
}


def itself(what: Any, choose: Choose) -> Any:
    """What is drawn where nothing is chosen."""
    return what


def same(subject: Any) -> Any:
    """Of a point, the point."""
    return subject


SUBJECTS = {
    "spec": Part(layers.draw_layer, layers.specification, points.EXACT),
    "known answers": Part(itself, of_subject=KNOWN_ANSWERS),
    "bases of our own": Part(itself, of_subject=(OWN_BASES,)),
    "layer": Part(layers.draw_layer, layers.point, points.EXACT),
    "layer on reals": Part(layers.draw_real, layers.point, layers.ON_REALS, layers.OF_LAYERS),
    **{name: Part(partial(layers.draw_method, method), same, points.EXACT) for name, method in layers.OTHERS.items()},
    "nn": Part(lambda name, choose: functions.draw_function(name)(choose), same, (*points.PROPERTIES, points.STEP)),
    "block": Part(
        lambda _, choose: build_block(draw_block(choose)),
        block.point,
        (*points.PROPERTIES, points.DRAWN_STEP),
        (*invariances.INVARIANCES, *block.LAWS),
    ),
    "models": Part(
        lambda name, choose: build_model(draw_model(name)(choose)),
        models.point,
        (*models.PROPERTIES, points.DRAWN_STEP),
        (*invariances.INVARIANCES, *models.OF_MODELS),
    ),
    "rank": Part(lambda _, choose: ranks.draw_factors(choose), of_subject=ranks.PROPERTIES),
    "rank after steps": Part(lambda _, choose: ranks.draw_descent(choose), of_subject=(ranks.LAW,)),
}


def audited(name: str, backend: Backend, rng: np.random.Generator) -> Iterator[Property]:
    """Each property's worst figure over all that is drawn in a part, and where."""
    part, choose, found = SUBJECTS[name], generator(rng), dict[Property, list[tuple[float, Any]]]()
    for index, what in enumerate(DRAWN[name]):
        subject = part.draw(what, choose)
        place = part.point(subject) if part.point else None
        for one in (*part.of_point, *part.of_subject):
            if one not in ON_HOST or (backend.xp is np and 2 * index < len(DRAWN[name])):
                figure = one.of(place if one in part.of_point else subject, backend).figure
                found.setdefault(one, []).append((figure, what))
    for one, figures in found.items():
        figure, what = max(figures, key=lambda pair: (math.isnan(pair[0]), pair[0]))
        where = f", most in {what}" if what and figure else ""
        yield one._replace(name=f"{name}: {one.name}{where}", figure=figure)


PARTS: dict[str, Callable[[Backend, np.random.Generator], Iterable[Property]]]
PARTS = {name: partial(audited, name) for name in SUBJECTS}


def properties(
    backend: Backend | None = None, seed: int = 0, parts: Collection[str] | None = None
) -> Iterator[Property]:
    """Every property of the ``PARTS`` asked for (None: all), one by one, on ``backend`` (None: NumPy)."""
    for name in PARTS if parts is None else parts:
        try:
            yield from PARTS[name](Backend(np) if backend is None else backend, np.random.default_rng(seed))
        except Exception as error:  # what stops an audit is a finding of the audit
            yield Property(f"{name}: stopped by {type(error).__name__}: {error}", math.inf, 0, "no error")


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
