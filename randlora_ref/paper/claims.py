"""What the paper states, checked: each claim with its place, its verdict, and the evidence computed on the spot.

Sections, equations and tables are those of arXiv 2502.00987v2. A verdict is "holds" (as stated), "holds corrected"
(false as printed, true after the repair that the evidence names) or "fails" (the evidence has a counterexample).
No verdict is written down here: each follows from what its function has just computed. What is claimed, and where, is
the first paragraph of that function's docstring: "name (place): statement."
"""

import functools
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..bases import draw_bases
from ..rank import RankCertificate, certify_rank, predicted_rank, randlora_factors
from ..spec import khatri_rao, number_of_terms
from . import first_steps

Verdict: TypeAlias = Literal["holds", "holds corrected", "fails"]
Finding: TypeAlias = tuple[Verdict, tuple[str, ...]]  # with the evidence, line by line
Floats: TypeAlias = NDArray[np.float64]
SLACK = 1 + 1e-9  # for comparing norms computed in float64


@dataclass(frozen=True)
class Claim:
    """One statement and what came of it."""

    name: str
    where: str
    claim: str
    verdict: Verdict
    evidence: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields as plain Python values."""
        return {**asdict(self), "evidence": list(self.evidence)}

    def lines(self) -> list[str]:
        """For a person."""
        return [f"{self.verdict.upper()}: {self.name} ({self.where})", f"  claim: {self.claim}"] + [
            f"  {line}" for line in self.evidence
        ]


CHECKS: list[Callable[[int], Claim]] = []  # in the order of the paper


def claimed(find: Callable[[int], Finding]) -> Callable[[int], Claim]:
    """One of ``CHECKS``: a function of a seed that gives the claim of ``find``'s docstring with what it found."""

    @functools.wraps(find)
    def check(seed: int) -> Claim:
        paragraph = " ".join(inspect.cleandoc(find.__doc__ or "").partition("\n\n")[0].split())
        name, where, statement = re.findall(r"^(.+?) \((.+?)\): (.+)\.$", paragraph)[0]
        return Claim(name, where, statement, *find(seed))

    CHECKS.append(check)
    return check


def check_claims(seed: int = 0) -> list[Claim]:
    """Every claim, checked on draws from ``seed``; a few seconds."""
    return [check(seed) for check in CHECKS]


def _verdict(as_stated: bool | np.bool, corrected: bool | np.bool = False) -> Verdict:
    return "holds" if as_stated else "holds corrected" if corrected else "fails"


