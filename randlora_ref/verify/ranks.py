"""Ranks: certificates beside elimination in fractions, what each method is bound to, and the law of the first steps.

The law. From Λ = 0 and constant Γ = g the gradient of Γ is zero, so a step along G = ∂L/∂ΔW ≠ 0 gives
g·(Σ_j B_jΛ_j)A, of rank min(r, d). At the next one let G, turned so that it is (D, d), be Σ_τ u_τ v_τᵀ of rank t. Then
Γ_j = g − η·s·Σ_{k,τ} Λ_j[k] (B_j[:, k]ᵀu_τ) A[k]∘v_τ, and row (j, k) of K (``spec.khatri_rao``) lies in the span of the
r rows A[k] and of the t·r(r+1)/2 products A[k]∘A[k']∘v_τ, which vanish where G has a zero column: with ℓ columns that
are not zero and c = 1,

    rank ΔW <= min(D, d, n·r, c·r + min(ℓ, t·r(r+1)/2))

whatever the bases. From Γ = 0 and constant Λ the first step moves Γ already, and each after it again: the same with
c = 0 and G all gradients so far, one below the other, though at the second step Λ has moved too. Dense bases, drawn,
are equal to it, but for t = 1: then Γ_j = c·g + l_j∘v with l_j a linear form of A's rows, and as l_i·l_j = l_j·l_i any
antisymmetric ω gives Σ_j L_j∘Γ_j = 0 with L_j = Σ_i ω_ji l_i, where the L_j have to add to zero if c = 1. That is
C(m − c, 2) rows of K less, of m = min(n, r + c) terms; more terms add none.

That ℓ counts shows in a fused qkv alone: where each query sees one key, q and k have no gradient. t is the rank of dyᵀx
of the stored dy and x, and no more than the tokens that have a gradient: a causal query's first has none. Keys that are
not turned by a rotary embedding have Σ_s dk_s = 0 in each sequence, so their t is one less for each; but stored dk are
rounded, and t counts what that leaves. Where the sum M is reshaped (nlg), G is reshaped with it, and what is said holds
of M; each of its rows may show in several columns of ΔW (``reshape_gain``).
"""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import reduce
from math import comb, gcd
from typing import Any, NamedTuple, cast

import numpy as np

from .. import spec
from ..adapters import Adapter, RandLoRA
from ..arrays import Reshaped
from ..rank import certify_rank
from ..rank.factors import Sum, shape
from .configurations import METHODS, Backend, BlockCase, Choose, Chosen, brought, build_block, draw_adapter, draw_block
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


def reshape_gain(shape: tuple[int, int]) -> int:
    """rank M.reshape(in, out)ᵀ <= gain·rank M: out / in where that divides, 1 where it is a transpose (out <= in).

    Column i of ΔW is entries i·out … (i + 1)·out of M, row by row: it begins at column c = i·out mod in of a row of M,
    and touches ceil((c + out)/in) of them. Columns of one c are in the span of that many pieces of rows, each of which
    has the rank of M at most; c is a multiple of gcd(out, in).
    """
    out, in_ = shape
    return 1 if out <= in_ else sum(-(-(c + out) // in_) for c in range(0, in_, gcd(out, in_)))


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


def law(G: Array, sides: tuple[int, int], r: int, n: int, constant: int) -> int:
    """The rank where Γ_j has moved along G (rows, d) from ``constant`` Γ, 1, or from zero, 0 (the module's docstring).

    ``sides``: D and d.
    """
    t, live = fraction_rank(G), int(np.sum(np.any(G != 0, axis=0)))  # ℓ
    rows = min(n * r, constant * r + t * r * (r + 1) // 2)
    if t == 1:
        m = min(n, r + constant)
        rows = m * r - comb(m - constant, 2)
    return min(*sides, rows, constant * r + live)


def first_steps(case: BlockCase, backend: Backend) -> float:
    """Ranks that are not the law's, over two steps down ½‖y − dy‖², of all layers at once and in fractions.

    x and dy of each layer are what ``spec.block`` gives in float64, at Λ and Γ rounded; from them on nothing is.
    """
    block, updates, wrong = build_block(case), dict[str, spec.Update](), 0
    for role, adapter in block.adapters.items():
        A, B, lambda_, gamma, scaling, *rules = as_update(cast(RandLoRA, adapter))
        updates[role] = spec.Update(*map(fractions, (A, B, lambda_, gamma, scaling)), *rules)
    constant = {role: int(np.any(own.gamma != 0)) for role, own in updates.items()}
    ranks, moved = dict.fromkeys(updates, 0), {role: list[Array]() for role in updates}  # each G along which Γ moved
    seen = spec.visible(case.size, case.causal, block.mask)
    tables = case.rotary and spec.rotary_tables(case.size, case.spec.head_width, *case.rotary)
    for step in range(3):
        rounded = {}
        for role, own in updates.items():
            shape, *_, orientation = case.spec.shapes()[role], *own
            delta = spec.delta_weight(*own[:4], shape, 1, own.pairing, orientation)
            wrong += fraction_rank(spec.oriented(delta, shape, orientation, adjoint=True)) != ranks[role]
            rounded[role] = spec.Update._make([*(np.asarray(x, float) for x in own[:5]), *own[5:]])
        if step == 2:
            break
        arguments = block.floats["x"], case.spec, block.parameters, rounded, seen, tables
        y, inputs = spec.block_forward(*arguments)
        _, gradients = spec.block_backward(y - block.dy, *arguments)
        for role, own in updates.items():
            dy, x = (fractions(rows.reshape(-1, rows.shape[-1])) for rows in (gradients[role].y, inputs[role]))
            (n, r), G = own.lambda_.shape, spec.oriented(dy.T @ x, case.spec.shapes()[role], own.orientation, True)
            ranks[role] = min(r, *G.shape) * int(np.any(G != 0))
            if np.any(own.lambda_ != 0):
                moved[role].append(G)
                ranks[role] = law(np.concatenate(moved[role]), G.shape, r, n, constant[role])
            d_lambda, d_gamma = spec.pullback(dy.T @ x, *own[:6], own.orientation)
            updates[role] = own._replace(lambda_=own.lambda_ - RATE * d_lambda, gamma=own.gamma - RATE * d_gamma)
    return float(wrong)


LAW = Property("ranks after 0, 1, 2 steps inside a block that are not the law's", first_steps, 0, "exact")
