"""The specification of a transformer block with RandLoRA in its linear layers: from x to ∂L/∂Λ on one page.

    z = x + attention(norm(x)),    y = z + MLP(norm(z))

Read ``update.py`` first: it is the linear layer. Here is the rest, as slow and plain. Beside each f stands its
``f_backward(dy, …)``: it is given ∂L/∂y and f's own arguments, computes what it needs of f again, and returns
gradients in the order of the arguments. Its docstring derives it: gradients are what makes dL = ⟨∂L/∂y, dy⟩ for
every small change, with ⟨a, b⟩ = Σ a∘b, ∘ entry by entry, so a linear map of dx goes over to its transpose on dL.

Shapes: (b, T, k) is b sequences of T tokens of width k; f is the MLP's hidden width; h is the width of a head, H the
number of query heads, K of key heads, g = H/K; t is the token of a query, s of a key; V is the vocabulary. NumPy arrays
that fit together, no axis empty, are assumed; ``randlora_ref.nn`` checks them. The dtype is the arguments' own. Complex
numbers pass through wherever a function is analytic (maxima and branches look at the real part, squares are x·x), so
that a complex step proves the gradients. Exact GELU alone wants real numbers, as no complex erf is at hand: its
derivative is proven in ``tests/spec`` alone, by differences in 50 digits.

Example: width 2, one head of width 1, gated MLP of width 1, two tokens, causal. ε = 0 and norm weights of 5, so that
RMSNorm leaves x_1 = (1, 7) and x_2 = (7, 1), of mean square 25, as they are. The value projection has W0 = (1 0),
ΔW = (0 −1), the output projection W0 = (0 2)ᵀ, ΔW = (1/3 1/3)ᵀ; c is ln 3.

>>> c, one = math.log(3), np.ones((1, 1))
>>> weights = {"norm1": [5, 5], "q": [[0, 1]], "k": [[c / 6, 0]], "v": [[1, 0]], "o": [[0], [2]],
...            "norm2": [5, 5], "gate": [[7 * c / 30, -c / 30]], "up": [[1, 0]], "down": [[0], [1]]}
>>> parameters = {role: (np.array(weight, dtype=float), None) for role, weight in weights.items()}
>>> updates = {"v": Update(A=one, B=np.array([[[0.0], [1.0]]]), lambda_=-one, gamma=one),
...            "o": Update(A=one, B=np.array([[[1.0], [1.0]]]), lambda_=one, gamma=one / 3)}
>>> kind = BlockKind(head_width=1, eps=0, activation="silu", centred=False, fused=False, gated=True)
>>> arguments = np.array([[[1.0, 7.0], [7.0, 1.0]]]), kind, parameters, updates, visible(2, causal=True)

v = (−6, 6). Token 1 sees itself alone. For token 2, q = 1 and k = (c/6, 7c/6): the scores differ by ln 3, P = (¼ ¾),
and the head gives −¼·6 + ¾·6 = 3. So z_1 = (1, 7) − 6·(1/3, 7/3) and z_2 = (7, 1) + 3·(1/3, 7/3), normalised to
(−1, −7) and (5, 5). gate = (0, c), of which SiLU is (0, ¾c); up = (−1, 5), and y_2 = (8, 8 + ¾c·5):

>>> y, inputs = block_forward(*arguments)
>>> [inputs[role].round(9).ravel().tolist() for role in ("o", "norm2", "up")]
[[-6.0, 3.0], [-1.0, -7.0, 8.0, 8.0], [-1.0, -7.0, 5.0, 5.0]]
>>> np.allclose(y, [[[-1, -7], [8, 8 + 15 * c / 4]]], rtol=1e-14, atol=0)
True

Backward, from L = the first entry of y_2. The MLP writes the second alone, so ∂L/∂z_2 = (1, 0). In o, G = (3 0)ᵀ,
∂L/∂Λ = (1 1)·G·Γ = 1, ∂L/∂Γ = Λ·(1 1)·G = 3. The head gets (1, 0)·W = 1/3, so ∂L/∂P = 1/3·(−6 6), of mean 1 under
P, ∂L/∂S = (¼·(−3) ¾·1), which is ∂L/∂k too, as q is 1; ∂L/∂v = 1/3·(¼ ¾). In v, G = 1/12·(1 7) + 1/4·(7 1) =
(11/6 5/6), ∂L/∂Λ = (0 1)·Gᵀ·Γ = 5/6, ∂L/∂Γ = Λ·(0 1)·Gᵀ = −5/6:

>>> dx, gradients = block_backward(np.array([[[0.0, 0.0], [1.0, 0.0]]]), *arguments)
>>> [(6 * gradients["v"].delta_weight).round(9).tolist(), gradients["k"].y.round(9).tolist()]
[[[11.0, 5.0]], [[[-0.75], [0.75]]]]
>>> [(6 * g[0, 0]).round(9).item() for role in ("o", "v") for g in (gradients[role].lambda_, gradients[role].gamma)]
[6.0, 18.0, 5.0, -5.0]
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from . import update as layer
from .update import Array, Orientation, Pairing, rows, weight_cotangent

Parameters = Mapping[str, tuple[Array, Array | None]]  # (weight, bias or None) by role


def rms_norm(x: Array, weight: Array, bias: Array | None, eps: float) -> Array:
    """y = x̂∘w + b (…, k), x̂ = x·ρ, ρ = 1/√(mean(x²) + ε), of x (…, k), w (k,) and b (k,) or None (arXiv 1910.07467)."""
    x_hat = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)  # (…, k)
    return x_hat * weight if bias is None else x_hat * weight + bias  # (…, k)


def rms_norm_backward(dy: Array, x: Array, weight: Array, bias: Array | None, eps: float) -> tuple[Array, ...]:
    """(∂L/∂x, ∂L/∂w, ∂L/∂b or None). dρ = −ρ³·mean(x∘dx), so dx̂ = ρ·dx + x·dρ = ρ·(dx − x̂·mean(x̂∘dx)).

    This map of dx is symmetric: ∂L/∂x = ρ·(d̂ − x̂·mean(x̂∘d̂)), d̂ = ∂L/∂x̂ = dy∘w. And ∂L/∂w = Σ dy∘x̂, ∂L/∂b = Σ dy.
    """
    rho = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)  # (…, 1)
    x_hat, d_hat = x * rho, dy * weight  # (…, k) each
    dx = rho * (d_hat - x_hat * (x_hat * d_hat).mean(axis=-1, keepdims=True))  # (…, k)
    return dx, sum(rows(dy * x_hat)), None if bias is None else sum(rows(dy))  # (…, k), (k,), (k,)


def layer_norm(x: Array, weight: Array, bias: Array | None, eps: float) -> Array:
    """RMSNorm of the centred x − mean(x), whose mean square is the variance of x (arXiv 1607.06450)."""
    return rms_norm(x - x.mean(axis=-1, keepdims=True), weight, bias, eps)  # (…, k)


def layer_norm_backward(dy: Array, x: Array, weight: Array, bias: Array | None, eps: float) -> tuple[Array, ...]:
    """(∂L/∂x, ∂L/∂w, ∂L/∂b or None). Centring is symmetric, so ∂L/∂x is ∂L/∂(x − mean(x)), centred."""
    dx, d_weight, d_bias = rms_norm_backward(dy, x - x.mean(axis=-1, keepdims=True), weight, bias, eps)
    return dx - dx.mean(axis=-1, keepdims=True), d_weight, d_bias  # (…, k), (k,), (k,)


def rotary_tables(
    size: int, width: int, theta: float, scaling: Any = None, dtype: Any = np.float64
) -> tuple[Array, Array]:
    """cos and sin (T, h/2) of the angles t·ω_i, ω_i = θ^(−2i/h), of the places t = 0 … T − 1 (arXiv 2104.09864).

    ``scaling`` as in a checkpoint's configuration. "linear": ω/factor. "llama3" (Llama 3.1): with the wavelength
    2π/ω, ω is kept below old/high, ω/factor beyond old/low, old being the context trained on; between, a part is kept
    that falls from 1 to 0 as old/wavelength goes from high to low.
    """
    omega = theta ** (-2 * np.arange(width // 2) / width)  # (h/2,)
    if scaling is not None and scaling["rope_type"] == "linear":
        omega = omega / scaling["factor"]
    elif scaling is not None and scaling["rope_type"] == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = scaling["original_max_position_embeddings"] * omega / (2 * math.pi)  # (h/2,) old/wavelength
        kept = np.clip((turns - low) / (high - low), 0, 1)  # (h/2,)
        omega = omega * (kept + (1 - kept) / scaling["factor"])
    angles = np.arange(size)[:, None] * omega  # (T, h/2)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def rotary(x: Array, tables: tuple[Array, Array]) -> Array:
    """y (…, T, h) of x (…, T, h): coordinates i and i + h/2 of a head at place t are turned by the angle t·ω_i."""
    (cos, sin), (first, second) = tables, np.split(x, 2, axis=-1)  # (T, h/2) each, (…, T, h/2) each
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)  # (…, T, h)


def rotary_backward(dy: Array, tables: tuple[Array, Array]) -> Array:
    """∂L/∂x (…, T, h): the transpose of a rotation turns back, by the sine negated."""
    return rotary(dy, (tables[0], -tables[1]))


def visible(size: int, causal: bool = False, mask: Array | None = None) -> Array:
    """(b or 1, T, T), true where query t sees key s: s <= t if ``causal``, and ``mask`` (b, T) is not zero at s."""
    seen = np.ones((1, size, size), dtype=bool)
    return (np.tril(seen) if causal else seen) & (True if mask is None else (mask != 0)[:, None, :])


def softmax(scores: Array, seen: Array | bool = True) -> Array:
    """P (…, n) = exp(S)/Σ exp(S) over what is ``seen`` (…, n), 0 elsewhere, all 0 if nothing is; top cancels out."""
    top = np.where(seen, scores.real, -np.inf).max(axis=-1, keepdims=True)  # (…, 1), so that nothing overflows
    weights = np.exp(np.where(seen, scores - top, -np.inf))  # (…, n)
    total = weights.sum(axis=-1, keepdims=True)  # (…, 1)
    return weights / np.where(total == 0, 1, total)  # (…, n)


def attention_weights(q: Array, k: Array, seen: Array | None) -> Array:
    """P (b, K, g, T, T) = softmax(q kᵀ/√h); query heads i·g … i·g + g − 1 read key head i (arXiv 2305.13245)."""
    q = q.reshape(*k.shape[:2], -1, *q.shape[2:])  # (b, K, g, T, h)
    scores = np.einsum("bKgth,bKsh->bKgts", q, k) / math.sqrt(q.shape[-1])  # (b, K, g, T, T)
    return softmax(scores, True if seen is None else seen[:, None, None])


def attention(q: Array, k: Array, v: Array, seen: Array | None = None) -> Array:
    """o (b, H, T, h) = P v, of q (b, H, T, h), k and v (b, K, T, h); ``seen`` (b or 1, T, T) (arXiv 1706.03762)."""
    return np.einsum("bKgts,bKsh->bKgth", attention_weights(q, k, seen), v).reshape(q.shape)  # (b, H, T, h)


def attention_backward(do: Array, q: Array, k: Array, v: Array, seen: Array | None = None) -> tuple[Array, ...]:
    """(∂L/∂q, ∂L/∂k, ∂L/∂v). From do = dP v + P dv: ∂L/∂v = Pᵀ ∂L/∂o, and ∂L/∂P = ∂L/∂o vᵀ.

    A row of softmax has dP = P∘(dS − ⟨P, dS⟩), symmetric again: ∂L/∂S = P∘(∂L/∂P − ⟨P, ∂L/∂P⟩). From S = q kᵀ/√h:
    ∂L/∂q = ∂L/∂S k/√h, ∂L/∂k = ∂L/∂Sᵀ q/√h. Keys and values get the sum over their g query heads. A token that sees
    nothing has P = 0, so o and every gradient through it are zero.
    """
    P = attention_weights(q, k, seen)  # (b, K, g, T, T)
    q, do = (x.reshape(*k.shape[:2], -1, *q.shape[2:]) for x in (q, do))  # (b, K, g, T, h) each
    dP = np.einsum("bKgth,bKsh->bKgts", do, v)  # (b, K, g, T, T)
    dS = P * (dP - (P * dP).sum(axis=-1, keepdims=True)) / math.sqrt(q.shape[-1])  # (b, K, g, T, T), with S's 1/√h
    dq = np.einsum("bKgts,bKsh->bKgth", dS, k).reshape(len(k), -1, *q.shape[3:])  # (b, H, T, h)
    return dq, np.einsum("bKgts,bKgth->bKsh", dS, q), np.einsum("bKgts,bKgth->bKsh", P, do)  # (b, K, T, h) both


CUBICS = {"gelu_tanh": (2 * math.sqrt(2 / math.pi), 0.044715), "quick_gelu": (1.702, 0), "silu": (1, 0)}  # c and a


def activation_gate(x: Array, kind: str) -> tuple[Array, Array]:
    """p(x) and p′(x), of the shape of x. Every activation is y = x·p(x):

    gelu        p = Φ(x) = ½(1 + erf(x/√2)) = ½erfc(−x/√2), p′ = exp(−x²/2)/√(2π)      arXiv 1606.08415
    gelu_tanh   p = ½(1 + tanh u) = σ(2u), u = √(2/π)·(x + 0.044715·x³)                its approximation; GPT-2's
    quick_gelu  p = σ(1.702·x)                                                         its other; CLIP's
    silu        p = σ(x) = 1/(1 + exp(−x))                                             Llama's (arXiv 2002.05202)

    The last three are p = σ(u) with u = c·(x + a·x³), and p′ = p(1 − p)·u′.
    """
    if kind == "gelu":
        phi = np.vectorize(math.erfc, otypes=[x.dtype])(-x / math.sqrt(2)) / 2
        return phi, np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    c, a = CUBICS[kind]
    u = c * (x + a * x * x * x)
    decay = np.exp(np.where(u.real > 0, -u, u))  # exp(−|u|): nothing overflows
    p = np.where(u.real > 0, 1, decay) / (1 + decay)
    return p, p * (1 - p) * c * (1 + 3 * a * x * x)


def activation(x: Array, kind: str) -> Array:
    """y = x·p(x), of the shape of x."""
    return x * activation_gate(x, kind)[0]


def activation_backward(dy: Array, x: Array, kind: str) -> Array:
    """∂L/∂x = dy∘(p + x∘p′)."""
    p, slope = activation_gate(x, kind)
    return dy * (p + x * slope)


def cross_entropy(logits: Array, labels: Array, ignored: int = -100) -> Array:
    """L = mean of −log softmax(z_t)[label_t] = log Σ exp(z_t) − z_t[label_t] over the t whose label is not ``ignored``.

    ``logits`` z (T, V), ``labels`` (T,) integers. Where none counts L is 0. The largest z drops out, as in softmax.
    """
    z, counts = logits - logits.real.max(axis=-1, keepdims=True), labels != ignored  # (T, V), (T,)
    chosen = np.take_along_axis(z, np.where(counts, labels, 0)[:, None], axis=-1)[:, 0]  # (T,)
    losses = np.log(np.exp(z).sum(axis=-1)) - chosen  # (T,)
    return (losses * counts).sum() / max(1, int(counts.sum()))  # ()


def cross_entropy_backward(dloss: Any, logits: Array, labels: Array, ignored: int = -100) -> Array:
    """∂L/∂z_t (T, V) = (softmax(z_t) − e_label)/N of the N that count, as d log Σ exp(z) = ⟨softmax(z), dz⟩; else 0."""
    counts = (labels != ignored)[:, None]  # (T, 1)
    one_hot = labels[:, None] == np.arange(logits.shape[1])  # (T, V)
    return dloss * (softmax(logits) - one_hot) * counts / max(1, int(counts.sum()))  # (T, V)


class Update(NamedTuple):
    """RandLoRA in one linear layer: the arguments of ``update.forward`` after x, weight and bias."""

    A: Array
    B: Array
    lambda_: Array
    gamma: Array
    scaling: Any = 1
    pairing: Pairing = "literal"
    dropout_mask: Array | None = None  # of the shape of the layer's x
    orientation: Orientation = "paper"


Updates = Mapping[str, Update]  # by role, any subset of the linear ones


class RoleGradients(NamedTuple):
    """Gradients of all that one role has; None where it has it not (a norm no ``delta_weight``, …)."""

    y: Array  # of the role's output: the dy it was given
    x: Array  # of its input, through this role alone
    weight: Array
    bias: Array | None
    delta_weight: Array | None = None  # G = ∂L/∂ΔW (out, in), of the x that dropout leaves to the adapter
    lambda_: Array | None = None
    gamma: Array | None = None


def linear(x: Array, weight: Array, bias: Array | None, update: Update | None = None) -> Array:
    """y (…, out) = x (W0 + ΔW)ᵀ + b, of x (…, in); ΔW is 0 without an ``update``."""
    if update is not None:
        return layer.forward(x, weight, bias, *update)
    return x @ weight.T if bias is None else x @ weight.T + bias


def linear_backward(dy: Array, x: Array, weight: Array, bias: Array | None, update: Update | None) -> RoleGradients:
    """∂L/∂x = dy W, ∂L/∂W = Σ dyᵀx, ∂L/∂b = Σ dy; with an update those of ``update.backward``."""
    G, d_bias = weight_cotangent(dy, x, weight), None if bias is None else sum(rows(dy))  # (out, in), (out,)
    if update is None:
        return RoleGradients(dy, dy @ weight, G, d_bias, G)
    dx, d_weight, _, d_lambda, d_gamma = layer.backward(dy, x, weight, *update)
    x_adapter = x if update.dropout_mask is None else x * update.dropout_mask
    return RoleGradients(dy, dx, d_weight, d_bias, weight_cotangent(dy, x_adapter, weight), d_lambda, d_gamma)


class BlockKind(NamedTuple):
    """What a block is; ``nn.BlockSpec`` has these attributes too and serves as well."""

    head_width: int
    eps: float
    activation: str
    centred: bool  # LayerNorm; else RMSNorm
    fused: bool  # one role qkv; else q, k and v
    gated: bool  # down(act(gate)∘up); else down(act(up))


def split_heads(x: Array, width: int) -> Array:
    """(b, T, H·h) as (b, H, T, h), h = ``width``."""
    return x.reshape(*x.shape[:2], -1, width).swapaxes(1, 2)


def join_heads(x: Array) -> Array:
    """(b, H, T, h) as (b, T, H·h), the transpose of ``split_heads``."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def block_forward(
    x: Array, kind: Any, parameters: Parameters, updates: Updates, seen: Array = None, tables: Any = None
) -> tuple[Array, dict[str, Any]]:
    """y (b, T, k) of x (b, T, k), and the inputs of all parts: by role, of "attention" and of "activation".

    Roles: norm1 (k,), qkv (3·H·h, k) or q (H·h, k), k and v (K·h, k), o (k, H·h), norm2 (k,), up and gate (f, k),
    down (k, f). ``kind`` is a ``BlockKind``; ``seen`` is ``visible``'s, or None: every token sees every token;
    ``tables`` are ``rotary_tables``', or None: nothing is turned.
    """
    norm = layer_norm if kind.centred else rms_norm
    inputs: dict[str, Any] = {"norm1": x}

    def apply(role: str, x: Array) -> Array:
        inputs[role] = x
        return linear(x, *parameters[role], updates.get(role))

    inner = norm(x, *parameters["norm1"], kind.eps)  # (b, T, k)
    parts = np.split(apply("qkv", inner), 3, axis=-1) if kind.fused else [apply(role, inner) for role in "qkv"]
    q, k, v = (split_heads(part, kind.head_width) for part in parts)  # (b, H, T, h), (b, K, T, h), (b, K, T, h)
    if tables is not None:
        q, k = rotary(q, tables), rotary(k, tables)
    inputs["attention"] = q, k, v, seen
    inputs["norm2"] = z = x + apply("o", join_heads(attention(q, k, v, seen)))  # (b, T, k)
    inner = norm(z, *parameters["norm2"], kind.eps)  # (b, T, k)
    gate, up = apply("gate", inner) if kind.gated else None, apply("up", inner)  # (b, T, f) each
    inputs["activation"] = gate, up
    hidden = activation(up, kind.activation) if gate is None else activation(gate, kind.activation) * up  # (b, T, f)
    return z + apply("down", hidden), inputs


