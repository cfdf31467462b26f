"""What training begins with: adapters of any method by module name, for a model or a configuration, and weights."""

import math
import numbers
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from .. import arrays, checks
from ..adapters import FullFineTuning, LoRA, NoLA, RandLoRA, RandLoRAa, VeRA, randlora_b, vera_bases
from ..bases import Bases, Kind, draw_bases
from ..dialects import Dialect, get_dialect
from ..spec import sides
from .config import Config
from .core import Model

# By method: its start, the rank where neither rank nor count is given, and what else it can be told.
METHODS: dict[str, tuple[Callable[..., Any], int | None, str]] = {
    "randlora": (RandLoRA.start, 32, "rank count dialect kind alpha scaling"),
    "lora": (LoRA.start, 8, "rank count alpha scaling"),
    "vera": (VeRA.start, 256, "rank count"),
    "nola": (NoLA.start, 1, "rank count alpha scaling"),
    "full": (FullFineTuning.start, None, ""),
    "randlora_a": (RandLoRAa.start, 32, "rank count scaling"),
    "randlora_b": (randlora_b, 32, "rank count dialect kind alpha scaling"),
}


def adapt(
    model: Model | Config, modules: Iterable[str] | None = None, *, method: str = "randlora", rank: int | None = None,
    count: int | None = None, dialect: str | Dialect | None = None, seed: int | None = None, kind: Kind | None = None,
    dtype: Any = None, alpha: float | None = None, scaling: float | None = None
) -> dict[str, Any]:  # fmt: skip
    """Adapters of one ``method`` as training starts, by module name.

    ``modules``: names, or endings of names as in PEFT's ``target_modules`` lists; a text is one of them, but for
    "all-linear", which is every linear module without a language model's head, as PEFT takes it (ViT's classifier and
    CLIP's projections are among them); None takes every linear module of the blocks. Library, device and dtype are the
    model's; a configuration alone gives NumPy's float32 unless ``dtype``.

    ``count`` in place of ``rank``: the size whose learned values, in all adapted modules together, are nearest to it.
    With ``rank`` beside it, ``count`` settles how many terms RandLoRA, -a and -b have, or how many bases NoLA.
    RandLoRA, -b and VeRA share one pair of bases, sliced for each layer; in the other methods layer i has the seed
    (seed + 2³²·i) mod 2⁶⁴. ``dialect`` None is "peft". ``scaling`` is s itself, in place of ``alpha``.

    Raises ValueError for an ending that no linear module has, for none at all, and for what the method does not have.
    """
    checks.instance("model", model, Model | Config)
    checks.instance("dialect", dialect, str | Dialect | None)
    checks.instance("kind", kind, str | numbers.Real | None)
    checks.choice("dtype", dtype, (None, "float16", "float32", "float64"))
    checks.choice("method", method, METHODS)
    start, usual, takes = METHODS[method]
    given = {"rank": rank, "count": count, "dialect": dialect, "kind": kind, "alpha": alpha, "scaling": scaling}
    for name, value in given.items():
        if value is not None and name not in takes.split():
            raise ValueError(f"{name}: {value!r}; {method} has none, so it must be left out")
    made: dict[str, Any] = {"dtype": dtype or "float32"}
    if isinstance(model, Model):
        made = {"dtype": dtype or model.precision, "xp": model.xp, "device": arrays.device_of(model._like)}
    named = chosen_modules(model.config if isinstance(model, Model) else model, modules)
    shapes, record = list(named.values()), get_dialect(dialect or ("paper" if method == "randlora_a" else "peft"))
    seed = checks.seed(record.default_seed or 0 if seed is None else seed)
    options = chosen_size(method, shapes, usual if rank is count is None else rank, count, record)
    if method in ("randlora", "randlora_b"):
        record = replace(record, num_terms=options.pop("terms", record.num_terms))
        bases = shared_bases(method, shapes, record, options["rank"], seed=seed, kind=kind or "dense", **made)
        options |= {"bases": bases, "dialect": record, "alpha": alpha, "scaling": scaling}
    elif method == "vera":
        options["bases"] = vera_bases(shapes, seed=seed, **options, **made)
    elif scaling is not None:
        options |= {"scale": scaling} if method == "randlora_a" else {"alpha": scaling * options.get("rank", 1)}
    elif alpha is not None:
        options["alpha"] = alpha
    adapters = {}
    for i, (name, shape) in enumerate(named.items()):
        own = {} if "bases" in options or method == "full" else {"seed": (seed + (i << 32)) % 2**64}
        adapters[name] = start(*shape, **options, **made, **own)
    return adapters


