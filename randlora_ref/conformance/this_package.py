"""This package as an implementation under test: the fast layer and block, the bases as drawn, the certified rank."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .. import nn
from ..adapters.randlora import RandLoRA
from ..bases import Bases, draw_bases
from ..dialects import DIALECTS, get_dialect
from ..rank import certify_rank
from .answers import block_results
from .cases import Case


def reference(case: Case) -> Mapping[str, Any]:
    """The package's own answer to a case."""
    dialect = replace(get_dialect(case.dialect), context=case.context)
    if case.kind == "layer":
        layer = adapter(case)
        y, cache = layer.forward(case.x, case.weight, case.bias, dropout_mask=case.dropout_mask)
        dx, grads = layer.backward(case.dy, cache)
        results = {"delta_weight": layer.delta_weight(), "y": y, "dx": dx}
        return {**results, "dlambda": grads.lambda_, "dgamma": grads.gamma}
    if case.kind == "block":
        size, theta = case.x.shape[1], case.rope_theta
        mask = nn.additive_mask(case.x, size, causal=case.causal, mask=np.array(case.attention_mask))
        tables: Any = theta and nn.rotary_tables(case.x, size, case.block.head_width, theta)
        adapters = {role: adapter(case, role) for role in case.A}
        y, cache = nn.block(case.x, case.block, case.parameters, adapters, mask, tables)
        return block_results(y, *nn.block_backward(case.dy, cache), case)
    if case.kind == "rank":
        return {"rank": certify_rank(adapter(case)).rank}
    if case.kind == "bases":
        bases = draw_bases(dialect, seed=case.seed, shapes=case.shapes, rank=case.rank, kind=case.kind_of_basis)
        return {"A": bases.A, "B": bases.B}
    if case.kind == "start":
        layer = RandLoRA.start(*case.shape, rank=case.rank, dialect=dialect)
        return {"lambda_": layer.lambda_, "gamma": layer.gamma, "delta_weight": layer.delta_weight()}
    return {"num_parameters": sum(dialect.num_parameters(shape, case.rank) for shape in case.shapes)}


def adapter(case: Case, role: str = "") -> RandLoRA:
    """The layer of a case, or a block's of this role. TypeError or ValueError where its arrays do not fit."""
    A, B, lambda_, gamma = case.factors[role]
    out_features, in_features = case.weight[role].shape if role else case.shape
    rules = replace(DIALECTS["paper"], pairing=case.pairing, orientation=case.orientation)
    return RandLoRA(
        out_features=out_features, in_features=in_features, rank=lambda_.shape[1], bases=Bases(A, B), lambda_=lambda_,
        gamma=gamma, scaling=case.scaling, dialect=rules,
    )  # fmt: skip
