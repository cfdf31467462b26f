"""What a model is made of, and its configuration: modules with their saved tensors, towers of blocks, keys checked.

A *module* has PEFT's name of it, and the names under which ``transformers`` 5.23 saves its tensors. A *tower* has its
modules by role: what each of them is for. Each model's file has the one map from roles to names, and ``Config.tower``
makes modules of it.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self, get_args

from .. import checks
from ..nn import BlockSpec

ACTIVATIONS = {name: name for name in ("gelu", "quick_gelu", "silu")}  # the names of configurations, and ours
ACTIVATIONS |= {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
CHOICES = {"hidden_act": ACTIVATIONS, "activation_function": ACTIVATIONS}
LIMITS = {"rope_theta": {"above": 0.0}}  # of a number; any other is 0 or more
MOST = dict.fromkeys(("num_hidden_layers", "n_layer"), 4096)  # modules are listed, so a file's claim must be possible
MULTIPLES = {  # a size, and what it must be a multiple of
    "hidden_size": "num_attention_heads",
    "num_attention_heads": "num_key_value_heads",
    "image_size": "patch_size",
}
Allowed = Mapping[str, tuple[Any, ...]]
NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Module:
    """A module by PEFT's ``name``; ``shape`` is its weight's: (out, in) of a linear one, (rows, width) of a table.

    ``saved``: under which name its tensors are, if that is another. ``linear`` ones can be adapted; the weight of a
    ``transposed`` one (Conv1D) is saved as (in, out). A ``bare`` one is a weight of no module.
    """

    name: str
    shape: tuple[int, ...]
    bias: bool = False
    linear: bool = False
    transposed: bool = False
    bare: bool = False
    saved: str = ""

    @cached_property
    def tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Of its "weight", and its "bias" if it has one: the saved name and the saved shape."""
        saved, shape = self.saved or self.name, self.shape[::-1] if self.transposed else self.shape
        weight = {"weight": (saved if self.bare else f"{saved}.weight", shape)}
        return weight | ({"bias": (f"{saved}.bias", self.shape[:1])} if self.bias else {})


class Tower(NamedTuple):
    """Embeddings, the blocks of one ``spec``, a norm, and the head that reads what comes out: its modules by role.

    Roles in ``layers`` are those of ``nn.BlockSpec``. Those in ``outer`` are "embed_tokens" of a tower of texts,
    "patch_embed" and "class_token" of one of images, "position_embeddings" (without one, positions are rotary),
    "pre_norm" (CLIP's images have it), "norm" and "head".
    """

    config: "Config"
    spec: BlockSpec
    outer: Mapping[str, Module]
    layers: tuple[Mapping[str, Module], ...]


