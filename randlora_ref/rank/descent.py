"""The rank of an update over the first steps of gradient descent on a quadratic loss."""

from typing import Any, NamedTuple, get_args

import numpy as np

from .. import checks
from ..arrays import Reshaped
from ..bases import Bases
from ..spec import Orientation, Pairing, delta_weight, khatri_rao, pullback, sides, term_basis
from .certify import RankCertificate, certify_rank
from .exact import Progress
from .factors import Sum, randlora_factors, read_array


class Descent(NamedTuple):
    """Certificate, factors and loss after 0, 1, … steps."""

    certificates: tuple[RankCertificate, ...]
    factors: tuple[Sum, ...]
    losses: tuple[float, ...]


def rank_after_steps(
    A: Any,
    B: Any,
    lambda_: Any,
    gamma: Any,
    shape: tuple[int, int],
    steps: int,
    *,
    scaling: float = 1.0,
    pairing: Pairing = "literal",
    orientation: Orientation = "paper",
    largest_move: float = 0.01,
    seed: int = 0,
    progress: Progress | None = None,
) -> Descent:
    """Descend on L = ½‖ΔW − T‖² with a Gaussian T, and certify the rank of ΔW before and after each step.

    A (r, >=d), B (>=n, >=D, r), lambda_ (n, r), gamma (n, d), of a layer of ``shape`` (out, in). One rate for Λ and
    Γ, chosen at each step so that no entry moves by more than ``largest_move``. Λ = 0, Γ = const (PEFT, the official
    fork) goes 0, r, d; Λ = const, Γ = 0 (the authors' CLIP code) goes 0, d. In float64: what is certified is what is
    stored, and the rounding of Γ alone can fill a rank that exact steps leave; ``spectrum`` of ``factors`` tells.
    Raises ValueError for a negative ``steps`` or a ``largest_move`` that is not above 0.
    """
    steps = checks.integer("steps", steps, least=0)
    largest_move = checks.number("largest_move", largest_move, above=0.0)
    scaling, shape = checks.number("scaling", scaling), checks.layer_shape(shape)
    checks.choice("pairing", pairing, get_args(Pairing))
    checks.choice("orientation", orientation, get_args(Orientation))
    checks.namespace(A=A, B=B, lambda_=lambda_, gamma=gamma)
    axes = {"A": (A, 2), "B": (B, 3), "lambda_": (lambda_, 2), "gamma": (gamma, 2)}
    A, B, lambda_, gamma = (read_array(a, name, (k,)).astype(np.float64) for name, (a, k) in axes.items())
    n, (D, d) = len(lambda_), sides(shape, orientation)
    own = Bases(A, B).slice(n, D, d)
    checks.shape("lambda_", lambda_, (n, len(A)))
    checks.shape("gamma", gamma, (n, d))
    checks.room("shape", *shape, itemsize=8)
    checks.room("steps", steps, lambda_.size + gamma.size, itemsize=8)
    target = np.random.default_rng(checks.seed(seed)).standard_normal(shape)
    A, B = own.A, np.stack([term_basis(own.B, j, pairing) for j in range(n)])  # from here on the pairing is literal
    beside = np.concatenate(list(B), axis=1)[None]  # [B_1 … B_n] (1, D, n·r): with K the sum is one product
    factors, losses, ones = [], [], np.ones((1, A.shape[1]))
    for step in range(steps + 1):
        K = np.concatenate(list(khatri_rao(A, gamma)))  # (n·r, d)
        delta = delta_weight(K, beside, lambda_.reshape(1, -1), ones, shape, scaling, orientation=orientation)
        G = delta - target  # ∂L/∂ΔW
        losses.append(float((G**2).sum() / 2))
        terms = randlora_factors(A, B, lambda_, gamma)
        reshaped = orientation == "reshape" and shape[0] > shape[1]
        factors.append(((Reshaped(terms, shape),),) if reshaped else terms)
        if step < steps:
            d_lambda, d_gamma = pullback(G, A, B, lambda_, gamma, scaling, orientation=orientation)
            rate = largest_move / max(abs(d_lambda).max(), abs(d_gamma).max(), np.finfo(float).tiny)
            lambda_, gamma = lambda_ - rate * d_lambda, gamma - rate * d_gamma
    certificates = tuple(certify_rank(terms, progress=progress) for terms in factors)
    return Descent(certificates, tuple(factors), tuple(losses))
