"""A transformer block of any kind as a point beside ``spec.block``, and the laws of RandLoRA's layers in it.

An adapted weight is W0 + ΔW to ``spec.block``, whose ∂L/∂ΔW is pulled back through ΔW: RandLoRA's by ``spec.update``,
that of another method through its own, entry by entry, by the complex step.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from .. import nn, spec
from ..adapters import RandLoRA
from ..bases import Bases
from . import gauge
from .configurations import ROPE, SEEDS, Backend, Choose, Chosen, draw_adapter, draw_mask, entries
from .layers import pulled_back, update
from .networks import INVARIANCES, Network
from .points import ALIKE, DRAWN_STEP, LIMIT, Property, Results, apart
from .points import PROPERTIES as OF_POINTS

Array = Any


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

    def build(self) -> "Block":
        """The block, its arrays drawn."""
        rng, shapes, width = np.random.default_rng(self.seed), self.spec.shapes(), self.spec.width
        roles = {"norm1": (width,), "norm2": (width,), **shapes}
        tensors = {f"{role}.weight": shape for role, shape in roles.items()}
        tensors |= {f"{role}.bias": shape[:1] for role, shape in roles.items() if role in self.spec.biases}
        weights = {name: entries(rng, name, *shape) for name, shape in tensors.items()}
        given = {} if self.mask is None else {"attention_mask": np.array(self.mask)}
        modules = {role: (f"{role}.weight", shape, False) for role, shape in shapes.items()}
        x, dy = rng.standard_normal((2, self.batch, self.size, width))
        bare = Block({"x": x} | weights, dy, self, modules, given, {})
        return bare.adapted({role: one.adapter(shapes[role]) for role, one in self.adapters.items()})


def draw_block(choose: Choose) -> BlockCase:
    """Any ``BlockSpec``: sizes apart from each other, both norms, four activations, fused, grouped, gated, biases."""
    rotary = (choose((10000.0, 7.5)), choose(ROPE)) if choose((False, True)) else None
    fused, heads = choose((False, True)), choose((1, 2, 4, 6))
    key_heads = heads if fused else choose([k for k in range(heads, 0, -1) if heads % k == 0])
    centred, gated = choose((True, False)), choose((False, True))
    sizes = choose(range(3, 9)), choose((4, 1, 7, 10)), heads, key_heads, choose((2, 4) if rotary else (3, 1, 2, 4))
    choices = choose((1e-5, 1e-12, 0.5)), choose(("gelu_tanh", "gelu", "quick_gelu", "silu"))
    bare = nn.BlockSpec(*sizes, *choices, centred=centred, fused=fused, gated=gated)
    biases = frozenset(role for role in ("norm1", "norm2", *bare.shapes()) if choose((False, True)))
    batch, size = choose((2, 1, 3)), choose((3, 1, 2, 5))
    adapters = {role: draw_adapter(choose) for role in bare.shapes() if choose((True, False))}
    causal, mask = choose((False, True)), draw_mask(choose, batch, size)
    return BlockCase(replace(bare, biases=biases), batch, size, causal, mask, rotary, adapters, choose(SEEDS))


def by_role(values: Results) -> dict[str, tuple[Array, Array | None]]:
    """(weight, bias or None) by role, of what is named "role.weight" and "role.bias"."""
    roles = [name.removesuffix(".weight") for name in values if name.endswith(".weight")]
    return {role: (values[f"{role}.weight"], values.get(f"{role}.bias")) for role in roles}


@dataclass(frozen=True, eq=False)
class Block(Network):
    """A block by ``nn.block``, and by ``spec.block_forward`` and ``block_backward``."""

    OUTPUT: ClassVar[str] = "y"
    case: BlockCase

    def run(self, values: Results, dy: Array | None = None) -> Results:
        """By ``nn``."""
        case, x = self.case, values["x"]
        mask = Backend.of(x).array(self.given.get("attention_mask"))
        seen = nn.additive_mask(x, case.size, causal=case.causal, mask=mask)
        tables = case.rotary and nn.rotary_tables(x, case.size, case.spec.head_width, *case.rotary)
        y, cache = nn.block(x, case.spec, by_role(values), self.with_values(values), seen, tables)
        return {"y": y} if dy is None else {"y": y} | self.named(*nn.block_backward(dy, cache, weight_grad=True))

    def named(self, dx: Array, gradients: Mapping[str, Any]) -> Results:
        """All gradients under the names of ``values``."""
        own = {f"{role}.{name}": g for role, of in gradients.items() for name, g in of._asdict().items()}
        return {"x": dx} | {name: own[name] for name in self.values.keys() & own if own[name] is not None}

    def arguments(self, values: Results, updates: Mapping[str, spec.Update]) -> tuple[Any, ...]:
        """What ``spec.block_forward`` is given."""
        case, x = self.case, values["x"]
        tables = case.rotary and spec.rotary_tables(case.size, case.spec.head_width, *case.rotary, x.dtype)
        seen = spec.visible(case.size, case.causal, self.given.get("attention_mask"))
        return x, case.spec, by_role(values), updates, seen, tables

    def expected(self, values: Results, dy: Array) -> Results:
        """By ``spec``."""
        adapters = self.with_values(values)
        whole = {f"{role}.weight": values[f"{role}.weight"] + update(one) for role, one in adapters.items()}
        arguments = self.arguments(values | whole, {})
        y, _ = spec.block_forward(*arguments)
        dx, gradients = spec.block_backward(dy, *arguments)
        found = {"y": y} | self.named(dx, gradients)
        for role, one in adapters.items():
            own = pulled_back(one, gradients[role].delta_weight)
            found |= {f"{role}.{name}": g for name, g in own.items()}
        return found


def euler(block: Block, backend: Backend) -> float:
    """Σ_k Λ_j[k]·∂L/∂Λ_j[k] = Σ_i Γ_j[i]·∂L/∂Γ_j[i] for every term j: both are ⟨∂L/∂ΔW, the term⟩."""
    found, worst = block.results(backend), 0.0
    for role, one in block.adapters.items():
        if isinstance(one, RandLoRA):
            left, right = (block.values[f"{role}.{name}"] * found[f"{role}.{name}"] for name in one.LEARNED)
            size = np.sum(np.abs(left), axis=1) + np.sum(np.abs(right), axis=1) + gauge.TINY
            worst = max(worst, gauge.ratio(np.sum(left, axis=1), np.sum(right, axis=1), size))
    return worst


def update_laws(block: Block, backend: Backend) -> float:
    """ΔW is linear in Λ and in Γ, (2Λ, Γ/2) has the same, crossed is literal with B's columns laid otherwise."""
    worst, rng = 0.0, np.random.default_rng(block.case.seed)
    for one in (own for own in block.adapters.values() if isinstance(own, RandLoRA)):
        B = np.stack([spec.term_basis(one.bases.B[: one.n], j, one.dialect.pairing) for j in range(one.n)])
        literal = replace(one, bases=Bases(one.bases.A, B), dialect=replace(one.dialect, pairing="literal"))
        moved = {"both": one.replace(lambda_=2 * one.lambda_, gamma=one.gamma / 2), "literal": literal}
        right = dict.fromkeys(moved, one.delta_weight())
        for name in one.LEARNED:
            value, other = getattr(one, name), rng.standard_normal(getattr(one, name).shape)
            moved[name] = one.replace(**{name: 2 * value + other})
            right[name] = 2 * one.delta_weight() + one.replace(**{name: other}).delta_weight()
        found = {name: adapter.delta_weight() for name, adapter in moved.items()}
        worst = max(worst, apart(found, right, right))
    return worst


LAWS = (
    Property("Σ Λ∘∂Λ = Σ Γ∘∂Γ for every term", euler, LIMIT, "over Σ|Λ∘∂Λ| + Σ|Γ∘∂Γ|"),
    Property("ΔW linear in Λ and Γ; pairings by B's columns", update_laws, LIMIT, ALIKE),
)
PROPERTIES = (*OF_POINTS, DRAWN_STEP, *INVARIANCES, *LAWS)
