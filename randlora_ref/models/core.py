"""What the models share: modules and their saved tensors, stacks of blocks, and the bookkeeping of gradients.

A *module* has PEFT's name of it; its tensors have the names under which ``transformers`` 5.23 saves them. A
configuration lists its modules, and that list is the one map between the two.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from .. import arrays, checks
from ..adapters import Adapter, RandLoRA
from ..bases import draw_bases
from ..dialects import Dialect, get_dialect
from ..nn import (
    BlockSpec,
    LinearGrads,
    block,
    block_backward,
    cross_entropy_backward,
    embedding,
    embedding_backward,
    layer_norm,
    linear,
    linear_backward,
    norm_backward,
    patches,
    patches_backward,
    rms_norm,
)

Array = Any
ACTIVATIONS = {  # the names of configurations, and ours
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu",
    "silu": "silu",
}  # fmt: skip


@dataclass(frozen=True)
class Module:
    """A module by PEFT's ``name``, and its ``tensors``: the saved name and shape of its "weight", its "bias".

    ``linear`` ones can be adapted; the weight of a ``transposed`` one (Conv1D) is saved as (in, out).
    """

    name: str
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    linear: bool = False
    transposed: bool = False
    tied: bool = False  # the weight is another module's

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of a linear module."""
        first, second = self.tensors["weight"][1]
        return (second, first) if self.transposed else (first, second)


def module(
    name: str, shape: tuple[int, ...], *, saved: str = "", bias: bool = False, transposed: bool = False, **kind: bool
) -> Module:
    """A module whose tensors are saved under ``saved`` (its own name if empty), of weight ``shape`` (out, in)."""
    saved = saved or name
    tensors = {"weight": (f"{saved}.weight", shape[::-1] if transposed else shape)}
    return Module(
        name, tensors | ({"bias": (f"{saved}.bias", shape[:1])} if bias else {}), transposed=transposed, **kind
    )


def bare(name: str, shape: tuple[int, ...]) -> Module:
    """A weight that is no module's: its saved name is its own."""
    return Module(name, {"weight": (name, shape)})


@dataclass(frozen=True)
class Stack:
    """``count`` blocks, layer i's modules under ``prefix``.i. with the suffixes of ``names`` by role.

    ``saved_prefix`` and ``saved_names`` are those of the saved tensors, where they differ.
    """

    prefix: str
    count: int
    spec: BlockSpec
    names: Mapping[str, str]
    saved_prefix: str = ""
    saved_names: Mapping[str, str] = field(default_factory=dict)
    transposed: bool = False

    def modules(self) -> Iterator[Module]:
        """The modules of every layer."""
        norms: dict[str, tuple[int, ...]] = dict.fromkeys(("norm1", "norm2"), (self.spec.width,))
        for layer in range(self.count):
            for role, shape in (norms | self.spec.shapes()).items():
                linear = len(shape) == 2
                saved = f"{self.saved_prefix or self.prefix}.{layer}.{self.saved_names.get(role, self.names[role])}"
                kind = {"bias": role in self.spec.biases, "transposed": linear and self.transposed, "linear": linear}
                yield module(f"{self.prefix}.{layer}.{self.names[role]}", shape, saved=saved, **kind)


class Config(ABC):
    """Base of the configurations: frozen dataclasses whose fields have the keys of the Hugging Face ``config.json``."""

    MODEL_TYPE: ClassVar[str]
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {}  # keys that the model reads in one way only

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """The configuration from the keys of a ``config.json``. ValueError names what the model does not do.

        Dropout is not among it: these models run as in evaluation.
        """
        if config.get("model_type", cls.MODEL_TYPE) != cls.MODEL_TYPE:
            raise ValueError(f"model_type: {config['model_type']!r}; it must be {cls.MODEL_TYPE!r}")
        for key, allowed in cls.FIXED.items():
            if key in config and config[key] not in allowed:
                raise ValueError(f"{key}: {config[key]!r} is not implemented; it must be {allowed[0]!r} or left out")
        known = {one.name for one in fields(cls)}  # type: ignore[arg-type]
        return cls(**{key: value for key, value in config.items() if key in known and value is not None})

    def __post_init__(self) -> None:
        for one in fields(self):  # type: ignore[arg-type]
            value = getattr(self, one.name)
            if one.type is int and not one.name.endswith("_id") and (type(value) is not int or value < 1):
                raise ValueError(f"{one.name}: {value!r}; it must be a positive integer")
        image, patch = getattr(self, "image_size", 0), getattr(self, "patch_size", 1)
        if image % patch:
            raise ValueError(f"image_size: {image}; it must be a multiple of patch_size, {patch}")
        self.stacks()

    @abstractmethod
    def stacks(self) -> tuple["Stack", ...]:
        """The blocks, tower by tower. ValueError names what does not fit."""

    def modules(self) -> Iterator[Module]:
        """Every module that has tensors: the one map between PEFT's names and saved ones. A tower's are its model's."""
        yield from ()


