"""What a right implementation answers to a case: ``spec``'s numbers, for bases and ranks ``oracle``'s.

The fast code has no part in them.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from .. import spec
from ..dialects import DIALECTS
from ..verify import gauge
from ..verify.integers import fractions
from . import oracle
from .cases import ARRAYS, Case

Array = Any
Results = dict[str, Array]
# A layer's results in the kit, and in ``gauge``.
LAYER = {"delta_weight": "delta_weight", "y": "y", "dx": "x", "dlambda": "lambda_", "dgamma": "gamma"}


def expected(case: Case) -> Results:
    """What a right implementation answers, by name: as stored, or computed."""
    if case.stored is not None:
        return case.stored
    if case.kind == "layer":
        return layer(case)
    if case.kind == "block":
        return block(case.with_arrays(lambda x: np.asarray(x, dtype=np.float64)))
    if case.kind == "rank":
        return {"rank": np.asarray(oracle.exact_rank(case))}
    if case.kind == "bases":
        A, B = oracle.bases(case.seed, case.shapes, case.rank, case.kind_of_basis, case.dialect, context=case.context)
        return {"A": A, "B": B}
    dialect, r = DIALECTS[case.dialect], case.rank
    if case.kind == "count":
        terms = [(shape, dialect.terms(shape, r, context=case.context)) for shape in case.shapes]
        counts = [n * (r + spec.sides(shape, dialect.orientation)[1]) for shape, n in terms]
        return {"num_parameters": np.asarray(sum(counts))}
    n, d = dialect.terms(case.shape, r, context=case.context), spec.sides(case.shape, dialect.orientation)[1]
    lambda_, gamma = dialect.start(case.shape, r, n)
    learned = {"lambda_": np.full((n, r), lambda_), "gamma": np.full((n, d), gamma)}
    return learned | {"delta_weight": np.zeros(case.shape)}


def layer(case: Case, number: Any = np.float64) -> Results:
    """ΔW, y and gradients of a layer case, in float64, or in exact rationals for ``number=Fraction``."""
    return named(gauge.expected(arguments(case, number)))


def arguments(case: Case, number: Any = np.float64) -> dict[str, Any]:
    """A layer case as ``verify.gauge`` takes it, its arrays and scaling in one kind of number."""
    c = case.with_arrays(fractions if number is Fraction else lambda x: np.asarray(x, dtype=number))
    given = {name: getattr(c, name) for name in ARRAYS}
    return given | {"scaling": number(case.scaling), "pairing": case.pairing, "orientation": case.orientation}


def named(results: Mapping[str, Array]) -> Results:
    """A layer's results under the names of the kit."""
    return {name: results[own] for name, own in LAYER.items()}


def block(case: Case) -> Results:
    """y and gradients of a block case, in the numbers of its arrays."""
    updates = {role: spec.Update(*own, case.scaling, case.pairing) for role, own in case.factors.items()}
    seen, theta = spec.visible(case.x.shape[1], case.causal, np.array(case.attention_mask)), case.rope_theta
    tables = theta and spec.rotary_tables(case.x.shape[1], case.block.head_width, theta, dtype=case.x.dtype)
    given = case.x, case.block, case.parameters, updates, seen, tables
    y, _ = spec.block_forward(*given)
    return block_results(y, *spec.block_backward(case.dy, *given), case)


def block_results(y: Array, dx: Array, gradients: Mapping[str, Any], case: Case) -> Results:
    """A block's results by name, of the gradients by role."""
    own = {f"{name}.{role}": getattr(gradients[role], LAYER[name]) for role in case.A for name in ("dlambda", "dgamma")}
    return {"y": y, "dx": dx} | own
