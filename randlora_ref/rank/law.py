"""The rank of ΔW over the first steps of gradient descent, as the method has it: a theorem, and what it needs.

From Λ = 0 and constant Γ = g the gradient of Γ is zero, so a step along G = ∂L/∂ΔW ≠ 0 gives
g·(Σ_j B_jΛ_j)A, of rank min(r, d). At the next one let G, turned so that it is (D, d), be Σ_τ u_τ v_τᵀ of rank t. Then
Γ_j = g − η·s·Σ_{k,τ} Λ_j[k] (B_j[:, k]ᵀu_τ) A[k]∘v_τ, and row (j, k) of K (``spec.khatri_rao``) lies in the span of the
r rows A[k] and of the t·r(r+1)/2 products A[k]∘A[k']∘v_τ, which vanish where G has a zero column: with ℓ columns that
are not zero and c = 1,

    rank ΔW <= min(D, d, n·r, c·r + min(ℓ, t·r(r+1)/2))

whatever the bases. From Γ = 0 and constant Λ the first step moves Γ already, and Λ not at all, as its gradient is zero
there: so the second moves Γ at the same Λ, and after two steps of one rate the same holds with c = 0 and G the sum of
both gradients. Dense bases, drawn, are equal to it, but for t = 1: then Γ_j = c·g + l_j∘v with l_j a linear form of A's
rows, and as l_i·l_j = l_j·l_i any antisymmetric ω gives Σ_j L_j∘Γ_j = 0 with L_j = Σ_i ω_ji l_i, where the L_j have to
add to zero if c = 1. That is C(m − c, 2) rows of K less, of m = min(n, r + c) terms; more terms add none.

What nlg reshapes in tall layers (``spec.oriented``) is the sum M; G is reshaped with it, and what is said holds of M.
"""

from math import comb, gcd


def rows_reached(t: int, r: int, n: int, constant: int) -> int:
    """The rank of K (n·r, d) where d is no less: its rows are A[k]∘Γ_j, Γ_j moved along a G of rank ``t``.

    ``constant`` is c: 1 where Γ started as a constant that is not zero, else 0.
    """
    if t == 1:
        m = min(n, r + constant)
        return m * r - comb(m - constant, 2)
    return min(n * r, constant * r + t * r * (r + 1) // 2)


def tokens_needed(d: int, r: int, n: int, constant: int = 1) -> int:
    """The least t with which the step that moves Γ gives rank d, for n·r >= d: no fewer tokens than that can."""
    return next(t for t in range(1, d + 1) if rows_reached(t, r, n, constant) >= d)


def reshape_gain(shape: tuple[int, int]) -> int:
    """rank M.reshape(in, out)ᵀ <= gain·rank M: out / in where that divides, 1 where it is a transpose (out <= in).

    Column i of ΔW is entries i·out … (i + 1)·out of M, row by row: it begins at column c = i·out mod in of a row of M,
    and touches ceil((c + out)/in) of them. Columns of one c are in the span of that many pieces of rows, each of which
    has the rank of M at most; c is a multiple of gcd(out, in).
    """
    out, in_ = shape
    return 1 if out <= in_ else sum(-(-(c + out) // in_) for c in range(0, in_, gcd(out, in_)))
