"""What a folder of PEFT holds, a class a method: arrays by module name, checked, and the layers that they make.

PEFT 0.21.2 stores RandLoRA's A as (r, 1, d_max), B as (D_max, n_max, r), Λ as (r, n) and Γ as (n, d); VeRA's and LoRA's
arrays as they are here. Such layouts end in this file.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, cast

import numpy as np

from .. import arrays, checks
from ..adapters import Adapter, LoRA, RandLoRA, VeRA
from ..bases import Bases, Kind, draw_bases

Array = Any
ByModule = Mapping[str, Array]
Shape = tuple[int, int]
PREFIX = "base_model."


def natural(name: str) -> list[tuple[int, str]]:
    """A key to sort names by, in which layer 10 follows layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


class Saved(ABC):
    """A saved adapter of one method: learned arrays by module name, PEFT's ``config``, what was trained beside it.

    ``extra``: that is biases and ``modules_to_save``, by PEFT's key. ``shapes``: the (out, in) of the modules, where
    the base model was there to tell them.
    """

    METHOD: ClassVar[str]  # PEFT's peft_type
    LEARNED: ClassVar[Mapping[str, tuple[str, int]]]  # by field: how PEFT's keys of it end, and the number of axes
    SHARED: ClassVar[tuple[str, ...]] = ()  # PEFT's keys of A and B, where the modules share them
    ALPHA: ClassVar[str] = ""
    FLAGS: ClassVar[tuple[str, ...]] = ("fan_in_fan_out",)
    REFUSED: ClassVar[tuple[str, ...]] = ()  # settings under which PEFT computes something else

    config: Mapping[str, Any]
    extra: Mapping[str, Array]
    shapes: Mapping[str, Shape]

    @property
    def modules(self) -> list[str]:
        """The adapted modules in their natural order, layer 10 behind layer 9."""
        return sorted(getattr(self, next(iter(self.LEARNED))), key=natural)

    def layer(self, name: str, shape: Shape | None = None) -> Adapter:
        """One module's adapter; ``shape`` (out, in) None: the base model's where it is known, else the largest.

        Raises KeyError for a name that is not there, ValueError where ``shape`` does not fit.
        """
        if name not in self.modules:
            raise KeyError(f"name: {name!r}; it must be one of {', '.join(self.modules)}")
        out, in_ = shape or self.shapes.get(name) or self.possible_shapes(name)[1]
        return self._layer(name, {"out_features": out, "in_features": in_, "rank": self.rank(name)})

    def num_parameters(self) -> dict[str, int]:
        """How many values are learned, by module in natural order; those beside the adapter by PEFT's key."""
        fields = [getattr(self, what) for what in self.LEARNED]
        counts = {name: sum(math.prod(one[name].shape) for one in fields) for name in self.modules}
        return counts | {key: math.prod(x.shape) for key, x in self.extra.items()}

    def rank(self, name: str) -> int:
        """r of a module's adapter."""
        return int(self.config["r"])

    def to(self, dtype: str | None = None, xp: Any = np, device: Any = None) -> Self:
        """The same in ``dtype`` (None: each array in its own), of the library ``xp`` on ``device``."""
        checks.choice("dtype", dtype, (None, "float16", "float32", "float64"))

        def moved(x: Array) -> Array:
            x = arrays.to_numpy(x)
            wanted = x.dtype if dtype is None or x.dtype.kind != "f" else np.dtype(dtype)
            return arrays.from_numpy(xp, x.astype(wanted, copy=False), device)

        fields = (*self.LEARNED, "extra")
        changed: dict[str, Any] = {what: {name: moved(x) for name, x in getattr(self, what).items()} for what in fields}
        if self.SHARED:
            changed["bases"] = self.bases_from_peft(*map(moved, self.shared_to_peft().values()))
        other: Self = replace(cast(Any, self), **changed)
        return other

    @abstractmethod
    def possible_shapes(self, name: str) -> tuple[Shape, Shape]:
        """The least and the largest (out, in) that a module can have, up to a transposition."""

    @abstractmethod
    def _layer(self, name: str, size: dict[str, Any]) -> Adapter: ...

    @abstractmethod
    def check(self) -> None:
        """A ValueError where arrays or settings contradict each other."""

    @classmethod
    def from_peft(cls, what: str, x: Array) -> Array:
        """A learned array in this package's layout, of one in PEFT's; and the other way round."""
        return x

    @classmethod
    def bases_from_peft(cls, A: Array, B: Array) -> Any:
        """The shared bases, of those in PEFT's layout."""
        return A, B

    @classmethod
    def draw(cls, config: Mapping[str, Any], shapes: list[Shape], draw_dtype: Any) -> Any:
        """The bases that a folder does not hold, as PEFT draws them."""
        raise ValueError(f"holds no {' and '.join(cls.SHARED)}; they must be saved (save_projection=True)")

    def shared_to_peft(self) -> dict[str, Array]:
        """The shared bases by PEFT's key, in PEFT's layout, any library's arrays."""
        return {}

    def _check_sides(self, what: str, name: str, size: int, least: int, most: int) -> None:
        if not least <= size <= most:
            bounds = str(most) if least == most else f"{least} to {most}"
            raise ValueError(f"{name}: {what} is {size}; it must be {bounds}, as the other tensors say")


