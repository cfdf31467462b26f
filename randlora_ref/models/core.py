"""What the models share: weights and adapters, checked; modules and blocks, forward and backward; gradients by name."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, Unpack

from .. import arrays, checks, nn
from ..adapters import Adapter
from ..adapters.base import Made
from ..interop.tensors import read_checkpoint
from . import load
from .config import Module, Tower

Array = Any


class ModelCache(NamedTuple):
    """What ``forward`` leaves: ``logits``, the loss's cache (None without labels), and those of the towers."""

    logits: Array
    loss: Any
    parts: Any


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
        for name, given in (("weights", weights), ("adapters", {} if adapters is None else adapters)):
            if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
                raise TypeError(f"{name}: {type(given).__name__}; it must be a mapping by name")
        self.weights = dict(weights)
        self.adapters: dict[str, Adapter] = dict(adapters or {})
        self.towers: Any = self.config.towers()
        self.modules = {one.name: one for one in self.config.modules()}
        expected = {saved: shape for one in self.modules.values() for saved, shape in one.tensors.values()}
        for odd in sorted(expected.keys() - self.weights) or sorted(self.weights.keys() - expected):
            what, there = ("missing", self.weights) if odd in expected else ("unknown", expected)
            whose = f"they must be those of {type(self).__name__}{checks.nearest(odd, there)}"
            raise KeyError(f"weights: {what} {odd!r}; {whose}")
        self.xp, self._like = checks.floats(**self.weights), next(iter(self.weights.values()))
        self.precision = checks.precision("weights", self._like)
        for name, shape in expected.items():
            checks.shape(name, self.weights[name], shape)
        linear = {name: one.shape for name, one in self.modules.items() if one.linear}
        for name, adapter in self.adapters.items():
            if name not in linear:
                raise KeyError(f"adapters: {name!r}; it must be one of {', '.join(linear)}")
            if isinstance(adapter, type) or not hasattr(adapter, "backward"):
                raise TypeError(f"adapters[{name!r}]: {type(adapter).__name__}; it must be an adapter")
            for learned in getattr(adapter, "LEARNED", ())[:1]:  # all of them are alike
                checks.floats(weights=self._like, **{f"adapters[{name!r}]": getattr(adapter, learned)})
            if tuple(adapter.shape) != linear[name]:
                raise ValueError(f"adapters: {name!r} is of shape {adapter.shape}; it must be {linear[name]}")

    def __repr__(self) -> str:
        held = f"{len(self.weights)} weights in {self.precision}, {len(self.adapters)} adapters"
        return f"<{type(self).__name__}: {len(self.modules)} modules, {held}>"

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, adapter: Any = None, **made: Unpack[Made]) -> Self:
        """The model of a checkpoint's ``folder``, config.json and safetensors, with an ``adapter`` that PEFT saved.

        ``adapter``: its folder, or what ``load_peft`` gave. Weights and adapter are in ``dtype``, "float32" or
        "float64"; without it, in float32, or float64 where one of them holds that. They are of the library ``xp`` on
        ``device``. Nothing needs a framework. Raises ValueError that names the file, and the tensor or the key.
        """
        config, tensors = load.config_of(cls.CONFIG, Path(folder) / "config.json"), read_checkpoint(Path(folder))
        with checks.naming(folder):
            return cls(*load.parts(config, tensors, adapter, **made))

    @classmethod
    def from_state_dict(
        cls, config: Any, state_dict: Mapping[str, Any], *, adapter: Any = None, **made: Unpack[Made]
    ) -> Self:
        """The model of a live model's ``state_dict()``, PyTorch's tensors or arrays, which are copied.

        ``config``: a configuration of `transformers`, its dictionary, or the path of a config.json. ``adapter``: as
        above, or PEFT's configuration of the adapter that ``state_dict`` holds. The rest is ``from_pretrained``'s.
        """
        config = load.config_of(cls.CONFIG, config)
        with checks.naming("state_dict"):
            tensors, adapter = load.live_tensors(config, state_dict, adapter)
            return cls(*load.parts(config, tensors, adapter, **made))

    def merge(self, dtype: str | None = None) -> dict[str, Array]:
        """The weights by saved name with every adapter's update in them, as `transformers` loads them.

        ``dtype`` None: the model's; a lower one is rounded to once, after the sum. ValueError for an adapter on a head
        that is tied to its table: the two are one tensor.
        """
        checks.choice("dtype", dtype, (None, "float16", "float32", "float64"))
        merged, users = dict(self.weights), [one.tensors["weight"][0] for one in self.modules.values()]
        for name, adapter in self.adapters.items():
            module = self.modules[name]
            saved, shape = module.tensors["weight"]
            if users.count(saved) > 1:
                raise ValueError(f"{name}: shares {saved!r} with another module; its adapter must stay beside it")
            weight = adapter.merge(self.parameters(module)[0])
            by_rows = self.xp.reshape(weight.T if module.transposed else weight, (-1,))  # laid out as files are
            merged[saved] = self.xp.reshape(by_rows, shape)
        wanted = getattr(self.xp, dtype or self.precision)
        return {saved: arrays.astype(self.xp, x, wanted) for saved, x in merged.items()}

    def replace(self, adapters: Mapping[str, Adapter]) -> Self:
        """The same model with other adapters."""
        return type(self)(self.config, self.weights, adapters)

    # -- checks ----------------------------------------------------------------------------------------------

    def check_text(self, tower: Tower, ids: Array, *, embeddable: bool = False, **others: Array | None) -> None:
        """Checks ids, labels and attention_mask (B, T), and embeddings (B, T, k); ``embeddable`` ids may be these."""
        given: dict[str, Any] = {"ids": ids, **others}
        longest, (vocabulary, width) = tower.config.get("max_position_embeddings"), tower.outer["embed_tokens"].shape
        checks.namespace(weights=self._like, **given)
        if ids.ndim not in (2, 2 + embeddable) or 0 in ids.shape or ids.shape[1] > longest:
            raise ValueError(f"ids: shape {tuple(ids.shape)}; it must be (batch, tokens), of 1 to {longest} tokens")
        embedded = "ids" if ids.ndim == 3 else "embeddings"
        checks.floats(**{"weights": self._like, embedded: given.get(embedded)})
        for name, x in given.items():
            if x is not None:
                checks.shape(name, x, (*ids.shape[:2], width) if name == embedded else tuple(ids.shape[:2]))
        if (mask := given["attention_mask"]) is not None and arrays.dtype_name(mask) != "bool":
            checks.integers("attention_mask", mask)
        if given.get("position_ids") is not None and "position_embeddings" not in tower.outer:
            raise ValueError("position_ids: given; it must be left out, for rotary positions count by differences")
        limits = {"ids": (vocabulary, None), "labels": (vocabulary, nn.IGNORED), "position_ids": (longest, None)}
        checks.index_range(**{name: (given.get(name), *limits[name]) for name in limits if name != embedded})

    def check_images(self, tower: Tower, pixels: Array) -> None:
        """Checks pixels (B, C, H, W)."""
        checks.floats(weights=self._like, pixels=pixels)
        size, channels = tower.config.get("image_size"), tower.config.get("num_channels")
        checks.shape("pixels", pixels, (*pixels.shape[:1], channels, size, size))

    # -- modules and towers: each forward, and its backward below it -------------------------------------------

    def parameters(self, module: Module) -> tuple[Array, Array | None]:
        """(weight, bias or None) of a module, a linear weight as (out, in)."""
        weight, *bias = (self.weights[saved] for saved, _ in module.tensors.values())
        return weight.T if module.transposed else weight, bias[0] if bias else None

    def pull_back(self, backward: Callable[..., Any], module: Module, dy: Array, cache: Any, grads: Gradients) -> Array:
        """∂L/∂x of a module whose ``backward`` is that of a linear layer or of a norm; its own go into ``grads``."""
        dx, values = backward(dy, cache, weight_grad=grads.weights is not None)
        self.accumulate(module, values, grads)
        return dx

    def accumulate(self, module: Module, values: Any, grads: Gradients) -> None:
        """Lay down a module's gradients, ``values``: its adapter's or its bias's by its name, its tensors' by theirs.

        The latter, if they are asked for, in the saved shapes. Two modules may share a tensor: a tied head's gradient
        is added to its table's.
        """
        if module.linear and (module.name in self.adapters or values.bias is not None):
            grads[module.name] = values
        if grads.weights is None:
            return
        for part, (saved, shape) in module.tensors.items():
            value = getattr(values, part)
            value = self.xp.reshape(value.T if module.transposed and part == "weight" else value, shape)
            grads.weights[saved] = grads.weights[saved] + value if saved in grads.weights else value
