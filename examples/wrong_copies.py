"""Public copies of RandLoRA and relatives, each as a function that computes what it computes; ``wrong.py`` checks them.

What they do is described in words by their readers; the code here is our own. Gradients are automatic, as theirs are,
and where theirs are not those of their forward pass, that is said.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import wrong
from wrong import Values

from randlora_ref.conformance import Case

Array = Any


def _v(case: Case, **changes: Any) -> Values:
    v = wrong.values(case)
    vars(v).update(changes)
    return v


def _run(case: Case, v: Values) -> dict[str, Array]:
    return wrong.automatic(case, (), v)


def _n_times(results: dict[str, Array], n: int) -> dict[str, Array]:
    """A repeated n times under a backward that sums over the repeats."""
    return results | {name: n * results[name] for name in ("dlambda", "dgamma")}


def hhnqqq_1(case: Case) -> Mapping[str, Array]:
    """MyTransformers at first: Σ_j diag(Γ_j) B_j Λ_j A, Γ on B's rows."""
    return _run(case, _v(case, crossed=False, sum=wrong.gamma_on_rows, turn=lambda M: M, s=case.scaling))


def hhnqqq_2(case: Case) -> Mapping[str, Array]:
    """Then crossed, Γ always on ``in``, gradients n times."""
    return _n_times(_run(case, _v(case, crossed=True, turn=lambda M: M)), len(case.lambda_))


def hhnqqq_3(case: Case) -> Mapping[str, Array]:
    """Then the orientation test inverted, so that every rectangular layer raises."""
    v = _v(case, crossed=True)
    v.turn = lambda M: M.swapaxes(-1, -2) if v.out > v.in_ else M
    return _n_times(_run(case, v), v.n)


def hhnqqq_4(case: Case) -> Mapping[str, Array]:
    """Then an adapter that is never applied and never learns."""
    return _run(case, _v(case, s=0.0))


def hhnqqq_head(case: Case) -> Mapping[str, Array]:
    """Its head: crossed, s = α/(r√n), gradients n times, merge raises for r > 1."""
    v = _v(case, crossed=True, s=case.scaling / np.sqrt(len(case.lambda_)))
    if case.merged and v.r > 1:
        raise RuntimeError("The size of tensor a must match the size of tensor b")
    return _n_times(_run(case, v), v.n)


def lovench(case: Case) -> Mapping[str, Array]:
    """S·B, the factors in the other order, s = 1, one A a term under the summing backward."""
    return _n_times(_run(case, _v(case, crossed=True, sum=wrong.swapped_product, s=1.0)), len(case.lambda_))


def lovench_first(case: Case) -> Mapping[str, Array]:
    """The first version always raises."""
    raise AttributeError("'RandLoRA' object has no attribute 'weight'")


def orkrs(case: Case) -> Mapping[str, Array]:
    """trm: Σ_j B_j diag(Λ_j∘Γ_j) A, Γ of length r, so that its gradient is (n, r)."""
    v = _v(case, crossed=False, sum=wrong.gamma_on_lambda)
    return (results := _run(case, v)) | {"dgamma": results["dgamma"][:, : v.r]}


def survey(case: Case) -> Mapping[str, Array]:
    """A survey's pseudocode: both diagonals of length r, no scaling."""
    v = _v(case, crossed=False, sum=wrong.gamma_on_lambda, s=1.0)
    return (results := _run(case, v)) | {"dgamma": results["dgamma"][:, : v.r]}


def equimo(case: Case) -> Mapping[str, Array]:
    """Σ_j c_j B_j A, one scalar a base, no Γ."""
    v = _v(case, crossed=False, L=lambda z: np.repeat(z[..., :1], z.shape[-1], -1), G=lambda z: 0 * z.real + 1)
    results = _run(case, v)
    return results | {"dlambda": results["dlambda"][:, :1], "dgamma": "unsupported: no gamma"}


def laihongphuc(case: Case) -> Mapping[str, Array]:
    """The authors' fork with s = α/r: right on crossed cases."""
    return _run(case, _v(case, crossed=True))


def official(case: Case) -> Mapping[str, Array]:
    """The authors' fork of PEFT: crossed, s = α/(r√n)."""
    return _run(case, _v(case, crossed=True, s=case.scaling / np.sqrt(len(case.lambda_))))


def dag(case: Case) -> Mapping[str, Array]:
    """DAG-RandLoRA: literal, right in both orientations."""
    return _run(case, _v(case, crossed=False))


def nlg(case: Case) -> Mapping[str, Array]:
    """The authors' GPT-2 code, c_fc and c_proj: crossed, M.reshape(in, out).T, s = α/(r√n)."""
    v = _v(case, crossed=True, s=case.scaling / np.sqrt(len(case.lambda_)))
    v.turn = lambda M: wrong.nlg_turn(M) if v.out > v.in_ else M.swapaxes(-1, -2)
    return _run(case, v)


def nlg_v(case: Case) -> Mapping[str, Array]:
    """The value part of its c_attn: rows d … 2d of B."""
    v = _v(case, crossed=True, s=case.scaling / np.sqrt(len(case.lambda_)))
    v.B_part, v.turn = (lambda B: B[: v.n, v.d : v.d + v.D]), lambda M: M
    return _run(case, v)


def vision(case: Case) -> Mapping[str, Array]:
    """The authors' CLIP code: crossed, s = 1/r, Mᵀ of square layers too unless merged."""
    v = _v(case, crossed=True, s=1 / case.lambda_.shape[1])
    v.turn = lambda M: M if v.out > v.in_ or (case.merged and v.out == v.in_) else M.swapaxes(-1, -2)
    return _run(case, v)


def vision_attention(case: Case) -> Mapping[str, Array]:
    """Its attention adapter assigns through .data: no gradient for Λ and Γ."""
    return vision(case) | {"dlambda": np.zeros(case.lambda_.shape), "dgamma": np.zeros(case.gamma.shape)}


def kradapter(case: Case) -> Mapping[str, Array]:
    """The authors' toy: literal, never transposed, s = 1."""
    v = _v(case, crossed=False, turn=lambda M: M, s=1.0)
    v.A_part, v.B_part = (lambda A: A[:, : v.in_]), lambda B: B[: v.n, : v.out]
    return _run(case, v)


def peft(case: Case) -> Mapping[str, Array]:
    """PEFT 0.21.2."""
    return _run(case, _v(case, crossed=True))


def peft_quantized(case: Case) -> Mapping[str, Array]:
    """Its 8-bit and 4-bit layers: the merge multiplies S·B."""
    v = _v(case, crossed=True)
    if case.merged:
        v.sum = wrong.swapped_product
    return _run(case, v)


def other_A(case: Case) -> Mapping[str, Array]:
    """A copy that is right but for the summing backward."""
    return _n_times(_run(case, _v(case)), len(case.lambda_))


COPIES: tuple[Callable[[Case], Mapping[str, Array]], ...] = (
    hhnqqq_1, hhnqqq_2, hhnqqq_3, hhnqqq_4, hhnqqq_head, lovench_first, lovench, orkrs, survey, equimo, dag,
    laihongphuc, official, nlg, nlg_v, vision, vision_attention, kradapter, peft, peft_quantized, other_A,
)  # fmt: skip