@dataclass(frozen=True, eq=False)
class PeftAdapter(Saved):
    """A saved RandLoRA adapter: the shared ``bases``, ``lambda_`` (n, r) and ``gamma`` (n, d) by module name.

    ``config`` is PEFT's adapter_config.json. The files hold no layer's (out, in): Γ tells d, the base model the rest.
    """

    METHOD = "RANDLORA"
    LEARNED = {"lambda_": ("randlora_lambda", 2), "gamma": ("randlora_gamma", 2)}  # noqa: RUF012
    SHARED = ("randlora_A", "randlora_B")
    ALPHA = "randlora_alpha"
    FLAGS = ("fan_in_fan_out", "sparse", "very_sparse", "save_projection")

    bases: Bases
    lambda_: ByModule
    gamma: ByModule
    config: Mapping[str, Any]
    extra: Mapping[str, Array] = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(default_factory=dict)

    def possible_shapes(self, name: str) -> tuple[Shape, Shape]:
        """Of smaller side d, from square to the height of B."""
        d = int(self.gamma[name].shape[1])
        return (d, d), (max(int(self.bases.B.shape[1]), d), d)

    def _layer(self, name: str, size: dict[str, Any]) -> RandLoRA:
        learned: dict[str, Any] = {"lambda_": self.lambda_[name], "gamma": self.gamma[name]}
        return RandLoRA(**size, **learned, bases=self.bases, dialect="peft", alpha=self.config["randlora_alpha"])

    def check(self) -> None:
        """Λ, Γ, A and B have one r, one n a module, and no module is larger than the bases."""
        (r, d_max), n_max = self.bases.A.shape, self.bases.B.shape[0]
        self._check_sides("r", "randlora_A", r, self.config["r"], self.config["r"])
        for name, lambda_ in self.lambda_.items():
            n, d = self.gamma[name].shape
            self._check_sides("r of Λ", name, lambda_.shape[1], r, r)
            self._check_sides("n of Λ", name, lambda_.shape[0], n, n)
            self._check_sides("n of Γ", name, n, 1, n_max)
            self._check_sides("d of Γ", name, d, 1, d_max)

    @classmethod
    def from_peft(cls, what: str, x: Array) -> Array:
        """Λ is transposed."""
        return x.T if what == "lambda_" else x

    @classmethod
    def bases_from_peft(cls, A: Array, B: Array) -> Bases:
        """(r, 1, d) and (D, n, r) become (r, d) and (n, D, r)."""
        if A.ndim != 3 or B.ndim != 3 or A.shape[1] != 1:
            raise ValueError(f"randlora_A {A.shape}, randlora_B {B.shape}; they must be (r, 1, d) and (D, n, r)")
        return Bases(A[:, 0, :], arrays.permute(checks.namespace(A=A, B=B), B, (1, 0, 2)))

    @classmethod
    def draw(cls, config: Mapping[str, Any], shapes: list[Shape], draw_dtype: Any) -> Bases:
        """Bit for bit, from the seed that the configuration has."""
        if not shapes:
            raise ValueError("holds no bases; shapes must list the (out, in) of every adapted layer")
        kind: Kind = "very_sparse" if config.get("very_sparse") else "sparse" if config.get("sparse") else "dense"
        seed = config["projection_prng_key"]
        return draw_bases("peft", seed=seed, shapes=shapes, rank=config["r"], kind=kind, draw_dtype=draw_dtype)

    def shared_to_peft(self) -> dict[str, Array]:
        """A (r, 1, d) and B (D, n, r)."""
        A, B = arrays.to_numpy(self.bases.A), arrays.to_numpy(self.bases.B)
        return {"randlora_A": A[:, None, :], "randlora_B": B.transpose(1, 0, 2)}