class Config:
    """Base of the configurations: frozen dataclasses whose fields have the keys of the Hugging Face ``config.json``.

    Every field is checked by its type, whoever made the object: integers are positive (ids apart), numbers finite and
    not negative, and a text is neither. NumPy's become Python's. ValueError names the key.
    """

    BASE: ClassVar[str] = ""  # what names begin with in a whole model, and not in a checkpoint of its base
    FIXED: ClassVar[Allowed] = NONE  # keys that the model reads in one way only
    ALIASES: ClassVar[Mapping[str, str]] = NONE  # other spellings of keys, which `transformers` reads too

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """The configuration from the keys of a ``config.json``. ValueError names what the model does not do.

        Dropout is not among it: these models run as in evaluation.
        """
        if not isinstance(config, Mapping):
            raise TypeError(f"config: {config!r}; it must be a mapping of the keys of a config.json")
        for key, allowed in {**cls.FIXED, "quantization_config": (None,)}.items():
            if key in config and config[key] not in allowed:
                raise ValueError(f"{key}: {config[key]!r} is not implemented; it must be {allowed[0]!r} or left out")
        known = {one.name for one in fields(cls)}  # type: ignore[arg-type]
        return cls(**{key: value for key, value in cls._fields(dict(config)).items() if key in known})

    @classmethod
    def _fields(cls, given: dict[str, Any]) -> dict[str, Any]:
        """``given`` with what is not spelled as the fields are under the fields' names."""
        for alias, key in cls.ALIASES.items():
            value = given.get(alias)
            if value is not None and given.get(key) not in (None, value):
                raise ValueError(f"{alias}: {value!r}; it must be {given[key]!r}, as {key} is, or left out")
            given |= {} if value is None else {key: value}
        return given

    def __post_init__(self) -> None:
        for key, hint in ((one.name, one.type) for one in fields(self)):  # type: ignore[arg-type]
            (expected, *optional), value = get_args(hint) or (hint,), getattr(self, key)
            if value is None and optional:
                continue
            if expected is int:  # an id may count from the vocabulary's end
                value = checks.integer(key, value, -getattr(self, "vocab_size", 0) if key.endswith("_id") else 1)
                checks.room(key, max(value, 1))
                if value > MOST.get(key, value):
                    raise ValueError(f"{key}: {value}; it must be at most {MOST[key]}")
            elif expected is float:
                value = checks.number(key, value, **LIMITS.get(key, {"least": 0.0}))
            elif not isinstance(value, expected):
                raise ValueError(f"{key}: {value!r}; it must be a {expected.__name__}")
            elif key in CHOICES:
                checks.choice(key, value, CHOICES[key])
            object.__setattr__(self, key, value)
        for whole, part in MULTIPLES.items():
            size, divisor = self.get(whole) or 0, self.get(part) or 1
            if size % divisor and not (whole == "hidden_size" and self.get("head_dim")):
                whole, part = (self.ALIASES.get(key, key) for key in (whole, part))
                raise ValueError(f"{whole}: {size}; it must be a multiple of {part}, {divisor}")
        self.towers()

    def get(self, *keys: str) -> Any:
        """The value of the first of ``keys`` that is here, in this spelling or in another, and not None; else None."""
        values = (getattr(self, self.ALIASES.get(key, key), None) for key in keys)
        return next((value for value in values if value is not None), None)

    def towers(self) -> tuple[Tower, ...]:
        """The towers, if this is a whole model's configuration. ValueError names what does not fit."""
        return ()

    def modules(self) -> Iterator[Module]:
        """Every module that has tensors."""
        for tower in self.towers():
            for by_role in (*tower.layers, tower.outer):
                yield from by_role.values()

    def tower(
        self, names: Mapping[str, str], head: int, biases: Collection[str], *, bare: Mapping[str, int] = NONE,
        saved_as: Mapping[str, str] = NONE, transposed: bool = False, **kind: bool
    ) -> Tower:  # fmt: skip
        """The tower of this configuration, whose ``head`` gives so many numbers.

        ``names``: of each role; of those in the blocks what follows "layers".i. ``biases``: the roles that have one,
        beside a LayerNorm. ``bare``: those that are weights of no module, and of how many axes. ``saved_as``: names
        that differ where tensors are saved. ``transposed``: whether the blocks' weights are. ``kind``: what else
        ``BlockSpec`` says.
        """
        width, heads, count = (self.get(key) for key in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
        hidden, activation = self.get("intermediate_size", "n_inner"), self.get("hidden_act", "activation_function")
        key_heads, head_width = self.get("num_key_value_heads", "num_attention_heads"), self.get("head_dim")
        sizes = (width, hidden or 4 * width, heads, key_heads, head_width or width // heads)
        eps = self.get("layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps")
        of_blocks = frozenset(biases) - {"patch_embed", "head"}
        spec = BlockSpec(*sizes, eps, ACTIVATIONS[activation], biases=of_blocks, **kind)
        linear, patch, channels = spec.shapes(), self.get("patch_size"), self.get("num_channels")
        positions = (self.get("image_size") // patch) ** 2 + 1 if patch else self.get("max_position_embeddings")
        in_blocks: dict[str, Any] = {"norm1": (width,), "norm2": (width,), **linear}
        shapes = in_blocks | {"head": (head, width), "position_embeddings": (positions, width)}
        shapes |= {"embed_tokens": (self.get("vocab_size"), width), "patch_embed": (width, channels, patch, patch)}
        saved = {**names, **saved_as}
        if self.get("tie_word_embeddings"):
            saved["head"] = names["embed_tokens"]

        def module(role: str, block: tuple[str, str] = ("", "")) -> Module:
            shape = shapes.get(role, (width,))
            shape = (1,) * (bare.get(role, 0) - len(shape)) + shape
            bias = spec.centred if "norm" in role else role in biases
            kinds = (role in (*linear, "head"), transposed and role in linear, role in bare)
            return Module(block[0] + names[role], shape, bias, *kinds, saved=block[1] + saved[role])

        outer = {role: module(role) for role in names if role not in ("layers", *in_blocks)}
        blocks = [(f"{names['layers']}.{i}.", f"{saved['layers']}.{i}.") for i in range(count)]
        return Tower(self, spec, outer, tuple({role: module(role, block) for role in in_blocks} for block in blocks))


@dataclass(frozen=True)
class EncoderConfig(Config):
    """The keys that ViT and both towers of CLIP share, with CLIP's defaults."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
