"""Whole configurations, drawn by whoever chooses: hypothesis in the tests, a seeded generator in the audit.

``Choose`` picks one of a sequence, so that the first of each is the plainest and hypothesis shrinks towards it. Here is
what blocks and models have in common: array libraries, adapters, padding.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple, Self, cast

import numpy as np

from .. import arrays
from ..adapters import Adapter, FullFineTuning, NoLA
from ..adapters.randlora import ORDERS
from ..bases import Bases, draw_bases
from ..dialects import DIALECTS
from ..models.adapting import METHODS as STARTS

Array = Any
Choose = Callable[[Sequence[Any]], Any]
SEEDS = range(2**16)
METHODS: dict[str, Callable[..., Any]] = {name: start for name, (start, _, _) in STARTS.items()} | {
    "nola": lambda *shape, **options: NoLA.start(*shape, num_bases=3, **options),
    "full": lambda out, in_, rank, seed, dtype: FullFineTuning.start(out, in_, dtype=dtype),
}


def generator(rng: np.random.Generator) -> Choose:
    """Choices of a seeded generator."""
    return lambda options: options[int(rng.integers(len(options)))]


class Backend(NamedTuple):
    """An array library and a device."""

    xp: Any
    device: Any = None

    @classmethod
    def of(cls, x: Array) -> Self:
        """The library and device of ``x``."""
        return cls(arrays.namespace_of("x", x), arrays.device_of(x))

    def array(self, x: Array, dtype: str | None = None) -> Array:
        """A host array brought here in ``dtype`` (None: its own); None stays None."""
        return None if x is None else arrays.from_numpy(self.xp, np.asarray(x, dtype), self.device)


HOST = Backend(np)


class Chosen(NamedTuple):
    """One adapter: its method and what it is started with; ``start``: as training starts, else learned values drawn."""

    method: str
    rank: int
    start: bool
    seed: int
    options: Mapping[str, Any]
    order: Any = None

    def adapter(self, shape: tuple[int, int]) -> Adapter:
        """The adapter of a layer of ``shape`` (out, in), on the host in float64."""
        options, rank = dict(self.options), self.rank // 2 if self.method == "randlora_b" else self.rank
        if "dialect" in options:
            if min(shape) * rank <= 2:
                options["dialect"] = "paper"  # PEFT's A of one number, or of two that are equal, has no deviation
            dialect = DIALECTS[options["dialect"]]
            # the least context that nlg's shared sides have room in, and no more of vision's terms than show the cap
            context, most = max(min(shape), -(-max(shape) // 4)), dialect.max_terms and 4
            options["dialect"] = replace(dialect, context=context, max_terms=most)
            sharing = {"shapes": [shape, shape[::-1]], "rank": rank, "kind": options.pop("kind", "dense")}
            options["bases"] = draw_bases(options["dialect"], seed=self.seed, dtype="float64", **sharing)
        made: Any = METHODS[self.method](*shape, self.rank, seed=self.seed, dtype="float64", **options)
        made = made if self.order is None else replace(made, order=self.order)
        rng, names = np.random.default_rng(self.seed), () if self.start else made.LEARNED
        return cast(Adapter, made.replace(**{x: 0.5 * rng.standard_normal(getattr(made, x).shape) for x in names}))


def draw_adapter(choose: Choose, methods: Sequence[str] = ("randlora", *METHODS)) -> Chosen:
    """RandLoRA under each dialect, kind of basis and order of contraction, and every other method."""
    method, options, order = choose(methods), dict[str, Any](), None
    if method.startswith("randlora") and method != "randlora_a":
        dialect = DIALECTS[choose(("paper", *DIALECTS))]  # the paper's twice: it has more kinds
        options = {"dialect": dialect.name, "alpha": 2.0, "kind": "dense"}
        if dialect.generator == "philox":  # small sparse draws of the others are often NaN
            options["kind"] = choose(("dense", "sparse", "very_sparse", 3))
        order = choose((None, *(ORDERS[:1] if dialect.orientation == "reshape" else ORDERS)))
    rank, start = choose((2, 3, 4) if method == "randlora_b" else (1, 2, 3, 5)), choose((False, True))
    return Chosen(method, rank, start, choose(SEEDS), options, order)


def with_arrays(adapter: Adapter, convert: Callable[[Array], Array]) -> Adapter:
    """The adapter with ``convert`` applied to each of its arrays."""
    held = {one.name: getattr(adapter, one.name) for one in fields(adapter) if one.init}
    moved = {name: convert(x) for name, x in held.items() if isinstance(x, np.ndarray)}
    if "bases" in held:
        moved["bases"] = Bases(convert(held["bases"].A), convert(held["bases"].B))
    return cast(Adapter, replace(cast(Any, adapter), **moved))


def brought(adapter: Adapter, backend: Backend, dtype: str) -> Adapter:
    """The adapter with its arrays on ``backend`` in ``dtype``."""
    return with_arrays(adapter, lambda x: backend.array(x, dtype))


def entries(rng: np.random.Generator, name: str, *shape: int) -> Array:
    """A tensor of entries that make outputs of order one, so that no part of a network is small beside another."""
    x, norm = rng.standard_normal(shape), len(shape) == 1 and name.endswith(".weight")
    return 1 + 0.3 * x if norm else x / math.prod(shape[1:]) ** 0.5


ROPE = (None, {"rope_type": "linear", "factor": 3.0}, {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
})  # fmt: skip


def draw_mask(choose: Choose, batch: int, size: int) -> tuple[tuple[int, ...], ...] | None:
    """No padding, or padding on the right, on the left, anywhere, or everywhere in a row."""
    where = choose(("none", "right", "left", "anywhere"))
    if where == "none":
        return None
    lengths = [choose(range(size, -1, -1)) for _ in range(batch)]
    rows = [[1] * length + [0] * (size - length) for length in lengths]
    if where == "anywhere":
        rows = [[choose((1, 0)) for _ in range(size)] for _ in range(batch)]
    return tuple(tuple(row[::-1] if where == "left" else row) for row in rows)
