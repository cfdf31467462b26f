"""RandLoRA as users run it: the layer of ``spec``, fast, on any array library, with no loop over terms.

One matrix form carries everything. With 𝐁 = [B_1 … B_n] (D, n·r) and S the rows s·Λ_j[k]·A[k, :]∘Γ_j (n·r, d),

    M = 𝐁 S (D, d),      ΔW = M if out >= in, else Mᵀ.

Rows on the d side are called p, rows on the D side q: a tall layer (out >= in) has p = x, q = dy, a wide one p = dy,
q = x. Then the adapter's forward and input gradient are ``p Mᵀ`` and ``q M`` in one order or the other, and in both
cases G_M = ∂L/∂M = qᵀp. The pairing is the order of S's rows: term by term (literal), or rank by rank (crossed).

Three orders of contraction do the same sums; ``contraction_costs`` chooses by counting.
"""

from typing import Any, Literal, NamedTuple, Self

import numpy as np

from .. import arrays
from ..bases import Bases, Kind, check_rank, check_shape, draw_bases
from ..dialects import Dialect, get_dialect
from ..spec import sides
from . import protocol
from .protocol import Factors

Array = Any
Order = Literal["merged", "thin", "termwise"]
ORDERS: tuple[Order, ...] = ("merged", "thin", "termwise")

# One element-wise operation takes the time of about this many operations inside a matrix product (measured on two
# cores, float32: ``randlora-ref bench``). It decides between orders alone, never a result.
ELEMENTWISE = 32


class Grads(NamedTuple):
    """Gradients of the loss; ``weight`` is None unless asked for, ``bias`` None where the layer has none."""

    lambda_: Array
    gamma: Array
    weight: Array | None
    bias: Array | None


class Cache(NamedTuple):
    """What backward needs of forward. ``inner`` is the (T, n·r) projection of x, ``merged`` W0 + ΔW if kept."""

    x: Array
    weight: Array
    has_bias: bool
    dropout_mask: Array | None
    order: Order
    inner: Array | None
    merged: Array | None


