"""RandLoRA as users run it: the layer of ``spec``, fast, on any array library, with no loop over terms.

One matrix form carries everything. With 𝐁 = [B_1 … B_n] (D, n·r) and S the rows s·Λ_j[k]·A[k, :]∘Γ_j (n·r, d),

    M = 𝐁 S (D, d),      ΔW = M if out >= in, else Mᵀ.

Rows on the d side are called p, rows on the D side q: a tall layer (out >= in) has p = x, q = dy, a wide one p = dy,
q = x. Then the adapter's forward and input gradient are ``p Mᵀ`` and ``q M`` in one order or the other, and in both
cases G_M = ∂L/∂M = qᵀp. The pairing is the order of S's rows: term by term (literal), or rank by rank (crossed).

Three orders of contraction do the same sums; ``contraction_costs`` chooses by counting.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np

from .. import arrays, checks
from ..bases import Bases, Kind, draw_bases
from ..dialects import Dialect, get_dialect
from ..spec import sides
from .base import Factors, LinearAdapter, options

Array = Any
Order = Literal["merged", "thin", "termwise"]
ORDERS: tuple[Order, ...] = ("merged", "thin", "termwise")

# One element-wise operation takes the time of about this many operations inside a matrix product (measured on two
# cores, float32: ``examples/bench_layer.py``). It decides between orders alone, never a result.
ELEMENTWISE = 32
DEVIATION = "; bases drawn by PEFT's rule are NaN where their deviation is zero: another seed has others"


class Grads(NamedTuple):
    """Gradients of the loss; ``weight`` is None unless asked for, ``bias`` None where the layer has none."""

    lambda_: Array
    gamma: Array
    weight: Array | None
    bias: Array | None


class Kept(NamedTuple):
    """What backward needs beside x: the order, x's projection z or v (T, n·r), and what was formed, if it is kept.

    That is W0 + ΔW (with dropout ΔW alone) in the order "merged", K in "thin".
    """

    order: Order
    projection: Array | None
    formed: Array | None


def contraction_costs(
    rows: int, D: int, d: int, n: int, r: int, *, masked: bool = False, keep_merged: bool = False
) -> dict[Order, float]:
    """Flops of forward and backward of one layer for ``rows`` inputs, in each order of contraction.

    merged    ΔW is formed, y and ∂L/∂x go through W0 + ΔW, and ∂L/∂S is 𝐁ᵀ(qᵀp) or (q𝐁)ᵀp, the cheaper
    thin      p and q go through K, Λ and 𝐁; G_M is never formed; what PEFT does
    termwise  neither ΔW nor S is formed: ((p∘Γ_j)Aᵀ∘Λ_j)B_jᵀ for all j at once; for few rows

    Element-wise operations count ``ELEMENTWISE`` times: they wait for memory.
    """
    N = n * r
    frozen, form, through_S, through_B = 4 * rows * D * d, 2 * D * N * d, 2 * rows * N * d, 2 * rows * D * N
    S, pullback = 2 * N * d, 5 * N * d
    again = 1 if keep_merged else 2  # times ΔW is formed
    through_dS = min(frozen / 2 + form, through_B + through_S)
    beside = frozen if masked else 0  # with dropout, x and x∘m take two ways
    return {
        "merged": frozen + beside + again * form + through_dS + ELEMENTWISE * (again * (S + D * d) + pullback),
        "thin": frozen + 2 * through_B + 3 * through_S + ELEMENTWISE * (2 * S + pullback),
        "termwise": frozen + 2 * through_B + 2 * through_S + ELEMENTWISE * rows * n * (5 * d + 5 * r),
    }


@dataclass(frozen=True, eq=False, kw_only=True)
class RandLoRA(LinearAdapter):
    """A RandLoRA adapter of one weight (out, in), from given arrays; ``RandLoRA.start`` makes one to be trained.

    ``bases``: at least as large as the layer. ``lambda_`` (n, r), ``gamma`` (n, d), in float16, float32 or float64;
    the bases are used in their dtype: narrower ones are widened, wider ones refused. ``dialect`` settles the pairing,
    and the scaling from ``alpha`` unless ``scaling`` is given. ``order`` of contraction: None takes the cheapest of
    ``contraction_costs`` for each batch.

    Raises TypeError or ValueError that names the argument.
    """

    LEARNED: ClassVar[tuple[str, ...]] = ("lambda_", "gamma")
    GRADS = Grads
    rank: int
    bases: Bases
    lambda_: Array
    gamma: Array
    dialect: Any  # the name of a dialect, or a Dialect, which it becomes
    alpha: float | None = None
    scaling: Any = None  # a number; None becomes the dialect's, from alpha
    order: Order | None = None
    _A: Array = field(init=False, repr=False)
    _B: Array = field(init=False, repr=False)  # 𝐁 (D, n·r); a view where B is laid out as draw_bases does

    def __post_init__(self) -> None:
        checks.sizes(self.out_features, self.in_features, self.rank)
        dialect, bases, lambda_, rank = get_dialect(self.dialect), self.bases, self.lambda_, self.rank
        checks.choice("order", self.order, (None, *ORDERS))
        xp = checks.floats(half=True, lambda_=lambda_, gamma=self.gamma)
        checks.namespace(lambda_=lambda_, A=bases.A)
        if lambda_.ndim != 2 or lambda_.shape[0] < 1 or lambda_.shape[1] != rank:
            raise ValueError(f"lambda_: shape {tuple(lambda_.shape)}; it must be (n, r) with n >= 1 and r = {rank}")
        checks.shape("gamma", self.gamma, (self.n, self.d))
        precision = checks.precision("lambda_", lambda_)
        if bases.A.shape[0] != rank:
            raise ValueError(f"bases: rank {bases.A.shape[0]}; it must be {rank}")
        for name, basis in (("A", bases.A), ("B", bases.B)):
            if arrays.unit_roundoff(checks.precision(name, basis)) < arrays.unit_roundoff(precision):
                raise TypeError(
                    f"{name}: dtype {arrays.dtype_name(basis)}; it must be {precision} or narrower, as lambda_ is"
                )
        own = bases.slice(self.n, self.D, self.d)
        checks.finite(xp, why=dict.fromkeys("AB", DEVIATION), A=own.A, B=own.B, lambda_=lambda_, gamma=self.gamma)
        scaling = dialect.scaling(rank, self.n, self.alpha) if self.scaling is None else self.scaling
        scaling = checks.number("scaling", scaling)
        B = arrays.permute(xp, arrays.widen(xp, own.B, precision), (1, 0, 2))
        settled = {"dialect": dialect, "scaling": scaling, "_A": arrays.widen(xp, own.A, precision)}
        for name, value in {**settled, "_B": xp.reshape(B, (self.D, self.n * rank))}.items():
            object.__setattr__(self, name, value)

    @classmethod
    def start(
        cls,
        out_features: int,
        in_features: int,
        rank: int = 32,
        dialect: str | Dialect = "peft",
        seed: int | None = None,
        alpha: float | None = None,
        bases: Bases | None = None,
        *,
        scaling: float | None = None,
        kind: Kind = "dense",
        dtype: Literal["float16", "float32", "float64"] = "float32",
        xp: Any = np,
        device: Any = None,
    ) -> Self:
        """An adapter as training starts: constant Λ and Γ, the dialect's n and scaling, ΔW = 0 in both dialects.

        ``seed`` and ``alpha`` None take the dialect's (PEFT's are 0 and 640). ``bases`` None draws the layer's own;
        given, they may be shared. They are rounded to ``dtype`` "float16" alone, which asks for it.
        ValueError for bases that PEFT divides by a deviation of zero: a sparse A or B may hold zeros alone.
        """
        dialect = get_dialect(dialect)
        shape = (out_features, in_features)
        out_features, in_features, rank = checks.sizes(out_features, in_features, rank)
        if bases is None:
            seed = dialect.default_seed if seed is None else seed
            drawn: Literal["float32", "float64"] = "float64" if dtype == "float64" else "float32"
            bases = draw_bases(
                dialect, seed=seed or 0, shapes=[shape], rank=rank, kind=kind, dtype=drawn, xp=xp, device=device
            )
        else:
            xp, device = checks.namespace(A=bases.A), arrays.device_of(bases.A)
        n = dialect.terms(shape, rank)
        if dtype == "float16":
            own = bases.slice(n, *sides(shape))
            bases = Bases(arrays.astype(xp, own.A, xp.float16), arrays.astype(xp, own.B, xp.float16))
        lambda_value, gamma_value = dialect.start(shape, rank, n)
        made = options(dtype, xp, device)
        return cls(
            out_features=out_features,
            in_features=in_features,
            rank=rank,
            bases=bases,
            lambda_=xp.full((n, rank), lambda_value, **made),
            gamma=xp.full((n, sides(shape)[1]), gamma_value, **made),
            dialect=dialect,
            alpha=alpha,
            scaling=scaling,
        )

    @property
    def n(self) -> int:
        """The number of terms."""
        return int(self.lambda_.shape[0])

    @property
    def D(self) -> int:
        """The larger side."""
        return sides(self.shape)[0]

    @property
    def d(self) -> int:
        """The smaller side."""
        return sides(self.shape)[1]

    @property
    def tall(self) -> bool:
        """Whether ΔW is the sum itself (out >= in), not its transpose."""
        return self.shape[0] >= self.shape[1]

    def factors(self) -> Factors:
        """n products (B_j, Λ_j, A, Γ_j), the pairing resolved in B_j (D, r), the scaling left out.

        Their sum is ΔW of a tall or square layer, and its transpose, of the same rank, of a wide one.
        """
        n, r, crossed = self.n, self.rank, self._crossed
        columns = [slice(j, None, n) if crossed else slice(j * r, (j + 1) * r) for j in range(n)]
        return tuple((self._B[:, columns[j]], self.lambda_[j, :], self._A, self.gamma[j, :]) for j in range(n))

    def delta_weight(self) -> Array:
        """ΔW (out, in)."""
        return self._delta(checks.namespace(lambda_=self.lambda_))

    # -- the pieces ---------------------------------------------------------------------------------------

    @property
    def _crossed(self) -> bool:
        return bool(self.dialect.pairing == "crossed")

    def _order(self, rows: int, masked: bool, keep_merged: bool) -> Order:
        if self.order is not None:
            return self.order
        costs = contraction_costs(rows, self.D, self.d, self.n, self.rank, masked=masked, keep_merged=keep_merged)
        return min(costs, key=lambda order: costs[order])

    def _apply(self, xp: Any, p: Array, weight: Array | None, keep_merged: bool = False) -> tuple[Array, Kept]:
        order = self._order(p.shape[0], weight is None, keep_merged)
        if order == "merged":
            formed = self._delta(xp) if weight is None else weight + self._delta(xp)
            return p @ formed.T, Kept(order, None, formed if keep_merged else None)
        formed = self._K(xp) if order == "thin" else None
        if self.tall:
            inner = self._project(xp, p, formed)
            step = (inner * self._scales(xp)) @ self._B.T
        else:
            inner = p @ self._B
            step = self._gather(xp, self._spread(xp, inner * self._scales(xp), formed), formed)
        return (step if weight is None else p @ weight.T + step), Kept(order, inner, formed if keep_merged else None)

    def _pull_back(
        self, xp: Any, q: Array, p: Array, weight: Array | None, inner: Kept
    ) -> tuple[Array, tuple[Array, ...]]:
        d_side, D_side = (p, q) if self.tall else (q, p)
        formed = inner.formed
        if inner.order == "merged":
            if formed is None:
                formed = self._delta(xp) if weight is None else weight + self._delta(xp)
            T, N = p.shape[0], self.n * self.rank
            if self.D * self.d * (T + N) <= T * N * (self.D + self.d):  # 𝐁ᵀ(qᵀp) or (q𝐁)ᵀp, the cheaper
                dS = self._B.T @ (D_side.T @ d_side)
            else:
                dS = (D_side @ self._B).T @ d_side
            return q @ formed, self._learned(xp, dS)
        if inner.order == "thin" and formed is None:
            formed = self._K(xp)
        z: Array = inner.projection if self.tall else self._project(xp, d_side, formed)
        v: Array = D_side @ self._B if self.tall else inner.projection
        u = v * self._scales(xp)
        spread = self._spread(xp, u, formed)
        step = self._gather(xp, spread, formed) if self.tall else (z * self._scales(xp)) @ self._B.T
        if formed is None:
            d_gamma = xp.sum(d_side[:, None, :] * spread, axis=0)
        else:
            P = self._by_terms(xp, u.T @ d_side)
            P *= self._A
            d_gamma = xp.sum(P, axis=1)
        d_lambda = self.scaling * self._by_terms(xp, xp.sum(v * z, axis=0)[:, None])[:, :, 0]
        return (step if weight is None else q @ weight + step), (d_lambda, d_gamma)

    # Rows of S and K, and columns of 𝐁, v, z and u, are in one order: term by term, or rank by rank if crossed.

    def _by_terms(self, xp: Any, x: Array) -> Array:
        """(n·r, k) in that order as (n, r, k)."""
        if self._crossed:
            return arrays.permute(xp, xp.reshape(x, (self.rank, self.n, x.shape[1])), (1, 0, 2))
        return xp.reshape(x, (self.n, self.rank, x.shape[1]))

    def _scales(self, xp: Any) -> Array:
        """s·Λ as (n·r,)."""
        scaled = self.scaling * self.lambda_
        return xp.reshape(scaled.T if self._crossed else scaled, (self.n * self.rank,))

    def _K(self, xp: Any) -> Array:
        """K (n·r, d), the Khatri-Rao product: row (j, k) is A[k, :]∘Γ_j. S is diag(s·Λ) K."""
        A, gamma = (self._A[:, None, :], self.gamma[None, :, :]) if self._crossed else (self._A, self.gamma[:, None, :])
        return xp.reshape(A * gamma, (self.n * self.rank, self.d))

    def _delta(self, xp: Any) -> Array:
        """ΔW (out, in): M = 𝐁 S, or its transpose."""
        S = self._scales(xp)[:, None] * self._K(xp)
        return self._B @ S if self.tall else S.T @ self._B.T

    def _learned(self, xp: Any, dS: Array) -> tuple[Array, Array]:
        """∂L/∂Λ (n, r) and ∂L/∂Γ (n, d) from dS = ∂L/∂S = 𝐁ᵀG_M (n·r, d), which is overwritten."""
        P = self._by_terms(xp, dS)
        P *= self._A
        d_lambda = self.scaling * (P @ self.gamma[:, :, None])[:, :, 0]
        d_gamma = ((self.scaling * self.lambda_)[:, None, :] @ P)[:, 0, :]
        return d_lambda, d_gamma

    def _project(self, xp: Any, p: Array, K: Array | None) -> Array:
        """z = p Kᵀ (T, n·r); without K, (p∘Γ_j) Aᵀ for every j."""
        if K is not None:
            return p @ K.T
        z = (p[:, None, :] * self.gamma[None, :, :]) @ self._A.T
        return xp.reshape(arrays.swap_last(z) if self._crossed else z, (p.shape[0], self.n * self.rank))

    def _spread(self, xp: Any, u: Array, K: Array | None) -> Array:
        """u (T, n·r) itself; without K, u_j A for every j, (T, n, d)."""
        if K is not None:
            return u
        if self._crossed:
            return arrays.swap_last(xp.reshape(u, (u.shape[0], self.rank, self.n))) @ self._A
        return xp.reshape(u, (u.shape[0], self.n, self.rank)) @ self._A

    def _gather(self, xp: Any, spread: Array, K: Array | None) -> Array:
        """u K (T, d) of what ``_spread`` made of u: Σ_j (u_j A)∘Γ_j."""
        return spread @ K if K is not None else xp.sum(spread * self.gamma[None, :, :], axis=1)
