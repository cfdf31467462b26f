"""``randlora-ref verify``: the audit of this package on this machine, a figure and a limit for each property."""

import hashlib
import math
import platform
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, arrays, prng
from ..bases import draw_bases, tile
from . import block, functions, layers, models, points, ranks
from .configurations import Backend, Choose, generator
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


KNOWN_ANSWERS = (
    Property("Philox4x32-10, as Random123 has it: words that differ", philox, 0, "bits"),
    Property("MT19937, word 10000 as the C++ standard has it: differs", mersenne_twister, 0, "bits"),
    Property("bases of PEFT, its recorded draw: kinds that differ", peft_bases, 0, "bits"),
)
OWN_BASES = Property("this backend, a slice, a tile: entries that differ", own_bases, 0, "bits")
# On NumPy alone, of the first half that is drawn: they are slow, or know no backend.
ON_HOST = [one.name for one in (*KNOWN_ANSWERS, points.STEP)]
OTHERS = {"LoRA": "lora", "VeRA": "vera", "NoLA": "nola", "FullFineTuning": "full", "RandLoRAa": "randlora_a"}
# By part: what is drawn, one subject of each name; how; and what must hold of it.
SUBJECTS: dict[str, tuple[Sequence[Any], Callable[[Any, Choose], Any], tuple[Property, ...]]] = {
    "spec": (20 * ["randlora"], layers.draw_specification, points.EXACT),
    "known answers": ([""], lambda _, choose: None, KNOWN_ANSWERS),
    "bases of our own": (
        [(kind, dtype) for kind in ("dense", "sparse", "very_sparse", 100) for dtype in ("float32", "float64")],
        lambda kind, choose: kind,
        (OWN_BASES,),
    ),
    "layer": (72 * ["randlora"], layers.draw_layer, points.EXACT),
    "layer on reals": (72 * ["randlora"], partial(layers.draw_layer, real=True), layers.ON_REALS),
    **{name: (4 * [method], layers.draw_layer, points.EXACT) for name, method in OTHERS.items()},
    "nn": (8 * [*functions.FUNCTIONS], functions.draw_function, (*points.PROPERTIES, points.STEP)),
    "block": (16 * [""], lambda _, choose: block.draw_block(choose).build(), block.PROPERTIES),
    "models": (8 * [*models.KINDS], lambda name, choose: models.draw_model(name, choose).build(), models.PROPERTIES),
    "rank": (100 * [""], lambda _, choose: ranks.draw_factors(choose), ranks.PROPERTIES),
    "rank after steps": (4 * [""], lambda _, choose: ranks.draw_descent(choose), (ranks.LAW,)),
}
DRAWN = {part: list(names) for part, (names, _, _) in SUBJECTS.items()}


def audited(part: str, backend: Backend, rng: np.random.Generator) -> Iterator[Property]:
    """Each property's worst figure over all that is drawn in a part, and where."""
    (_, draw, properties), found = SUBJECTS[part], dict[Property, list[tuple[float, Any]]]()
    for index, name in enumerate(DRAWN[part]):
        subject, on_host = draw(name, generator(rng)), backend.xp is np and 2 * index < len(DRAWN[part])
        for one in properties:
            if on_host or one.name not in ON_HOST:
                found.setdefault(one, []).append((one.of(subject, backend).figure, name))
    for one, figures in found.items():
        figure, name = max(figures, key=lambda pair: (math.isnan(pair[0]), pair[0]))
        where = f", most in {name}" if figure and len({*DRAWN[part]}) > 1 else ""
        yield one._replace(name=f"{part}: {one.name}{where}", figure=figure)


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
    names = re.findall("^model name\\s*: (.+)", info.read_text(encoding="utf-8"), re.MULTILINE) if info.exists() else []
    versions = {"randlora_ref": __version__, "python": platform.python_version(), "numpy": np.__version__}
    found = {"processor": [*names, platform.machine()][0], "blas": f"{blas['name']} {blas['version']}"}
    if "cupy" in backends:
        cupy = backends["cupy"].xp
        versions["cupy"] = cupy.__version__
        found["gpu"] = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    return {"versions": versions, **found}
