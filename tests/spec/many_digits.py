"""The transformer block a second time: plain loops over mpmath numbers of 50 digits, one token and one entry at a time.

Written from the papers and from the configuration files of checkpoints, not from ``randlora_ref``, of which nothing is
imported. Lists of numbers in place of arrays; x[b][t] is a token. What is checked against it is float64: the 34 digits
more are there for derivatives by differences, (f(p + h·u) − f(p − h·u))/2h, which at h = 1e-17 are right to 30 digits.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from mpmath import erf, exp, log, mp, mpf, pi, sqrt, tanh

mp.dps = 50
H = mpf(10) ** -17
Row = list[Any]

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": lambda x: x * (1 + erf(x / sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + tanh(sqrt(2 / pi) * (x + mpf("0.044715") * x**3))) / 2,
    "quick_gelu": lambda x: x / (1 + exp(mpf("-1.702") * x)),
    "silu": lambda x: x / (1 + exp(-x)),
}


def numbers(array: Any) -> Any:
    """An array as nested lists of exact numbers; None and texts as they are."""
    if array is None or isinstance(array, str):
        return array
    return [numbers(part) for part in array] if np.ndim(array) else mpf(float(array))


def moved(x: Any, u: Any, h: Any) -> Any:
    """x + h·u of nested lists."""
    return [moved(p, q, h) for p, q in zip(x, u, strict=True)] if isinstance(x, list) else x + h * u


def derivative(f: Callable[[Any], Any], x: Any) -> Any:
    """f′(x) of a function of one number."""
    return (f(x + H) - f(x - H)) / (2 * H)


def dot(a: Row, b: Row) -> Any:
    """Σ a[i]·b[i]."""
    return sum((p * q for p, q in zip(a, b, strict=True)), mpf(0))


def plus(a: Row, b: Row | None) -> Row:
    """a + b, entry by entry."""
    return a if b is None else [p + q for p, q in zip(a, b, strict=True)]


def norm(x: Row, weight: Row, bias: Row | None, eps: Any, centred: bool) -> Row:
    """LayerNorm (``centred``: (x − mean)/√(variance + ε)) or RMSNorm (x/√(mean square + ε)) of one token."""
    centre = sum(x) / len(x) if centred else mpf(0)
    spread = sum((entry - centre) ** 2 for entry in x) / len(x)
    return plus([(entry - centre) / sqrt(spread + eps) * w for entry, w in zip(x, weight, strict=True)], bias)


def turn(x: Row, place: int, theta: Any, scaling: dict[str, Any] | None) -> Row:
    """One head at one place, rotated: (x[i], x[i + h/2]) by the angle place·θ^(−2i/h), scaled."""
    half, turned = len(x) // 2, list(x)
    for i in range(half):
        frequency = mpf(theta) ** (-mpf(2 * i) / len(x))
        kind = scaling["rope_type"] if scaling else "default"
        if kind == "linear":
            frequency = frequency / scaling["factor"]
        if kind == "llama3":
            wavelength, old = 2 * pi / frequency, scaling["original_max_position_embeddings"]
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            if wavelength > mpf(old) / low:
                frequency = frequency / scaling["factor"]
            elif wavelength >= mpf(old) / high:
                smooth = (old / wavelength - low) / (high - low)
                frequency = (1 - smooth) * frequency / scaling["factor"] + smooth * frequency
        cosine, sine = mp.cos(place * frequency), mp.sin(place * frequency)
        turned[i] = x[i] * cosine - x[i + half] * sine
        turned[i + half] = x[i + half] * cosine + x[i] * sine
    return turned


def attention(q: list[Row], k: list[Row], v: list[Row], sees: Callable[[int, int], bool]) -> list[Row]:
    """o[t] of one head's q[t], k[s], v[s]: the mean of v by exp(q·k/√h) over what t sees; zero if that is nothing."""
    out = []
    for t, query in enumerate(q):
        weights = [exp(dot(query, key) / sqrt(len(query))) if sees(t, s) else mpf(0) for s, key in enumerate(k)]
        total = sum(weights) or mpf(1)
        out.append([dot(weights, [value[i] for value in v]) / total for i in range(len(query))])
    return out


def cross_entropy(logits: list[Row], labels: list[int], ignored: int) -> Any:
    """The mean of −log(exp(z[label])/Σ exp(z)) over the rows whose label is not ``ignored``; 0 if there is none."""
    losses = [
        log(sum(exp(entry) for entry in z)) - z[label]
        for z, label in zip(logits, labels, strict=True)
        if label != ignored
    ]
    return sum(losses) / len(losses) if losses else mpf(0)


