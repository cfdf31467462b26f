"""Ranks: certificates beside elimination in fractions, what each method is bound to, and the law of the first steps.

The law is that of ``rank.law``. That ℓ counts shows in a fused qkv alone: where each query sees one key, q and k have
no gradient. t is the rank of dyᵀx of the stored dy and x, and no more than the tokens that have a gradient: a causal
query's first has none. Keys that are not turned by a rotary embedding have Σ_s dk_s = 0 in each sequence, so their t is
one less for each; but stored dk are rounded, and t counts what that leaves.
"""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import reduce
from typing import Any, NamedTuple, cast

import numpy as np

from .. import spec
from ..adapters import Adapter, RandLoRA
from ..arrays import Reshaped
from ..rank import certify_rank
from ..rank.factors import Sum, shape
from ..rank.law import reshape_gain, rows_reached
from .block import BlockCase, draw_block
from .configurations import METHODS, Backend, Choose, Chosen, brought, draw_adapter
from .integers import fraction_rank, fractions, small
from .layers import as_update
from .points import Property

Array = Any
RATE = Fraction(1, 8)
VALUES: dict[str, Callable[[np.random.Generator, Array], Array]] = {  # what becomes of learned values x
    "drawn": lambda rng, x: x,
    "zeros": lambda rng, x: x * rng.integers(0, 2, x.shape),
    "alike": lambda rng, x: np.broadcast_to(x[:1], x.shape).copy(),  # all Γ_j equal, all rows of a matrix
    "ternary": lambda rng, x: small(rng, *x.shape, size=1),
    "thin": lambda rng, x: small(rng, len(x), 2) @ small(rng, 2, *x.shape[1:]),  # of rank 2 or less
    "wild": lambda rng, x: np.ldexp(x, rng.integers(-40, 41, x.shape)),
}


class Factored(NamedTuple):
    """A layer of ``shape`` (out, in) under any method, its learned values made one of ``VALUES``."""

    shape: tuple[int, int]
    chosen: Chosen
    values: str

    def adapter(self) -> Adapter:
        """The adapter, on the host in float64."""
        made, rng = self.chosen.adapter(self.shape), np.random.default_rng(self.chosen.seed)
        return made.replace(**{name: VALUES[self.values](rng, getattr(made, name)) for name in made.LEARNED})


def draw_factors(choose: Choose) -> Factored:
    """Any method and kind of basis on a wide, tall or square layer; "full" is a plain matrix."""
    chosen = draw_adapter(choose, choose((("randlora",), tuple(METHODS))))._replace(start=False)
    return Factored((choose((4, 5, 7, 6, 3, 2, 1)), choose((5, 4, 6, 7, 3, 2, 1))), chosen, choose(tuple(VALUES)))


def multiplied_out(factor: Array) -> Array:
    """A matrix, a diagonal, a sum of products or one reshaped (rank/factors.py) as a matrix of fractions."""
    if isinstance(factor, tuple):
        return sum(reduce(np.matmul, map(multiplied_out, product)) for product in factor)
    if isinstance(factor, Reshaped):
        return np.reshape(multiplied_out(factor.terms), factor.shape[::-1]).T
    return np.diag(fractions(factor)) if factor.ndim == 1 else fractions(factor)


def transposed(factor: Any) -> Any:
    """The factors of the transpose."""
    if isinstance(factor, tuple):
        return tuple(tuple(map(transposed, product[::-1])) for product in factor)
    return factor.T


def proven(source: Any, seed: int = 0) -> float:
    """The certified rank; NaN, which no limit takes, where its two bounds do not meet or ``full`` contradicts it."""
    found = certify_rank(source, seed=seed)
    right = True, found.details["above"]["value"], found.rank == min(found.details["shape"])
    return found.rank if (found.exact, found.rank, found.full) == right else float("nan")


def elimination(case: Factored, backend: Backend) -> float:
    """The certificate of an adapter beside elimination of its factors, multiplied out."""
    adapter = case.adapter()
    return abs(proven(brought(adapter, backend, "float64")) - fraction_rank(multiplied_out(adapter.factors())))


