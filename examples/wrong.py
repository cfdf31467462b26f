"""Implementations that must fail, each with the diagnosis it deserves, and right ones that must pass.

They are written on one einsum, apart from ``spec`` and from the hypotheses of the kit: a checker is checked by what it
has not seen. Layers are here, the rest is in ``wrong_bases.py`` and ``wrong_blocks.py``. ``python examples/wrong.py``
prints by which case each is caught and what it is called; one alone: ``cd examples && randlora-ref check
wrong:crossed``.
"""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import wrong_bases
import wrong_blocks
from wrong_bases import Wrong

from randlora_ref.conformance import Case, check
from randlora_ref.conformance.cases import rounded

Array = Any
Values = SimpleNamespace  # x W b A B L G dy m s pairing, and what is computed of them: delta y dx dL dG


def to(dtype: str) -> Callable[[Array], Array]:
    """Rounding to ``dtype``."""
    return lambda z: np.asarray(z, dtype=dtype)


FLOAT64 = to("float64")


def einsum_layer(
    case: Case, before: Any = None, after: Any = None, keep: Any = FLOAT64, order: int = 1
) -> dict[str, Array]:
    """The layer on einsum. ``keep`` rounds every array and result; ``order`` −1 sums terms and rows backwards."""
    v = Values(x=case.x, W=case.weight, b=case.bias, A=case.A, B=case.B, L=case.lambda_, G=case.gamma, dy=case.dy)
    v.s, v.crossed, v.keep = case.scaling, case.pairing == "crossed", keep
    v.m = np.ones_like(case.x) if case.dropout_mask is None else case.dropout_mask
    v.n, v.D, v.d, v.r = len(v.L), max(v.W.shape), min(v.W.shape), v.L.shape[1]
    v.tall, v.order = v.W.shape[0] >= v.W.shape[1], order
    if before is not None:
        before(v)
    _finish(v)
    if after is not None:
        after(v)
    return {"delta_weight": v.delta, "y": v.y, "dx": v.dx, "dlambda": v.dL, "dgamma": v.dG}


def _factors(v: Values) -> tuple[Array, Array, Array, Array]:
    A, B, L, G = (v.keep(z) for z in (v.A[:, : v.d], v.B[: v.n, : v.D], v.L, v.G))
    if v.crossed:
        flat = B.transpose(1, 0, 2).reshape(v.D, v.n * v.r)
        B = flat.reshape(v.D, v.r, v.n).transpose(2, 0, 1)
    return B[:: v.order], L[:: v.order], G[:: v.order], A


def _finish(v: Values) -> None:
    """ΔW, y and the gradients by one einsum each."""
    keep = v.keep
    B, L, G, A = _factors(v)
    M = keep(v.s * keep(np.einsum("jok,jk,ki,ji->oi", B, L, A, G)))
    v.delta = M if v.tall else M.T
    x, dy, W, m = keep(v.x), keep(v.dy), keep(v.W), keep(v.m)
    kept = keep(x * m)
    y = keep(keep(np.einsum("...i,oi->...o", x, W)) + keep(np.einsum("...i,oi->...o", kept, v.delta)))
    v.y = y if v.b is None else keep(y + keep(v.b))
    v.dx = keep(keep(np.einsum("...o,oi->...i", dy, W)) + keep(m * keep(np.einsum("...o,oi->...i", dy, v.delta))))
    rows, cotangent = kept.reshape(-1, kept.shape[-1])[:: v.order], v.dy.reshape(-1, v.dy.shape[-1])[:: v.order]
    E = keep(np.einsum("to,ti->oi", keep(cotangent), keep(rows)))
    E = E if v.tall else E.T
    v.dL = keep(v.s * keep(np.einsum("jok,oi,ki,ji->jk", B, E, A, G)))[:: v.order]
    v.dG = keep(v.s * keep(np.einsum("jok,jk,ki,oi->ji", B, L, A, E)))[:: v.order]


def einsum_right(case: Case, keep: Any = FLOAT64, order: int = 1) -> Mapping[str, Any]:
    """A right implementation of layers alone."""
    if case.kind != "layer":
        return dict.fromkeys(case.wanted, "unsupported: layers alone")
    return einsum_layer(case, keep=keep, order=order)


RIGHT: dict[str, tuple[Callable[[Case], Mapping[str, Any]], str | None]] = {
    "float64": (einsum_right, None),
    "float64 backwards": (lambda c: einsum_right(c, order=-1), None),
    "float32": (lambda c: einsum_right(c, to("float32")), "float32"),
    "float32 backwards": (lambda c: einsum_right(c, to("float32"), -1), "float32"),
    "float16": (lambda c: einsum_right(c, to("float16")), "float16"),
    "bfloat16": (lambda c: einsum_right(c, lambda z: rounded(z, "bfloat16")), "bfloat16"),
}


def _layer(diagnosis: str, before: Any = None, after: Any = None, keep: Any = FLOAT64) -> Wrong:
    return Wrong("layer", diagnosis, lambda case: einsum_layer(case, before, after, keep))


