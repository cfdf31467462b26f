"""A transformer block of any kind as a point beside ``spec.block``, and what changes nothing in it.

An adapter that is no RandLoRA is its W0 + ΔW to the specification, whose ∂L/∂ΔW is pulled back through that method's
own ΔW, entry by entry, by the complex step.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .. import arrays, checks, nn, spec
from ..adapters import Adapter, RandLoRA
from ..bases import Bases
from .complex_step import directional
from .configurations import HOST, Backend, Block, BlockCase, Chosen, brought, build_block
from .functions import beside
from .points import ALIKE, Point, Property, Results, alike, apart

Array = Any


def learned(adapters: Mapping[str, Adapter], of: Mapping[str, Any] | None = None) -> Results:
    """Every learned array, or what ``of`` (None: the adapters) has under its name, by "role.name"."""
    own = adapters if of is None else of
    return {f"{role}.{name}": getattr(own[role], name) for role, one in adapters.items() for name in one.LEARNED}


def with_values(adapters: Mapping[str, Adapter], values: Results) -> dict[str, Adapter]:
    """The adapters with the learned arrays of ``values``, in their library and precision."""
    moved = {}
    for role, one in adapters.items():
        own = {name: values[f"{role}.{name}"] for name in one.LEARNED}
        like = next(iter(own.values()))
        place = Backend(arrays.namespace_of("learned", like), arrays.device_of(like))
        moved[role] = brought(one, place, checks.precision("learned", like)).replace(**own)
    return moved


def as_update(adapter: RandLoRA) -> spec.Update:
    """The adapter as the specification takes it, on the host, its bases in the precision of what it has learned."""
    A, B = (np.asarray(basis, adapter.gamma.dtype) for basis in (adapter.bases.A, adapter.bases.B))
    return spec.Update(A, B, adapter.lambda_, adapter.gamma, adapter.scaling, adapter.dialect.pairing)


def pulled_back(adapter: Adapter, G: Array) -> Results:
    """The gradient of ⟨G, ΔW⟩ by every learned value, in the precision of ``G``: by the specification for RandLoRA.

    For the others by the complex step, entry by entry.
    """
    if isinstance(adapter, RandLoRA):
        return dict(zip(adapter.LEARNED, spec.pullback(G, *as_update(adapter)[:6]), strict=True))
    found = {}
    for name in adapter.LEARNED:
        value = np.asarray(getattr(adapter, name), dtype=np.float64)
        rest = {key: np.asarray(getattr(adapter, key), dtype=np.float64) for key in adapter.LEARNED}
        wide = brought(adapter, HOST, "float64").replace(**rest)
        steps = np.eye(value.size).reshape(value.size, *value.shape)

        def update(x: Array, name: str = name, wide: Adapter = wide) -> Array:
            return wide.replace(**{name: x}).delta_weight()

        gradient = [np.sum(G * directional(update, value, one)) for one in steps]
        found[name] = np.array(gradient).reshape(value.shape).astype(G.dtype)
    return found


def of_parameters(parameters: Mapping[str, tuple[Array, Array | None]]) -> Results:
    """Every weight and bias that is there, by "role.weight" and "role.bias"."""
    weights = {f"{role}.weight": weight for role, (weight, _) in parameters.items()}
    return weights | {f"{role}.bias": bias for role, (_, bias) in parameters.items() if bias is not None}


def point(case: BlockCase, block: Block | None = None) -> Point:
    """The block by ``nn.block`` and by ``spec.block_forward`` and ``block_backward``."""
    block = build_block(case) if block is None else block
    roles = tuple(block.parameters)

    def parts(values: Results) -> dict[str, tuple[Array, Array | None]]:
        return {role: (values[f"{role}.weight"], values.get(f"{role}.bias")) for role in roles}

    def code(values: Results, dy: Array | None) -> Results:
        x = values["x"]
        mask = nn.additive_mask(x, case.size, causal=case.causal, mask=beside(x, block.mask))
        tables = case.rotary and nn.rotary_tables(x, case.size, case.spec.head_width, *case.rotary)
        y, cache = nn.block(x, case.spec, parts(values), with_values(block.adapters, values), mask, tables)
        if dy is None:
            return {"y": y}
        dx, grads = nn.block_backward(dy, cache, weight_grad=True)
        found = {f"{role}.{name}": g for role, own in grads.items() for name, g in own._asdict().items()}
        return {"y": y, "x": dx} | {name: g for name, g in found.items() if g is not None}

    def specification(values: Results, dy: Array | None) -> Results:
        x, parameters, updates = values["x"], parts(values), dict[str, spec.Update]()
        adapters = with_values(block.adapters, values)
        for role, one in adapters.items():
            weight, bias = parameters[role]
            if isinstance(one, RandLoRA):
                updates[role] = as_update(one)
            else:
                parameters[role] = weight + one.delta_weight(), bias
        tables = case.rotary and spec.rotary_tables(case.size, case.spec.head_width, *case.rotary, x.dtype)
        seen = spec.visible(case.size, case.causal, block.mask)
        arguments = x, case.spec, parameters, updates, seen, tables
        y, _ = spec.block_forward(*arguments)
        if dy is None:
            return {"y": y}
        dx, grads = spec.block_backward(dy, *arguments)
        found = {"y": y, "x": dx} | of_parameters({role: (own.weight, own.bias) for role, own in grads.items()})
        for role, one in adapters.items():
            own = {"lambda_": grads[role].lambda_, "gamma": grads[role].gamma}
            own = own if role in updates else pulled_back(one, grads[role].delta_weight)
            found |= {f"{role}.{name}": g for name, g in own.items()}
        return found

    values = {"x": block.x} | of_parameters(block.parameters) | learned(block.adapters)
    return Point(values, block.dy, code, specification)


# -- what changes nothing ---------------------------------------------------------------------------------


def each_alone(case: BlockCase, backend: Backend) -> float:
    """Each sequence alone: its output is the same, and the gradients of all add up."""
    block, alone = build_block(case), list[Results]()
    for one in (slice(b, b + 1) for b in range(case.batch)):
        mask = None if block.mask is None else block.mask[one]
        alone.append(point(case, block._replace(x=block.x[one], dy=block.dy[one], mask=mask)).results(backend))
    pieces = {name: [own[name] for own in alone] for name in alone[0]}
    right = {name: np.concatenate(own) if name in ("x", "y") else sum(own) for name, own in pieces.items()}
    return alike(point(case, block), backend, right)


def padding(case: BlockCase, backend: Backend) -> float:
    """Other content at padded tokens, whose outputs no loss reads: every other entry is the same, bit for bit."""
    block = build_block(case)
    if block.mask is None:
        return 0.0
    shown, differ = block.mask[:, :, None] != 0, 0.0
    block = block._replace(dy=np.where(shown, block.dy, 0.0))
    other = point(case, block._replace(x=np.where(shown, block.x, 7.0 - block.x))).results(backend)
    for name, x in point(case, block).results(backend).items():
        same = x == other[name]
        differ += float(np.sum(~(same | ~shown if name in ("y", "x") else same)))
    return differ


def causality(case: BlockCase, backend: Backend) -> float:
    """Where it is causal, no output sees a later token: the same bits whatever comes."""
    if not case.causal:
        return 0.0
    block, t = build_block(case), case.size // 2
    later = np.concatenate([block.x[:, :t], 3.0 - block.x[:, t:]], axis=1)
    found, other = (point(case, block._replace(x=x)).results(backend)["y"][:, :t] for x in (block.x, later))
    return float(np.sum(~(found == other)))


def merged(case: BlockCase, backend: Backend) -> float:
    """W0 + ΔW in place of an adapter: the same outputs, and the same ∂L/∂x and ∂L/∂W of everything."""
    block = build_block(case)
    weights = dict(block.parameters)
    for role, one in block.adapters.items():
        weights[role] = one.merge(weights[role][0]), weights[role][1]
    right = point(case, block._replace(parameters=weights, adapters={})).results(backend)
    return alike(point(case, block), backend, right)


def one_more(case: BlockCase, backend: Backend) -> float:
    """An adapter at its start with ΔW = 0 in every layer that has none: nothing else changes."""
    block, start = build_block(case), Chosen("randlora", 2, True, case.seed, {"dialect": "paper"})
    more = {role: start.adapter(shape) for role, shape in case.spec.shapes().items()}
    right = point(case, block).results(backend)
    return apart(point(case, block._replace(adapters=more | block.adapters)).results(backend), right, right)


def euler(case: BlockCase, backend: Backend) -> float:
    """Σ_k Λ_j[k]·∂L/∂Λ_j[k] = Σ_i Γ_j[i]·∂L/∂Γ_j[i] for every term j: both are ⟨∂L/∂ΔW, the term⟩."""
    place, worst = point(case), 0.0
    found = place.results(backend)
    for role, one in build_block(case).adapters.items():
        if isinstance(one, RandLoRA):
            left, right = (place.values[f"{role}.{name}"] * found[f"{role}.{name}"] for name in ("lambda_", "gamma"))
            size = np.sum(np.abs(left), axis=1) + np.sum(np.abs(right), axis=1)
            gap = np.abs(np.sum(left, axis=1) - np.sum(right, axis=1))
            worst = max(worst, float(np.max(gap / np.where(size == 0, 1, size))))
    return worst


def update_laws(case: BlockCase, backend: Backend) -> float:
    """ΔW is linear in Λ and in Γ, (2Λ, Γ/2) has the same, crossed is literal with B's columns laid otherwise."""
    worst = 0.0
    for one in build_block(case).adapters.values():
        if not isinstance(one, RandLoRA):
            continue
        rng = np.random.default_rng(case.seed)
        update, found, right = one.delta_weight(), Results(), Results()
        for name in one.LEARNED:
            value = getattr(one, name)
            other = rng.standard_normal(value.shape)
            found[name] = one.replace(**{name: 2 * value + other}).delta_weight()
            right[name] = 2 * update + one.replace(**{name: other}).delta_weight()
        found["both"], right["both"] = one.replace(lambda_=2 * one.lambda_, gamma=one.gamma / 2).delta_weight(), update
        B = np.stack([spec.term_basis(one.bases.B[: one.n], j, one.dialect.pairing) for j in range(one.n)])
        dialect = replace(one.dialect, pairing="literal")
        literal = replace(one, bases=Bases(one.bases.A, B), dialect=dialect, scaling=one.scaling)
        found["literal"], right["literal"] = literal.delta_weight(), update
        worst = max(worst, apart(found, right, right))
    return worst


INVARIANCES = (
    Property("each sequence alone, gradients add up", each_alone, 1e-12, ALIKE),
    Property("content of padding: entries that differ", padding, 0, "bits"),
    Property("causality: entries that differ", causality, 0, "bits"),
    Property("merged weights", merged, 1e-12, ALIKE),
    Property("one more adapter at its start", one_more, 1e-12, ALIKE),
    Property("Σ Λ∘∂Λ = Σ Γ∘∂Γ for every term", euler, 1e-12, "over Σ|Λ∘∂Λ| + Σ|Γ∘∂Γ|"),
    Property("ΔW linear in Λ and Γ; pairings by B's columns", update_laws, 1e-12, ALIKE),
)
