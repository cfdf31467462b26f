"""The specification of RandLoRA: Eq. 4 of arXiv 2502.00987v2, the layer around it, and its gradients.

    ΔW = Σ_{j=1..n} B_j Λ_j A Γ_j                                                          (Eq. 4)

Read this file first, then ``block.py``, which puts the layer into a transformer block. Both are slow and plain
on purpose: loops where the paper has sums, no shortcuts. The fast code of the package is tested against them,
and nothing here is tested against the fast code.

Glossary
--------
=============  ==========  ============  ====================================================================
code           paper       shape         meaning
=============  ==========  ============  ====================================================================
``weight``     W0          (out, in)     the frozen weight
``D``, ``d``   D, d        --            max(out, in), min(out, in)
``r``          r           --            rank of each term ("rank of the bases")
``n``          n           --            number of terms; n·r >= d is needed for full rank
``A``          A           (r, d)        frozen random basis shared by all terms; may be stored wider
``B``          B_j         (n, D, r)     frozen random basis of each term; may be stored with more terms, rows
``lambda_``    Λ_j         (n, r)        learned; row j is the diagonal of the r×r matrix Λ_j
``gamma``      Γ_j         (n, d)        learned; row j is the diagonal of the d×d matrix Γ_j
``scaling``    --          --            one number s in front of the sum; Eq. 4 leaves it out (Tables 8 and 9)
``x``, ``y``   X, Y        (…, in|out)   input and output; any leading axes, none and empty ones too
``dy``, ``G``  ∂L/∂y,ΔW    as y, ΔW      cotangents: the gradient of the loss by y and by ΔW
=============  ==========  ============  ====================================================================

Shapes. A product with a diagonal matrix scales columns or rows: ``B_j * lambda_[j]`` is B_j Λ_j, and
``M * gamma[j]`` is M Γ_j. Eq. 4 assumes d <= D "without loss of generality" (§4.1): a wide layer, out < in,
takes the transpose of the sum. One pair of bases serves a whole network; a layer takes the first n terms, the
first D rows of each B_j and the first d columns of A (§C.5.1), so ``A`` and ``B`` may be larger than a layer.

Pairing. Eq. 4 multiplies column k of B_j with row k of A in term j: ``pairing="literal"``. PEFT 0.21.2 and
the authors' own code flatten the terms of B and of ΛAΓ in two different orders before one matrix product, so
another column meets that row: ``pairing="crossed"``. It is a permutation of random columns, harmless to
training, and a different ΔW from the same bases and the same Λ, Γ. See ``term_basis``.

Any dtype works: float32, float64, complex128, int64, and object arrays of ``fractions.Fraction``. Only
operators and indexing are used, so NumPy, CuPy and array-api-strict arrays do as well. Arguments are assumed
to fit together; ``randlora_ref.RandLoRA`` is the layer that checks them.

Example 1: a 3×2 layer of rank 1, so n = 2. By hand, ΔW = [1 0 1]ᵀ·2·[1 2]·diag(1, 3) + [0 1 1]ᵀ·1·[1 2]·diag(2, 1).

>>> import numpy as np
>>> A = np.array([[1, 2]])                                      # (r, d) = (1, 2)
>>> B = np.array([[[1], [0], [1]], [[0], [1], [1]]])            # (n, D, r) = (2, 3, 1)
>>> lambda_, gamma = np.array([[2], [1]]), np.array([[1, 3], [2, 1]])
>>> delta_weight(A, B, lambda_, gamma, (3, 2))
array([[ 2, 12],
       [ 2,  2],
       [ 4, 14]])

Its transpose is the update of a 2×3 layer:

>>> delta_weight(A, B, lambda_, gamma, (2, 3))
array([[ 2,  2,  4],
       [12,  2, 14]])

Example 2: a 4×4 layer of rank 2, so n = 2, where the pairings part. The columns of B are the unit vectors
e1, e2 (B_1) and e3, e4 (B_2); literally, e2 meets row 2 of A in term 1. Crossed, e3 does.

>>> A = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
>>> B = np.array([[[1, 0], [0, 1], [0, 0], [0, 0]], [[0, 0], [0, 0], [1, 0], [0, 1]]])
>>> lambda_, gamma = np.array([[1, 1], [1, 1]]), np.array([[1, 1, 1, 1], [1, 0, 1, 0]])
>>> delta_weight(A, B, lambda_, gamma, (4, 4))
array([[1, 2, 3, 4],
       [5, 6, 7, 8],
       [1, 0, 3, 0],
       [5, 0, 7, 0]])
>>> delta_weight(A, B, lambda_, gamma, (4, 4), pairing="crossed")
array([[1, 2, 3, 4],
       [1, 0, 3, 0],
       [5, 6, 7, 8],
       [5, 0, 7, 0]])
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

Array = Any  # NumPy, CuPy, array-api-strict: whatever has operators and indexing
Shape = tuple[int, int]  # (out, in) of a layer
Pairing = Literal["literal", "crossed"]
CountRule = Literal["ceil", "floor", "floor+1", "ceil+1"]

SPEC_VERSION = "1.0"


class Gradients(NamedTuple):
    """Gradients of a scalar loss, each of the shape of what it is the gradient of."""

    x: Array
    weight: Array
    bias: Array
    lambda_: Array
    gamma: Array


# ---------------------------------------------------------------------------------------------------------
# Shapes
# ---------------------------------------------------------------------------------------------------------


def sides(shape: Shape) -> tuple[int, int]:
    """(D, d) of a layer of ``shape`` (out, in): its larger and its smaller side (§4.1)."""
    out_features, in_features = shape
    return max(out_features, in_features), min(out_features, in_features)


def number_of_terms(shape: Shape, rank: int, rule: CountRule = "ceil") -> int:
    """n, the number of terms of a layer of ``shape`` (out, in), under a counting rule.

    §4.1 has n = d/r and says nothing of r ∤ d. "ceil" is the least n with n·r >= d, and what PEFT 0.21.2 and
    the official PEFT fork do; "floor" is what Table 9 prints (at least one term is kept); "floor+1" is the
    authors' GPT-2 and CLIP code; "ceil+1" their KRAdapter toy. The number of learned values is n·(r + d).
    """
    _, d = sides(shape)
    floor, ceil = d // rank, -(-d // rank)
    counts = {"ceil": ceil, "floor": max(1, floor), "floor+1": floor + 1, "ceil+1": ceil + 1}
    if rule not in counts:
        raise ValueError(f"rule: {rule!r}; it must be 'ceil', 'floor', 'floor+1' or 'ceil+1'")
    return counts[rule]


def layer_bases(A: Array, B: Array, n: int, shape: Shape) -> tuple[Array, Array]:
    """The part of shared bases that one layer uses: A (r, d) and B (n, D, r) (§C.5.1)."""
    D, d = sides(shape)
    return A[:, :d], B[:n, :D, :]


# ---------------------------------------------------------------------------------------------------------
# The update, Eq. 4
# ---------------------------------------------------------------------------------------------------------


def term_basis(B: Array, j: int, pairing: Pairing = "literal") -> Array:
    """The D×r matrix that meets Λ_j A Γ_j in term j (j from 0), out of the layer's own B (n, D, r).

    "literal": B_j itself, as Eq. 4 says.

    "crossed": PEFT lays the columns of B out term by term, column k of B_j at place j·r + k, and the rows of
    ΛAΓ rank by rank, row k of term j at place k·n + j; then the same places meet. So row k of term j meets
    the column at place f = k·n + j of B, which is column f mod r of B_{f div r}. The two pairings agree where
    n = 1 or r = 1. (PEFT 0.21.2, tuners/randlora/layer.py.)
    """
    n, _, r = B.shape
    if pairing == "literal":
        return B[j, :, :]
    if pairing != "crossed":
        raise ValueError(f"pairing: {pairing!r}; it must be 'literal' or 'crossed'")
    basis = 0 * B[j, :, :]
    for k in range(r):
        f = k * n + j
        basis[:, k] = B[f // r, :, f % r]
    return basis


def delta_weight(
    A: Array, B: Array, lambda_: Array, gamma: Array, shape: Shape, scaling: Any = 1, pairing: Pairing = "literal"
) -> Array:
    """ΔW (out, in) of a layer of ``shape`` (out, in): s·Σ_j B_j Λ_j A Γ_j, or its transpose if out < in.

    ``A`` (r, >=d) and ``B`` (>=n, >=D, r) may be larger than the layer; n and r are those of ``lambda_``.
    A square layer takes the sum itself, not its transpose (the paper, PEFT).
    """
    n = lambda_.shape[0]
    A, B = layer_bases(A, B, n, shape)
    total = 0
    for j in range(n):
        total = total + ((term_basis(B, j, pairing) * lambda_[j, :]) @ A) * gamma[j, :]
    total = scaling * total
    return total if shape[0] >= shape[1] else total.T


def khatri_rao(A: Array, gamma: Array) -> Array:
    """K, the column-wise Khatri-Rao product of Γ (n, d) and A (r, d), as an array (n, r, d).

    K[j, k, :] = Γ_j ∘ A[k, :]. Its first two axes taken as one make the (n·r)×d matrix with which
    ΔW = s·[B_1 … B_n] · diag(vec Λ) · K, so rank ΔW <= min(rank [B_1 … B_n], nnz Λ, rank K).
    """
    return gamma[:, None, :] * A[None, :, :]


def delta_weight_khatri_rao(
    A: Array, B: Array, lambda_: Array, gamma: Array, shape: Shape, scaling: Any = 1, pairing: Pairing = "literal"
) -> Array:
    """ΔW again, in its other form: n·r terms of rank one, s·Σ_{j,k} B_j[:, k] Λ_j[k] K[j, k, :]."""
    n, r = lambda_.shape
    A, B = layer_bases(A, B, n, shape)
    K = khatri_rao(A, gamma)
    total = 0
    for j in range(n):
        basis = term_basis(B, j, pairing)
        for k in range(r):
            total = total + (basis[:, k] * lambda_[j, k])[:, None] * K[j, k, :][None, :]
    total = scaling * total
    return total if shape[0] >= shape[1] else total.T


# ---------------------------------------------------------------------------------------------------------
# The layer
# ---------------------------------------------------------------------------------------------------------


def forward(
    x: Array,
    weight: Array,
    bias: Array | None,
    A: Array,
    B: Array,
    lambda_: Array,
    gamma: Array,
    scaling: Any = 1,
    pairing: Pairing = "literal",
    dropout_mask: Array | None = None,
) -> Array:
    """y = x (W0 + ΔW)ᵀ + b, of shape (…, out).

    With a ``dropout_mask`` m of the shape of x (0 where dropped, 1/(1 − p) where kept), the adapter alone sees
    x∘m: y = x W0ᵀ + (x∘m) ΔWᵀ + b, as PEFT has it.
    """
    update = delta_weight(A, B, lambda_, gamma, weight.shape, scaling, pairing)
    x_adapter = x if dropout_mask is None else x * dropout_mask
    y = x @ weight.T + x_adapter @ update.T
    return y if bias is None else y + bias


def rows(x: Array) -> Iterator[Array]:
    """The vectors along the last axis of ``x`` (…, k), one after the other."""
    if x.ndim == 1:
        yield x
    else:
        for t in range(x.shape[0]):
            yield from rows(x[t, ...])


def weight_cotangent(dy: Array, x: Array, like: Array) -> Array:
    """G = Σ_t dy_t x_tᵀ, of the shape (out, in) of ``like``: ∂L/∂W of y = x Wᵀ, zero for an empty batch."""
    G = 0 * like
    for dy_t, x_t in zip(rows(dy), rows(x), strict=True):
        G = G + dy_t[:, None] * x_t[None, :]
    return G


def pullback(
    G: Array, A: Array, B: Array, lambda_: Array, gamma: Array, scaling: Any = 1, pairing: Pairing = "literal"
) -> tuple[Array, Array]:
    """(∂L/∂Λ, ∂L/∂Γ) of shapes (n, r) and (n, d), from G = ∂L/∂ΔW (out, in).

    G is what makes dL = ⟨G, dΔW⟩ = Σ_{o,i} G[o, i] dΔW[o, i] for every small change dΔW. For out >= in,

        ΔW[o, i]  = s·Σ_j Σ_k B_j[o, k] Λ_j[k] A[k, i] Γ_j[i],
        dΔW[o, i] = s·Σ_j Σ_k B_j[o, k] A[k, i] (dΛ_j[k] Γ_j[i] + Λ_j[k] dΓ_j[i])            (product rule).

    Put into dL, the sums over o and i are taken first, and what is left beside each change is its gradient:

        dL = Σ_{j,k} dΛ_j[k] · s·Σ_{o,i} B_j[o, k] G[o, i] A[k, i] Γ_j[i]
           + Σ_{j,i} dΓ_j[i] · s·Σ_{o,k} B_j[o, k] G[o, i] A[k, i] Λ_j[k],

        ∂L/∂Λ_j[k] = s·Σ_i P_j[k, i] Γ_j[i],    ∂L/∂Γ_j[i] = s·Σ_k Λ_j[k] P_j[k, i],

    with what the two share, P_j[k, i] = Σ_o B_j[o, k] G[o, i] A[k, i], that is P_j = (B_jᵀ G) ∘ A (r, d). As
    matrices: the diagonals of s·B_jᵀ G Γ_j Aᵀ and of s·Aᵀ Λ_j B_jᵀ G. For out < in, ΔW is the transpose of the sum,
    ⟨G, dΔW⟩ = ⟨Gᵀ, dΔWᵀ⟩, and Gᵀ takes G's place. Crossed, another basis takes B_j's (``term_basis``).

    Both are linear in G, and neither depends on W0. At Λ = 0 the second is exactly zero. And Σ_k Λ_j[k] ∂L/∂Λ_j[k]
    = Σ_i Γ_j[i] ∂L/∂Γ_j[i] for every term: both are s·Λ_jᵀ P_j Γ_j, for (c·Λ_j, Γ_j/c) is the same ΔW.
    """
    n = lambda_.shape[0]
    A, B = layer_bases(A, B, n, G.shape)
    if G.shape[0] < G.shape[1]:  # ΔW is the transpose of the sum
        G = G.T
    d_lambda, d_gamma = 0 * lambda_, 0 * gamma
    for j in range(n):
        P = (term_basis(B, j, pairing).T @ G) * A
        d_lambda[j, :] = scaling * (P @ gamma[j, :])
        d_gamma[j, :] = scaling * (lambda_[j, :] @ P)
    return d_lambda, d_gamma


def backward(
    dy: Array,
    x: Array,
    weight: Array,
    A: Array,
    B: Array,
    lambda_: Array,
    gamma: Array,
    scaling: Any = 1,
    pairing: Pairing = "literal",
    dropout_mask: Array | None = None,
) -> Gradients:
    """Gradients of a loss with ∂L/∂y = ``dy`` (…, out), for everything ``forward`` is given but the bases.

    ∂L/∂x = dy W0 + (dy ΔW)∘m      ∂L/∂W0 = Σ_t dy_t x_tᵀ      ∂L/∂b = Σ_t dy_t
    ∂L/∂ΔW = Σ_t dy_t (x_t∘m_t)ᵀ, and from it ∂L/∂Λ and ∂L/∂Γ (see ``pullback``)
    """
    update = delta_weight(A, B, lambda_, gamma, weight.shape, scaling, pairing)
    x_adapter = x if dropout_mask is None else x * dropout_mask
    dx_adapter = dy @ update if dropout_mask is None else (dy @ update) * dropout_mask
    d_bias = sum(rows(dy), start=0 * weight[:, 0])
    d_lambda, d_gamma = pullback(weight_cotangent(dy, x_adapter, weight), A, B, lambda_, gamma, scaling, pairing)
    return Gradients(dy @ weight + dx_adapter, weight_cotangent(dy, x, weight), d_bias, d_lambda, d_gamma)
