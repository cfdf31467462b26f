"""An implementation from its forward pass alone: torch or JAX takes the gradients."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .cases import Case

Array = Any
NEEDS = ("x", "lambda_", "gamma")  # what is differentiated, in the order of dx, dlambda, dgamma


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
        given = {name: getattr(case, name) for name in ("x", "weight", "bias", "A", "B", "lambda_", "gamma")}
        y, gradients = PULLED_BACK[library](forward, given, case.dy, case.scaling)
        out_features, in_features = case.weight.shape
        rows = {"x": np.eye(in_features), "weight": np.zeros(case.weight.shape), "bias": None}
        rows = {name: None if x is None else x.astype(case.weight.dtype) for name, x in rows.items()}
        dy = np.zeros((in_features, out_features), case.weight.dtype)
        transposed, _ = PULLED_BACK[library](forward, {**given, **rows}, dy, case.scaling)
        return {"y": y, "delta_weight": transposed.T, **dict(zip(("dx", "dlambda", "dgamma"), gradients, strict=True))}

    return implementation


def _torch(forward: Callable[..., Any], given: dict[str, Array], dy: Array, scaling: float) -> tuple[Array, Any]:
    import torch

    tensors = {name: None if x is None else torch.tensor(x, requires_grad=name in NEEDS) for name, x in given.items()}
    y = forward(**tensors, scaling=scaling)
    return y.detach(), torch.autograd.grad(y, [tensors[name] for name in NEEDS], torch.tensor(dy))


def _jax(forward: Callable[..., Any], given: dict[str, Array], dy: Array, scaling: float) -> tuple[Array, Any]:
    import jax  # type: ignore[import-not-found, unused-ignore]

    with jax.enable_x64(True):  # without it JAX rounds float64 to float32 in silence
        arrays = {name: None if x is None else jax.numpy.asarray(x) for name, x in given.items()}

        def of(*learned: Array) -> Array:
            return forward(**{**arrays, **dict(zip(NEEDS, learned, strict=True))}, scaling=scaling)

        y, pull_back = jax.vjp(of, *(arrays[name] for name in NEEDS))
        return y, pull_back(jax.numpy.asarray(dy))


PULLED_BACK = {"torch": _torch, "jax": _jax}
