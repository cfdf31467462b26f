"""An implementation from its forward pass alone: torch or JAX takes the gradients."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .cases import Case

Array = Any
GIVEN = ("x", "weight", "bias", "A", "B", "lambda_", "gamma", "scaling")


def autograd(forward: Callable[..., Any], library: str | None = None) -> Callable[[Case], Mapping[str, Any]]:
    """For ``check``: layers by ``forward(x, weight, bias, A, B, lambda_, gamma, scaling)`` -> y (…, out).

    The arrays are a case's, in "torch" or "jax" (``library``; None: torch where it is imported, else JAX). A and B may
    be larger than the layer, bias None. ΔW is what ``forward`` makes of the identity over a weight of zeros. Other
    kinds of cases and dropout masks are answered with "unsupported". Raises ValueError for another library.
    """
    library = library or ("torch" if "torch" in sys.modules else "jax")
    if library not in PULLED_BACK:
        raise ValueError(f"library: {library!r}; it must be one of {', '.join(PULLED_BACK)}")

    def implementation(case: Case) -> Mapping[str, Any]:
        if case.kind != "layer" or case.dropout_mask is not None:
            return dict.fromkeys(case.wanted, "unsupported: a forward pass of layers without dropout was given")
        y, (dx, dlambda, dgamma) = PULLED_BACK[library](forward, case)
        zeros = np.zeros_like(case.weight)
        identity = replace(case, x=np.eye(zeros.shape[1], dtype=zeros.dtype), weight=zeros, bias=None, dy=zeros.T)
        transposed, _ = PULLED_BACK[library](forward, identity)
        return {"y": y, "delta_weight": transposed.T, "dx": dx, "dlambda": dlambda, "dgamma": dgamma}

    return implementation


def _run(forward: Callable[..., Any], case: Case) -> Array:
    return forward(**{name: getattr(case, name) for name in GIVEN})


def _torch(forward: Callable[..., Any], case: Case) -> tuple[Array, Any]:
    import torch

    case = case.with_arrays(torch.tensor)
    learned = [x.requires_grad_() for x in (case.x, case.lambda_, case.gamma)]
    y = _run(forward, case)
    return y.detach(), torch.autograd.grad(y, learned, case.dy)


def _jax(forward: Callable[..., Any], case: Case) -> tuple[Array, Any]:
    import jax  # type: ignore[import-not-found, unused-ignore]

    with jax.enable_x64(True):  # without it JAX rounds float64 to float32 in silence
        case = case.with_arrays(jax.numpy.asarray)

        def of(x: Array, lambda_: Array, gamma: Array) -> Array:
            return _run(forward, replace(case, x=x, lambda_=lambda_, gamma=gamma))

        y, pull_back = jax.vjp(of, case.x, case.lambda_, case.gamma)
        return y, pull_back(case.dy)


PULLED_BACK = {"torch": _torch, "jax": _jax}  # y, and the gradients of x, Λ and Γ
