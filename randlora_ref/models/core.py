"""What the models share: steps forward and backward, the bookkeeping of gradients, and adapters for a whole model."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from .. import arrays, checks, nn
from ..adapters import Adapter, RandLoRA
from ..bases import draw_bases
from ..dialects import Dialect, get_dialect
from .config import Config, Stack

Array = Any


class ModelCache(NamedTuple):
    """What ``forward`` leaves: ``logits``, the loss's cache (None without labels), and every step's by module name."""

    logits: Array
    loss: Any
    steps: dict[str, Any]

    def d_logits(self, through: Array | None = None) -> Array:
        """∂L/∂logits as rows, or its product with ``through``. ValueError if there was no loss."""
        if self.loss is None:
            raise ValueError("cache: of a forward pass without labels; backward needs the loss")
        return nn.cross_entropy_backward(self.loss, through=through)


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
        if not isinstance(self.config, self.CONFIG):
            raise TypeError(f"config: {config!r}; it must be a {self.CONFIG.__name__} or the mapping of a config.json")
        for kind, given in (("weights", weights), ("adapters", {} if adapters is None else adapters)):
            if not isinstance(given, Mapping):
                raise TypeError(f"{kind}: {type(given).__name__}; it must be a mapping by name")
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
            if isinstance(adapter, type) or not hasattr(adapter, "backward"):
                raise TypeError(f"adapters[{name!r}]: {type(adapter).__name__}; it must be an adapter")
            for learned in getattr(adapter, "LEARNED", ())[:1]:  # all of them are alike
                self.check_floats(**{f"adapters[{name!r}]": getattr(adapter, learned)})
            if tuple(adapter.shape) != linear_modules[name]:
                raise ValueError(f"adapters: {name!r} is of shape {adapter.shape}; it must be {linear_modules[name]}")

    def replace(self, adapters: Mapping[str, Adapter]) -> Self:
        """The same model with other adapters."""
        return type(self)(self.config, self.weights, adapters)

    # -- checks ----------------------------------------------------------------------------------------------

    def check_floats(self, **named: Any) -> None:
        """A TypeError naming the array that is not of the model's library, device and precision; None is skipped."""
        checks.floats(weights=next(iter(self.weights.values())), **named)

    def check_tokens(self, config: Any, **given: Any) -> None:
        """Checks ids (B, T), labels and attention_mask (B, T), and embeddings (B, T, k), which ids may be if alone."""
        ids, longest, size = given["ids"], config.max_position_embeddings, config.vocab_size
        checks.namespace(weights=next(iter(self.weights.values())), **given)
        if ids.ndim not in (2, 2 if "embeddings" in given else 3) or 0 in ids.shape or ids.shape[1] > longest:
            raise ValueError(f"ids: shape {tuple(ids.shape)}; it must be (batch, tokens), of 1 to {longest} tokens")
        embedded = "ids" if ids.ndim == 3 else "embeddings"
        self.check_floats(**{embedded: given.get(embedded)})
        for name, x in given.items():
            if x is not None:
                checks.shape(name, x, (*ids.shape[:2], *(self.config.stacks()[0].spec.width,) * (name == embedded)))
        if (mask := given["attention_mask"]) is not None and arrays.dtype_name(mask) != "bool":
            checks.integers("attention_mask", mask)
        tokens, labels = None if ids.ndim == 3 else ids, given.get("labels")
        checks.index_range(ids=(tokens, size, None), labels=(labels, size, nn.IGNORED))

    # -- forward: every step leaves its cache under its module's name ---------------------------------------

    def tensors(self, name: str) -> tuple[Array, Array | None]:
        """(weight, bias or None) of a module, a linear weight as (out, in)."""
        own = self.modules[name]
        weight = self.weights[own.tensors["weight"][0]]
        bias = self.weights[own.tensors["bias"][0]] if "bias" in own.tensors else None
        return weight.T if own.transposed else weight, bias

    def linear(self, name: str, x: Array, caches: dict[str, Any]) -> Array:
        """A linear module outside the blocks."""
        y, caches[name] = nn.linear(x, *self.tensors(name), self.adapters.get(name))
        return y

    def norm(self, name: str, x: Array, caches: dict[str, Any], spec: nn.BlockSpec) -> Array:
        """A norm outside the blocks."""
        y, caches[name] = (nn.layer_norm if spec.centred else nn.rms_norm)(x, *self.tensors(name), spec.eps)
        return y

    def embed(self, name: str, ids: Array, caches: dict[str, Any]) -> Array:
        """Rows of a table, or ``ids`` itself and no cache if it holds embeddings (B, T, k); checked by the caller."""
        y, caches[name] = (ids, None) if ids.ndim == 3 else nn.embedding(ids, self.tensors(name)[0], checked=True)
        return y

    def run(self, stack: Stack, x: Array, caches: dict[str, Any], mask: Any = None, tables: Any = None) -> Array:
        """The blocks of ``stack``, one after the other."""
        for layer in range(stack.count):
            names = {role: f"{stack.prefix}.{layer}.{suffix}" for role, suffix in stack.names.items()}
            parameters = {role: self.tensors(name) for role, name in names.items()}
            adapters = {role: self.adapters[name] for role, name in names.items() if name in self.adapters}
            x, caches[f"{stack.prefix}.{layer}"] = nn.block(x, stack.spec, parameters, adapters, mask, tables)
        return x

    def see(self, pixels: Array, patch: str, token: str, places: str, size: int, caches: dict[str, Any]) -> Array:
        """(B, 1 + N, k): the token, the N patches of ``pixels`` (B, C, size, size) through ``patch``; plus places."""
        kernel, bias = self.tensors(patch)
        checks.shape("pixels", pixels, (*pixels.shape[:1], kernel.shape[1], size, size))
        cut, caches["pixels"] = nn.patches(pixels, kernel.shape[2])
        y, caches[patch] = nn.linear(cut, self.xp.reshape(kernel, (kernel.shape[0], -1)), bias)
        first = self.xp.broadcast_to(self.xp.reshape(self.tensors(token)[0], (1, 1, -1)), (y.shape[0], 1, y.shape[2]))
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

    def step_back(self, name: str, dy: Array, caches: dict[str, Any], grads: Gradients) -> Array:
        """Backward of ``linear``, or of ``norm``, whose weight has one axis."""
        backward = nn.norm_backward if len(self.modules[name].tensors["weight"][1]) == 1 else nn.linear_backward
        dx, own = backward(dy, caches[name], weight_grad=grads.weights is not None)
        self.keep(name, own, grads)
        return dx

    def run_back(self, stack: Stack, dy: Array, caches: dict[str, Any], grads: Gradients) -> Array:
        """Backward of ``run``."""
        for layer in reversed(range(stack.count)):
            cache = caches[f"{stack.prefix}.{layer}"]
            dy, own = nn.block_backward(dy, cache, weight_grad=grads.weights is not None)
            for role, found in own.items():
                self.keep(f"{stack.prefix}.{layer}.{stack.names[role]}", found, grads)
        return dy

    def keep_weight(self, name: str, value: Array, grads: Gradients) -> None:
        """Add the gradient of a bare weight, a table or a token, if asked for."""
        self.keep(name, nn.LinearGrads(value, None), grads)

    def embed_back(self, name: str, dy: Array, caches: dict[str, Any], grads: Gradients) -> None:
        """Backward of ``embed``, for the table; the row of a configuration's ``pad_token_id`` is left out."""
        if grads.weights is not None:
            cache, pad = caches[name], getattr(self.config, "pad_token_id", None)
            if cache and pad is not None:
                padding = (cache[0] == pad % self.config.vocab_size)[:, :, None]
                dy = self.xp.where(padding, self.xp.zeros_like(dy), dy)
            self.keep_weight(name, nn.embedding_backward(dy, cache) if cache else 0 * self.tensors(name)[0], grads)

    def place_back(self, name: str, dy: Array, grads: Gradients) -> None:
        """The gradient of a table of places, of which the input took the first ones."""
        if grads.weights is not None:
            rest = self.xp.zeros_like(self.tensors(name)[0][dy.shape[1] :, :])
            self.keep_weight(name, arrays.concat(self.xp, [self.xp.sum(dy, axis=0), rest], 0), grads)

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
        return nn.patches_backward(self.step_back(patch, dy[:, 1:, :], caches, grads), caches["pixels"])


