"""Wrong bases, starts and counts, for ``wrong.py``; each is PEFT's or the paper's with one thing different."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from randlora_ref.bases import draw_bases, tile
from randlora_ref.conformance import Case
from randlora_ref.conformance.cases import rounded
from randlora_ref.prng import mt19937, mt19937_words
from randlora_ref.spec import sides

Array = Any


@dataclass(frozen=True)
class Wrong:
    """A wrong implementation of one kind of case, and what the kit must call it."""

    kind: str
    diagnosis: str
    run: Callable[[Case], Mapping[str, Any]]

    def __call__(self, case: Case) -> Mapping[str, Any]:
        """Its results; unsupported for other kinds."""
        if case.kind != self.kind:
            return dict.fromkeys(case.wanted, f"unsupported: {self.kind} cases alone")
        return self.run(case)


def _torch_bases(
    c: Case,
    dtype: str = "bfloat16",
    ddof: int = 1,
    by: str = "own",
    whole: bool = False,
    first: str = "A",
    centred: bool = True,
) -> Mapping[str, Any]:
    """PEFT's bases, whole arrays at a time, with one thing different."""
    if c.dialect != "peft":
        return dict.fromkeys("AB", "unsupported: PEFT's bases alone")
    D, d = sides((max(out for out, _ in c.shapes), max(in_ for _, in_ in c.shapes)))
    r, n = c.rank, -(-d // c.rank)
    words = (mt19937_words(mt19937(c.seed), r * d + D * n * r) & np.uint32(0xFFFFFF)) * 2.0**-24
    if c.kind_of_basis != "dense":
        p = np.float32(1 / 6 if c.kind_of_basis == "sparse" else 1 / np.sqrt(D))
        signs = 1.0 * (words.astype(np.float32) > np.float32(1) - p) - (words.astype(np.float32) < p)
        A, B = signs[: r * d].reshape(r, d), signs[r * d :].reshape(D, n, r).transpose(1, 0, 2)
        return {"A": rounded(A / A.std(ddof=1), "float32"), "B": rounded(B / np.float32(B.std(ddof=1)), "float32")}

    def draw(u: Array, fan_in: int) -> Array:
        b = float(np.float32(1 / np.sqrt(fan_in)))
        drawn = rounded((u * 2 * b - b).astype(np.float32), dtype) if centred else rounded(u, dtype)
        return np.where(drawn == rounded(b, dtype), -drawn, drawn) if dtype != "float32" and centred else drawn

    parts = np.split(words, [r * d if first == "A" else D * n * r])
    A = draw(parts[first != "A"], d).reshape(r, d).astype(np.float64)
    flat = draw(parts[first == "A"], r).astype(np.float64)
    B = flat.reshape(D, n, r).transpose(1, 0, 2) if whole else flat.reshape(n, D, r)
    deviations = {
        "none": (1, 1),
        "A": (A.std(ddof=1), A.std(ddof=1)),
        "term": (A.std(ddof=1), B.std((1, 2), ddof=1, keepdims=True)),
    }
    own = (A.std(ddof=ddof), B.std(ddof=ddof))
    over = [rounded(value, dtype).astype(np.float64) for value in deviations.get(by, own)]
    return {"A": rounded(A / over[0], dtype), "B": rounded(B / over[1], dtype)}


def _peft_bases(diagnosis: str, kinds: str = "dense", **fault: Any) -> Wrong:
    def run(case: Case) -> Mapping[str, Any]:
        if case.kind_of_basis != kinds:
            return dict.fromkeys("AB", f"unsupported: {kinds} alone")
        return _torch_bases(case, **fault)

    return Wrong("bases", diagnosis, run)


def _native_bases(diagnosis: str, make: Callable[[Case, Array, Array], tuple[Array, Array]], **change: Any) -> Wrong:
    def run(case: Case) -> Mapping[str, Any]:
        if case.dialect != "paper":
            return dict.fromkeys("AB", "unsupported: the paper's alone")
        c = replace(case, **change)
        drawn = draw_bases("paper", seed=c.seed, shapes=c.shapes, rank=c.rank, kind=c.kind_of_basis)
        return dict(zip("AB", make(c, drawn.A, drawn.B), strict=True))

    return Wrong("bases", diagnosis, run)


def _shifted(c: Case, A: Array, B: Array) -> tuple[Array, Array]:
    D = B.shape[1]
    first = tile(0, 0, D, seed=c.seed, rank=c.rank, kind=c.kind_of_basis, D_max=D)
    return A, np.concatenate([first.T[None], B[:-1]])


def _row_by_row(c: Case, A: Array, B: Array) -> tuple[Array, Array]:
    return A.T.reshape(A.shape), B


def _start(
    diagnosis: str, lambda_: Callable[[int, int], Any], gamma: Callable[[int, int, tuple[int, int]], float]
) -> Wrong:
    def run(c: Case) -> Mapping[str, Any]:
        n, d = -(-min(c.shape) // c.rank), min(c.shape)
        values = {"lambda_": np.zeros((n, c.rank)) + lambda_(n, c.rank), "gamma": np.full((n, d), gamma(n, d, c.shape))}
        return {**values, "delta_weight": np.zeros(c.shape)}

    return Wrong("start", diagnosis, run)


def _network_count(c: Case) -> Mapping[str, Any]:
    n = max(-(-min(shape) // c.rank) for shape in c.shapes)
    return {"num_parameters": sum(n * (c.rank + min(shape)) for shape in c.shapes)}


def _count(diagnosis: str, each: Callable[[int, int, int], int]) -> Wrong:
    def run(c: Case) -> Mapping[str, Any]:
        return {"num_parameters": sum(each(max(shape), min(shape), c.rank) for shape in c.shapes)}

    return Wrong("count", diagnosis, run)


WRONG = {
    "bases_streams": _native_bases("streams counted from 0", _shifted),
    "bases_row_by_row": _native_bases("A drawn row by row", _row_by_row),
    "bases_sparse": _native_bases("sparse bases, s = 6", lambda c, A, B: (A, B), kind_of_basis="sparse"),
    "bases_float32": _peft_bases("drawn in float32", dtype="float32"),
    "bases_float16": _peft_bases("drawn in float16", dtype="float16"),
    "bases_population": _peft_bases("population deviation", ddof=0),
    "bases_unnormalised": _peft_bases("no normalisation", by="none"),
    "bases_by_A": _peft_bases("B by A's deviation", by="A"),
    "bases_per_term": _peft_bases("normalised per term", by="term"),
    "bases_at_once": _peft_bases("B drawn at once as (D, n, r)", whole=True),
    "bases_B_first": _peft_bases("B drawn before A", first="B"),
    "bases_not_centred": _peft_bases("not centred", centred=False),
    "bases_sqrt_D": _peft_bases("s = sqrt(D), as the paper", "very_sparse"),
    "start_vision": _start("the start of dialect vision", lambda n, r: 1 / max(n, r), lambda n, d, shape: 0.0),
    "start_ones": _start("lambda 0 and gamma 1", lambda n, r: 0, lambda n, d, shape: 1.0),
    "start_large_side": _start("lambda 0 and gamma 1/max(out, in)", lambda n, r: 0, lambda n, d, shape: 1 / max(shape)),
    "start_normal": _start(
        "lambda not of its sizes, mean 0.079, deviation 0.72 and gamma 1/d or 1/max(n, d)",
        lambda n, r: np.cos(np.arange(n * r)).reshape(n, r),
        lambda n, d, shape: 1 / max(n, d),
    ),
    "count_network": Wrong("count", "n of the whole network", _network_count),
    "count_floor": _count("n by floor", lambda D, d, r: max(1, d // r) * (r + d)),
    "count_floor_plus_1": _count("n by floor+1", lambda D, d, r: (d // r + 1) * (r + d)),
    "count_A": _count("A counted as learned", lambda D, d, r: -(-d // r) * (r + d) + r * d),
    "count_lora": _count("LoRA's count, r(out + in)", lambda D, d, r: r * (D + d)),
    "count_gamma_r": _count("gamma of length r", lambda D, d, r: 2 * r * -(-d // r)),
    "count_large_gamma": _count("gamma on the large side", lambda D, d, r: (r + D) * -(-d // r)),
}
