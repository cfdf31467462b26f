"""RandLoRA as users run it: the layer of ``spec.update``, fast, on any array library, with no loop over terms.

    ΔW = s·Σ_j B_j Λ_j A Γ_j = 𝐁 S, or its transpose if out < in                           (Eq. 4)

with 𝐁 = [B_1 … B_n] (D, n·r), S = diag(c) K (n·r, d), c = s·vec Λ (n·r,), and K the rows A[k, :]∘Γ_j. The pairing is
the order of the rows of c and K: term by term (literal), or rank by rank (crossed). With the merged weight M = W0 + ΔW

    y = x Mᵀ,    ∂L/∂x = dy M,    G = ∂L/∂ΔW = dyᵀ x,    P_j = (B_jᵀ G)∘A (r, d), with Gᵀ for G if out < in,
    ∂L/∂Λ_j = s·P_j Γ_j (r,),    ∂L/∂Γ_j = s·Λ_jᵀ P_j (d,)

``orders`` has two more orders of contraction of the same sums, for fewer rows.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, Unpack

from .. import arrays, checks
from ..arrays import Reshaped
from ..bases import Bases, Kind, draw_bases
from ..dialects import Dialect, get_dialect
from ..spec import is_transposed, sides
from . import orders
from .base import Array, Arrays, Factors, LinearAdapter, Made, Maker, terms
from .orders import ORDERS, Order, contraction_costs

__all__ = ["ORDERS", "Grads", "Order", "RandLoRA", "contraction_costs"]

DEVIATION = "; bases drawn by PEFT's rule are NaN where their deviation is zero: another seed has others"


@arrays.fused
def scaled_rows(xp: Any, c: Array, A: Array, gamma: Array) -> Array:
    """c·(A∘Γ), of arrays that broadcast."""
    return c * (A * gamma)


@dataclass(frozen=True, eq=False, kw_only=True)
class RandLoRA(LinearAdapter, learned=("lambda_", "gamma")):
    """A RandLoRA adapter of one weight (out, in), from given arrays; ``RandLoRA.start`` makes one to be trained.

    ``bases``: at least as large as the layer. ``lambda_`` (n, r), ``gamma`` (n, d), in float16, float32 or float64;
    the bases are used in their dtype: narrower ones are widened, wider ones refused. ``dialect`` settles the pairing,
    and the scaling from ``alpha`` unless ``scaling`` is given. ``order`` of contraction: None takes the cheapest of
    ``contraction_costs`` for each batch. ``merge`` adds ΔW, but to a square layer of vision's orientation: M, as that
    code does, whose forward takes Mᵀ.

    Raises TypeError or ValueError that names the argument.
    """

    WHY: ClassVar[dict[str, str]] = dict.fromkeys("AB", DEVIATION)
    rank: int
    bases: Bases
    lambda_: Array
    gamma: Array
    dialect: Any  # the name of a dialect, or a Dialect, which it becomes
    alpha: float | None = None
    scaling: Any = None  # a number; None becomes the dialect's, from alpha
    order: Order | None = None
    D: int = field(init=False, repr=False)  # the larger side; ``out`` where ΔW is never transposed
    d: int = field(init=False, repr=False)  # the smaller side; ``in`` where ΔW is never transposed
    tall: bool = field(init=False, repr=False)  # whether ΔW is M, the sum itself (out >= in in most dialects), not Mᵀ
    _crossed: bool = field(init=False, repr=False)  # the pairing
    _scrambled: bool = field(init=False, repr=False)  # whether ΔW is M reshaped, and not its transpose alone
    _A: Array = field(init=False, repr=False)  # (r, d), as 𝐁 in the precision of what is learned
    _B: Array = field(init=False, repr=False)  # 𝐁 (D, n·r); a view where B is laid out as draw_bases does

    def __post_init__(self) -> None:
        checks.instance("bases", self.bases, Bases)
        vars(self)["dialect"] = get_dialect(self.dialect)
        reshaped = self.dialect.orientation == "reshape"
        known, why = (ORDERS[:1], "; what is reshaped has no other") if reshaped else (ORDERS, "")
        checks.choice("order", self.order, (None, *known), why)
        super().__post_init__()
        scaling = self.dialect.scaling(self.rank, self.n, self.alpha) if self.scaling is None else self.scaling
        vars(self)["scaling"] = checks.number("scaling", scaling)

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
        **made: Unpack[Made],
    ) -> Self:
        """An adapter as training starts: constant Λ and Γ, the dialect's n and scaling, ΔW = 0.

        ``seed`` and ``alpha`` None take the dialect's (PEFT's are 0 and 640). ``bases`` None draws the layer's own;
        given, they may be shared. They are rounded to ``dtype`` "float16" alone, which asks for it.
        ValueError for bases that PEFT divides by a deviation of zero: a sparse A or B may hold zeros alone; and for a
        layer that its code cannot make alone, as the official fork a tall one: the bases it draws are too small.
        """
        dialect = get_dialect(dialect)
        out_features, in_features, rank = checks.sizes(out_features, in_features, rank)
        shape = (out_features, in_features)
        if bases is not None:
            checks.instance("bases", bases, Bases)
            made["xp"], made["device"] = checks.namespace(A=bases.A), arrays.device_of(bases.A)
        make, n, own_sides = Maker(**made), dialect.terms(shape, rank), sides(shape, dialect.orientation)
        if bases is None:
            seed = dialect.default_seed or 0 if seed is None else seed
            bases = draw_bases(dialect, seed=seed, shapes=[shape], rank=rank, kind=kind, **make.wide)
            try:
                bases.slice(n, *own_sides)
            except ValueError as error:
                why = f"{dialect.name!r} draws bases of {dialect.shared_sides}, too small for this layer alone"
                raise ValueError(f"{error}; {why}: give bases") from None
        if make.dtype == "float16":
            own, xp = bases.slice(n, *own_sides), make.xp
            bases = Bases(arrays.astype(xp, own.A, xp.float16), arrays.astype(xp, own.B, xp.float16))
        lambda_value, gamma_value = dialect.start(shape, rank, n)
        size: dict[str, Any] = {"out_features": out_features, "in_features": in_features, "rank": rank}
        lambda_, gamma = make.full(lambda_value, n, rank), make.full(gamma_value, n, own_sides[1])
        size |= {"bases": bases, "dialect": dialect, "alpha": alpha, "scaling": scaling}
        return cls(**size, lambda_=lambda_, gamma=gamma)

    @property
    def n(self) -> int:
        """The number of terms."""
        return int(self.lambda_.shape[0])

    def factors(self) -> Factors:
        """n products (B_j, Λ_j, A, Γ_j), the pairing resolved in B_j (D, r), the scaling left out.

        Their sum is ΔW / s; in a wide layer each is turned round, (Γ_j, Aᵀ, Λ_j, B_jᵀ).
        """
        n, r, products = self.n, self.rank, []
        A = self._A if self.tall else self._A.T  # one object in all terms: whoever reads them reads it once
        for j in range(n):
            columns = slice(j, None, n) if self._crossed else slice(j * r, (j + 1) * r)
            B, lambda_, gamma = self._B[:, columns], self.lambda_[j, :], self.gamma[j, :]
            products.append((B, lambda_, A, gamma) if self.tall else (gamma, A, lambda_, B.T))
        sum_of_terms = tuple(products)
        return ((Reshaped(sum_of_terms, self.shape),),) if self._scrambled else sum_of_terms

    def delta_weight(self) -> Array:
        """ΔW (out, in): M = 𝐁 S, or its transpose (Eq. 4); NLG's ``M.reshape(in, out).T``."""
        xp = checks.namespace(lambda_=self.lambda_)
        S = self._S(xp)  # (n·r, d)
        if self._scrambled:
            return xp.reshape(self._B @ S, (self.d, self.D)).T
        return self._B @ S if self.tall else S.T @ self._B.T  # (out, in)

    def _merged_update(self) -> Array:
        """ΔW; under vision's rule M of a square layer, as that code merges, though its forward takes Mᵀ."""
        delta, square = self.delta_weight(), self.shape[0] == self.shape[1]
        return delta.T if square and self.dialect.orientation == "square_transposed" else delta

    def _pull_back_delta(self, xp: Any, dy: Array, x: Array) -> tuple[Array, Array]:
        """∂L/∂Λ (n, r) and ∂L/∂Γ (n, d) from G = ∂L/∂ΔW = dyᵀ x, by P_j = (B_jᵀ G)∘A.

        B_jᵀ(dyᵀ x) is taken as (dy B_j)ᵀ x where that is cheaper, for few rows.
        """
        left, right = (dy, x) if self.tall else (x, dy)  # (T, D), (T, d): leftᵀ right is ∂L/∂M, G or Gᵀ
        s, (T, D), (N, d) = self.scaling, left.shape, (self.n * self.rank, self.d)
        if self._scrambled:
            dS = self._B.T @ xp.reshape(x.T @ dy, (D, d))  # Gᵀ (in, out), reshaped back
        elif D * d * (T + N) <= T * N * (D + d):
            dS = self._B.T @ (left.T @ right)  # (n·r, d)
        else:
            dS = (left @ self._B).T @ right
        P = self._terms(xp, dS) * self._A  # (n, r, d)
        d_lambda = s * (P @ self.gamma[:, :, None])[:, :, 0]  # (n, r)   s·P_j Γ_j
        d_gamma = ((s * self.lambda_)[:, None, :] @ P)[:, 0, :]  # (n, d)   s·Λ_jᵀ P_j
        return d_lambda, d_gamma

    # -- c, K and S, and the order of their rows ----------------------------------------------------------

    @property
    def _c(self) -> Array:
        """c, as (n, r), or (r, n) if crossed."""
        scaled = self.scaling * self.lambda_
        return scaled.T if self._crossed else scaled

    def _times_c(self, xp: Any, z: Array) -> Array:
        """z∘c of rows z (T, n·r), c = s·vec Λ."""
        c = self._c
        return xp.reshape(xp.reshape(z, (z.shape[0], *c.shape)) * c, z.shape)

    def _rows(self) -> tuple[Array, Array]:
        """A and Γ as they broadcast: term by term (n, r, d), or rank by rank (r, n, d) if crossed."""
        return (self._A[:, None, :], self.gamma) if self._crossed else (self._A, self.gamma[:, None, :])

    def _K(self, xp: Any) -> Array:
        """K (n·r, d), the Khatri-Rao product: row (j, k) is A[k, :]∘Γ_j."""
        A, gamma = self._rows()
        return xp.reshape(A * gamma, (-1, self.d))

    def _S(self, xp: Any) -> Array:
        """S = diag(c) K (n·r, d): row (j, k) is s·Λ_j[k]·A[k, :]∘Γ_j."""
        return xp.reshape(scaled_rows(xp, self._c[:, :, None], *self._rows()), (-1, self.d))

    def _terms(self, xp: Any, x: Array) -> Array:
        """Rows (n·r, k) in the order of K's as (n, r, k)."""
        if self._crossed:
            return arrays.permute(xp, xp.reshape(x, (self.rank, self.n, x.shape[1])), (1, 0, 2))
        return xp.reshape(x, (self.n, self.rank, x.shape[1]))

    def _derive(self) -> tuple[str, ...]:
        """A and 𝐁 from the bases, in the precision of what is learned; ("A", "B") unless those at hand are these."""
        n, precision = terms("lambda_", self.lambda_, self.rank), checks.precision("lambda_", self.lambda_)
        at_hand = vars(self).get("_B")
        if at_hand is not None and at_hand.shape[1] == n * self.rank and checks.precision("B", at_hand) == precision:
            return ()
        xp, bases = checks.namespace(lambda_=self.lambda_, A=self.bases.A), self.bases
        checks.floats(half=True, lambda_=self.lambda_, gamma=self.gamma)
        if bases.A.shape[0] != self.rank:
            raise ValueError(f"bases: rank {bases.A.shape[0]}; it must be {self.rank}")
        for name, basis in (("A", bases.A), ("B", bases.B)):
            if arrays.unit_roundoff(checks.precision(name, basis)) < arrays.unit_roundoff(precision):
                dtype = arrays.dtype_name(basis)
                raise TypeError(f"{name}: dtype {dtype}; it must be {precision} or narrower, as lambda_ is")
        orientation, crossed = self.dialect.orientation, self.dialect.pairing == "crossed"
        (D, d), tall = sides(self.shape, orientation), not is_transposed(self.shape, orientation)
        own, scrambled = bases.slice(n, D, d), tall and orientation == "reshape"
        A, B = arrays.widen(xp, own.A, precision), arrays.permute(xp, arrays.widen(xp, own.B, precision), (1, 0, 2))
        vars(self).update(D=D, d=d, tall=tall, _crossed=crossed, _scrambled=scrambled)
        vars(self).update(_A=A, _B=xp.reshape(B, (D, n * self.rank)))
        return "A", "B"

    def _arrays(self) -> Arrays:
        n, r, D, d = self.n, self.rank, self.D, self.d
        learned: Arrays = {"lambda_": (self.lambda_, (n, r)), "gamma": (self.gamma, (n, d))}
        return learned | {"A": (self._A, (r, d)), "B": (self._B, (D, n * r))}

    # -- the order of contraction -------------------------------------------------------------------------

    def _order(self, rows: int, masked: bool, keep_merged: bool) -> Order:
        if self.order is not None or self.dialect.orientation == "reshape":
            return self.order or "merged"
        costs = contraction_costs(rows, self.D, self.d, self.n, self.rank, masked=masked, keep_merged=keep_merged)
        return min(costs, key=lambda order: costs[order])

    def _step(self, xp: Any, x: Array, masked: bool, keep: bool) -> tuple[Array, Any] | None:
        order = self._order(x.shape[0], masked, keep)
        return None if order == "merged" else orders.apply(xp, self, order, x, keep)

    def _step_back(self, xp: Any, dy: Array, x: Array, kept: Any) -> tuple[Array, tuple[Array, ...]]:
        return orders.pull_back(xp, self, dy, x, *kept)


Grads = RandLoRAGrads = RandLoRA.GRADS