def adapt(
    model: Model | Config, modules: Iterable[str] | None = None, *, rank: int = 32, dialect: str | Dialect = "peft",
    seed: int | None = None, kind: Any = "dense", dtype: Any = None, **scale: float
) -> dict[str, RandLoRA]:  # fmt: skip
    """RandLoRA adapters at their start by module name, all on one pair of bases that is sliced for each layer.

    ``modules``: names, or endings of names as in PEFT's ``target_modules`` lists; a text is one of them, but for
    "all-linear", which is every linear module without a language model's head, as PEFT takes it (ViT's classifier and
    CLIP's projections are among them); None takes every linear module of the blocks. Library, device and dtype are the
    model's; a configuration alone gives NumPy's float32 unless ``dtype``. ``scale``: ``alpha`` or ``scaling``. Raises
    ValueError for an ending that no linear module has, and for none at all.
    """
    xp, device, own, config = np, None, get_dialect(dialect), model.config if isinstance(model, Model) else model
    if isinstance(model, Model):
        xp, dtype, device = model.xp, dtype or model.precision, arrays.device_of(next(iter(model.weights.values())))
    shapes = {one.name: one.shape for one in config.modules() if one.linear}
    if modules is None:
        modules = [one.name for stack in config.stacks() for one in stack.modules() if one.linear]
    elif isinstance(modules, str):
        modules = [name for name in shapes if name != "lm_head"] if modules == "all-linear" else [modules]
    endings = list(modules) if isinstance(modules, Iterable) else []
    if not endings:
        raise ValueError(f"modules: {modules!r}; it must be a name or an ending of names, or list at least one")
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
