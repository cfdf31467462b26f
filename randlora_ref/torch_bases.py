"""A and B as torch's generator gives them to PEFT (0.21.2), bit for bit, without PyTorch.

MT19937 in order: A, then B_1 … B_n. A dense draw is Kaiming uniform with a = √5, in bfloat16 or float16, over the whole
tensor's sample deviation, each step rounded to that type. A sparse draw compares float32 uniforms with two thresholds
and divides by the float32 deviation.

Either has few values, so a tensor is drawn as codes, and the deviation and the quotient are taken once for each value.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import arrays, checks
from .prng import WORDS_AT_A_TIME, mt19937, mt19937_words

Array = Any
Floats = np.ndarray[Any, np.dtype[np.float32]]
Codes = np.ndarray[Any, np.dtype[np.uint16]]
Words = np.ndarray[Any, np.dtype[np.uint32]]


def peft_bases(seed: int, n: int, D: int, d: int, rank: int, kind: Any, draw_dtype: str) -> tuple[Floats, Floats]:
    """A (r, d) and B (D, n, r), PEFT's order of the axes, in float32."""
    checks.choice("draw_dtype", draw_dtype, ("bfloat16", "float16"))
    generator = mt19937(seed)
    if kind == "dense":
        A, B = (_dense(generator, *sizes, draw_dtype) for sizes in ((rank, 1, d), (D, n, rank)))
    elif kind in ("sparse", "very_sparse"):
        q = 3.0 if kind == "sparse" else math.sqrt(d)
        A, B = (_ternary(generator, *sizes, q) for sizes in ((rank, 1, d), (D, n, rank)))
    else:
        raise ValueError(f"kind: {kind!r}; with PEFT's bases it must be 'dense', 'sparse' or 'very_sparse'")
    return A[:, 0, :], B


def _dense(generator: np.random.MT19937, rows: int, terms: int, columns: int, draw_dtype: str) -> Floats:
    """A (r, 1, d) or B (D, n, r), drawn term by term with fan_in = ``columns``: b = √3·(√(2/6)/√fan_in), u·2b − b.

    That is exact in float64; torch rounds it to float32 (a fused multiply-add), then to 16 bits, and turns what rounds
    up to the excluded bound b into −b. The codes are those 16 bits.
    """
    bound = np.float32(math.sqrt(3.0) * (math.sqrt(2.0 / 6.0) / math.sqrt(columns)))
    upper, lower = _codes(np.array([bound, -bound]), draw_dtype)

    def code(words: Words) -> Codes:
        drawn = _codes((words * (2.0**-23 * float(bound)) - float(bound)).astype(np.float32), draw_dtype)
        drawn[drawn == upper] = lower
        return drawn

    return _drawn(
        generator, (rows, terms, columns), code, _values(np.arange(2**16, dtype=np.uint16), draw_dtype), draw_dtype
    )


def _ternary(generator: np.random.MT19937, rows: int, terms: int, columns: int, q: float) -> Floats:
    """A (r, 1, d) or B (D, n, r), drawn in memory order: −1 below 1/(2q), +1 above 1 − 1/(2q).

    The codes are 0, 1, 2.
    """
    low, high = np.float32(1 / (2 * q)), np.float32(1 - 1 / (2 * q))

    def code(words: Words) -> Codes:
        uniform = words.astype(np.float32) * np.float32(2.0**-24)
        return (1 + (uniform > high).astype(np.int8) - (uniform < low)).astype(np.uint16)

    values = np.array([-1, 0, 1], dtype=np.float32)
    return _drawn(generator, (rows, 1, terms * columns), code, values, "float32").reshape(rows, terms, columns)


def _drawn(
    generator: np.random.MT19937,
    shape: tuple[int, int, int],
    code: Callable[[Words], Codes],
    values: Floats,
    dtype: str,
) -> Floats:
    """A tensor (rows, terms, columns) of ``values``, drawn term by term, over its own deviation in ``dtype``.

    NaN where that is none (a single draw) or 0 (zeros alone), as in PEFT.
    """
    codes, counts = np.empty(shape, dtype=np.uint16), np.zeros(len(values), dtype=np.int64)
    step = max(1, WORDS_AT_A_TIME // shape[2])
    for term in range(shape[1]):
        for first in range(0, shape[0], step):
            block = codes[first : first + step, term, :]
            drawn = code(mt19937_words(generator, block.size) & np.uint32(0xFFFFFF))
            counts += np.bincount(drawn, minlength=len(values))
            block[...] = drawn.reshape(block.shape)
    seen, quotients = np.flatnonzero(counts), np.zeros(len(values), dtype=np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        deviation = _rounded(_deviation(values[seen].astype(np.float64), counts[seen]), dtype)
        quotients[seen] = _rounded(values[seen] / deviation, dtype)

    def quotient(block: Codes) -> tuple[Floats]:
        return (np.take(quotients, block),)

    result: Floats = arrays.by_rows(np, quotient, codes)[0]
    return result


def _deviation(values: Array, counts: Array) -> Floats:
    """The sample deviation (ddof 1) of ``values`` that occur ``counts`` times, in float32; NaN for a single one."""
    total = int(counts.sum())
    mean = (counts @ values) / total
    variance = counts @ (values - mean) ** 2 / (total - 1) if total > 1 else np.nan
    return np.array([math.sqrt(variance)], dtype=np.float32)


def _codes(x: Floats, dtype: str) -> Codes:
    """The 16 bits of each float32 value rounded to bfloat16 or float16, ties to even."""
    if dtype == "float16":
        return x.astype(np.float16).view(np.uint16)
    bits = x.view(np.uint32)
    return ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)


def _values(codes: Codes, dtype: str) -> Floats:
    """The bfloat16 or float16 values of 16 bits, held in float32."""
    if dtype == "float16":
        return codes.view(np.float16).astype(np.float32)
    return (codes.astype(np.uint32) << 16).view(np.float32)


def _rounded(x: Floats, dtype: str) -> Floats:
    """float32 values rounded to ``dtype``, held in float32."""
    return x if dtype == "float32" else _values(_codes(x, dtype), dtype)