def block_backward(
    dy: Array, x: Array, kind: Any, parameters: Parameters, updates: Updates, seen: Array = None, tables: Any = None
) -> tuple[Array, dict[str, RoleGradients]]:
    """∂L/∂x (b, T, k) and the gradients of every role: ``block_forward`` from its last line to its first.

    At y = z + branch(z) the cotangent goes both ways: ∂L/∂z = ∂L/∂y + the branch's. Of hidden = f(gate)∘up,
    ∂L/∂gate = (∂L/∂hidden∘up)∘f′(gate) and ∂L/∂up = ∂L/∂hidden∘f(gate).
    """
    _, inputs = block_forward(x, kind, parameters, updates, seen, tables)
    norm_backward = layer_norm_backward if kind.centred else rms_norm_backward
    gradients = {}

    def back(role: str, dy: Array) -> Array:
        if role in ("norm1", "norm2"):
            gradients[role] = RoleGradients(dy, *norm_backward(dy, inputs[role], *parameters[role], kind.eps))
        else:
            gradients[role] = linear_backward(dy, inputs[role], *parameters[role], updates.get(role))
        return gradients[role].x

    d_hidden = back("down", dy)  # (b, T, f)
    gate, up = inputs["activation"]  # (b, T, f) each
    if gate is None:
        d_inner = back("up", activation_backward(d_hidden, up, kind.activation))  # (b, T, k)
    else:
        d_inner = back("up", d_hidden * activation(gate, kind.activation))  # (b, T, k)
        d_inner = d_inner + back("gate", activation_backward(d_hidden * up, gate, kind.activation))  # (b, T, k)
    dz = dy + back("norm2", d_inner)  # (b, T, k)
    dq, dk, dv = attention_backward(split_heads(back("o", dz), kind.head_width), *inputs["attention"])  # as q, k, v
    if tables is not None:
        dq, dk = rotary_backward(dq, tables), rotary_backward(dk, tables)
    parts = [join_heads(part) for part in (dq, dk, dv)]  # (b, T, H·h), (b, T, K·h), (b, T, K·h)
    d_inner = back("qkv", np.concatenate(parts, axis=-1)) if kind.fused else sum(map(back, "qkv", parts))  # (b, T, k)
    return dz + back("norm1", d_inner), gradients
