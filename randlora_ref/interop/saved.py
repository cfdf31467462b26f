"""What a folder of PEFT holds, a class a method: arrays by module name, and the layers that they make.

PEFT 0.21.2 stores RandLoRA's A as (r, 1, d_max), B as (D_max, n_max, r), Λ as (r, n) and Γ as (n, d); VeRA's and LoRA's
arrays as they are here. Such layouts end in this file.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np

from .. import arrays, checks
from ..adapters import Adapter, LoRA, RandLoRA, VeRA
from ..bases import Bases
from .tensors import Array

ByModule = Mapping[str, Array]
Shape = tuple[int, int]
Check = Callable[[str, Any], Any]  # of a key of PEFT's configuration, and its value or None
LORA_STARTS = (True, "gaussian", "eva", "orthogonal")  # any other changes the base model's weights
OTHER_LORAS = (  # settings of PEFT's LoRA under which it computes something else
    *("use_dora", "use_qalora", "use_bdlora", "lora_bias", "layer_replication", "trainable_token_indices"),
    *("target_parameters", "alora_invocation_tokens", "arrow_config", "kasa_config", "velora_config"),
    "monteclora_config",
)


def flag(key: str, value: Any) -> None:
    """A setting that is on or off, or left out."""
    checks.choice(key, value, (None, True, False))


def names(key: str, value: Any) -> None:
    """A setting that lists names."""
    if value and not isinstance(value, (list, tuple, set)):
        raise ValueError(f"{key}: {value!r}; it must be a list of names")


def left_out(others: tuple[Any, ...], key: str, value: Any) -> None:
    """A setting that is false or left out, or one of ``others``: with any other value PEFT computes something else."""
    if value and value not in others:
        raise ValueError(f"{key}: {value!r} is not implemented; it must be false or left out")


def by_pattern(check: Check, key: str, value: Any) -> None:
    """A setting of some modules' own values, by regular expressions of names, whether a module needs it or not."""
    if value and not isinstance(value, Mapping):
        raise ValueError(f"{key}: {value!r}; it must be a mapping by regular expressions")
    for pattern, own in (value or {}).items():
        check(f"{key}[{pattern!r}]", own)
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{key}: {pattern!r}; it must be a regular expression: {error}") from None


SETTINGS: Mapping[str, Check] = {"r": checks.integer, "fan_in_fan_out": flag, "modules_to_save": names}
OF_SHARED = {"projection_prng_key": lambda key, value: checks.seed(value), "save_projection": flag}
OF_LORA = {"init_lora_weights": partial(left_out, LORA_STARTS), **dict.fromkeys(OTHER_LORAS, partial(left_out, ()))}
OWN = {"rank_pattern": partial(by_pattern, checks.integer), "alpha_pattern": partial(by_pattern, checks.number)}