def chosen_size(method: str, shapes: list[Any], rank: int | None, count: int | None, record: Dialect) -> dict[str, Any]:
    """The options of a start that settle its size: ``rank``, and what brings all layers nearest to ``count`` values."""
    halved = 2 if method == "randlora_b" else 1
    known = {} if rank is None else {"rank": checks.integer("rank", rank, halved)}
    if count is None:
        return known
    checks.integer("count", count)
    layers = [(shape, sides(shape, record.orientation)[1]) for shape in shapes]  # with d
    linear = {  # what the number of learned values is linear in, its value at 0, and its slope
        "lora": ("rank", 0, sum(map(sum, shapes))),
        "vera": ("rank", sum(out for out, _ in shapes), len(shapes)),
        "nola": ("num_bases", 0, 2 * len(shapes)),
    }
    if rank is not None and method not in linear:
        linear[method] = ("terms", 0, sum(rank // halved + d for _, d in layers))
    if method in linear:
        name, least, slope = linear[method]
        if name in known:
            raise ValueError(f"count: {count}; it must be left out beside a rank, which settles it in {method}")
        return known | {name: max(1, round((count - least) / slope))}

    ranks, alike = range(halved, max(d for _, d in layers) + 2), Counter(layers).items()
    totals = {r: sum(times * record.terms(shape, r) * (r // halved + d) for (shape, d), times in alike) for r in ranks}
    return {"rank": min(ranks, key=lambda r: abs(totals[r] - count))}


def shared_bases(method: str, shapes: list[Any], record: Dialect, rank: int, *, dtype: str, **where: Any) -> Bases:
    """The bases of all layers of RandLoRA, or of -b: of half the rank, and no more terms."""
    wide: Any = "float64" if dtype == "float64" and record.generator == "philox" else "float32"
    if method == "randlora_b":
        record, rank = replace(record, num_terms=max(record.terms(shape, rank) for shape in shapes)), rank // 2
    return draw_bases(record, shapes=shapes, rank=rank, dtype=wide, **where)


def chosen_modules(config: Config, modules: Iterable[str] | None) -> dict[str, tuple[int, int]]:
    """(out, in) of the linear modules that ``adapt`` takes, by name."""
    shapes: dict[str, Any] = {one.name: one.shape for one in config.modules() if one.linear}
    if modules is None:
        inside = [one for tower in config.towers() for layer in tower.layers for one in layer.values()]
        modules = [one.name for one in inside if one.linear]
    elif isinstance(modules, str):
        modules = [name for name in shapes if name != "lm_head"] if modules == "all-linear" else [modules]
    endings = list(modules) if isinstance(modules, Iterable) and not hasattr(modules, "ndim") else []
    if not endings:
        raise ValueError(f"modules: {modules!r}; it must be a name or an ending of names, or list at least one")
    chosen = set[str]()
    for end in endings:
        named = {name for name in shapes if isinstance(end, str) and f".{name}".endswith(f".{end}")}
        if not named:
            raise ValueError(f"modules: {end!r}; it must be the name or the ending of a linear module's name")
        chosen |= named
    return {name: shape for name, shape in shapes.items() if name in chosen}


def initial_weights(config: Config, seed: int = 0, *, dtype: str = "float32") -> dict[str, Any]:
    """Weights to begin training with, by saved name, as NumPy arrays.

    Linear weights and patches are normal with deviation 1/√in, tables and a class token with 0.02, norms 1, biases 0,
    CLIP's temperature log(1/0.07). The draws are those of NumPy's generator under ``seed``, module by module.
    """
    checks.choice("dtype", dtype, ("float32", "float64"))
    rng, weights = np.random.default_rng(checks.seed(seed)), dict[str, Any]()
    for one in config.modules():
        deviation = math.prod(one.shape[1:]) ** -0.5 if one.linear or len(one.shape) == 4 else 0.02
        for part, (saved, shape) in one.tensors.items():
            if part == "bias" or one.shape == () or (len(one.shape) == 1 and not one.bare):
                constant = 0.0 if part == "bias" else 1.0 if one.shape else math.log(1 / 0.07)
                weights[saved] = np.full(shape, constant, dtype)
            elif saved not in weights:  # a tied head is its table
                weights[saved] = (deviation * rng.standard_normal(shape)).astype(dtype)
    return weights