def block_spec(
    width: int, hidden: int, heads: int, eps: float, activation: str, biases: Iterable[str], *,
    key_heads: int | None = None, head_width: int | None = None, **more: bool
) -> BlockSpec:  # fmt: skip
    """A ``BlockSpec`` from a configuration's numbers. ValueError if ``heads`` does not divide, or for an activation."""
    if head_width is None and width % heads:
        raise ValueError(f"hidden_size or n_embd: {width}; it must be a multiple of the number of heads, {heads}")
    if activation not in ACTIVATIONS:
        name, known = "hidden_act or activation_function", ", ".join(ACTIVATIONS)
        raise ValueError(f"{name}: {activation!r} is not implemented; it must be one of {known}")
    return BlockSpec(
        width, hidden, heads, heads if key_heads is None else key_heads, head_width or width // heads, eps,
        ACTIVATIONS[activation], biases=frozenset(biases), **more
    )  # fmt: skip


class ModelCache(NamedTuple):
    """What ``forward`` leaves: ``logits``, the loss's cache (None without labels), and every step's by module name."""

    logits: Array
    loss: Any
    steps: dict[str, Any]

    def d_logits(self, through: Array | None = None) -> Array:
        """∂L/∂logits as rows, or its product with ``through``. ValueError if there was no loss."""
        if self.loss is None:
            raise ValueError("cache: of a forward pass without labels; backward needs the loss")
        return cross_entropy_backward(self.loss, through=through)


class Gradients(dict[str, Any]):
    """Gradients by module name: an adapter's own, or ``LinearGrads`` of a layer that has a bias and no adapter.

    ``weights``: every saved tensor's gradient by its saved name, or None. ``inputs``: the embeddings' or the pixels',
    or None.
    """

    def __init__(self, weights: bool) -> None:
        super().__init__()
        self.weights: dict[str, Array] | None = {} if weights else None
        self.inputs: Any = None