def _diagonals(seed: int, n: int, r: int, d: int) -> tuple[Floats, Floats]:
    """Λ (n, r) and Γ (n, d) as training might leave them: no two alike."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, r)), rng.standard_normal((n, d))


def _rank(seed: int, shape: tuple[int, int], r: int, n: int, kind: Any = "dense") -> RankCertificate:
    """The rank of a trained update of n terms, on bases drawn for a layer D×d."""
    D, d = shape
    bases = draw_bases(seed=seed, shapes=[shape], rank=r, kind=kind).slice(n, D, d)
    return certify_rank(randlora_factors(bases.A, bases.B, *_diagonals(seed, n, r, d)))


# ---------------------------------------------------------------------------------------------------------
# Section 4 and its proofs: sums, norms, ranks
# ---------------------------------------------------------------------------------------------------------


@claimed
def theorem_4_1(seed: int) -> Finding:
    """Theorem 4.1 (§4.2): ‖U_jΣ_jV_jᵀ − B_jΛ_jA_jΓ_j‖ <= ε for every j gives ‖W − Σ_j B_jΛ_jA_jΓ_j‖ <= nε (A_j not
    shared).

    Tried on blocks of an SVD and noisy copies of them.
    """
    rng = np.random.default_rng(seed)
    D, d, r, n = 11, 8, 2, 4
    shares = []  # of the stated and of the sharper bound
    for _ in range(200):
        U, sigma, Vt = np.linalg.svd(rng.standard_normal((D, d)), full_matrices=False)
        noise = 10.0 ** rng.uniform(-3, 0)
        differences = []
        for j in range(n):
            block = slice(j * r, (j + 1) * r)
            B, A = (x + noise * rng.standard_normal(x.shape) for x in (U[:, block], Vt[block]))
            gamma = 1 + noise * rng.standard_normal(d)
            differences.append((U[:, block] * sigma[block]) @ Vt[block] - (B * sigma[block]) @ A * gamma)
        errors = [np.linalg.norm(x) for x in differences]
        total = np.linalg.norm(np.sum(differences, axis=0))
        shares.append((total / (n * max(errors)), total / sum(errors)))
    stated, sharper = np.max(shares, axis=0)
    repaired = "the sharper bound Σ_j ε_j holds too" if sharper <= SLACK else "the sharper bound Σ_j ε_j does not hold"
    return _verdict(stated <= SLACK and sharper <= SLACK), (
        f"200 random cases, n = {n}: {repaired}; the error reaches {sharper:.2f} of it",
        "it is the triangle inequality, and conditional: nothing in it bounds ε",
    )


@claimed
def equation_2(seed: int) -> Finding:
    """Eq. 2, indices (§4.1, Eq. 2): W = Σ_{j=1..n} Σ_{i=jr..(j+1)r} u_i σ_i v_iᵀ.

    The SVD in n blocks of r: as printed, and with its indices put right.
    """
    W = np.random.default_rng(seed).standard_normal((7, 6))
    U, sigma, Vt = np.linalg.svd(W, full_matrices=False)
    r, n = 2, 3

    def error(blocks: list[range]) -> float:
        """Relative error of the sum over all i of ``blocks``, counted from 1, that exist."""
        terms = [i - 1 for block in blocks for i in block if i <= len(sigma)]
        return float(np.linalg.norm(W - sum(sigma[i] * np.outer(U[:, i], Vt[i]) for i in terms)) / np.linalg.norm(W))

    printed = error([range(j * r, (j + 1) * r + 1) for j in range(1, n + 1)])
    corrected = error([range((j - 1) * r + 1, j * r + 1) for j in range(1, n + 1)])
    return _verdict(printed < 1e-9, corrected < 1e-9), (
        f"as printed the inner sum has {r + 1} terms for r = {r}, from i = {r} on: relative error {printed:.2f}",
        f"with i = (j−1)r + 1 … jr: {corrected:.0e}",
    )


@claimed
def equation_8(seed: int) -> Finding:
    """Eq. 8, lower bound for LoRA (Eq. 8; also Eqs. 23 and 25): ‖W − BA‖_F >= Σ_{i>r} σ_i² for every BA of rank r.

    Held against the best approximation (Eckart-Young) and random ones.
    """
    rng = np.random.default_rng(seed)
    W, r = np.diag([3.0, 2.0, 2.0]), 1
    tail = float((np.linalg.svd(W, compute_uv=False)[r:] ** 2).sum())
    best = np.linalg.norm(W - np.diag([3.0, 0.0, 0.0]))
    others = [np.linalg.norm(W - np.outer(*rng.uniform(-2, 2, (2, 3)))) for _ in range(1000)]
    rooted = all(error * SLACK >= math.sqrt(tail) for error in [best, *others])
    return _verdict(best * SLACK >= tail, rooted), (
        f"W = diag(3, 2, 2), BA = diag(3, 0, 0): the error is {best:.3f}, the printed bound {tail:.3f}",
        f"with the square root, {math.sqrt(tail):.3f}, it holds for that BA and 1000 others",
    )


@claimed
def lemma_d_1(seed: int) -> Finding:
    """Lemma D.1 (Appendix D, Lemma D.1): rank(Σ_j B_jA_jᵀ) = nr where the columns of the B_j and of the A_j are
    independent.

    With A_j of their own, and with the one A that the method shares.
    """
    rng = np.random.default_rng(seed)
    D, d, r, n = 14, 12, 3, 4
    B, A_own = (rng.integers(-9, 10, shape).astype(np.float64) for shape in ((n, D, r), (n, r, d)))
    own = certify_rank(tuple((B[j], A_own[j]) for j in range(n))).rank
    gamma = rng.integers(-9, 10, (n, d)).astype(np.float64)
    updates, rows = [], []
    for diagonals in (np.repeat(gamma[:1], n, axis=0), gamma):
        updates.append(certify_rank(randlora_factors(A_own[0], B, np.ones((n, r)), diagonals)).rank)
        rows.append(certify_rank(khatri_rao(A_own[0], diagonals).reshape(n * r, d)).rank)
    return _verdict(own == updates[0] == n * r, own == n * r and updates == rows), (
        f"A_j of its own for each term, n·r = {n * r}: rank {own}",
        f"one A for all, Γ_j equal: rank {updates[0]}, though B and A have independent columns and rows",
        f"for a shared A it is the n·r rows of AΓ_1 … AΓ_n that must be independent: {rows[0]} are in that"
        f" case, {rows[1]} with Γ_j that differ, where the update has rank {updates[1]}",
    )


@claimed
def lemma_d_2(seed: int) -> Finding:
    """Lemma D.2 (Appendix D, Lemma D.2): k <= 24 random vectors of R^24 with a continuous distribution are independent
    with probability 1.
    """
    size, draws = 24, 100

    def full(kind: Any) -> int:
        """How many of the draws of a square A are full rank."""
        bases = (draw_bases(seed=seed + k, shapes=[(size, size)], rank=size, kind=kind).A for k in range(draws))
        return sum(certify_rank(A).full for A in bases)

    dense, ternary = full("dense"), full(6)
    return _verdict(dense == draws), (
        f"{dense} of {draws} dense draws of {size} vectors are independent, each proven",
        f"ternary bases (s = 6) are not continuous: {ternary} of {draws} are",
    )


@claimed
def floor_of_d_over_r(seed: int) -> Finding:
    """n = d/r, rounded down (§4.1; Table 9 prints the floor): n = floor(d/r) terms give an update of full rank.

    Tried where r does not divide d.
    """
    D, d, r = 120, 100, 32
    few, enough = number_of_terms((D, d), r, "floor"), number_of_terms((D, d), r, "ceil")
    low, high = (_rank(seed, (D, d), r, n) for n in (few, enough))
    return _verdict(low.full, high.full), (
        f"{D}×{d}, r = {r}: n = {few} terms give rank {low.rank} of {d}, their n·r",
        f"n = ceil(d/r) = {enough} terms: rank {high.rank}",
    )


# ---------------------------------------------------------------------------------------------------------
# Training: the rank over the first steps
# ---------------------------------------------------------------------------------------------------------


@claimed
def start_at_lambda_zero(seed: int) -> Finding:
    """full rank in training, Λ = 0 at the start (§4.1; the start of PEFT, the official fork and NLG): the update is
    full rank as soon as it is not zero.
    """
    (d, r), found = (min(first_steps.SHAPE), first_steps.RANK), first_steps.starting(True, seed)
    as_stated = all(one.proven[1:] == [d] * 3 for one in found)
    repaired = all(one.proven == [0, min(d, r * one.gain), d, d] for one in found)
    lawful, needed = first_steps.tokens(seed)
    return _verdict(as_stated, repaired and lawful), (
        f"ranks after 0, 1, 2, 3 steps of gradient descent, {first_steps.SHAPE[0]}×{d}, r = {r}:",
        *(one.line() for one in found),
        "∂L/∂Γ is zero at Λ = 0, so after one step all Γ_j are equal: full rank comes with the second step at the"
        " earliest (nlg reshapes this layer's sum, which shows its rank more than once)",
        needed,
    )


@claimed
def start_at_gamma_zero(seed: int) -> Finding:
    """full rank in training, Γ = 0 at the start (§4.1; the start of the authors' CLIP code and KRAdapter): the update
    is full rank as soon as it is not zero.
    """
    d, found = min(first_steps.SHAPE), first_steps.starting(False, seed)
    return _verdict(all(one.proven == [0, d, d, d] for one in found)), (
        f"ranks after 0, 1, 2, 3 steps of gradient descent, {first_steps.SHAPE[0]}×{d}, r = {first_steps.RANK}:",
        *(one.line() for one in found),
    )


# ---------------------------------------------------------------------------------------------------------
# Sparse bases, ablations, counts
# ---------------------------------------------------------------------------------------------------------


def sparse_ranks(seed: int = 0, d: int = 768, r: int = 6) -> list[tuple[float, int, float, float]]:
    """(probability of a zero, proven rank, expected rank, its standard deviation) for sparse d×d updates of rank r.

    Sparsities s = 6, √d, 100, 200 (§6.4). The expected rank counts the columns of A that are not all zero.
    """
    rows = []
    for s in (6, math.sqrt(d), 100, 200):
        certificate = _rank(seed, (d, d), r, number_of_terms((d, d), r), s)
        if not certificate.exact:
            raise ArithmeticError(f"s = {s}: the rank is not decided\n{certificate}")
        rows.append((1 - 2 / s, certificate.rank, *predicted_rank(d, 1 - 2 / s, r)))
    return rows


@claimed
def appendix_c_6(seed: int) -> Finding:
    """Appendix C.6, sparse bases (§6.4 and Appendix C.6): ternary bases keep the update full rank: two columns are
    collinear with probability 2((s²−4s+6)/s²)^d.

    That chance, and what it leaves out.
    """
    d = 768
    s = math.sqrt(d)
    pair = 2 * ((s**2 - 4 * s + 6) / s**2) ** d
    rows = sparse_ranks(seed, d)
    table = ", ".join(f"{rank} ({mean:.0f}±{sd:.0f}) at {zeros:.1%}" for zeros, rank, mean, sd in rows)
    return _verdict(all(rank == d for _, rank, _, _ in rows)), (
        f"d = {d}, s = √d: {pair:.2e} a pair, as printed (2.19e-49); {pair * math.comb(d, 2):.1e} over the pairs of"
        f" {d} columns (the paper prints 8e-44 for its union)",
        "collinear pairs are not what happens: a column of A, r entries, is all zero with probability (1 − 2/s)^r,"
        " and is a zero column of ΔW whatever B, Λ and Γ are",
        f"{d}×{d}, r = 6, proven ranks (expected) by zeros: {table}",
    )


@claimed
def ablation_a(seed: int) -> Finding:
    """RandLoRA-a (§6.3, Table 2): (Σ_i B_iΛ_i)(Σ_i A_iΓ_i) has rank r with RandLoRA's n(r + d) learned numbers."""
    rng = np.random.default_rng(seed)
    D, d, r = 80, 64, 8
    n = d // r
    B, A = rng.standard_normal((n, D, r)), rng.standard_normal((n, r, d))
    lambda_, gamma = _diagonals(seed, n, r, d)
    sums = (tuple((B[i], lambda_[i]) for i in range(n)), tuple((A[i], gamma[i]) for i in range(n)))
    certificate = certify_rank((sums,))
    seen = f"{D}×{d}, r = {r}, {n * (r + d)} learned numbers: rank {certificate.rank}"
    return _verdict(certificate.exact and certificate.rank == r), (seen,)


@claimed
def ablation_b(seed: int) -> Finding:
    """RandLoRA-b (§6.3, Table 2): half the rank at the same number of learned numbers."""
    d, r = 768, 6
    n, half = d // r, r // 2
    certificate = _rank(seed, (d, d), half, n)
    ratio = (half + d) / (r + d)
    return _verdict(certificate.exact and certificate.rank == d // 2 and ratio > 0.99), (
        f"{d}×{d}: {n} terms of rank {half} in place of {r} give rank {certificate.rank}, and {ratio:.1%} of the"
        f" {n * (r + d)} numbers (that n is kept is our reading)",
        "how -a, -b and RandLoRA train, beside each other: examples/reports/rank_or_parameters",
    )


@claimed
def counts_inverse_in_r(seed: int) -> Finding:
    """learned numbers fall with r (§4.1, Table 15): the number of learned values n(r + d) is inversely proportional to
    the rank r of the bases.

    Computed for the ranks that divide d.
    """
    d = 768
    counts = {r: number_of_terms((d, d), r) * (r + d) for r in range(1, d + 1) if d % r == 0}
    inverse = all((count - d) * r == d * d for r, count in counts.items())
    falling = list(counts.values()) == sorted(counts.values(), reverse=True)
    shown = ", ".join(f"r = {r}: {counts[r]}" for r in (4, 32, 256))
    return _verdict(inverse and falling), (
        f"d = {d}, all {len(counts)} ranks that divide it: (count − d)·r = d², so d²/r + d; {shown}",
        "PEFT's documentation says that a larger rank trains more parameters: it trains fewer",
    )
