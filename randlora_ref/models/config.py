"""What a model is made of: its modules with their saved tensors, its stacks of blocks, and its configuration, checked.

A *module* has PEFT's name of it; its tensors have the names under which ``transformers`` 5.23 saves them. A
configuration lists its modules, and that list is the one map between the two.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self, get_args

from .. import checks
from ..nn import BlockSpec

ACTIVATIONS = {  # the names of configurations, and ours
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu",
    "silu": "silu",
}  # fmt: skip
MULTIPLES = {"hidden_size": "num_attention_heads", "n_embd": "n_head", "image_size": "patch_size"} | {
    "num_attention_heads": "num_key_value_heads"
}


@dataclass(frozen=True)
class Module:
    """A module by PEFT's ``name``, and its ``tensors``: the saved name and shape of its "weight", its "bias".

    ``linear`` ones can be adapted; the weight of a ``transposed`` one (Conv1D) is saved as (in, out).
    """

    name: str
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    linear: bool = False
    transposed: bool = False

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
    """Base of the configurations: frozen dataclasses whose fields have the keys of the Hugging Face ``config.json``.

    Every field is checked by its type, whoever made the object: integers are positive (ids apart), numbers finite and
    not negative, and a text is neither. NumPy's become Python's. ValueError names the key.
    """

    MODEL_TYPE: ClassVar[str]
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {}  # keys that the model reads in one way only
    ALIASES: ClassVar[Mapping[str, str]] = {}  # other spellings of keys, which `transformers` reads too

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """The configuration from the keys of a ``config.json``. ValueError names what the model does not do.

        Dropout is not among it: these models run as in evaluation.
        """
        if not isinstance(config, Mapping):
            raise TypeError(f"config: {config!r}; it must be a mapping of the keys of a config.json")
        if config.get("model_type", cls.MODEL_TYPE) != cls.MODEL_TYPE:
            raise ValueError(f"model_type: {config['model_type']!r}; it must be {cls.MODEL_TYPE!r}")
        for key, allowed in cls.FIXED.items():
            if key in config and config[key] not in allowed:
                raise ValueError(f"{key}: {config[key]!r} is not implemented; it must be {allowed[0]!r} or left out")
        given, known = cls._resolved(dict(config)), {one.name for one in fields(cls)}  # type: ignore[arg-type]
        return cls(**{key: value for key, value in given.items() if key in known})

    @classmethod
    def _resolved(cls, given: dict[str, Any]) -> dict[str, Any]:
        """``given`` with the other spellings of keys under the fields' names."""
        for alias, key in cls.ALIASES.items():
            value = given.get(alias)
            if value is not None and given.get(key) not in (None, value):
                raise ValueError(f"{alias}: {value!r}; it must be {given[key]!r}, as {key} is, or left out")
            given |= {} if value is None else {key: value}
        return given

    def __post_init__(self) -> None:
        for name, hint in ((one.name, one.type) for one in fields(self)):  # type: ignore[arg-type]
            (kind, *optional), value = get_args(hint) or (hint,), getattr(self, name)
            if value is None and optional:
                continue
            if kind is int:  # an id may count from the vocabulary's end
                value = checks.integer(name, value, -getattr(self, "vocab_size", 0) if name.endswith("_id") else 1)
            elif kind is float:
                value = checks.number(name, value, **({"above": 0.0} if name == "rope_theta" else {"least": 0.0}))
            elif not isinstance(value, kind):
                raise ValueError(f"{name}: {value!r}; it must be a {kind.__name__}")
            elif name in ("hidden_act", "activation_function"):
                checks.choice(name, value, ACTIVATIONS)
            object.__setattr__(self, name, value)
        for whole, part in MULTIPLES.items():
            size, divisor = getattr(self, whole, 0), getattr(self, part, None) or 1
            if size % divisor and not (part == "num_attention_heads" and getattr(self, "head_dim", None)):
                raise ValueError(f"{whole}: {size}; it must be a multiple of {part}, {divisor}")
        self.stacks()

    @abstractmethod
    def stacks(self) -> tuple["Stack", ...]:
        """The blocks, tower by tower. ValueError names what does not fit."""

    def modules(self) -> Iterator[Module]:
        """Every module that has tensors: the one map between PEFT's names and saved ones. A tower's are its model's."""
        yield from ()


def block_spec(
    width: int, hidden: int, heads: int, eps: float, activation: str, biases: Iterable[str],
    key_heads: int | None = None, head_width: int | None = None, **more: bool
) -> BlockSpec:  # fmt: skip
    """A ``BlockSpec`` from a configuration's numbers and its name of the activation."""
    sizes = (width, hidden, heads, key_heads or heads, head_width or width // heads)
    return BlockSpec(*sizes, eps, ACTIVATIONS[activation], biases=frozenset(biases), **more)