def bound(case: Factored, backend: Backend) -> float:
    """By how much the certificate exceeds what its method can reach; a zero column of A is one of ΔW."""
    rank, d, adapter, gain = case.chosen.rank, min(case.shape), case.adapter(), 1
    n = adapter.n if isinstance(adapter, RandLoRA) else 1
    most = {"full": d, "randlora": n * rank, "randlora_b": n * (rank // 2)}.get(case.chosen.method, rank)
    if isinstance(adapter, RandLoRA):
        most = min(most, int(np.sum(np.any(adapter.bases.A[:, : adapter.d] != 0, axis=0))))
        gain = reshape_gain(case.shape) if adapter.dialect.orientation == "reshape" else 1
    return max(proven(brought(adapter, backend, "float64")) - min(most * gain, d), 0)


def invariance(case: Factored, backend: Backend) -> float:
    """Certificates of another rank: rows and columns scaled and permuted, ΔWᵀ, terms reversed and twice, a seed."""
    adapter, rng = case.adapter(), np.random.default_rng(case.chosen.seed)
    terms: Sum = adapter.factors()
    rows, columns = shape(terms)
    order, power = rng.permutation(np.eye(rows)), np.ldexp(1.0, rng.integers(-20, 21, rows))
    real, turned = -rng.uniform(1, 2, columns), rng.permutation(np.eye(columns))
    others = [tuple((order, power, *product, real, turned) for product in terms)]
    others += [tuple((power, *product) for product in terms), (*terms[::-1], *terms)]
    if not isinstance(terms[0][0], Reshaped):  # whose transpose is no such factor
        others.append(transposed(terms))
    known, *ranks = proven(adapter), proven(adapter, case.chosen.seed + 1), *map(proven, others)
    return sum(rank != known for rank in ranks)


PROPERTIES = (
    Property("certified rank beside elimination in fractions, difference", elimination, 0, "exact"),
    Property("rank beyond the method's: r, n·r, n·(r // 2), columns of A not zero", bound, 0, "exact"),
    Property("rank under scaling, permutation, transposition, order, seed: that differ", invariance, 0, "exact"),
)


def draw_descent(choose: Choose) -> BlockCase:
    """A small block with RandLoRA at its start in every linear layer, dense bases, all dialects."""
    case, heads, rows = draw_block(choose), choose((1, 2)), choose((1, 3))
    key_heads = heads if case.spec.fused else choose(range(heads, 0, -1))
    sizes = {"width": choose((6, 8, 3, 5, 9)), "hidden": choose((7, 2, 4, 5, 9))}
    sizes |= {"heads": heads, "key_heads": key_heads}
    kind, adapters = replace(case.spec, **sizes), {}
    for role in kind.shapes():
        one = draw_adapter(choose, ("randlora",))
        adapters[role] = one._replace(start=True, options={**one.options, "kind": "dense"})
    mask = case.mask and case.mask[:rows]
    return replace(case, spec=kind, batch=min(rows, case.batch), mask=mask, adapters=adapters)


def law(G: Array, r: int, n: int, constant: int) -> int:
    """The rank where Γ_j has moved along G (D, d) from ``constant`` Γ, 1, or from zero, 0 (``rank.law``)."""
    n_live = int(np.sum(np.any(G != 0, axis=0)))  # ℓ
    return int(min(*G.shape, rows_reached(fraction_rank(G), r, n, constant), constant * r + n_live))


def first_steps(case: BlockCase, backend: Backend) -> float:
    """Ranks that are not the law's, over two steps down ½‖y − dy‖², of all layers at once and in fractions.

    x and dy of each layer are what ``spec.block`` gives in float64, at Λ and Γ rounded; from them on nothing is.
    """
    block, updates, wrong = case.build(), dict[str, spec.Update](), 0
    for role, adapter in block.adapters.items():
        own = as_update(cast(RandLoRA, adapter))
        updates[role] = spec.Update._make([*map(fractions, own[:5]), *own[5:]])
    constant = {role: int(np.any(own.gamma != 0)) for role, own in updates.items()}
    ranks, moved = dict.fromkeys(updates, 0), dict[str, Any].fromkeys(updates, 0)  # Σ G, along which Γ moved
    for step in range(3):
        rounded = {}
        for role, own in updates.items():
            size = case.spec.shapes()[role]
            delta = spec.delta_weight(*own[:4], size, 1, own.pairing, own.orientation)
            wrong += fraction_rank(spec.oriented(delta, size, own.orientation, adjoint=True)) != ranks[role]
            rounded[role] = spec.Update._make([*(np.asarray(x, float) for x in own[:5]), *own[5:]])
        if step == 2:
            break
        arguments = block.arguments(block.values, rounded)
        y, inputs = spec.block_forward(*arguments)
        _, gradients = spec.block_backward(y - block.dy, *arguments)
        for role, own in updates.items():
            dy, x = (fractions(rows.reshape(-1, rows.shape[-1])) for rows in (gradients[role].y, inputs[role]))
            (n, r), G = own.lambda_.shape, spec.oriented(dy.T @ x, case.spec.shapes()[role], own.orientation, True)
            ranks[role] = min(r, *G.shape) * int(np.any(G != 0))
            if np.any(own.lambda_ != 0):
                moved[role] = moved[role] + G
                ranks[role] = law(moved[role], r, n, constant[role])
            d_lambda, d_gamma = spec.pullback(dy.T @ x, *own[:6], own.orientation)
            updates[role] = own._replace(lambda_=own.lambda_ - RATE * d_lambda, gamma=own.gamma - RATE * d_gamma)
    return float(wrong)


LAW = Property("ranks after 0, 1, 2 steps inside a block that are not the law's", first_steps, 0, "exact")