class Model:
    """A model from ``weights`` by saved name and ``adapters`` by module name; nothing is copied or changed.

    ``config`` may be the dictionary of a ``config.json``. Raises TypeError, KeyError or ValueError that names the
    missing, unknown or misshapen weight or adapter.
    """

    CONFIG: ClassVar[type[Any]]

    def __init__(self, config: Any, weights: Mapping[str, Array], adapters: Mapping[str, Any] | None = None) -> None:
        self.config = self.CONFIG.from_dict(config) if isinstance(config, Mapping) else config
        self.weights = dict(weights)
        self.adapters: dict[str, Adapter] = dict(adapters or {})
        self.modules = {one.name: one for one in self.config.modules()}
        expected = {saved: shape for one in self.modules.values() for saved, shape in one.tensors.values()}
        for kind, names in (("missing", set(expected) - set(weights)), ("unknown", set(weights) - set(expected))):
            if names:
                raise KeyError(f"weights: {kind} {sorted(names)[0]!r}; they must be those of {type(self).__name__}")
        self.xp = checks.floats(**self.weights)
        self.precision = checks.precision("weights", next(iter(self.weights.values())))
        for name, shape in expected.items():
            checks.shape(name, self.weights[name], shape)
        linear_modules = {name: one.shape for name, one in self.modules.items() if one.linear}
        for name, adapter in self.adapters.items():
            if name not in linear_modules:
                raise KeyError(f"adapters: {name!r}; it must be one of {', '.join(linear_modules)}")
            if tuple(adapter.shape) != linear_modules[name]:
                raise ValueError(f"adapters: {name!r} is of shape {adapter.shape}; it must be {linear_modules[name]}")

    def replace(self, adapters: Mapping[str, Adapter]) -> Self:
        """The same model with other adapters."""
        return type(self)(self.config, self.weights, adapters)

    # -- forward: every step leaves its cache under its module's name ---------------------------------------

    def tensors(self, name: str) -> tuple[Array, Array | None]:
        """(weight, bias or None) of a module, a linear weight as (out, in)."""
        own = self.modules[name]
        weight = self.weights[own.tensors["weight"][0]]
        bias = self.weights[own.tensors["bias"][0]] if "bias" in own.tensors else None
        return weight.T if own.transposed else weight, bias

    def linear(self, name: str, x: Array, caches: dict[str, Any]) -> Array:
        """A linear module outside the blocks."""
        y, caches[name] = linear(x, *self.tensors(name), self.adapters.get(name))
        return y

    def norm(self, name: str, x: Array, caches: dict[str, Any], spec: BlockSpec) -> Array:
        """A norm outside the blocks."""
        y, caches[name] = (layer_norm if spec.centred else rms_norm)(x, *self.tensors(name), spec.eps)
        return y

    def embed(self, name: str, ids: Array, caches: dict[str, Any]) -> Array:
        """Rows of a table, or ``ids`` itself if it holds embeddings (B, T, k) already. Ranges are the caller's."""
        table, _ = self.tensors(name)
        if ids.ndim == 3:
            checks.shape("embeddings", ids, (*ids.shape[:2], table.shape[1]))
            caches[name] = None
            return ids
        y, caches[name] = embedding(ids, table, checked=True)
        return y

    def run(self, stack: Stack, x: Array, caches: dict[str, Any], mask: Any = None, tables: Any = None) -> Array:
        """The blocks of ``stack``, one after the other."""
        for layer in range(stack.count):
            names = {role: f"{stack.prefix}.{layer}.{suffix}" for role, suffix in stack.names.items()}
            parameters = {role: self.tensors(name) for role, name in names.items()}
            adapters = {role: self.adapters[name] for role, name in names.items() if name in self.adapters}
            x, caches[f"{stack.prefix}.{layer}"] = block(x, stack.spec, parameters, adapters, mask, tables)
        return x

    def see(self, pixels: Array, patch: str, token: str, places: str, size: int, caches: dict[str, Any]) -> Array:
        """(B, 1 + N, k): the token, the N patches of ``pixels`` (B, C, size, size) through ``patch``; plus places."""
        kernel, bias = self.tensors(patch)
        checks.shape("pixels", pixels, (*pixels.shape[:1], kernel.shape[1], size, size))
        cut, caches["pixels"] = patches(pixels, kernel.shape[2])
        y, caches[patch] = linear(cut, self.xp.reshape(kernel, (kernel.shape[0], -1)), bias)
        first = self.xp.reshape(self.tensors(token)[0], (1, 1, -1))
        first = self.xp.broadcast_to(first, (y.shape[0], 1, y.shape[2]))
        return arrays.concat(self.xp, [first, y], 1) + self.tensors(places)[0]

    # -- backward: the same steps, each gradient laid where it belongs ---------------------------------------

    def keep(self, name: str, own: Any, grads: Gradients) -> None:
        """Lay a module's gradients down: the adapter's by module name, those of the weights by saved name."""
        this = self.modules[name]
        if this.linear and (name in self.adapters or own.bias is not None):
            grads[name] = own
        if grads.weights is None:
            return
        for part, (saved, shape) in this.tensors.items():
            value = getattr(own, part)
            value = self.xp.reshape(value.T if this.transposed and part == "weight" else value, shape)
            grads.weights[saved] = grads.weights[saved] + value if saved in grads.weights else value

    def linear_back(self, name: str, dy: Array, caches: dict[str, Any], grads: Gradients) -> Array:
        """Backward of ``linear``."""
        dx, own = linear_backward(dy, caches[name], weight_grad=grads.weights is not None)
        self.keep(name, own, grads)
        return dx

    def norm_back(self, name: str, dy: Array, caches: dict[str, Any], grads: Gradients) -> Array:
        """Backward of ``norm``."""
        dx, own = norm_backward(dy, caches[name], weight_grad=grads.weights is not None)
        self.keep(name, own, grads)
        return dx

    def run_back(self, stack: Stack, dy: Array, caches: dict[str, Any], grads: Gradients) -> Array:
        """Backward of ``run``."""
        for layer in reversed(range(stack.count)):
            cache = caches[f"{stack.prefix}.{layer}"]
            dy, own = block_backward(dy, cache, weight_grad=grads.weights is not None)
            for role, found in own.items():
                self.keep(f"{stack.prefix}.{layer}.{stack.names[role]}", found, grads)
        return dy

    def keep_weight(self, name: str, value: Array, grads: Gradients) -> None:
        """Add the gradient of a bare weight, a table or a token, if asked for."""
        self.keep(name, LinearGrads(value, None), grads)

    def embed_back(self, name: str, dy: Array, caches: dict[str, Any], grads: Gradients) -> None:
        """Backward of ``embed``, for the table."""
        if grads.weights is not None:
            given = caches[name] is None  # embeddings came in place of tokens: no row of the table was used
            zero = 0 * self.tensors(name)[0] if given else None
            self.keep_weight(name, zero if given else embedding_backward(dy, caches[name]), grads)

    def place_back(self, name: str, dy: Array, grads: Gradients) -> None:
        """The gradient of a table of places, of which the input took the first ones."""
        if grads.weights is not None:
            rest = self.modules[name].tensors["weight"][1][0] - dy.shape[1]
            sums = self.xp.sum(dy, axis=0)
            pad = self.xp.zeros((rest, dy.shape[2]), dtype=dy.dtype, **arrays.on(arrays.device_of(dy)))
            self.keep_weight(name, arrays.concat(self.xp, [sums, pad], 0), grads)

    def first_back(self, dy: Array, patch_cache: Any) -> Array:
        """Backward of taking the first token: ``dy`` (B, k) there, zero at the N patches."""
        shape = (dy.shape[0], patch_cache.x.shape[1], dy.shape[1])
        pad = self.xp.zeros(shape, dtype=dy.dtype, **arrays.on(arrays.device_of(dy)))
        return arrays.concat(self.xp, [dy[:, None, :], pad], 1)

    def see_back(self, dy: Array, patch: str, token: str, places: str, caches: Any, grads: Gradients) -> Array:
        """Backward of ``see``: ∂L/∂pixels (B, C, H, W)."""
        sums = self.xp.sum(dy, axis=0)
        self.keep_weight(places, sums, grads)
        self.keep_weight(token, sums[0, :], grads)
        dx, own = linear_backward(dy[:, 1:, :], caches[patch], weight_grad=grads.weights is not None)
        self.keep(patch, own, grads)
        return patches_backward(dx, caches["pixels"])