def contraction_costs(
    rows: int, D: int, d: int, n: int, r: int, *, masked: bool = False, keep_merged: bool = False
) -> dict[Order, float]:
    """Flops of forward and backward of one layer for ``rows`` inputs, in each order of contraction.

    merged    ΔW is formed, y and ∂L/∂x go through W0 + ΔW, and ∂L/∂S is 𝐁ᵀ(qᵀp) or (q𝐁)ᵀp, the cheaper
    thin      p and q go through S, then 𝐁; G_M is never formed; what PEFT does
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


class RandLoRA:
    """A RandLoRA adapter of one weight (out, in), from given arrays; ``RandLoRA.start`` makes one to be trained.

    ``bases``: at least as large as the layer. ``lambda_`` (n, r), ``gamma`` (n, d), in float16, float32 or float64;
    the bases are used in their dtype. ``dialect`` settles the pairing, and the scaling from ``alpha`` unless
    ``scaling`` is given. Attributes are read-only by convention; ``replace`` makes another adapter.

    Raises TypeError or ValueError that names the argument.
    """

    def __init__(
        self, *, out_features: int, in_features: int, rank: int, bases: Bases, lambda_: Array, gamma: Array,
        dialect: str | Dialect, alpha: float | None = None, scaling: float | None = None
    ) -> None:
        check_shape((out_features, in_features))
        check_rank(rank)
        self.shape = (int(out_features), int(in_features))
        self.rank = int(rank)
        self.dialect = get_dialect(dialect)
        self.bases, self.lambda_, self.gamma = bases, lambda_, gamma
        xp = arrays.namespace(lambda_=lambda_, gamma=gamma, A=bases.A, B=bases.B)
        self.D, self.d = sides(self.shape)
        if lambda_.ndim != 2 or lambda_.shape[0] < 1 or lambda_.shape[1] != rank:
            raise ValueError(f"lambda_: shape {tuple(lambda_.shape)}; it must be (n, r) with n >= 1 and r = {rank}")
        self.n = int(lambda_.shape[0])
        protocol.check_shape("gamma", gamma, (self.n, self.d))
        precision = arrays.precision("lambda_", lambda_)
        protocol.check_precision(precision, gamma=gamma)
        if bases.A.shape[0] != rank:
            raise ValueError(f"bases: rank {bases.A.shape[0]}; it must be {rank}")
        own = bases.slice(self.n, self.D, self.d)
        arrays.check_finite(xp, A=own.A, B=own.B, lambda_=lambda_, gamma=gamma)
        self.alpha = alpha
        self.scaling = float(self.dialect.scaling(self.rank, self.n, alpha) if scaling is None else scaling)
        if not np.isfinite(self.scaling):
            raise ValueError(f"scaling: {self.scaling}; it must be finite")
        real = getattr(xp, precision)
        self._A = arrays.astype(xp, own.A, real)
        B = arrays.permute(xp, arrays.astype(xp, own.B, real), (1, 0, 2))
        self._B = xp.reshape(B, (self.D, self.n * self.rank))  # 𝐁; a view where B is laid out as draw_bases does

    @classmethod
    def start(
        cls, out_features: int, in_features: int, rank: int = 32, dialect: str | Dialect = "peft",
        seed: int | None = None, alpha: float | None = None, bases: Bases | None = None, *,
        scaling: float | None = None, kind: Kind = "dense",
        dtype: Literal["float16", "float32", "float64"] = "float32", xp: Any = np, device: Any = None
    ) -> Self:
        """An adapter as training starts: constant Λ and Γ, the dialect's n and scaling, ΔW = 0 in both dialects.

        ``seed`` and ``alpha`` None take the dialect's (PEFT's are 0 and 640). ``bases`` None draws the layer's own;
        given, they may be shared.
        """
        dialect = get_dialect(dialect)
        shape = (out_features, in_features)
        check_shape(shape)
        check_rank(rank)
        if dtype not in ("float16", "float32", "float64"):
            raise ValueError(f"dtype: {dtype!r}; it must be 'float16', 'float32' or 'float64'")
        if bases is None:
            seed = dialect.default_seed if seed is None else seed
            drawn: Literal["float32", "float64"] = "float64" if dtype == "float64" else "float32"
            bases = draw_bases(
                dialect, seed=seed or 0, shapes=[shape], rank=rank, kind=kind, dtype=drawn, xp=xp, device=device
            )
        else:
            xp, device = arrays.namespace(A=bases.A), arrays.device_of(bases.A)
        n = dialect.terms(shape, rank)
        lambda_value, gamma_value = dialect.start(shape, rank, n)
        options = {"dtype": getattr(xp, dtype), **arrays.on(device)}
        return cls(
            out_features=out_features,
            in_features=in_features,
            rank=rank,
            bases=bases,
            lambda_=xp.full((n, rank), lambda_value, **options),
            gamma=xp.full((n, sides(shape)[1]), gamma_value, **options),
            dialect=dialect,
            alpha=alpha,
            scaling=scaling,
        )

    @property
    def out_features(self) -> int:
        """The weight's first axis."""
        return self.shape[0]

    @property
    def in_features(self) -> int:
        """The weight's second axis."""
        return self.shape[1]

    @property
    def tall(self) -> bool:
        """Whether ΔW is the sum itself (out >= in), not its transpose."""
        return self.shape[0] >= self.shape[1]

    def replace(self, **learned: Array) -> Self:
        """The same adapter with another ``lambda_`` or ``gamma``, or both."""
        unknown = sorted(set(learned) - {"lambda_", "gamma"})
        if unknown:
            raise TypeError(f"{unknown[0]}: not a learned value of RandLoRA; it must be lambda_ or gamma")
        return type(self)(
            out_features=self.shape[0],
            in_features=self.shape[1],
            rank=self.rank,
            bases=self.bases,
            dialect=self.dialect,
            alpha=self.alpha,
            scaling=self.scaling,
            **{"lambda_": self.lambda_, "gamma": self.gamma, **learned},
        )

    def num_parameters(self) -> int:
        """n·(r + d), the learned values (§4.1)."""
        return self.n * (self.rank + self.d)

    def factors(self) -> Factors:
        """n products (B_j Λ_j A Γ_j), the pairing resolved in B_j (D, r), the scaling left out."""
        n, r, crossed = self.n, self.rank, self.dialect.pairing == "crossed"
        columns = [slice(j, None, n) if crossed else slice(j * r, (j + 1) * r) for j in range(n)]
        return tuple((self._B[:, columns[j]], self.lambda_[j, :], self._A, self.gamma[j, :]) for j in range(n))

    def delta_weight(self) -> Array:
        """ΔW (out, in)."""
        return self._delta(arrays.namespace(lambda_=self.lambda_))

    def merge(self, weight: Array) -> Array:
        """W0 + ΔW, of the shape of ``weight`` (out, in)."""
        self._check_weight(weight)
        return weight + self.delta_weight()

    def unmerge(self, weight: Array) -> Array:
        """The merged ``weight`` (out, in) − ΔW: W0 up to one rounding of the merged weight."""
        self._check_weight(weight)
        return weight - self.delta_weight()

    def forward(
        self, x: Array, weight: Array, bias: Array | None = None, *, dropout_mask: Array | None = None,
        keep_merged: bool = False, order: Order | None = None
    ) -> tuple[Array, Cache]:
        """y (…, out) = x W0ᵀ + (x∘m) ΔWᵀ + b of x (…, in), and the cache of ``backward``.

        ``dropout_mask`` m, of the shape of x, holds 0 where dropped and 1/(1 − p) where kept. ``order`` None takes the
        cheapest of ``contraction_costs``. ``keep_merged`` keeps W0 + ΔW for backward in the order "merged": out·in
        numbers more in the cache, and ΔW formed once, not twice.
        """
        xp = protocol.check_layer(self.shape, self.lambda_, x, weight, bias, dropout_mask)
        rows = arrays.as_rows(xp, x)
        masked = rows if dropout_mask is None else rows * arrays.as_rows(xp, dropout_mask)
        order = self._order(rows.shape[0], dropout_mask is not None, keep_merged) if order is None else order
        if order not in ORDERS:
            raise ValueError(f"order: {order!r}; it must be one of {', '.join(ORDERS)}")
        inner = merged = None
        if order == "merged" and dropout_mask is None:
            merged = weight + self._delta(xp)
            y = rows @ merged.T
        elif order == "merged":
            y = rows @ weight.T + masked @ self._delta(xp).T
        else:
            step, inner = (self._up if self.tall else self._down)(xp, masked, order)
            y = rows @ weight.T + step
        if bias is not None:
            y = y + bias
        cache = Cache(x, weight, bias is not None, dropout_mask, order, inner, merged if keep_merged else None)
        return xp.reshape(y, (*x.shape[:-1], self.shape[0])), cache

    def backward(self, dy: Array, cache: Cache, *, weight_grad: bool = False) -> tuple[Array, Grads]:
        """∂L/∂x (…, in) and the gradients of ∂L/∂y = ``dy`` (…, out); that of W0 if ``weight_grad``."""
        protocol.check_shape("dy", dy, (*cache.x.shape[:-1], self.shape[0]))
        xp = arrays.namespace(dy=dy, x=cache.x)
        protocol.check_precision(arrays.precision("lambda_", self.lambda_), dy=dy)
        mask = None if cache.dropout_mask is None else arrays.as_rows(xp, cache.dropout_mask)
        rows, dy_rows = arrays.as_rows(xp, cache.x), arrays.as_rows(xp, dy)
        masked = rows if mask is None else rows * mask
        G = None
        if cache.order == "merged":
            p, q = (masked, dy_rows) if self.tall else (dy_rows, masked)
            T, N = rows.shape[0], self.n * self.rank
            if weight_grad or self.D * self.d * (T + N) <= T * N * (self.D + self.d):  # 𝐁ᵀ(qᵀp) or (q𝐁)ᵀp
                G = dy_rows.T @ masked
                dS = self._B.T @ (G if self.tall else G.T)
            else:
                dS = (q @ self._B).T @ p
            d_lambda, d_gamma = self._pull_back(xp, dS)
            if mask is None:
                dx = dy_rows @ (cache.weight + self._delta(xp) if cache.merged is None else cache.merged)
            else:
                dx = dy_rows @ cache.weight + (dy_rows @ self._delta(xp)) * mask
        else:
            method = self._backward_thin if cache.order == "thin" else self._backward_termwise
            step, d_lambda, d_gamma = method(xp, masked, dy_rows, cache.inner)
            dx = dy_rows @ cache.weight + (step if mask is None else step * mask)
        d_weight = None
        if weight_grad:
            d_weight = G if G is not None and mask is None else dy_rows.T @ rows
        d_bias = xp.sum(dy_rows, axis=0) if cache.has_bias else None
        return xp.reshape(dx, tuple(cache.x.shape)), Grads(d_lambda, d_gamma, d_weight, d_bias)

    # -- the pieces ---------------------------------------------------------------------------------------

    def _order(self, rows: int, masked: bool, keep_merged: bool) -> Order:
        costs = contraction_costs(rows, self.D, self.d, self.n, self.rank, masked=masked, keep_merged=keep_merged)
        return min(costs, key=lambda order: costs[order])

    def _check_weight(self, weight: Array) -> None:
        xp = arrays.namespace(weight=weight, lambda_=self.lambda_)
        protocol.check_shape("weight", weight, self.shape)
        protocol.check_precision(arrays.precision("lambda_", self.lambda_), weight=weight)
        arrays.check_finite(xp, weight=weight)

    def _S(self, xp: Any) -> Array:
        """S (n·r, d): row (j, k) is s·Λ_j[k]·A[k, :]∘Γ_j, in the order of 𝐁's columns under the pairing."""
        scaled = self.scaling * self.lambda_
        if self.dialect.pairing == "crossed":
            S = (scaled.T[:, :, None] * self._A[:, None, :]) * self.gamma[None, :, :]
        else:
            S = (scaled[:, :, None] * self._A[None, :, :]) * self.gamma[:, None, :]
        return xp.reshape(S, (self.n * self.rank, self.d))

    def _delta(self, xp: Any) -> Array:
        """ΔW (out, in): 𝐁 S, or its transpose."""
        S = self._S(xp)
        return self._B @ S if self.tall else S.T @ self._B.T

    def _pull_back(self, xp: Any, dS: Array) -> tuple[Array, Array]:
        """∂L/∂Λ (n, r) and ∂L/∂Γ (n, d) from ∂L/∂S over s·Λ, dS = 𝐁ᵀG_M (n·r, d)."""
        n, r, d = self.n, self.rank, self.d
        if self.dialect.pairing == "crossed":
            dS = arrays.permute(xp, xp.reshape(dS, (r, n, d)), (1, 0, 2))
        P = xp.reshape(dS, (n, r, d)) * self._A
        d_lambda = self.scaling * (P @ self.gamma[:, :, None])[:, :, 0]
        d_gamma = ((self.scaling * self.lambda_)[:, None, :] @ P)[:, 0, :]
        return d_lambda, d_gamma

    def _split(self, xp: Any, v: Array) -> Array:
        """(T, n·r) in the order of 𝐁's columns, as (T, n, r)."""
        if self.dialect.pairing == "crossed":
            return arrays.swap_last(xp.reshape(v, (v.shape[0], self.rank, self.n)))
        return xp.reshape(v, (v.shape[0], self.n, self.rank))

    def _join(self, xp: Any, z: Array) -> Array:
        """(T, n, r) as (T, n·r) in the order of 𝐁's columns."""
        if self.dialect.pairing == "crossed":
            z = arrays.swap_last(z)
        return xp.reshape(z, (z.shape[0], self.n * self.rank))

    def _project(self, xp: Any, p: Array) -> Array:
        """((p∘Γ_j) Aᵀ) for every j, (T, n, r)."""
        return (p[:, None, :] * self.gamma[None, :, :]) @ self._A.T

    def _up(self, xp: Any, p: Array, order: Order) -> tuple[Array, Array | None]:
        """p Mᵀ (T, D) of rows p (T, d), and for "termwise" the projection of p."""
        if order == "thin":
            return (p @ self._S(xp).T) @ self._B.T, None
        z = self._project(xp, p)
        return self._join(xp, z * (self.scaling * self.lambda_)) @ self._B.T, z

    def _down(self, xp: Any, q: Array, order: Order) -> tuple[Array, Array]:
        """q M (T, d) of rows q (T, D), and q 𝐁 (T, n·r)."""
        v = q @ self._B
        if order == "thin":
            return v @ self._S(xp), v
        return xp.sum(self._spread(xp, v) * self.gamma[None, :, :], axis=1), v

    def _spread(self, xp: Any, v: Array) -> Array:
        """s·(v_j∘Λ_j) A for every j, (T, n, d), of v = q 𝐁 (T, n·r)."""
        return (self._split(xp, v) * (self.scaling * self.lambda_)) @ self._A

    def _backward_thin(self, xp: Any, x: Array, dy: Array, inner: Array | None) -> tuple[Array, Array, Array]:
        """The adapter's part of ∂L/∂x, and ∂L/∂Λ, ∂L/∂Γ, through dS = (q𝐁)ᵀ p."""
        if self.tall:
            v = dy @ self._B
            return v @ self._S(xp), *self._pull_back(xp, v.T @ x)
        step, _ = self._up(xp, dy, "thin")
        return step, *self._pull_back(xp, inner.T @ dy)  # type: ignore[union-attr]

    def _backward_termwise(self, xp: Any, x: Array, dy: Array, inner: Array | None) -> tuple[Array, Array, Array]:
        """The same, term by term: ∂L/∂Λ = s·Σ_t z∘v with z the projection of p, and ∂L/∂Γ_j = Σ_t p∘spread(v)_j."""
        p, q = (x, dy) if self.tall else (dy, x)
        z = inner if self.tall else self._project(xp, p)
        v = q @ self._B if self.tall else inner
        spread = self._spread(xp, v)
        if self.tall:
            step = xp.sum(spread * self.gamma[None, :, :], axis=1)
        else:
            step = self._join(xp, z * (self.scaling * self.lambda_)) @ self._B.T
        d_lambda = self.scaling * xp.sum(z * self._split(xp, v), axis=0)
        d_gamma = xp.sum(p[:, None, :] * spread, axis=0)
        return step, d_lambda, d_gamma