def _set(**change: Callable[[Values], Any]) -> Callable[[Values], None]:
    def apply(v: Values) -> None:
        for name, value in {name: make(v) for name, make in change.items()}.items():
            setattr(v, name, value)

    return apply


def _again(names: str, **change: Callable[[Values], Any]) -> Callable[[Values], None]:
    """The named results taken from a second run with something changed."""

    def apply(v: Values) -> None:
        other = Values(**vars(v))
        _set(**change)(other)
        _finish(other)
        for name in names.split():
            setattr(v, name, getattr(other, name))

    return apply


def _redo(delta: Callable[[Values], Array]) -> Callable[[Values], None]:
    """y and dx with another ΔW."""

    def apply(v: Values) -> None:
        v.delta = delta(v)
        v.y = v.x @ v.W.T + (v.x * v.m) @ v.delta.T + (0 if v.b is None else v.b)
        v.dx = v.dy @ v.W + v.dy @ v.delta * v.m

    return apply


def _tf32(z: Array) -> Array:
    bits = (np.ascontiguousarray(z, dtype=np.float32).view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return bits.view(np.float32).reshape(np.shape(z))


def _drop_last(v: Values) -> None:
    if v.n > 1:
        v.dropped, v.L = True, np.concatenate([v.L[:-1], 0 * v.L[-1:]])


def _no_last_gradient(v: Values) -> None:
    if hasattr(v, "dropped"):
        v.dL[-1] = 0


def _drop_partial(v: Values) -> None:
    if v.d % v.r:
        _drop_last(v)


def _rows(v: Values) -> int:
    return max(1, v.x[..., 0].size)


def _last(name: str) -> Callable[[Values], Array]:
    return lambda v: getattr(v, name)[-1:] if v.x.ndim > 1 else getattr(v, name)


def _order_swapped(v: Values) -> Array:
    n, D, d, r = v.n, v.D, v.d, v.r
    if d != D or n * r != d:
        return v.delta
    B, L, G, A = _factors(v)
    return v.s * np.einsum("jki,ilm->jklm", np.einsum("jk,ki,ji->jki", L, A, G), B.transpose(1, 0, 2)).reshape(D, d)


# fmt: off
WRONG: dict[str, Wrong] = {
    "crossed": _layer("crossed pairing", _set(crossed=lambda v: True)),
    "literal": _layer("literal pairing", _set(crossed=lambda v: False)),
    "gradient_pairing": _layer("other pairing in the gradients",
                               after=_again("dL dG", crossed=lambda v: not v.crossed)),
    "square_transposed": _layer("square layer transposed",
                                after=_redo(lambda v: v.delta.T if v.d == v.D else v.delta)),
    "wide_view": _layer("wide layer reshaped, not transposed",
                        after=_redo(lambda v: v.delta if v.tall else v.delta.T.copy().reshape(v.W.shape))),
    "eight_bit_merge": _layer("factors multiplied in the wrong order", after=_redo(_order_swapped)),
    "r_over_alpha": _layer("scaling r/alpha", _set(s=lambda v: 1 / v.s)),
    "alpha": _layer("scaling alpha, not alpha/r", _set(s=lambda v: v.s * v.r)),
    "alpha_over_sqrt_r": _layer("scaling times sqrt(r), as alpha/sqrt(r)", _set(s=lambda v: v.s * v.r / np.sqrt(v.r))),
    "official_scaling": _layer("scaling over sqrt(n)", _set(s=lambda v: v.s / np.sqrt(v.n))),
    "no_scaling": _layer("scaling left out", _set(s=lambda v: 1.0)),
    "scaled_twice": _layer("scaling applied twice", _set(s=lambda v: v.s**2)),
    "unscaled_gradients": _layer("scaling missing from the gradients", after=_again("dL dG", s=lambda v: 1.0)),
    "unscaled_dx": _layer("scaling missing from dx", after=_again("dx", s=lambda v: 1.0)),
    "lambda_rolled": _layer("lambda rolled by one term", _set(L=lambda v: np.vstack([v.L[-1:], v.L[:-1]]))),
    "gamma_rolled": _layer("gamma rolled by one term", _set(G=lambda v: np.vstack([v.G[-1:], v.G[:-1]]))),
    "lambda_layout": _layer("lambda read as (r, n)", _set(L=lambda v: v.L.ravel().reshape(v.r, v.n).T)),
    "gamma_layout": _layer("gamma read as (d, n)", _set(G=lambda v: v.G.ravel().reshape(v.d, v.n).T)),
    "one_lambda": _layer("one lambda for all terms", _set(L=lambda v: np.repeat(v.L[:1], v.n, axis=0))),
    "one_gamma": _layer("one gamma for all terms", _set(G=lambda v: np.repeat(v.G[:1], v.n, axis=0))),
    "scalar_bases": _layer("one scalar for each base", _set(L=lambda v: np.repeat(v.L[:, :1], v.r, axis=1))),
    "one_B": _layer("B_1 for all terms", _set(B=lambda v: np.stack([v.B[0]] * len(v.B)))),
    "A_end": _layer("A sliced from the wrong end", _set(A=lambda v: v.A[:, v.A.shape[1] - v.d:])),
    "B_terms_end": _layer("B's terms sliced from the wrong end", _set(B=lambda v: v.B[len(v.B) - v.n:])),
    "B_rows_end": _layer("B's rows sliced from the wrong end", _set(B=lambda v: v.B[:, v.B.shape[1] - v.D:])),
    "last_term": _layer("last term dropped", _drop_last, _no_last_gradient),
    "floor_terms": _layer("partial last term dropped, n = floor(d/r)", _drop_partial, _no_last_gradient),
    "dgamma_no_lambda": _layer("dgamma without lambda", after=_again("dG", L=lambda v: np.ones_like(v.L))),
    "dlambda_no_gamma": _layer("dlambda without gamma", after=_again("dL", G=lambda v: np.ones_like(v.G))),
    "dx_adapter_only": _layer("dx without the base path", after=_set(dx=lambda v: v.dy @ v.delta * v.m)),
    "dx_base_only": _layer("dx without the adapter path", after=_set(dx=lambda v: v.dy @ v.W)),
    "no_bias": _layer("bias left out", _set(b=lambda v: None)),
    "bias_twice": _layer("bias added twice", _set(b=lambda v: None if v.b is None else v.b + v.b)),
    "mean_gradients": _layer("gradients averaged over the rows",
                             after=_set(dL=lambda v: v.dL / _rows(v), dG=lambda v: v.dG / _rows(v))),
    "last_row": _layer("gradients of the last leading index alone",
                       after=_again("dL dG", x=_last("x"), dy=_last("dy"), m=_last("m"))),
    "mask_ignored": _layer("dropout mask ignored", _set(m=lambda v: np.ones_like(v.m))),
    "mask_of_ones": _layer("dropout mask without its 1/(1 - p)", _set(m=lambda v: np.sign(v.m))),
    "mask_on_base": _layer("dropout mask on the base path too", after=_set(
        y=lambda v: v.y - (v.x - v.x * v.m) @ v.W.T, dx=lambda v: v.dx - v.dy @ v.W * (1 - v.m))),
    "mask_not_on_dx": _layer("dx without the dropout mask", after=_again("dx", m=lambda v: np.ones_like(v.m))),
    "mask_not_on_G": _layer("gradients without the dropout mask", after=_again("dL dG", m=lambda v: np.ones_like(v.m))),
    "mask_on_y": _layer("no known deviation", after=_set(
        y=lambda v: v.y * v.m if v.y.shape == v.m.shape else v.y, dx=lambda v: v.dx * v.m)),
    "zero_dgamma": _layer("dgamma zero", after=_set(dG=lambda v: np.zeros_like(v.dG))),
    "zero_gradients": _layer("zero gradients", after=_set(
        dL=lambda v: np.zeros_like(v.dL), dG=lambda v: np.zeros_like(v.dG))),
    "negated": _layer("gradients of the opposite sign", after=_set(dL=lambda v: -v.dL, dG=lambda v: -v.dG)),
    "tf32": _layer("computed in the precision of TF32 or float16", keep=_tf32),
    "bfloat16": _layer("computed in the precision of bfloat16", keep=lambda z: rounded(z, "bfloat16")),
    "two_faults": _layer("scaling over sqrt(n) and bias left out",
                         _set(s=lambda v: v.s / np.sqrt(v.n), b=lambda v: None)),
    "nan": _layer("no known deviation", after=_set(y=lambda v: np.where(v.y == v.y.max(initial=0), np.nan, v.y))),
    "unknown": _layer("no known deviation", after=_set(delta=lambda v: v.delta * 1.01)),
}
# fmt: on

WRONG |= wrong_bases.WRONG
WRONG |= {
    f"block_{fault}": Wrong("block", "no known deviation", partial(wrong_blocks.block, fault=fault))
    for fault in wrong_blocks.FAULTS
}


def __getattr__(name: str) -> Wrong:
    """Each by its name, for ``randlora-ref check wrong:NAME``."""
    if name not in WRONG:
        raise AttributeError(name)
    return WRONG[name]


def main() -> None:
    """Check them all and print a row for each."""
    for name, (run, dtype) in RIGHT.items():
        report = check(run, ["layer"], dtype=dtype)
        print(f"{name:20} {'passes' if report.passed else 'FAILS'} {report.passed_cases} cases")
    report = check(wrong_blocks.block, ["block"])
    print(f"{'blocks':20} {'passes' if report.passed else 'FAILS'} {report.passed_cases} cases")
    for name, wrong in WRONG.items():
        report = check(wrong, [wrong.kind])
        caught = report.failures[0].case.id if report.failures else "NOTHING"
        print(f"{name:36} {len(report.failures):3} failures, the smallest {caught:40} {report.diagnosis}")


if __name__ == "__main__":
    main()