@dataclass(frozen=True, eq=False)
class PeftLoRA(Saved):
    """A saved LoRA adapter: ``A`` (r, in) and ``B`` (out, r) by module name; r and α may be a module's own."""

    METHOD = "LORA"
    LEARNED = {"A": ("lora_A.weight", 2), "B": ("lora_B.weight", 2)}  # noqa: RUF012
    ALPHA = "lora_alpha"
    FLAGS = ("fan_in_fan_out", "use_rslora")
    REFUSED = (
        "use_dora", "use_qalora", "use_bdlora", "lora_bias", "layer_replication", "trainable_token_indices",
        "target_parameters", "alora_invocation_tokens", "arrow_config", "kasa_config", "velora_config",
        "monteclora_config",
    )  # fmt: skip

    A: ByModule
    B: ByModule
    config: Mapping[str, Any]
    extra: Mapping[str, Array] = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(default_factory=dict)

    def possible_shapes(self, name: str) -> tuple[Shape, Shape]:
        """A and B have both sides."""
        shape = int(self.B[name].shape[0]), int(self.A[name].shape[1])
        return shape, shape

    def rank(self, name: str) -> int:
        """The module's own, where ``rank_pattern`` has one."""
        return int(self._own("rank_pattern", name, self.config["r"]))

    def _own(self, pattern: str, name: str, default: Any) -> Any:
        """The value of the first pattern that the end of ``name`` is, from a dot on; else ``default``."""
        patterns = self.config.get(pattern) or {}
        return next((own for key, own in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), default)

    def _layer(self, name: str, size: dict[str, Any]) -> LoRA:
        alpha = self._own("alpha_pattern", name, self.config["lora_alpha"])
        if self.config.get("use_rslora"):  # s = α/√r
            alpha = alpha * math.sqrt(size["rank"])
        return LoRA(**size, A=self.A[name], B=self.B[name], alpha=alpha)

    def check(self) -> None:
        """Each pair has the rank that its configuration says; where A and B were trained beside another W0, refused."""
        start = self.config.get("init_lora_weights")
        if start not in (None, True, False, "gaussian", "eva", "orthogonal"):
            raise ValueError(f"init_lora_weights: {start!r} changes the base model's weights, and is not implemented")
        for pattern in ("rank_pattern", "alpha_pattern"):
            for key, own in dict(self.config.get(pattern) or {}).items():
                checks.number(f"{pattern}[{key!r}]", own)
        for name, A in self.A.items():
            r = self.rank(name)
            self._check_sides("r of A", name, A.shape[0], r, r)
            self._check_sides("r of B", name, self.B[name].shape[1], r, r)


@dataclass(frozen=True, eq=False)
class PeftVeRA(Saved):
    """A saved VeRA adapter: shared ``bases`` A (r, in_max), B (out_max, r); λ_b (out,) and λ_d (r,) by module name."""

    METHOD = "VERA"
    LEARNED = {"lambda_b": ("vera_lambda_b", 1), "lambda_d": ("vera_lambda_d", 1)}  # noqa: RUF012
    SHARED = ("vera_A", "vera_B")
    FLAGS = ("fan_in_fan_out", "save_projection")

    bases: tuple[Array, Array]
    lambda_b: ByModule
    lambda_d: ByModule
    config: Mapping[str, Any]
    extra: Mapping[str, Array] = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(default_factory=dict)

    def possible_shapes(self, name: str) -> tuple[Shape, Shape]:
        """λ_b has ``out``; ``in`` is at most A's."""
        out = int(self.lambda_b[name].shape[0])
        return (out, 1), (out, int(self.bases[0].shape[1]))

    def _layer(self, name: str, size: dict[str, Any]) -> VeRA:
        A, B = self.bases
        return VeRA(**size, A=A, B=B, lambda_b=self.lambda_b[name], lambda_d=self.lambda_d[name])

    def check(self) -> None:
        """λ_d and both bases have one r, and B a row for each entry of λ_b."""
        (A, B), r = self.bases, self.config["r"]
        self._check_sides("r", "vera_A", A.shape[0], r, r)
        self._check_sides("r", "vera_B", B.shape[1], r, r)
        for name, lambda_b in self.lambda_b.items():
            self._check_sides("r of λ_d", name, self.lambda_d[name].shape[0], r, r)
            self._check_sides("out of λ_b", name, lambda_b.shape[0], 1, B.shape[0])

    @classmethod
    def bases_from_peft(cls, A: Array, B: Array) -> tuple[Array, Array]:
        """As they are."""
        if A.ndim != 2 or B.ndim != 2:
            raise ValueError(f"vera_A {A.shape}, vera_B {B.shape}; they must be (r, in) and (out, r)")
        return A, B

    def shared_to_peft(self) -> dict[str, Array]:
        """As they are."""
        return dict(zip(self.SHARED, self.bases, strict=True))


METHODS: dict[str, type[Any]] = {kind.METHOD: kind for kind in (PeftAdapter, PeftLoRA, PeftVeRA)}
