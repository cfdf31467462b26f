"""Two more orders of contraction for RandLoRA: the sums of ``randlora``'s merged one, sooner done for fewer rows.

    ΔW = 𝐁 diag(c) K, or its transpose if out < in;    c = s·vec Λ (n·r,),    K (n·r, d): rows A[k, :]∘Γ_j

ΔW and G = ∂L/∂ΔW are never formed. Rows p (T, d) go through K, rows q (T, D) through 𝐁: z = p Kᵀ and v = q 𝐁 (T, n·r).

    out >= in    p = x,  q = dy:    x ΔWᵀ = (z∘c) 𝐁ᵀ    dy ΔW = (v∘c) K
    out <  in    p = dy, q = x:     x ΔWᵀ = (v∘c) K      dy ΔW = (z∘c) 𝐁ᵀ

and in both ∂L/∂K = (v∘c)ᵀ p, ∂L/∂c = Σ_t v∘z, ∂L/∂Γ_j = Σ_k A[k, :]∘(∂L/∂K)_jk. "thin" forms K, as PEFT does;
"termwise" does not.
"""

from typing import TYPE_CHECKING, Any, Literal

from .. import arrays, checks

if TYPE_CHECKING:
    from .randlora import RandLoRA

Array = Any
Order = Literal["merged", "thin", "termwise"]
ORDERS: tuple[Order, ...] = ("merged", "thin", "termwise")

# One element-wise operation takes the time of about this many operations inside a matrix product (measured on two
# cores, float32: ``examples/bench_layer.py``). It decides between orders alone, never a result.
ELEMENTWISE = 32


def contraction_costs(
    rows: int, D: int, d: int, n: int, r: int, *, masked: bool = False, keep_merged: bool = False
) -> dict[Order, float]:
    """Flops of forward and backward of one layer for ``rows`` inputs, in each order of contraction.

    merged    ΔW is formed, y and ∂L/∂x go through W0 + ΔW, and 𝐁ᵀG is 𝐁ᵀ(dyᵀ x) or (dy 𝐁)ᵀ x, the cheaper
    thin      x and dy go through K, Λ and 𝐁; what PEFT does
    termwise  neither ΔW nor K is formed: ((x∘Γ_j)Aᵀ∘Λ_j)B_jᵀ for all j at once; for few rows

    Element-wise operations count ``ELEMENTWISE`` times: they wait for memory.
    """
    rows, (D, d, n, r) = checks.integer("rows", rows, 0), checks.integers_of(D=D, d=d, n=n, r=r)
    N = n * r
    frozen, form, through_K, through_B = 4 * rows * D * d, 2 * D * N * d, 2 * rows * N * d, 2 * rows * D * N
    K, pullback = 2 * N * d, 5 * N * d
    again = 1 if keep_merged else 2  # times ΔW is formed
    beside = frozen if masked else 0  # with dropout, x and x∘m take two ways
    through_G = min(frozen / 2 + form, through_B + through_K)
    return {
        "merged": frozen + beside + again * form + through_G + ELEMENTWISE * (again * (K + D * d) + pullback),
        "thin": frozen + 2 * through_B + 3 * through_K + ELEMENTWISE * (2 * K + pullback),
        "termwise": frozen + 2 * through_B + 2 * through_K + ELEMENTWISE * rows * n * (5 * d + 5 * r),
    }


def project(xp: Any, layer: "RandLoRA", K: Array | None, p: Array) -> Array:
    """p Kᵀ (T, n·r) of p (T, d); without K, (p∘Γ_j) Aᵀ for all j at once."""
    if K is not None:
        return p @ K.T
    T, n, r, d = p.shape[0], layer.n, layer.rank, layer.d
    z = xp.reshape(p[:, None, :] * layer.gamma, (T * n, d)) @ layer._A.T  # (T·n, r)
    z = arrays.swap_last(xp.reshape(z, (T, n, r))) if layer._crossed else z
    return xp.reshape(z, (T, n * r))


def spread(xp: Any, layer: "RandLoRA", K: Array | None, u: Array) -> Array:
    """What the two below begin with of u (T, n·r): u itself; without K, u_j A (T, n, d) for every j."""
    if K is not None:
        return u
    T, n, r, d = u.shape[0], layer.n, layer.rank, layer.d
    u = arrays.swap_last(xp.reshape(u, (T, r, n))) if layer._crossed else u
    return xp.reshape(xp.reshape(u, (T * n, r)) @ layer._A, (T, n, d))


def gather(xp: Any, layer: "RandLoRA", K: Array | None, spread: Array) -> Array:
    """u K (T, d); without K, Σ_j (u_j A)∘Γ_j."""
    return xp.sum(spread * layer.gamma, axis=1) if K is None else spread @ K


def gamma_gradient(xp: Any, layer: "RandLoRA", K: Array | None, spread: Array, p: Array) -> Array:
    """∂L/∂Γ (n, d) from ∂L/∂K = uᵀp, Σ_k A[k, :]∘(uᵀp)_jk; without K, Σ_t p_t∘(u_j A)_t."""
    if K is None:
        return xp.sum(p[:, None, :] * spread, axis=0)
    return xp.sum(layer._terms(xp, spread.T @ p) * layer._A, axis=1)


def apply(xp: Any, layer: "RandLoRA", order: Order, x: Array, keep: bool) -> tuple[Array, Any]:
    """x ΔWᵀ (T, out) of x (T, in); the order, z or v, whichever x has, and K if it is formed and to ``keep``."""
    K, B = layer._K(xp) if order == "thin" else None, layer._B
    if layer.tall:
        z = kept = project(xp, layer, K, x)  # (T, n·r)
        step = layer._times_c(xp, z) @ B.T
    else:
        v = kept = x @ B
        step = gather(xp, layer, K, spread(xp, layer, K, layer._times_c(xp, v)))
    return step, (order, kept, K if keep else None)


def pull_back(
    xp: Any, layer: "RandLoRA", dy: Array, x: Array, order: Order, kept: Array, K: Array | None
) -> tuple[Array, tuple[Array, ...]]:
    """dy ΔW (T, in) of dy (T, out), ∂L/∂Λ (n, r) and ∂L/∂Γ (n, d), with ∂L/∂Λ = s·∂L/∂c; ``kept`` is of x."""
    K, B = layer._K(xp) if order == "thin" and K is None else K, layer._B
    if layer.tall:
        p, z, v = x, kept, dy @ B  # (T, d), (T, n·r), (T, n·r)
    else:
        p, z, v = dy, project(xp, layer, K, dy), kept
    u = spread(xp, layer, K, layer._times_c(xp, v))
    step = gather(xp, layer, K, u) if layer.tall else layer._times_c(xp, z) @ B.T
    d_c = xp.sum(v * z, axis=0)[:, None]  # (n·r, 1)
    return step, (layer.scaling * layer._terms(xp, d_c)[:, :, 0], gamma_gradient(xp, layer, K, u, p))
