"""Whole configurations, drawn by whoever chooses: hypothesis in the tests, a seeded generator in the audit.

A configuration is plain data, sizes and choices and a seed; ``build`` makes its arrays. ``Choose`` picks one of a
sequence, so that the first of each is the plainest and hypothesis shrinks towards it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Self, cast

import numpy as np

from .. import arrays, nn
from ..adapters import Adapter, FullFineTuning, NoLA
from ..adapters.randlora import ORDERS
from ..bases import Bases, draw_bases
from ..dialects import DIALECTS
from ..models.adapting import METHODS as STARTS
from . import stacks

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
        if self.order is not None:
            made = replace(made, order=self.order)
        if self.start:
            return cast(Adapter, made)
        rng = np.random.default_rng(self.seed)
        learned = {name: 0.5 * rng.standard_normal(getattr(made, name).shape) for name in made.LEARNED}
        return cast(Adapter, made.replace(**learned))


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
    arrays_of: dict[str, Any] = {}
    for name in (one.name for one in fields(adapter) if one.init):
        if isinstance(value := getattr(adapter, name), Bases):
            arrays_of[name] = Bases(convert(value.A), convert(value.B))
        elif isinstance(value, np.ndarray):
            arrays_of[name] = convert(value)
    return cast(Adapter, replace(cast(Any, adapter), **arrays_of))


def brought(adapter: Adapter, backend: Backend, dtype: str) -> Adapter:
    """The adapter with its arrays on ``backend`` in ``dtype``."""
    return with_arrays(adapter, lambda x: backend.array(x, dtype))


class Network(NamedTuple):
    """A block or a model of ``case``: its arrays on the host.

    ``weights`` by saved name, linear ``modules`` and ``adapters`` by name. ``floats``: inputs that are differentiated
    (a block's x; pixels, and embeddings in place of tokens); ``given``: ids, labels and attention_mask, of types of
    their own. ``dy``: the cotangent of output "y".
    """

    case: Any
    weights: dict[str, Array]
    modules: Mapping[str, stacks.Layer]
    adapters: dict[str, Adapter]
    given: dict[str, Array]
    floats: dict[str, Array]
    dy: Array = np.ones(())

    @property
    def parameters(self) -> dict[str, tuple[Array, Array | None]]:
        """A block's weight and bias or None by role."""
        return by_role(self.weights)

    @property
    def mask(self) -> Array | None:
        """The attention mask (batch, size), if there is one."""
        return self.given.get("attention_mask")


def by_role(values: Mapping[str, Array]) -> dict[str, tuple[Array, Array | None]]:
    """(weight, bias or None) by role, of what is named "role.weight" and "role.bias"."""
    roles = [name.removesuffix(".weight") for name in values if name.endswith(".weight")]
    return {role: (values[f"{role}.weight"], values.get(f"{role}.bias")) for role in roles}


def entries(rng: np.random.Generator, name: str, *shape: int) -> Array:
    """A tensor of entries that make outputs of order one, so that no part of a network is small beside another."""
    x, norm = rng.standard_normal(shape), len(shape) == 1 and name.endswith(".weight")
    return 1 + 0.3 * x if norm else x / math.prod(shape[1:]) ** 0.5


@dataclass(frozen=True)
class BlockCase:
    """A block of any kind: ``adapters`` by role, any subset; padding ``mask`` (batch, size) or None."""

    spec: nn.BlockSpec
    batch: int
    size: int
    causal: bool
    mask: tuple[tuple[int, ...], ...] | None
    rotary: tuple[float, Mapping[str, Any] | None] | None  # θ and its scaling
    adapters: Mapping[str, Chosen]
    seed: int


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


def draw_block(choose: Choose) -> BlockCase:
    """Any ``BlockSpec``: sizes apart from each other, both norms, four activations, fused, grouped, gated, biases."""
    rotary = (choose((10000.0, 7.5)), choose(ROPE)) if choose((False, True)) else None
    fused, heads = choose((False, True)), choose((1, 2, 4, 6))
    key_heads = heads if fused else choose([k for k in range(heads, 0, -1) if heads % k == 0])
    centred, gated = choose((True, False)), choose((False, True))
    sizes = choose(range(3, 9)), choose((4, 1, 7, 10)), heads, key_heads, choose((2, 4) if rotary else (3, 1, 2, 4))
    choices = choose((1e-5, 1e-12, 0.5)), choose(("gelu_tanh", "gelu", "quick_gelu", "silu"))
    options = {"centred": centred, "fused": fused, "gated": gated}
    bare = nn.BlockSpec(*sizes, *choices, **options)
    biases = frozenset(role for role in ("norm1", "norm2", *bare.shapes()) if choose((False, True)))
    batch, size = choose((2, 1, 3)), choose((3, 1, 2, 5))
    adapters = {role: draw_adapter(choose) for role in bare.shapes() if choose((True, False))}
    return BlockCase(
        replace(bare, biases=biases), batch, size, choose((False, True)), draw_mask(choose, batch, size), rotary,
        adapters, choose(SEEDS),
    )  # fmt: skip


def build_block(case: BlockCase) -> Network:
    """The arrays of a block."""
    rng, kind, weights = np.random.default_rng(case.seed), case.spec, dict[str, Array]()
    shapes, inputs = kind.shapes(), (case.batch, case.size, kind.width)
    for role, shape in {"norm1": (kind.width,), "norm2": (kind.width,), **shapes}.items():
        weights[f"{role}.weight"] = entries(rng, f"{role}.weight", *shape)
        if role in kind.biases:
            weights[f"{role}.bias"] = entries(rng, f"{role}.bias", shape[0])
    adapters = {role: one.adapter(shapes[role]) for role, one in case.adapters.items()}
    modules = {role: (f"{role}.weight", shape, False) for role, shape in shapes.items()}
    given = {} if case.mask is None else {"attention_mask": np.array(case.mask)}
    x, dy = rng.standard_normal(inputs), rng.standard_normal(inputs)
    return Network(case, weights, modules, adapters, given, {"x": x}, dy)


@dataclass(frozen=True)
class ModelCase:
    """A model of any configuration, ``keys`` of a config.json: ``adapters`` by module name, any subset of the linear.

    ``labels``: whether all, some or none of them count; ``dtypes``: of ids and labels; ``embedded``: embeddings are
    given in place of tokens.
    """

    name: str
    keys: Mapping[str, Any]
    batch: int
    size: int
    mask: tuple[tuple[int, ...], ...] | None
    labels: str
    dtypes: tuple[str, str]
    embedded: bool
    seed: int
    adapters: Mapping[str, Chosen] = field(default_factory=dict)

    @property
    def causal(self) -> bool:
        """Whether no logits see a later token."""
        return self.name in ("GPT-2", "Llama")


# What the config.json of a tiny model may hold: every key that changes what it computes; where several stand, together.
EPS, ACT, SIZES, FLAG = (1e-5, 1e-12, 0.5), tuple(stacks.ACTIVATIONS), ((6, 2), (4, 1), (3, 3), (12, 4)), (False, True)
TOWER: dict[str, Any] = {"num_hidden_layers": (1, 2), "hidden_size num_attention_heads": SIZES, "layer_norm_eps": EPS}
TOWER |= {"intermediate_size": (5, 7, 16), "hidden_act": ACT}
IMAGES = TOWER | {"image_size patch_size": ((4, 2), (2, 1), (3, 3), (6, 2)), "num_channels": (3, 1, 2)}
TEXTS = TOWER | {"vocab_size eos_token_id": ((9, 4), (9, 2), (300, 299), (5, 2)), "max_position_embeddings": (5, 8)}
GPT2: dict[str, Any] = {"n_layer": (1, 2), "n_embd n_head": SIZES, "n_inner": (None, 5, 16), "layer_norm_epsilon": EPS}
GPT2 |= {"activation_function": ACT, "vocab_size": (9, 300, 5), "n_positions": (5, 8), "tie_word_embeddings": FLAG}
HEADS = ((8, 2, None, None), (8, 2, 1, None), (4, 1, 1, 2), (5, 4, 2, 2), (7, 6, 3, 4), (12, 6, 2, None))
LLAMA: dict[str, Any] = {"hidden_size num_attention_heads num_key_value_heads head_dim": HEADS, "mlp_bias": FLAG}
LLAMA |= {"num_hidden_layers": (1, 2), "intermediate_size": (5, 7, 16), "rms_norm_eps": EPS, "hidden_act": ACT}
LLAMA |= {"vocab_size": (9, 300, 5), "max_position_embeddings": (5, 8), "rope_theta": (1e4, 7.5), "rope_scaling": ROPE}
LLAMA |= {"attention_bias": FLAG, "tie_word_embeddings": FLAG, "pad_token_id": (None, 3, -2)}
VIT = IMAGES | {"num_labels": (3, 2, 5), "qkv_bias": (True, False)}
CLIP = {"text_config": TEXTS, "vision_config": IMAGES, "projection_dim": (5, 3, 1)}
KEYS = {"GPT-2": GPT2, "Llama": LLAMA, "ViT": VIT, "CLIP": CLIP}


def draw_keys(options: Mapping[str, Any], choose: Choose) -> dict[str, Any]:
    """One of each of the ``options``."""
    found: dict[str, Any] = {}
    for names, values in options.items():
        chosen = draw_keys(values, choose) if isinstance(values, Mapping) else choose(values)
        found |= dict(zip(names.split(), chosen if " " in names else (chosen,), strict=True))
    return found


def draw_model(name: str) -> Callable[[Choose], ModelCase]:
    """GPT-2, Llama, ViT or CLIP of any configuration, and any inputs."""

    def draw(choose: Choose) -> ModelCase:
        batch, size, labels = choose((2, 3, 1)), choose((3, 2, 4, 5, 1)), choose(("all", "some", "some", "all", "none"))
        ids, types = ("int64", "int8", "int32", "uint8", "uint32"), ("int64", "int8", "int32", "uint16")
        dtypes = choose(ids), choose(types if labels == "all" else types[:3])  # −100 has a sign
        keys, mask = draw_keys(KEYS[name], choose), draw_mask(choose, batch, size)
        case = ModelCase(name, keys, batch, size, mask, labels, dtypes, choose((False, False, True)), choose(SEEDS))
        modules = tuple(build_model(case).modules)
        count = choose((2, 0, 1, 4, len(modules)))
        chosen = modules if count == len(modules) else [choose(modules) for _ in range(count)]
        return replace(case, adapters={module: draw_adapter(choose) for module in chosen})

    return draw


def build_model(case: ModelCase) -> Network:
    """The arrays of a model, as its stack asks for them."""
    rng, keys, tokens = np.random.default_rng(case.seed), case.keys, (case.batch, case.size)
    text, vision, modules = keys.get("text_config", keys), keys.get("vision_config", keys), dict[str, stacks.Layer]()
    weights, given, floats = dict[str, Array](), dict[str, Array](), dict[str, Array]()
    longest = [int(np.iinfo(dtype).max) + 1 for dtype in case.dtypes]

    def tensor(name: str, *shape: int) -> Array:
        return weights.setdefault(name, entries(rng, name, *shape))

    if case.name != "ViT":
        given["ids"] = rng.integers(0, min(text["vocab_size"], longest[0]), tokens, case.dtypes[0])
        given |= {} if case.mask is None else {"attention_mask": np.array(case.mask)}
    special = text.get("eos_token_id", (text.get("pad_token_id") or 0) % text.get("vocab_size", 1))
    if case.name in ("Llama", "CLIP") and special < longest[0]:
        given["ids"][rng.random(tokens) < 0.3] = special
    if case.name != "CLIP":
        size, shape = (keys["num_labels"], tokens[:1]) if case.name == "ViT" else (keys["vocab_size"], tokens)
        given["labels"] = rng.integers(0, min(size, longest[1]), shape, case.dtypes[1])
        if case.labels != "all":
            given["labels"][rng.random(shape) < {"some": 0.5, "none": 1}[case.labels]] = -100
    if (side := vision.get("image_size")) is not None:
        floats["pixels"] = rng.standard_normal((case.batch, vision["num_channels"], side, side))
    stacks.STACKS[case.name](stacks.Tensors(tensor, {}, modules), keys, given | floats)
    if case.embedded and case.name != "ViT":  # as wide as the table that is read first
        floats["embeddings"] = rng.standard_normal((*tokens, next(iter(weights.values())).shape[1]))
    adapters = {name: one.adapter(modules[name][1]) for name, one in case.adapters.items()}
    return Network(case, weights, modules, adapters, given, floats)