def natural(name: str) -> list[tuple[int, str]]:
    """A key to sort names by: layer 10 follows layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


@dataclass(frozen=True, eq=False, repr=False)
class Saved(ABC):
    """A saved adapter of one method: learned arrays by module name, and PEFT's ``config``.

    ``extra``: what was trained beside it, biases and ``modules_to_save``, by PEFT's key. ``shapes``: the (out, in) of
    the modules, where the base model was there to tell them.
    """

    LEARNED: ClassVar[Mapping[str, str]]  # by field: how PEFT's keys of it end
    SHARED: ClassVar[tuple[str, ...]] = ()  # PEFT's keys of A and B, where the modules share them
    SETTINGS: ClassVar[Mapping[str, Check]]

    __repr__ = arrays.brief
    extra: Mapping[str, Array] = field(default_factory=dict, kw_only=True)
    shapes: Mapping[str, Shape] = field(default_factory=dict, kw_only=True)

    @property
    def modules(self) -> list[str]:
        """The adapted modules in their natural order."""
        return sorted(getattr(self, next(iter(self.LEARNED))), key=natural)

    def layer(self, name: str, shape: Shape | None = None) -> Adapter:
        """One module's adapter; ``shape`` (out, in) None: the base model's where it is known, else the largest.

        Raises KeyError for a name that is not there, ValueError where ``shape``, arrays or settings do not fit.
        """
        if name not in getattr(self, next(iter(self.LEARNED))):
            raise KeyError(f"name: {name!r}; it must be one of {', '.join(self.modules)}")
        out, in_ = shape or self.shapes.get(name) or self.possible_shapes(name)[1]
        own = {what: getattr(self, what)[name] for what in self.LEARNED}
        with checks.naming(name):
            return self._layer(name, {"out_features": out, "in_features": in_, **own})

    def num_parameters(self) -> dict[str, int]:
        """How many values are learned, by module; those beside the adapter by PEFT's key, each once."""
        fields = [getattr(self, what) for what in self.LEARNED]
        counts = {name: sum(math.prod(field[name].shape) for field in fields) for name in self.modules}
        twice = (".original_module.", ".modules_to_save.")  # with bias="all", of what has its own key too
        beside = {key: x for key, x in self.extra.items() if not any(part in key for part in twice)}
        return counts | {key: math.prod(x.shape) for key, x in beside.items() if "float" in arrays.dtype_name(x)}

    def to(self, dtype: str | None = None, xp: Any = np, device: Any = None) -> Self:
        """The same in ``dtype`` (None: each array in its own), of the library ``xp`` on ``device``."""
        checks.choice("dtype", dtype, (None, "float16", "float32", "float64"))

        def moved(x: Array) -> Array:
            x = arrays.to_numpy(x)
            return arrays.from_numpy(xp, x.astype(dtype or x.dtype, copy=False) if x.dtype.kind == "f" else x, device)

        named = {what: getattr(self, what).items() for what in (*self.LEARNED, "extra")}
        changed: dict[str, Any] = {what: {name: moved(x) for name, x in pairs} for what, pairs in named.items()}
        if self.SHARED:
            changed["bases"] = self.bases_from_peft(*map(moved, self.bases_to_peft()))
        return replace(self, **changed)

    @abstractmethod
    def possible_shapes(self, name: str) -> tuple[Shape, Shape]:
        """The least and the largest (out, in) that a module can have, up to a transposition."""

    @abstractmethod
    def _layer(self, name: str, given: dict[str, Any]) -> Adapter: ...

    @classmethod
    def from_peft(cls, what: str, x: Array) -> Array:
        """A learned array in this package's layout, of one in PEFT's; and the other way round: Λ is transposed."""
        return x.T if what == "lambda_" else x

    @classmethod
    def bases_from_peft(cls, A: Array, B: Array) -> Any:
        """The shared bases, of those in PEFT's layout."""
        if A.ndim != 2 or B.ndim != 2:
            raise ValueError(f"A {A.shape}, B {B.shape}; they must be (r, in) and (out, r)")
        return A, B

    def bases_to_peft(self) -> tuple[Array, ...]:
        """The shared bases in PEFT's layout, on the host."""
        return tuple(map(arrays.to_numpy, getattr(self, "bases", ())))