def adapt(
    model: Model | Config, modules: Iterable[str] | None = None, *, rank: int = 32, dialect: str | Dialect = "peft",
    seed: int | None = None, kind: Any = "dense", dtype: Any = None, **scale: float
) -> dict[str, RandLoRA]:  # fmt: skip
    """RandLoRA adapters at their start by module name, all on one pair of bases that is sliced for each layer.

    ``modules``: names, or endings of names as in PEFT's ``target_modules``; None takes every linear module of the
    blocks. Library, device and dtype are the model's; a configuration alone gives NumPy's float32 unless ``dtype``.
    ``scale``: ``alpha`` or ``scaling``. Raises ValueError for an ending that no linear module has.
    """
    xp: Any = np
    device, own, config = None, get_dialect(dialect), model.config if isinstance(model, Model) else model
    if isinstance(model, Model):
        xp, dtype, device = model.xp, dtype or model.precision, arrays.device_of(next(iter(model.weights.values())))
    shapes = {one.name: one.shape for one in config.modules() if one.linear}
    if modules is None:
        modules = [one.name for stack in config.stacks() for one in stack.modules() if one.linear]
    endings = list(modules)
    for end in endings:
        if not any(f".{name}".endswith(f".{end}") for name in shapes):
            raise ValueError(f"modules: {end!r}; it must be the name or the ending of a linear module's name")
    chosen = {name: shape for name, shape in shapes.items() if any(f".{name}".endswith(f".{end}") for end in endings)}
    seed = own.default_seed or 0 if seed is None else seed
    wide: Any = "float64" if dtype == "float64" and own.name != "peft" else "float32"
    where: dict[str, Any] = {"dtype": wide, "xp": xp, "device": device}
    bases = draw_bases(own, seed=seed, shapes=list(chosen.values()), rank=rank, kind=kind, **where)
    options: dict[str, Any] = {"rank": rank, "dialect": own, "bases": bases, "dtype": dtype or "float32", **scale}
    return {name: RandLoRA.start(shape[0], shape[1], **options) for name, shape in chosen.items()}
