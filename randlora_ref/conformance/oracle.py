"""Bases and ranks the slow way: words and ranks in integers and fractions of plain Python, one at a time.

The yardstick of the "bases" and "rank" cases, written apart from ``prng``, ``bases`` and ``rank``. ``faults`` are the
slips that ``diagnose`` recognises; without them these are the bases of design, of PEFT 0.21.2 and of the authors' code.
"""

import math
from collections.abc import Iterator, Sequence, Set
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np

from .. import spec
from ..dialects import DIALECTS
from ..torch_bases import RULES, Rule
from ..verify.integers import fraction_rank, fractions
from .cases import Case
from .cases import rounded as rounded_to

Array = Any
MASK = 0xFFFFFFFF


def philox_word(seed: int, stream: int, e: int) -> int:
    """Word e of a stream: Philox4x32-10 (Salmon et al., SC 2011) at counter (e//4, stream), one block."""
    c = [(e // 4) & MASK, e // 4 >> 32, stream, 0]
    key = [seed & MASK, seed >> 32]
    for _ in range(10):
        low, high = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [high >> 32 ^ c[1] ^ key[0], high & MASK, low >> 32 ^ c[3] ^ key[1], low & MASK]
        key = [(key[0] + 0x9E3779B9) & MASK, (key[1] + 0xBB67AE85) & MASK]
    return c[e % 4]


def mt19937(seed: int) -> Iterator[int]:
    """The words of MT19937 (Matsumoto and Nishimura, 1998) under ``init_genrand``, without end."""
    state = [seed & MASK]
    for i in range(1, 624):
        state.append(1812433253 * (state[-1] ^ state[-1] >> 30) + i & MASK)
    while True:
        for i in range(624):
            y = state[i] & 0x80000000 | state[(i + 1) % 624] & 0x7FFFFFFF
            state[i] = state[(i + 397) % 624] ^ y >> 1 ^ (0x9908B0DF if y & 1 else 0)
        for y in state:
            y ^= y >> 11
            y ^= y << 7 & 0x9D2C5680
            y ^= y << 15 & 0xEFC60000
            yield y ^ y >> 18


def rounded(x: Array, dtype: str) -> Array:
    """The nearest numbers of a dtype, ties to even, in float64."""
    return rounded_to(x, dtype).astype(np.float64)


def bases(
    seed: int,
    shapes: Sequence[tuple[int, int]],
    rank: int,
    kind: Any,
    dialect: str,
    faults: Set[str] = frozenset(),
    context: int | None = None,
) -> tuple[Array, Array]:
    """A (r, d_max) and B (n_max, D_max, r) in float64 that holds float32 values, or PEFT's."""
    out, in_ = (max(side) for side in zip(*shapes, strict=True))
    rules, n_ctx = DIALECTS[dialect], context or 0  # nlg alone has one
    known = {
        "max(D), max(d)": (max(map(max, shapes)), max(map(min, shapes))),
        "sorted max(out), max(in)": (max(out, in_), min(out, in_)),
        "max(in), max(out)": (in_, out),
        "max(out), max(in)": (out, in_),
        "4*context, context": (4 * n_ctx, n_ctx),
    }
    D, d = known["max(D), max(d)" if "sides apart" in faults else rules.shared_sides]
    n = max(-(-min(shape) // rank) for shape in [(D, d), *shapes])
    # what has a cap draws as many terms, whatever the layers need
    n = rules.max_terms or {"floor+1": n_ctx // rank + 1, "ceil+1": n + 1}.get(rules.count_rule, n)
    if rules.generator == "philox":
        return _native(seed, n, D, d, rank, kind, faults)
    return _torch(seed, n, D, d, rank, kind, faults, RULES[rules.generator])


def _native(seed: int, n: int, D: int, d: int, r: int, kind: Any, faults: Set[str]) -> tuple[Array, Array]:
    """Stream 0 is A, entry (k, i) at word i·r + k; stream j is B_j, entry (o, k) at o·r + k."""

    def entries(stream: int, count: int) -> Array:
        words = np.array([philox_word(seed, stream, e) for e in range(count)])
        if kind == "dense":
            odd = words >> 8 if "not centred" in faults else 2 * (words >> 8) + 1 - 2**24
            root3 = 1.0 if "no variance" in faults else rounded(math.sqrt(3), "float32")
            return rounded(odd / 2**24 * root3, "float32")  # of 24 digits each: exact in float64
        s_squared = {"sparse": Fraction(36), "very_sparse": Fraction(max(D, 4))}.get(kind) or Fraction(kind) ** 2
        threshold = math.isqrt(2**64 * s_squared.denominator // s_squared.numerator)
        size = rounded(math.sqrt(math.sqrt(s_squared) / 2), "float32")
        return size * (1.0 * (words >= 2**32 - threshold) - (words < threshold))

    first, A = ("streams from 0" not in faults), entries(0, r * d)
    A = A.reshape(r, d) if "A row by row" in faults else A.reshape(d, r).T
    return A, np.array([entries(j + first, D * r).reshape(D, r) for j in range(n)])


@lru_cache(maxsize=64)
def _uniform(seed: int, count: int) -> Array:
    return np.array([word & 0xFFFFFF for word in islice(mt19937(seed), count)]) / 2**24


def _torch(seed: int, n: int, D: int, d: int, r: int, kind: Any, faults: Set[str], rule: Rule) -> tuple[Array, Array]:
    """The draws of PEFT 0.21.2 and, in float32, of the authors' code: see ``randlora_ref.torch_bases``."""
    drawn, of_A = _uniform(seed, r * d + D * n * r), r * d
    half = next((dtype for dtype in ("float16", "float32") if dtype in faults), rule.dtypes[0])
    if kind == "dense":
        if rule.B_first or "B first" in faults:
            drawn = np.roll(drawn, of_A)
        fan_in = (r * d, D * r) if rule.whole else (d, r)
        A, B = (_kaiming(*part, half, faults) for part in zip(np.split(drawn, [of_A]), fan_in, strict=True))
    else:
        half, p = "float32", {"sparse": 1 / 6, "very_sparse": 1 / (2 * math.sqrt(min(D, d)))}[kind]
        if kind == "very_sparse" and "s = sqrt(D)" in faults:
            p = 1 / math.sqrt(D)
        A, B = np.split(1.0 * (drawn > rounded(1 - p, half)) - (drawn < rounded(p, half)), [of_A])
    by_row = kind != "dense" or "B at once" in faults
    B = B.reshape(D, n, r).transpose(1, 0, 2) if by_row else B.reshape(n, D, r)
    return _over_deviation(A.reshape(r, d), B, half, faults)


def _kaiming(uniform: Array, fan_in: int, half: str, faults: Set[str]) -> Array:
    """Uniform on ±√(1/fan_in) in ``half``; what rounds up to the excluded bound becomes the lower one.

    u and the bound have 24 digits each, so that u·2·bound − bound is exact in float64: it is rounded once.
    """
    bound = rounded(math.sqrt(3.0) * (math.sqrt(2.0 / 6.0) / math.sqrt(fan_in)), "float32")
    if "not centred" in faults:
        return rounded(uniform, half)
    top, values = rounded(bound, half), rounded(rounded(uniform * 2 * bound - bound, "float32"), half)
    return np.where((values == top) & (half != "float32"), -top, values)


def _over_deviation(A: Array, B: Array, half: str, faults: Set[str]) -> tuple[Array, Array]:
    """Each tensor over its own sample deviation (ddof 1), deviation and quotient rounded to ``half``.

    Of numbers of 24 digits or fewer the quotient in float64 rounds on as the exact one does: 53 >= 2·24 + 2.
    """

    def over(x: Array, like: Array) -> Array:
        deviation = rounded(like.std(ddof=0 if "population" in faults else 1), half)
        if not deviation > 0:
            raise ZeroDivisionError("all entries are alike")
        return rounded(x / deviation, half)

    if "raw" in faults:
        return A, B
    if faults & {"per term", "per term, then whole"}:
        B = np.stack([over(term, term) for term in B])
    return over(A, A), B if "per term" in faults else over(B, A if "B by A" in faults else B)


def exact_rank(case: Case) -> int:
    """The rank of ΔW of a case's factors, by elimination over the rationals."""
    A, B, lambda_, gamma = map(fractions, case.factors[""])
    return fraction_rank(spec.delta_weight(A, B, lambda_, gamma, case.shape, Fraction(case.scaling), case.pairing))
