"""A transformer block of any kind as a point beside ``spec.block``, and the laws of RandLoRA's layers in it.

An adapter that is no RandLoRA is its W0 + ΔW to the specification, whose ∂L/∂ΔW is pulled back through that method's
own ΔW, entry by entry, by the complex step.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np

from .. import nn, spec
from ..adapters import Adapter, RandLoRA
from ..bases import Bases
from .configurations import Backend, BlockCase, Network, build_block, by_role
from .layers import as_update, pulled_back, with_learned
from .points import ALIKE, LIMIT, Point, Property, Results, apart

Array = Any


def of_adapters(adapters: Mapping[str, Adapter], of: Mapping[str, Any]) -> Results:
    """What ``of`` has, by name, under the names of the learned arrays: by "name.array"."""
    return {f"{name}.{part}": getattr(of[name], part) for name, one in adapters.items() for part in one.LEARNED}


def with_values(adapters: Mapping[str, Adapter], values: Results) -> dict[str, Adapter]:
    """The adapters with the learned arrays of ``values``, in their library and precision."""
    own = {name: {part: values[f"{name}.{part}"] for part in one.LEARNED} for name, one in adapters.items()}
    return {name: with_learned(one, own[name]) for name, one in adapters.items()}


def point(block: Network | BlockCase) -> Point:
    """The block by ``nn.block`` and by ``spec.block_forward`` and ``block_backward``."""
    block = build_block(block) if isinstance(block, BlockCase) else block
    case, kind, mask = cast(BlockCase, block.case), block.case.spec, block.mask

    def code(values: Results, dy: Array | None) -> Results:
        x, parameters, adapters = values["x"], by_role(values), with_values(block.adapters, values)
        seen = nn.additive_mask(x, case.size, causal=case.causal, mask=Backend.of(x).array(mask))
        tables = case.rotary and nn.rotary_tables(x, case.size, kind.head_width, *case.rotary)
        y, cache = nn.block(x, kind, parameters, adapters, seen, tables)
        if dy is None:
            return {"y": y}
        dx, grads = nn.block_backward(dy, cache, weight_grad=True)
        found = {f"{role}.{name}": g for role, own in grads.items() for name, g in own._asdict().items()}
        return {"y": y, "x": dx} | {name: g for name, g in found.items() if g is not None}

    def specification(values: Results, dy: Array) -> Results:
        x, parameters, adapters = values["x"], by_role(values), with_values(block.adapters, values)
        updates = {role: as_update(one) for role, one in adapters.items() if isinstance(one, RandLoRA)}
        for role in adapters.keys() - updates:
            weight, bias = parameters[role]
            parameters[role] = weight + adapters[role].delta_weight(), bias
        tables = case.rotary and spec.rotary_tables(case.size, kind.head_width, *case.rotary, x.dtype)
        arguments = x, kind, parameters, updates, spec.visible(case.size, case.causal, mask), tables
        y, _ = spec.block_forward(*arguments)
        dx, grads = spec.block_backward(dy, *arguments)
        found = {"y": y, "x": dx} | of_adapters({role: adapters[role] for role in updates}, grads)
        found |= {f"{role}.weight": grads[role].weight for role in parameters}
        found |= {f"{role}.bias": grads[role].bias for role, (_, bias) in parameters.items() if bias is not None}
        for role in adapters.keys() - updates:
            own = pulled_back(adapters[role], grads[role].delta_weight)
            found |= {f"{role}.{name}": g for name, g in own.items()}
        return found

    values = block.floats | block.weights | of_adapters(block.adapters, block.adapters)
    return Point(values, block.dy, code, specification)


def euler(block: Network, backend: Backend) -> float:
    """Σ_k Λ_j[k]·∂L/∂Λ_j[k] = Σ_i Γ_j[i]·∂L/∂Γ_j[i] for every term j: both are ⟨∂L/∂ΔW, the term⟩."""
    place, worst = point(block), 0.0
    found = place.results(backend)
    for role, one in block.adapters.items():
        if isinstance(one, RandLoRA):
            left, right = (place.values[f"{role}.{name}"] * found[f"{role}.{name}"] for name in ("lambda_", "gamma"))
            size = np.sum(np.abs(left), axis=1) + np.sum(np.abs(right), axis=1)
            gap = np.abs(np.sum(left, axis=1) - np.sum(right, axis=1))
            worst = max(worst, float(np.max(gap / np.where(size == 0, 1, size))))
    return worst


def update_laws(block: Network, backend: Backend) -> float:
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