def delta_weight(update: dict[str, Any], out: int, inner: int) -> list[Row]:
    """Eq. 4, entry by entry: s·Σ_j Σ_k B_j[o, k] Λ_j[k] A[k, i] Γ_j[i], where the orientation has it in ΔW."""
    A, B, lambda_, gamma = (update[name] for name in ("A", "B", "lambda_", "gamma"))
    n, r = len(lambda_), len(lambda_[0])

    def entry(o: int, i: int) -> Any:
        total = mpf(0)
        for j in range(n):
            for k in range(r):
                f = j * r + k if update["pairing"] == "literal" else k * n + j
                total += B[f // r][o][f % r] * lambda_[j][k] * A[k][i] * gamma[j][i]
        return total * update["scaling"]

    def place(o: int, i: int) -> tuple[int, int]:
        orientation = update.get("orientation", "paper")
        if orientation == "reshape":
            return divmod(i * out + o, min(out, inner))  # M's rows are d long
        turned = out < inner or (out == inner and orientation == "square_transposed")
        return (i, o) if turned and orientation != "never" else (o, i)

    return [[entry(*place(o, i)) for i in range(inner)] for o in range(out)]


def linear(x: list[list[Row]], weight: list[Row], bias: Any, update: dict[str, Any] | None) -> list[list[Row]]:
    """x W0ᵀ + (x∘m) ΔWᵀ + b of tokens x[b][t]."""
    change = delta_weight(update, len(weight), len(weight[0])) if update else None
    result = []
    for b, sequence in enumerate(x):
        result.append([])
        for t, token in enumerate(sequence):
            y = plus([dot(token, row) for row in weight], bias)
            if update:
                mask = update["dropout_mask"][b][t] if update["dropout_mask"] else [1] * len(token)
                kept = [entry * m for entry, m in zip(token, mask, strict=True)]
                y = plus(y, [dot(kept, row) for row in change])
            result[-1].append(y)
    return result


def block(x: list[list[Row]], case: Any, parameters: dict[str, Any], updates: dict[str, Any], mask: Any) -> Any:
    """y[b][t] of x[b][t]: z = x + attention(norm(x)), then z + MLP(norm(z)). ``mask``[b][t]: 0 at padding, or None."""

    def apply(role: str, x: list[list[Row]]) -> list[list[Row]]:
        weight, bias = parameters[role]
        if role.startswith("norm"):
            return [[norm(token, weight, bias, mpf(case.eps), case.centred) for token in sequence] for sequence in x]
        return linear(x, weight, bias, updates.get(role))

    def heads(tokens: list[Row], start: int, turned: bool) -> list[Row]:
        """One head of width h, from entry ``start`` of every token on."""
        parts = [token[start : start + case.head_width] for token in tokens]
        if case.rotary is None or not turned:
            return parts
        return [turn(part, place, case.theta, case.scaling) for place, part in enumerate(parts)]

    normal, h, size = apply("norm1", x), case.head_width, case.heads * case.head_width
    if case.fused:
        whole = apply("qkv", normal)
        q, k, v = ([[token[i * size : (i + 1) * size] for token in one] for one in whole] for i in range(3))
    else:
        q, k, v = (apply(role, normal) for role in "qkv")
    attended = []
    for b in range(len(x)):

        def sees(t: int, s: int, b: int = b) -> bool:
            return (s <= t or not case.causal) and (mask is None or bool(mask[b][s]))

        tokens: list[Row] = [[] for _ in x[b]]
        for head in range(case.heads):
            shared = head // (case.heads // case.key_heads)
            keys, values = heads(k[b], shared * h, True), heads(v[b], shared * h, False)
            for token, part in zip(tokens, attention(heads(q[b], head * h, True), keys, values, sees), strict=True):
                token.extend(part)
        attended.append(tokens)
    z = [[plus(*pair) for pair in zip(*both, strict=True)] for both in zip(x, apply("o", attended), strict=True)]
    normal, act = apply("norm2", z), ACTIVATIONS[case.activation]
    hidden = [
        [[act(entry) for entry in token] for token in one] for one in apply("gate" if case.gated else "up", normal)
    ]
    if case.gated:
        hidden = [
            [[p * q for p, q in zip(*tokens, strict=True)] for tokens in zip(*both, strict=True)]
            for both in zip(hidden, apply("up", normal), strict=True)
        ]
    return [[plus(*pair) for pair in zip(*both, strict=True)] for both in zip(z, apply("down", hidden), strict=True)]
