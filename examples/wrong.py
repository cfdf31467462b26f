"""Implementations that must fail, each with the diagnosis it deserves, and right ones that must pass.

They are written on one einsum, apart from ``spec`` and from the diagnosis of the kit: a checker is checked by what it
has not seen. Each fault of a layer comes in two copies: ``NAME``, whose gradients are automatic (every entry of x, Λ
and Γ moved by ih, the complex step), so that they follow the fault, and ``NAME_by_hand``, whose gradients of Λ and Γ
are Eq. 4's and ignore it. Layers are here and in ``wrong_copies.py``, the rest is in ``wrong_bases.py`` and
``wrong_blocks.py``. ``python examples/wrong.py`` prints by which case each is caught and what it is called; one alone:
``cd examples && randlora-ref check wrong:crossed``.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
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
Values = SimpleNamespace  # of a layer: its arrays as it reads them, and how it puts them together
Change = Callable[[Values], None]
STEP = 2.0**-100  # a power of two, so that integers stay exact beside it


def to(dtype: str) -> Callable[[Array], Array]:
    """Rounding to ``dtype``."""
    return lambda z: np.asarray(z, dtype=dtype)


FLOAT64 = to("float64")


# -- right ------------------------------------------------------------------------------------------------


def right_layer(case: Case, keep: Any = FLOAT64, order: int = 1) -> dict[str, Array]:
    """The layer on einsum. ``keep`` rounds every array and result; ``order`` −1 sums terms and rows backwards."""
    (n, r), (out, in_), s = case.lambda_.shape, case.weight.shape, case.scaling
    D, d, tall = max(out, in_), min(out, in_), out >= in_
    A, B, L, G = (keep(z) for z in (case.A[:, :d], case.B[:n, :D], case.lambda_, case.gamma))
    if case.pairing == "crossed":
        B = B.transpose(1, 0, 2).reshape(D, r, n).transpose(2, 0, 1)
    B, L, G = B[::order], L[::order], G[::order]
    M = keep(s * keep(np.einsum("jok,jk,ki,ji->oi", B, L, A, G)))
    delta = M if tall else M.T
    x, dy, W = keep(case.x), keep(case.dy), keep(case.weight)
    m = keep(np.ones_like(x) if case.dropout_mask is None else case.dropout_mask)
    kept = keep(x * m)
    y = keep(keep(np.einsum("...i,oi->...o", x, W)) + keep(np.einsum("...i,oi->...o", kept, delta)))
    y = y if case.bias is None else keep(y + keep(case.bias))
    dx = keep(keep(np.einsum("...o,oi->...i", dy, W)) + keep(m * keep(np.einsum("...o,oi->...i", dy, delta))))
    rows, cotangent = kept.reshape(-1, in_)[::order], dy.reshape(-1, out)[::order]
    E = keep(np.einsum("to,ti->oi", cotangent, rows))
    E = E if tall else E.T
    dL = keep(s * keep(np.einsum("jok,oi,ki,ji->jk", B, E, A, G)))[::order]
    dG = keep(s * keep(np.einsum("jok,jk,ki,oi->ji", B, L, A, E)))[::order]
    return {"delta_weight": delta, "y": y, "dx": dx, "dlambda": dL, "dgamma": dG}


def einsum_right(case: Case, keep: Any = FLOAT64, order: int = 1) -> Mapping[str, Any]:
    """A right implementation of layers alone."""
    if case.kind != "layer":
        return dict.fromkeys(case.wanted, "unsupported: layers alone")
    return right_layer(case, keep, order)


RIGHT: dict[str, tuple[Callable[[Case], Mapping[str, Any]], str | None]] = {
    "float64": (einsum_right, None),
    "float64 backwards": (lambda c: einsum_right(c, order=-1), None),
    "float32": (lambda c: einsum_right(c, to("float32")), "float32"),
    "float32 backwards": (lambda c: einsum_right(c, to("float32"), -1), "float32"),
    "float16": (lambda c: einsum_right(c, to("float16")), "float16"),
    "bfloat16": (lambda c: einsum_right(c, lambda z: rounded(z, "bfloat16")), "bfloat16"),
    "complex step": (lambda c: automatic(c, ()), None),
}


# -- a layer whose gradients follow whatever it computes ----------------------------------------------------


def values(case: Case) -> Values:
    """What a layer reads, and the steps that a fault may change, all as they should be."""
    v = Values(case=case, W=case.weight, A=case.A, B=case.B, s=case.scaling, crossed=case.pairing == "crossed")
    (v.n, v.r), (v.out, v.in_) = case.lambda_.shape, case.weight.shape
    v.D, v.d, v.terms = max(v.W.shape), min(v.W.shape), v.n
    v.b = np.zeros(v.out) if case.bias is None else case.bias
    v.m = np.ones_like(case.x) if case.dropout_mask is None else case.dropout_mask
    v.base_m, v.base, v.adapter = np.ones_like(v.m), 1, 1
    v.A_part, v.B_part = lambda A: A[:, : v.d], lambda B: B[: v.terms, : v.D]
    v.L = v.G = lambda z: z
    v.sum, v.turn = einsum_sum, lambda M: M.swapaxes(-1, -2) if v.out < v.in_ else M
    return v


def einsum_sum(v: Values, L: Array, G: Array) -> Array:
    """Σ_j B_j Λ_j A Γ_j (…, D, d)."""
    return np.einsum("jok,...jk,ki,...ji->...oi", columns(v), L, v.A_part(v.A), G)


def columns(v: Values) -> Array:
    """B (n, D, r) with its columns where they are paired."""
    B = v.B_part(v.B)
    if v.crossed:
        B = B.transpose(1, 0, 2).reshape(B.shape[1], v.r, -1).transpose(2, 0, 1)
    return B


def update(v: Values, L: Array, G: Array) -> Array:
    """ΔW (…, out, in)."""
    return v.s * v.turn(v.sum(v, v.L(L[..., : v.terms, :]), v.G(G[..., : v.terms, :])))


def forward(v: Values, x: Array, L: Array, G: Array, many: str) -> Array:
    """y; with ``many`` "a", x, L and G have an axis of copies in front."""
    y = np.einsum(f"{many}...i,oi->{many}...o", x * v.base_m, v.base * v.W)
    return y + np.einsum(f"{many}...i,{many}oi->{many}...o", x * v.m, v.adapter * update(v, L, G)) + v.b


def automatic(case: Case, changes: tuple[Change, ...], v: Values | None = None) -> dict[str, Array]:
    """All results of a layer with changes, gradients by the complex step: exact on integers."""
    if v is None:
        v = values(case)
        for change in changes:
            change(v)
    given = (case.x, case.lambda_, case.gamma)
    sizes = [z.size for z in given]
    moved = np.concatenate([np.ravel(z) for z in given]) + 1j * STEP * np.eye(sum(sizes))
    parts = np.split(moved, np.cumsum(sizes)[:2], axis=1)
    x, L, G = (part.reshape(len(moved), *z.shape) for part, z in zip(parts, given, strict=True))
    slopes = np.sum(case.dy * forward(v, x, L, G, "a").imag, axis=tuple(range(1, 1 + case.x.ndim))) / STEP
    dx, dL, dG = (s.reshape(z.shape) for s, z in zip(np.split(slopes, np.cumsum(sizes)[:2]), given, strict=True))
    y = forward(v, *given, "")
    return {"delta_weight": update(v, *given[1:]), "y": y, "dx": dx, "dlambda": dL, "dgamma": dG}


def by_hand(case: Case, changes: tuple[Change, ...]) -> dict[str, Array]:
    """The same with the gradients of Λ and Γ as Eq. 4 has them."""
    right = right_layer(case)
    return automatic(case, changes) | {name: right[name] for name in ("dlambda", "dgamma")}


# -- faults -----------------------------------------------------------------------------------------------


def _set(**made: Callable[[Values], Any]) -> Change:
    """Other values, each made of those that are there."""

    def apply(v: Values) -> None:
        for name, value in {name: make(v) for name, make in made.items()}.items():
            setattr(v, name, value)

    return apply


def _fixed(**functions: Any) -> Change:
    return lambda v: vars(v).update(functions)


def _if(holds: Callable[[Case], bool], change: Change) -> Change:
    return lambda v: change(v) if holds(v.case) else None


def other_layout(z: Array) -> Array:
    """(n, k) from the entries of (k, n)."""
    n, k = z.shape[-2:]
    return z.reshape(*z.shape[:-2], k, n).swapaxes(-1, -2)


def last_first(z: Array) -> Array:
    """The last term in the place of the first, each other one later."""
    return np.concatenate([z[..., -1:, :], z[..., :-1, :]], -2)


def rank_by_rank(v: Values, L: Array, G: Array) -> tuple[Array, Array]:
    """The two factors as PEFT lays them out: B's columns term by term, the rows of ΛAΓ rank by rank if crossed."""
    B = v.B_part(v.B).transpose(1, 0, 2).reshape(v.D, -1)
    S = np.einsum("...jk,ki,...ji->...kji" if v.crossed else "...jk,ki,...ji->...jki", L, v.A_part(v.A), G)
    return B, S.reshape(*S.shape[:-3], -1, S.shape[-1])


