"""Bases and ranks the slow way: integers and fractions of plain Python, one entry at a time.

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
from ..torch_bases import RULES
from ..verify.integers import fraction_rank, fractions

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


def round_to(value: Fraction | float, dtype: str) -> float:
    """The nearest number of a dtype, ties to even, from an exact value: no rounding on the way."""
    if not value:
        return 0.0
    digits = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}[dtype]
    exact = Fraction(value)
    exponent = math.frexp(float(exact))[1] - digits
    if dtype == "float16":
        exponent = max(exponent, -24)
    return float(math.ldexp(round(exact / Fraction(2) ** exponent), exponent))


def rounded(x: Array, dtype: str) -> Array:
    """``round_to`` of every entry of a float64 array."""
    digits = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}[dtype]
    exponent = np.frexp(x)[1] - digits
    exponent = np.maximum(exponent, -24) if dtype == "float16" else exponent
    return np.ldexp(np.rint(np.ldexp(x, -exponent)), exponent)


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
    largest = max(out for out, _ in shapes), max(in_ for _, in_ in shapes)
    apart = max(max(shape) for shape in shapes), max(min(shape) for shape in shapes)
    rules, n_ctx = DIALECTS[dialect], context or 0  # nlg alone has one
    known = {
        "max(D), max(d)": apart,
        "sorted max(out), max(in)": spec.sides(largest),
        "max(in), max(out)": largest[::-1],
        "max(out), max(in)": largest,
        "4*context, context": (4 * n_ctx, n_ctx),
    }
    D, d = known["max(D), max(d)" if "sides apart" in faults else rules.shared_sides]
    n = max(-(-min(shape) // rank) for shape in [(D, d), *shapes])
    # what has a cap draws as many terms, whatever the layers need
    n = rules.max_terms or {"floor+1": n_ctx // rank + 1, "ceil+1": n + 1}.get(rules.count_rule, n)
    if rules.generator == "philox":
        return _native(seed, n, D, d, rank, kind, faults)
    return _torch(seed, n, D, d, rank, kind, faults, dialect)


def _native(seed: int, n: int, D: int, d: int, r: int, kind: Any, faults: Set[str]) -> tuple[Array, Array]:
    """Stream 0 is A, entry (k, i) at word i·r + k; stream j is B_j, entry (o, k) at o·r + k."""
    root3 = 1.0 if "no variance" in faults else round_to(math.sqrt(3), "float32")
    named = {"dense": Fraction(1), "sparse": Fraction(36), "very_sparse": Fraction(max(D, 4))}
    s_squared = named[kind] if kind in named else Fraction(kind) ** 2
    threshold = math.isqrt(2**64 * s_squared.denominator // s_squared.numerator)
    size = round_to(math.sqrt(math.sqrt(s_squared) / 2), "float32")

    def entry(stream: int, e: int) -> float:
        w = philox_word(seed, stream, e)
        if kind != "dense":
            return size * ((w >= 2**32 - threshold) - (w < threshold))
        u = Fraction(w >> 8, 2**24) if "not centred" in faults else Fraction(2 * (w >> 8) + 1 - 2**24, 2**24)
        return round_to(u * Fraction(root3), "float32")

    first, by_row = ("streams from 0" not in faults), ("A row by row" in faults)
    A = [[entry(0, k * d + i if by_row else i * r + k) for i in range(d)] for k in range(r)]
    B = [[[entry(j + first, o * r + k) for k in range(r)] for o in range(D)] for j in range(n)]
    return np.array(A), np.array(B)


@lru_cache(maxsize=64)
def _uniform(seed: int, count: int) -> Array:
    return np.array([word & 0xFFFFFF for word in islice(mt19937(seed), count)]) / 2**24


def _torch(seed: int, n: int, D: int, d: int, r: int, kind: Any, faults: Set[str], dialect: str) -> tuple[Array, Array]:
    """The draws of PEFT 0.21.2 and, in float32, of the authors' code: see ``randlora_ref.torch_bases``."""
    uniform = _uniform(seed, r * d + D * n * r)
    rule = RULES[DIALECTS[dialect].generator]
    half = next((dtype for dtype in ("float16", "float32") if dtype in faults), rule.dtypes[0])
    if kind == "dense":
        a, b = uniform[: r * d], uniform[r * d :]
        if rule.B_first or "B first" in faults:
            b, a = uniform[: D * n * r], uniform[D * n * r :]
        fan_in = (r * d, D * r) if rule.whole else (d, r)
        A = _kaiming(a, fan_in[0], half, faults).reshape(r, d)
        flat = _kaiming(b, fan_in[1], half, faults)
        B = flat.reshape(D, n, r).transpose(1, 0, 2) if "B at once" in faults else flat.reshape(n, D, r)
    else:
        half, p = "float32", {"sparse": 1 / 6, "very_sparse": 1 / (2 * math.sqrt(min(D, d)))}[kind]
        if kind == "very_sparse" and "s = sqrt(D)" in faults:
            p = 1 / math.sqrt(D)
        low, high = round_to(p, half), round_to(1 - p, half)
        ternary = 1.0 * (uniform > high) - 1.0 * (uniform < low)
        A, B = ternary[: r * d].reshape(r, d), ternary[r * d :].reshape(D, n, r).transpose(1, 0, 2)
    return _over_deviation(A, B, half, faults)


def _kaiming(uniform: Array, fan_in: int, half: str, faults: Set[str]) -> Array:
    """Uniform on ±√(1/fan_in) in ``half``; what rounds up to the excluded bound becomes the lower one.

    u and the bound have 24 digits each, so that u·2·bound − bound is exact in float64: it is rounded once.
    """
    bound = round_to(math.sqrt(3.0) * (math.sqrt(2.0 / 6.0) / math.sqrt(fan_in)), "float32")
    if "not centred" in faults:
        return rounded(uniform, half)
    top, values = round_to(bound, half), rounded(rounded(uniform * 2 * bound - bound, "float32"), half)
    return np.where((values == top) & (half != "float32"), -top, values)


def _over_deviation(A: Array, B: Array, half: str, faults: Set[str]) -> tuple[Array, Array]:
    """Each tensor over its own sample deviation (ddof 1), deviation and quotient rounded to ``half``.

    Of numbers of 24 digits or fewer the quotient in float64 rounds on as the exact one does: 53 >= 2·24 + 2.
    """
    ddof = 0 if "population" in faults else 1

    def over(x: Array, deviation: float) -> Array:
        if "raw" in faults:
            return x
        if not (s := round_to(deviation, half)):
            raise ZeroDivisionError("all entries are alike")
        return rounded(x / s, half)

    of_A = A.std(ddof=ddof)
    if faults & {"per term", "per term, then whole"}:
        B = np.stack([over(term, term.std(ddof=ddof)) for term in B])
        return over(A, of_A), B if "per term" in faults else over(B, B.std(ddof=ddof))
    return over(A, of_A), over(B, of_A if "B by A" in faults else B.std(ddof=ddof))


def exact_rank(case: Any) -> int:
    """The rank of ΔW of a case's factors, by elimination over the rationals."""
    A, B, lambda_, gamma = (fractions(x) for x in (case.A, case.B, case.lambda_, case.gamma))
    return fraction_rank(spec.delta_weight(A, B, lambda_, gamma, case.shape, Fraction(case.scaling), case.pairing))