@dataclass(frozen=True, eq=False, repr=False)
class PeftAdapter(Saved):
    """A saved RandLoRA adapter: the shared ``bases``, ``lambda_`` (n, r) and ``gamma`` (n, d) by module name.

    ``config`` is PEFT's adapter_config.json. The files hold no layer's (out, in): Γ tells d, the base model the rest.
    """

    LEARNED = {"lambda_": "randlora_lambda", "gamma": "randlora_gamma"}  # noqa: RUF012
    SHARED = ("randlora_A", "randlora_B")
    SETTINGS = {**SETTINGS, **OF_SHARED, "randlora_alpha": checks.number, "sparse": flag, "very_sparse": flag}  # noqa: RUF012

    bases: Bases
    lambda_: ByModule
    gamma: ByModule
    config: Mapping[str, Any]

    def possible_shapes(self, name: str) -> tuple[Shape, Shape]:
        """Of smaller side d, from square to the height of B."""
        d = int(self.gamma[name].shape[1])
        return (d, d), (max(int(self.bases.B.shape[1]), d), d)

    def _layer(self, name: str, given: dict[str, Any]) -> RandLoRA:
        settings: dict[str, Any] = {"rank": self.config["r"], "alpha": self.config["randlora_alpha"]}
        return RandLoRA(**given, **settings, bases=self.bases, dialect="peft")

    @classmethod
    def bases_from_peft(cls, A: Array, B: Array) -> Bases:
        """(r, 1, d) and (D, n, r) become (r, d) and (n, D, r)."""
        if A.ndim != 3 or B.ndim != 3 or A.shape[1] != 1:
            raise ValueError(f"randlora_A {A.shape}, randlora_B {B.shape}; they must be (r, 1, d) and (D, n, r)")
        return Bases(A[:, 0, :], arrays.permute(checks.namespace(A=A, B=B), B, (1, 0, 2)))

    def bases_to_peft(self) -> tuple[Array, ...]:
        """A (r, 1, d) and B (D, n, r)."""
        return arrays.to_numpy(self.bases.A)[:, None, :], arrays.to_numpy(self.bases.B).transpose(1, 0, 2)


@dataclass(frozen=True, eq=False, repr=False)
class PeftLoRA(Saved):
    """A saved LoRA adapter: ``A`` (r, in) and ``B`` (out, r) by module name; r and α may be a module's own."""

    LEARNED = {"A": "lora_A.weight", "B": "lora_B.weight"}  # noqa: RUF012
    SETTINGS = {**SETTINGS, **OF_LORA, **OWN, "lora_alpha": checks.number, "use_rslora": flag}  # noqa: RUF012

    A: ByModule
    B: ByModule
    config: Mapping[str, Any]

    def possible_shapes(self, name: str) -> tuple[Shape, Shape]:
        """A and B have both sides."""
        shape = int(self.B[name].shape[0]), int(self.A[name].shape[1])
        return shape, shape

    def _layer(self, name: str, given: dict[str, Any]) -> LoRA:
        own = []
        for pattern, setting in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
            patterns = self.config.get(pattern) or {}  # the first that the end of the name is, from a dot on
            matching = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name))
            own.append(next(matching, self.config[setting]))
        rank, alpha = own
        if self.config.get("use_rslora"):  # s = α/√r
            alpha *= math.sqrt(rank)
        return LoRA(**given, rank=rank, alpha=alpha)


@dataclass(frozen=True, eq=False, repr=False)
class PeftVeRA(Saved):
    """A saved VeRA adapter: shared ``bases`` A (r, in_max), B (out_max, r); λ_b (out,) and λ_d (r,) by module name."""

    LEARNED = {"lambda_b": "vera_lambda_b", "lambda_d": "vera_lambda_d"}  # noqa: RUF012
    SHARED = ("vera_A", "vera_B")
    SETTINGS = {**SETTINGS, **OF_SHARED}  # noqa: RUF012

    bases: tuple[Array, Array]
    lambda_b: ByModule
    lambda_d: ByModule
    config: Mapping[str, Any]

    def possible_shapes(self, name: str) -> tuple[Shape, Shape]:
        """λ_b has ``out``; ``in`` is at most A's."""
        out = int(self.lambda_b[name].shape[0])
        return (out, 1), (out, int(self.bases[0].shape[1]))

    def _layer(self, name: str, given: dict[str, Any]) -> VeRA:
        return VeRA(**given, rank=self.config["r"], A=self.bases[0], B=self.bases[1])


METHODS: dict[Any, type[Any]] = {"RANDLORA": PeftAdapter, "LORA": PeftLoRA, "VERA": PeftVeRA}