def swapped_product(v: Values, L: Array, G: Array) -> Array:
    """S·B in the place of B·S."""
    B, S = rank_by_rank(v, L, G)
    return S @ B


def gamma_on_lambda(v: Values, L: Array, G: Array) -> Array:
    """Σ_j B_j diag(Λ_j∘Γ_j) A, Γ of length r."""
    return np.einsum("jok,...jk,...jk,ki->...oi", columns(v), L, G[..., : v.r], v.A_part(v.A))


def gamma_on_rows(v: Values, L: Array, G: Array) -> Array:
    """Σ_j diag(Γ_j) B_j Λ_j A."""
    return np.einsum("...jo,jok,...jk,ki->...oi", G, columns(v), L, v.A_part(v.A))


def nlg_turn(M: Array) -> Array:
    """M.reshape(in, out).T for a tall M (D, d)."""
    return M.reshape(*M.shape[:-2], *M.shape[:-3:-1]).swapaxes(-1, -2)


# fmt: off
STRUCTURE: dict[str, tuple[str, Change]] = {  # what changes ΔW
    "crossed": ("crossed pairing", _fixed(crossed=True)),
    "literal": ("literal pairing", _fixed(crossed=False)),
    "swapped_product": ("the product S·B, factors in the other order", _fixed(sum=swapped_product)),
    "last_term": ("last term dropped", _set(terms=lambda v: max(1, v.n - 1))),
    "floor_terms": ("n = floor(d/r)", _set(terms=lambda v: min(v.n, max(1, v.d // v.r)))),
    "lambda_layout": ("lambda read as (r, n)", _fixed(L=other_layout)),
    "lambda_rolled": ("lambda rolled by one term", _fixed(L=last_first)),
    "one_lambda": ("one lambda for all terms", _fixed(L=lambda z: np.repeat(z[..., :1, :], z.shape[-2], -2))),
    "scalar_bases": ("one scalar for each base", _fixed(L=lambda z: np.repeat(z[..., :1], z.shape[-1], -1))),
    "no_lambda": ("lambda ignored", _fixed(L=lambda z: 0 * z.real + 1)),
    "gamma_layout": ("gamma read as (d, n)", _fixed(G=other_layout)),
    "gamma_rolled": ("gamma rolled by one term", _fixed(G=last_first)),
    "one_gamma": ("one gamma for all terms", _fixed(G=lambda z: np.repeat(z[..., :1, :], z.shape[-2], -2))),
    "no_gamma": ("gamma ignored", _fixed(G=lambda z: 0 * z.real + 1)),
    "gamma_of_length_r": ("gamma of length r", _fixed(sum=gamma_on_lambda)),
    "gamma_on_rows": ("gamma on B's rows", _fixed(sum=gamma_on_rows)),
    "A_end": ("A sliced from the wrong end", _set(A_part=lambda v: lambda A: A[:, A.shape[1] - v.d:])),
    "A_whole": ("A not sliced", _fixed(A_part=lambda A: A)),
    "B_terms_end": ("B's terms sliced from the wrong end", _set(B_part=lambda v: lambda B: (
        B[len(B) - v.terms:, : v.D]))),
    "one_B": ("B_1 for all terms", _set(B_part=lambda v: lambda B: np.stack([B[0, : v.D]] * v.terms))),
    "B_terms_whole": ("B's terms not sliced", _set(B_part=lambda v: lambda B: B[:, : v.D])),
    "B_rows_end": ("B's rows sliced from the wrong end", _set(B_part=lambda v: lambda B: (
        B[: v.terms, B.shape[1] - v.D:]))),
    "B_rows_after_d": ("B's rows d … d + D", _set(B_part=lambda v: lambda B: B[: v.terms, v.d: v.d + v.D])),
    "B_rows_whole": ("B's rows not sliced", _set(B_part=lambda v: lambda B: B[: v.terms])),
    "square_transposed": ("square layers transposed", _set(turn=lambda v: lambda M: (
        M if v.out > v.in_ else M.swapaxes(-1, -2)))),
    "tall_reshaped": ("tall layers reshaped", _set(turn=lambda v: lambda M: (
        nlg_turn(M) if v.out > v.in_ else M if v.out == v.in_ else M.swapaxes(-1, -2)))),
    "reshaped": ("tall layers reshaped, square ones transposed", _set(turn=lambda v: lambda M: (
        nlg_turn(M) if v.out > v.in_ else M.swapaxes(-1, -2)))),
    "never_transposed": ("no layer transposed", _fixed(turn=lambda M: M)),
    "wide_view": ("wide layers reshaped, not transposed", _set(turn=lambda v: lambda M: (
        M.reshape(*M.shape[:-2], v.out, v.in_)))),
    "inverted_test": ("orientation test inverted", _set(turn=lambda v: lambda M: (
        M.swapaxes(-1, -2) if v.out > v.in_ else M))),
}
SCALING: dict[str, tuple[str, Change]] = {
    "r_over_alpha": ("scaling r/alpha", _set(s=lambda v: 1 / v.s)),
    "alpha": ("scaling alpha, not alpha/r", _set(s=lambda v: v.s * v.r)),
    "alpha_over_sqrt_r": ("scaling times sqrt(r), as alpha/sqrt(r)", _set(s=lambda v: v.s * v.r / np.sqrt(v.r))),
    "over_sqrt_r": ("scaling times r^(-1/2)", _set(s=lambda v: v.s / np.sqrt(v.r))),
    "official_scaling": ("scaling over sqrt(n)", _set(s=lambda v: v.s / np.sqrt(v.n))),
    "paper_scaling": ("scaling 2/sqrt(n)", _set(s=lambda v: 2 / np.sqrt(v.n))),
    "vision_scaling": ("scaling 1/r", _set(s=lambda v: 1 / v.r)),
    "no_scaling": ("scaling left out", _fixed(s=1.0)),
    "scaled_twice": ("scaling applied twice", _set(s=lambda v: v.s**2)),
    "odd_scaling": ("scaling times 3·n^(1/2)·d^(-1)", _set(s=lambda v: 3 * v.s * np.sqrt(v.n) / v.d)),
    "not_applied": ("adapter not applied", _fixed(s=0.0)),
}
PATH: dict[str, tuple[str, Change]] = {  # what changes y beside ΔW
    "no_bias": ("bias left out", _set(b=lambda v: 0 * v.b)),
    "bias_twice": ("bias added twice", _set(b=lambda v: 2 * v.b)),
    "no_base": ("base path left out", _fixed(base=0)),
    "mask_ignored": ("dropout mask ignored", _set(m=lambda v: np.ones_like(v.m))),
    "mask_of_ones": ("dropout mask without its 1/(1 - p)", _set(m=lambda v: np.sign(v.m))),
    "mask_on_base": ("dropout mask on the base path too", _set(base_m=lambda v: v.m)),
}
CONDITIONS: dict[str, Callable[[Case], bool]] = {
    "if merged": lambda c: c.merged,
    "unless merged": lambda c: not c.merged,
    "if wide": lambda c: c.weight.shape[0] < c.weight.shape[1],
    "if tall": lambda c: c.weight.shape[0] > c.weight.shape[1],
    "if square": lambda c: c.weight.shape[0] == c.weight.shape[1],
    "if fan_in_fan_out": lambda c: c.fan_in_fan_out,
}
CONDITIONAL = {
    "if merged": "A_end B_rows_end B_terms_end crossed literal square_transposed tall_reshaped official_scaling"
                 " no_scaling swapped_product no_bias",
    "unless merged": "crossed square_transposed official_scaling",
    "if wide": "crossed A_end one_gamma lambda_rolled no_scaling",
    "if tall": "crossed gamma_layout A_end no_scaling",
    "if square": "crossed lambda_layout no_scaling",
    "if fan_in_fan_out": "crossed square_transposed no_scaling lambda_layout no_bias",
}
COMBINED = (
    "crossed official_scaling", "crossed no_scaling", "literal alpha", "crossed A_end", "crossed no_bias",
    "official_scaling no_bias", "one_lambda one_gamma", "scalar_bases no_gamma", "lambda_layout gamma_layout",
    "crossed square_transposed", "square_transposed B_rows_end", "one_B gamma_rolled", "literal mask_ignored",
    "gamma_of_length_r no_scaling", "tall_reshaped lambda_rolled", "A_end B_terms_end", "last_term crossed",
    "swapped_product no_scaling", "gamma_layout mask_of_ones", "floor_terms alpha_over_sqrt_r",
    "crossed A_end no_scaling", "lambda_layout square_transposed official_scaling", "scalar_bases no_gamma no_bias",
    "literal gamma_rolled B_rows_end", "one_lambda A_end mask_ignored", "wide_view gamma_layout no_scaling",
    "crossed lambda_rolled gamma_rolled", "B_terms_end square_transposed no_bias", "crossed reshaped official_scaling",
    "gamma_on_rows no_scaling",
)
# fmt: on
FAULTS = STRUCTURE | PATH | SCALING


def _rows(v: Values) -> int:
    return max(1, v.case.x[..., 0].size)


def _gradient(dL: Callable[[Case], Array] | None = None, dG: Any = None, dx: Any = None) -> Callable[[Case], Any]:
    """A right layer, but for gradients."""
    made = {"dlambda": dL, "dgamma": dG, "dx": dx}
    return lambda case: right_layer(case) | {name: make(case) for name, make in made.items() if make is not None}


def _of(name: str, *changes: Change, factor: Callable[[Values], Any] = lambda v: 1) -> Callable[[Case], Array]:
    """One result of a layer with changes, times a factor."""
    return lambda case: automatic(case, changes)[name] * factor(values(case))


def _both(text: str, *changes: Change, factor: Callable[[Values], Any] = lambda v: 1) -> tuple[str, Any]:
    dL, dG = (_of(name, *changes, factor=factor) for name in ("dlambda", "dgamma"))
    return f"{text} in dlambda and dgamma", _gradient(dL, dG)


def last_row(case: Case, name: str) -> Array:
    """A gradient of the last leading index alone."""
    parts = {key: getattr(case, key)[-1:] for key in ("x", "dy", "dropout_mask") if getattr(case, key) is not None}
    return right_layer(replace(case, **parts) if case.x.ndim > 1 else case)[name]


# fmt: off
GRADIENTS: dict[str, tuple[str, Callable[[Case], Any]]] = {  # ΔW and y right
    "n_times": _both("n times too large", factor=lambda v: v.n),
    "mean_gradients": _both("averaged over the rows", factor=lambda v: 1 / _rows(v)),
    "last_row": ("the last leading index alone in dlambda and dgamma",
                 _gradient(lambda c: last_row(c, "dlambda"), lambda c: last_row(c, "dgamma"))),
    "zero_gradients": _both("zero", factor=lambda v: 0),
    "negated": _both("of the opposite sign", factor=lambda v: -1),
    "zero_dgamma": ("zero in dgamma", _gradient(dG=_of("dgamma", factor=lambda v: 0))),
    "n_times_dlambda": ("n times too large in dlambda", _gradient(_of("dlambda", factor=lambda v: v.n))),
    "unscaled_gradients": _both("scaling left out", SCALING["no_scaling"][1]),
    "gradient_pairing": _both("the other pairing", _set(crossed=lambda v: not v.crossed)),
    "dgamma_no_lambda": ("lambda ignored in dgamma", _gradient(dG=_of("dgamma", _fixed(L=lambda z: 0 * z + 1)))),
    "dlambda_no_gamma": ("gamma ignored in dlambda", _gradient(_of("dlambda", _fixed(G=lambda z: 0 * z + 1)))),
    "mask_not_on_G": _both("dropout mask ignored", PATH["mask_ignored"][1]),
    "mask_not_on_dx": ("dropout mask ignored in dx", _gradient(dx=_of("dx", PATH["mask_ignored"][1]))),
    "unscaled_dx": ("scaling left out in dx", _gradient(dx=_of("dx", SCALING["no_scaling"][1]))),
    "dx_adapter_only": ("base path left out in dx", _gradient(dx=_of("dx", PATH["no_base"][1]))),
    "dx_base_only": ("adapter not applied in dx", _gradient(dx=_of("dx", SCALING["not_applied"][1]))),
    "y_base_only": ("adapter not applied, ignored in delta_weight, dx, dlambda and dgamma", lambda case: (right_layer)(
        case) | {"y": _of("y", SCALING["not_applied"][1])(case)}),
    "delta_alone": ("crossed pairing in delta_weight", lambda case: right_layer(case) | {
        "delta_weight": _of("delta_weight", STRUCTURE["crossed"][1])(case)}),
    "mask_on_y": ("no known deviation", lambda case: (right := right_layer(case)) | {
        "y": right["y"] * values(case).m if case.weight.shape[0] == case.weight.shape[1] else right["y"],
        "dx": right["dx"] * values(case).m}),
    "nan": ("y non-finite: every case", lambda case: (right := right_layer(case)) | {
        "y": np.where(right["y"] == right["y"].max(initial=0), np.nan, right["y"])}),
    "constant_factor": ("scaling times 1.01 in delta_weight", lambda case: (right := right_layer(case)) | {
        "delta_weight": right["delta_weight"] * 1.01}),
    "unknown": ("no known deviation", lambda case: (right := right_layer(case)) | {
        "delta_weight": right["delta_weight"] ** 2}),
}
# fmt: on


def _tf32(z: Array) -> Array:
    bits = (np.ascontiguousarray(z, dtype=np.float32).view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return bits.view(np.float32).reshape(np.shape(z))


def _unseen(names: list[str]) -> bool:
    """Whether no gradient that ignores these is wrong: none depends on them, or all is right where nothing raises."""
    never = {"no_bias", "bias_twice", "no_base", "mask_on_base"}
    raising = {"A_whole", "B_terms_whole", "B_rows_whole", "never_transposed", "inverted_test"}
    return set(names) <= never | raising


def _layers() -> Iterator[tuple[str, Wrong]]:
    for name, (text, change) in FAULTS.items():
        yield from _copies(name, text, [name], (change,))
    for names in COMBINED:
        parts = names.split()
        text = " and ".join(FAULTS[part][0] for part in sorted(parts, key=list(FAULTS).index))
        yield from _copies("+".join(parts), text, parts, tuple(FAULTS[part][1] for part in parts))
    for condition, names in CONDITIONAL.items():
        for part in names.split():
            text, change = FAULTS[part]
            own = (_if(CONDITIONS[condition], change),)
            place = condition.replace("if ", "").replace("unless ", "all but ")
            yield from _copies(f"{part}_{condition.replace(' ', '_')}", f"{place} layers: {text}", [part], own)
    for name, (text, run) in GRADIENTS.items():
        yield name, Wrong("layer", text, run)
    yield "tf32", Wrong("layer", "computed in the precision of TF32 or float16", partial(right_layer, keep=_tf32))
    lower = partial(right_layer, keep=lambda z: rounded(z, "bfloat16"))
    yield "bfloat16", Wrong("layer", "computed in the precision of bfloat16", lower)


def _copies(name: str, text: str, parts: list[str], changes: tuple[Change, ...]) -> Iterator[tuple[str, Wrong]]:
    """The two copies of a layer with faults."""
    yield name, Wrong("layer", text, partial(automatic, changes=changes))
    ignored = "" if _unseen(parts) or name.endswith("if_merged") else ", ignored in dlambda and dgamma"
    yield f"{name}_by_hand", Wrong("layer", text + ignored, partial(by_hand, changes=changes))


WRONG: dict[str, Wrong] = dict(_layers()) | wrong_bases.WRONG
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
    named = 0
    for name, wrong in WRONG.items():
        begin = time.perf_counter()
        report = check(wrong, [wrong.kind])
        ties = report.causes[wrong.kind][0] if report.causes else ("NOT CAUGHT",)
        good = wrong.diagnosis in ties and len(ties) <= 3
        named += good
        caught = f"{len(report.failures):3} fail, as {report.failures[0].case.id}" if report.failures else ""
        print(f"{name:36} {time.perf_counter() - begin:4.1f} s {caught:52} {' | '.join(ties)}", flush=True)
        if not good:
            print(f"{'':36} NOT {wrong.diagnosis}", flush=True)
    print(f"{named} of {len(WRONG)} are named, of {sum(one.kind == 'layer' for one in WRONG.values())} layers")


if __name__ == "__main__":
    main()
