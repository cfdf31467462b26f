"""A and B as torch's CPU generator gives them to PEFT and to the authors' code, bit for bit, without PyTorch.

MT19937 in order, each number u = (word mod 2²⁴)/2²⁴. A is one tensor (r, d), B is drawn term by term, and each of the
two goes over its sample deviation. What parts the generators stands in ``RULES``.

    dense   Kaiming uniform with a = √5: u·2b − b, b = √3·(√(2/6)/√fan_in), each step rounded to the type drawn in
    ternary −1 below 1/(2q), +1 above 1 − 1/(2q), compared in float32, with q = 3 or √d
    normal  Kaiming normal: √2/√fan_in by Box and Muller; torch's logarithm and cosine are its own, so to 3e-7 only

Sources: PEFT 0.21.2; github.com/PaulAlbert31/RandLoRA at 4ac565e (``peft/``, ``NLG/``, ``vision_language/``);
github.com/PaulAlbert31/KRAdapter at ea88a71.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from . import arrays, checks
from .prng import WORDS_AT_A_TIME, mt19937, mt19937_words

Floats = np.ndarray[Any, np.dtype[np.float32]]


class Rule(NamedTuple):
    """How one generator draws: in which types and kinds, A or B first, and what fan_in is of A (r, d), B_j (D, r)."""

    dtypes: tuple[str, ...]
    kinds: tuple[str, ...]
    B_first: bool = False
    whole: bool = False  # fan_in is r·d for A and D·r for B_j, else d and r
    unseeded: tuple[str, ...] = ()  # kinds that its code draws too, from no seed


SPARSE = ("sparse", "very_sparse")
RULES = {
    "torch": Rule(("bfloat16", "float16"), ("dense", *SPARSE)),
    "torch_float32": Rule(("float32",), ("dense", *SPARSE)),
    "torch_terms_first": Rule(("float32",), ("dense", "normal"), B_first=True, unseeded=SPARSE),
    "torch_whole": Rule(("float32",), ("dense",), B_first=True, whole=True),
}


def draw(
    generator: str, seed: int, n: int, D: int, d: int, rank: int, kind: Any, draw_dtype: str | None
) -> tuple[Floats, Floats]:
    """A (r, d) and B (D, n, r) in float32, as a ``Generator`` of ``dialects`` draws them.

    Raises ValueError for a ``kind`` or a ``draw_dtype`` (None: the generator's first) that it has not.
    """
    rule = RULES[generator]
    if not isinstance(kind, str) or kind not in rule.kinds:
        unseeded = "; its code draws them from no seed" * (isinstance(kind, str) and kind in rule.unseeded)
        raise ValueError(f"kind: {kind!r}; of generator {generator!r} it must be one of {rule.kinds}{unseeded}")
    dtype = rule.dtypes[0] if draw_dtype is None else draw_dtype
    checks.choice("draw_dtype", dtype, rule.dtypes)
    words = mt19937(seed)
    A, B = np.empty((rank, 1, d), dtype=np.float32), np.empty((D, n, rank), dtype=np.float32)
    order = [(A, rank * d if rule.whole else d), (B, D * rank if rule.whole else rank)]
    for basis, fan_in in reversed(order) if rule.B_first else order:
        if kind == "dense":
            _dense(words, basis, fan_in, dtype)
        elif kind == "normal":
            _normal(words, basis, fan_in)
        else:
            _ternary(words, basis, 3.0 if kind == "sparse" else math.sqrt(min(D, d)))
    A, B = (_normalised(basis, dtype if kind == "dense" else "float32") for basis in (A, B))
    return A[:, 0, :], B


def _dense(generator: np.random.RandomState, basis: Floats, fan_in: int, dtype: str) -> None:
    """u·2b − b is exact in float64; torch rounds it to float32 (a fused multiply-add), then to ``dtype``, where what
    rounds up to the excluded bound b becomes −b.
    """
    bound = np.float32(math.sqrt(3.0) * (math.sqrt(2.0 / 6.0) / math.sqrt(fan_in)))
    excluded = _rounded(np.array([bound]), dtype)
    for block, words in _blocks(generator, basis):
        drawn = _rounded((words * (2.0**-23 * float(bound)) - float(bound)).astype(np.float32), dtype)
        if dtype != "float32":
            drawn[drawn == excluded] = -excluded
        block[...] = drawn


def _ternary(generator: np.random.RandomState, basis: Floats, q: float) -> None:
    """In memory order."""
    low, high = np.float32(1 / (2 * q)), np.float32(1 - 1 / (2 * q))
    for block, words in _blocks(generator, basis.reshape(len(basis), 1, -1)):
        u = words.astype(np.float32) * np.float32(2.0**-24)
        block[...] = (u > high).astype(np.int8) - (u < low)


def _normal(generator: np.random.RandomState, basis: Floats, fan_in: int) -> None:
    """√(2/fan_in)·√(−2 log(1 − u))·(cos, sin)(2πv), each term in runs of 16 numbers: 8 u, then 8 v.

    Where 16 does not divide a term's size, its last 16 are drawn again.
    """
    size = basis[:, 0, :].size
    if size < 16:
        raise ValueError(f"kind: 'normal' with D·r = {size}; it must be 16 or more, torch draws fewer in another way")
    for term in range(basis.shape[1]):
        words = mt19937_words(generator, size)
        drawn = _box_muller(words[: size - size % 16])
        if size % 16:
            drawn = np.concatenate([drawn, words[-(size % 16) :]])
            drawn[-16:] = _box_muller(mt19937_words(generator, 16))
        basis[:, term, :] = drawn.reshape(basis[:, term, :].shape) * math.sqrt(2 / fan_in)


def _box_muller(words: Any) -> Any:
    """Standard normal numbers of words, 16 at a time, in float64."""
    u, v = np.moveaxis((words & np.uint32(0xFFFFFF)).reshape(-1, 2, 8) * 2.0**-24, 1, 0)
    radius, angle = np.sqrt(-2 * np.log1p(-u)), 2 * np.pi * v
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


def _blocks(generator: np.random.RandomState, basis: Floats) -> Iterator[tuple[Floats, Any]]:
    """Views of ``basis`` (rows, terms, columns), term by term, some rows at a time, each with its words mod 2²⁴."""
    step = max(1, WORDS_AT_A_TIME // basis.shape[2])
    for term in range(basis.shape[1]):
        for first in range(0, len(basis), step):
            block = basis[first : first + step, term, :]
            yield block, mt19937_words(generator, block.size).reshape(block.shape) & np.uint32(0xFFFFFF)


def _normalised(basis: Floats, dtype: str) -> Floats:
    """``basis`` over its sample deviation (ddof 1), in float64 rounded to ``dtype``; so is the quotient.

    NaN where the deviation is none (a single draw) or 0 (zeros alone), as in PEFT.
    """
    mean = basis.mean(dtype=np.float64)
    total = arrays.by_rows(np, lambda block: ((block - mean) ** 2).sum(axis=-1), basis).sum()
    deviation = math.sqrt(total / (basis.size - 1)) if basis.size > 1 else math.nan
    divisor = _rounded(np.array([deviation], dtype=np.float32), dtype)
    with np.errstate(divide="ignore", invalid="ignore"):
        result: Floats = arrays.by_rows(np, lambda block: _rounded(block / divisor, dtype), basis)
    return result


def _rounded(x: Floats, dtype: str) -> Floats:
    """float32 values rounded to ``dtype``, ties to even, held in float32."""
    if dtype == "float32":
        return x
    if dtype == "float16":
        return x.astype(np.float16).astype(np.float32)
    bits = x.view(np.uint32)
    return ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) & np.uint32(0xFFFF0000)).view(np.float32)
