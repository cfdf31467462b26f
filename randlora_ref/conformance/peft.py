"""The installed PEFT under test, and what it is known to fail.

PEFT 0.21.2 has A as (r, 1, d_max), B as (D_max, n_max, r), Λ as (r, n) and Γ as (n, d); its layouts end in this file.
PyTorch, transformers and PEFT are imported when they are called for.
"""

import importlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .. import checks
from ..rank.exact import Progress
from ..spec import number_of_terms
from .answers import layer
from .cases import BASIS_KINDS, Case, random_case
from .report import Report, check, choose
from .vectors import stored_cases

Array = Any
NAME = "default"  # PEFT's name of a model's first adapter
RANDOM_LAYERS = 240


def check_peft(
    dialect: str | None = None,
    count: int = RANDOM_LAYERS,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """The installed PEFT on the stored vectors and ``count`` random layers in float32 and float64.

    With a ``dialect`` on its cases and layers. Without, on PEFT's layers and all that is stored but others' bases and
    starts; what it fails there for a known reason is listed in ``details["known"]``, and a known failure that passes is
    one in ``details["unexpected"]``, and fails the check. ``options`` are ``check``'s kinds and dtype.
    """
    versions = installed()
    cases = [random_case(index, seed, dialect or "peft") for index in range(count)]
    others = ("paper", "bases"), ("paper", "start")
    stored = stored_cases() if dialect else choose(None, None, None)
    cases += [case for case in stored if dialect or (case.dialect, case.kind) not in others]
    chosen = choose(options.get("kinds"), cases, options.get("dtype"), dialect)
    report = check(run_peft, cases=chosen, target="peft", progress=progress, dialect=dialect, **options)
    asked = () if dialect or options.get("dtype") else chosen
    known = {case.id: reason for case in asked if (reason := known_of_peft(case))}
    failed = {failure.case.id for failure in report.failures}
    failures = tuple(failure for failure in report.failures if failure.case.id not in known)
    details: dict[str, Any] = {"known": {id_: reason for id_, reason in known.items() if id_ in failed}}
    details |= {"unexpected": sorted(known.keys() - failed), "versions": versions}
    return replace(report, failures=failures, details=details)


def known_of_peft(case: Case) -> str | None:
    """Why PEFT must fail a stored case: it pairs crosswise, and here that shows."""
    right = case.kind != "layer" or case.pairing == "crossed"
    if right or len(case.lambda_) != number_of_terms(case.weight.shape, case.lambda_.shape[1]):
        return None
    crossed, asked = (layer(replace(case, pairing=pairing)) for pairing in ("crossed", "literal"))
    shows = any(not np.array_equal(crossed[name], asked[name]) for name in case.wanted)
    return "PEFT pairs columns and rows crosswise, the case is literal" if shows else None


def installed() -> dict[str, str]:
    """The versions of PyTorch, transformers and PEFT here. ModuleNotFoundError for one that is not installed."""
    return {name: importlib.import_module(name).__version__ for name in ("torch", "transformers", "peft")}


def run_peft(case: Case) -> dict[str, Any]:
    """What the installed PEFT makes of a conformance case: NumPy arrays by name, or "unsupported: reason"."""
    if case.kind == "layer":
        return _run_layer(case)
    if case.kind == "bases":
        if case.dialect != "peft":
            return dict.fromkeys("AB", "unsupported: PEFT draws its own bases alone")
        A, B = peft_bases(case.seed, case.shapes, case.rank, case.kind_of_basis)
        return {"A": A, "B": B}
    if case.kind == "start":
        layer = peft_model([case.shape], case.rank).base_model.model.lin0
        delta = _numpy(layer.get_delta_weight(NAME))
        lambda_, gamma = _numpy(layer.randlora_lambda[NAME]).T, _numpy(layer.randlora_gamma[NAME])
        return {"lambda_": lambda_, "gamma": gamma, "delta_weight": delta}
    if case.kind == "count":
        model = peft_model(case.shapes, case.rank)
        return {"num_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)}
    return dict.fromkeys(case.wanted, f"unsupported: PEFT has no {case.kind} of its own")


def peft_bases(
    seed: int, shapes: Sequence[tuple[int, int]], rank: int, kind: Any = "dense", draw_dtype: str = "bfloat16"
) -> tuple[Array, Array]:
    """PEFT's own A (r, d_max) and B (n_max, D_max, r) for layers of ``shapes`` (out, in), from its seed, in float32.

    ``draw_dtype``: PEFT is made to believe that the hardware has bfloat16, or for "float16" that it has none.
    """
    checks.choice("kind", kind, BASIS_KINDS)
    sparse = {name: kind == name for name in ("sparse", "very_sparse")}
    model = peft_model(shapes, rank, draw_dtype=draw_dtype, projection_prng_key=seed, **sparse).base_model
    return _numpy(model.randlora_A[NAME])[:, 0, :], _numpy(model.randlora_B[NAME]).transpose(1, 0, 2)


def peft_model(
    shapes: Sequence[tuple[int, int]], rank: int, *, alpha: Any = 640, bias: bool = True, conv1d: bool = False,
    draw_dtype: str = "bfloat16", **config: Any,
) -> Any:  # fmt: skip
    """PEFT around a module with ``lin{i}``, a Linear (not filled) or Conv1D, for each (out, in) of ``shapes``."""
    from unittest import mock

    import torch
    from peft import RandLoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    def empty(out_features: int, in_features: int) -> Any:
        return torch.nn.utils.skip_init(torch.nn.Linear, in_features, out_features, bias=bias)

    module = torch.nn.ModuleDict({f"lin{i}": (Conv1D if conv1d else empty)(*shape) for i, shape in enumerate(shapes)})
    settings = RandLoraConfig(r=rank, randlora_alpha=alpha, target_modules=[*module], fan_in_fan_out=conv1d, **config)
    with mock.patch("peft.tuners.randlora.model.is_bf16_available", return_value=draw_dtype == "bfloat16"):
        return get_peft_model(module, settings)


def _run_layer(case: Case) -> dict[str, Any]:
    """Forward and backward of PEFT's layer with the case's arrays in the case's dtype."""
    import torch

    (n, rank), shape = case.lambda_.shape, case.weight.shape
    if n != (terms := number_of_terms(shape, rank)):
        return dict.fromkeys(case.wanted, f"unsupported: PEFT has n = {terms} terms here, never {n}")
    alpha = case.scaling * rank if case.alpha is None else case.alpha
    model = peft_model([shape], rank, bias=case.bias is not None, conv1d=case.fan_in_fan_out, alpha=alpha)
    dtype = getattr(torch, case.dtype)
    c = case.with_arrays(lambda x: torch.tensor(np.array(x), dtype=dtype))
    layer = model.to(dtype).base_model.model.lin0
    lambda_, gamma, base = layer.randlora_lambda[NAME], layer.randlora_gamma[NAME], layer.get_base_layer()
    with torch.no_grad():
        base.weight.copy_(c.weight.T if c.fan_in_fan_out else c.weight)
        if c.bias is not None:  # else Conv1D's is zero
            base.bias.copy_(c.bias)
        lambda_.copy_(c.lambda_.T)
        gamma.copy_(c.gamma)
    layer.randlora_A[NAME], layer.randlora_B[NAME] = c.A[:, None, :], c.B.transpose(0, 1).contiguous()
    delta = _numpy(layer.get_delta_weight(NAME))
    if c.merged:
        layer.merge()
    if c.dropout_mask is not None:  # PEFT's own dropout, of p = 0, in training mode, times the mask
        layer.train().randlora_dropout[NAME].register_forward_hook(lambda module, x, y: y * c.dropout_mask)
    y = layer(c.x.requires_grad_())
    y.backward(c.dy)
    results = {"delta_weight": delta.T if c.fan_in_fan_out else delta, "y": _numpy(y), "dx": _numpy(c.x.grad)}
    return results if c.merged else {**results, "dlambda": _numpy(lambda_.grad).T, "dgamma": _numpy(gamma.grad)}


def _numpy(x: Any) -> Array:
    return x.detach().float().numpy() if str(x.dtype) == "torch.bfloat16" else x.detach().numpy()
