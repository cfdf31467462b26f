"""A and B as torch's generator gives them to PEFT (0.21.2), bit for bit, without PyTorch.

MT19937 in order: A, then B_1 … B_n, each number u = (word mod 2²⁴)/2²⁴. A dense draw is Kaiming uniform with a = √5, in
bfloat16 or float16, over the whole tensor's sample deviation, each step rounded to that type. A sparse draw compares u
with two thresholds and divides by the float32 deviation.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from . import arrays, checks
from .prng import WORDS_AT_A_TIME, mt19937, mt19937_words

Floats = np.ndarray[Any, np.dtype[np.float32]]


def peft_bases(seed: int, n: int, D: int, d: int, rank: int, kind: Any, draw_dtype: str) -> tuple[Floats, Floats]:
    """A (r, d) and B (D, n, r), PEFT's order of the axes, in float32."""
    checks.choice("draw_dtype", draw_dtype, ("bfloat16", "float16"))
    if kind not in ("dense", "sparse", "very_sparse"):
        raise ValueError(f"kind: {kind!r}; with PEFT's bases it must be 'dense', 'sparse' or 'very_sparse'")
    generator, shapes = mt19937(seed), ((rank, 1, d), (D, n, rank))
    if kind == "dense":
        A, B = (_dense(generator, np.empty(shape, dtype=np.float32), draw_dtype) for shape in shapes)
    else:
        q = 3.0 if kind == "sparse" else math.sqrt(d)
        A, B = (_ternary(generator, np.empty(shape, dtype=np.float32), q) for shape in shapes)
    return A[:, 0, :], B


def _dense(generator: np.random.MT19937, basis: Floats, dtype: str) -> Floats:
    """A (r, 1, d) or B (D, n, r), drawn into ``basis``: u·2b − b, b = √3·(√(2/6)/√fan_in), fan_in the last axis.

    That is exact in float64; torch rounds it to float32 (a fused multiply-add), then to 16 bits, and turns what rounds
    up to the excluded bound b into −b.
    """
    bound = np.float32(math.sqrt(3.0) * (math.sqrt(2.0 / 6.0) / math.sqrt(basis.shape[2])))
    excluded = _rounded(np.array([bound]), dtype)
    for block, words in _blocks(generator, basis):
        drawn = _rounded((words * (2.0**-23 * float(bound)) - float(bound)).astype(np.float32), dtype)
        drawn[drawn == excluded] = -excluded
        block[...] = drawn
    return _normalised(basis, dtype)


def _ternary(generator: np.random.MT19937, basis: Floats, q: float) -> Floats:
    """A (r, 1, d) or B (D, n, r), drawn into ``basis`` in memory order: −1 below 1/(2q), +1 above 1 − 1/(2q)."""
    low, high = np.float32(1 / (2 * q)), np.float32(1 - 1 / (2 * q))
    for block, words in _blocks(generator, basis.reshape(len(basis), 1, -1)):
        u = words.astype(np.float32) * np.float32(2.0**-24)
        block[...] = (u > high).astype(np.int8) - (u < low)
    return _normalised(basis, "float32")


def _blocks(generator: np.random.MT19937, basis: Floats) -> Iterator[tuple[Floats, Any]]:
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

    def squares(block: Floats) -> tuple[Any]:
        return (((block - mean) ** 2).sum(axis=(1, 2)),)

    def quotient(block: Floats) -> tuple[Floats]:
        return (_rounded(block / deviation, dtype),)

    total = arrays.by_rows(np, squares, basis)[0].sum()
    deviation = np.array([math.sqrt(total / (basis.size - 1)) if basis.size > 1 else np.nan], dtype=np.float32)
    deviation = _rounded(deviation, dtype)
    with np.errstate(divide="ignore", invalid="ignore"):
        result: Floats = arrays.by_rows(np, quotient, basis)[0]
    return result


def _rounded(x: Floats, dtype: str) -> Floats:
    """float32 values rounded to ``dtype``, ties to even, held in float32."""
    if dtype == "float32":
        return x
    if dtype == "float16":
        return x.astype(np.float16).astype(np.float32)
    bits = x.view(np.uint32)
    return ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) & np.uint32(0xFFFF0000)).view(np.float32)
