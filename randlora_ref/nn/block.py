"""The transformer block of all four models: x + attention(norm(x)), then x + MLP(norm(x)).

A block's parts have *roles*, and weights, adapters and gradients are dictionaries by role:

    norm1, norm2   LayerNorm or RMSNorm
    qkv            the three projections in one, (3·H·h, k): GPT-2; or q (H·h, k), k and v (K·h, k)
    o              the output projection (k, H·h)
    up, down       the MLP's (f, k) and (k, f); with gate (f, k), down(act(gate)∘up) in place of down(act(up))
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import arrays, checks
from ..adapters.base import LinearAdapter as Adapter
from .activation import KINDS, activation, activation_backward, gated, gated_backward
from .attention import attention, attention_backward
from .linear import linear, linear_backward
from .norm import layer_norm, norm_backward, rms_norm
from .rotary import rotary, rotary_backward

Array = Any
Parameters = Mapping[str, tuple[Array, Array | None]]


@dataclass(frozen=True)
class BlockSpec:
    """What kind of block: ``width`` k, ``hidden`` f, ``heads`` H, ``key_heads`` K, ``head_width`` h, and the choices.

    ``biases``: the roles that have one. ValueError if the heads do not divide.
    """

    width: int
    hidden: int
    heads: int
    key_heads: int
    head_width: int
    eps: float
    activation: str
    centred: bool = True  # LayerNorm; else RMSNorm
    fused: bool = False  # qkv; else q, k, v
    gated: bool = False
    biases: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name in ("width", "hidden", "heads", "key_heads", "head_width"):
            checks.integer(name, getattr(self, name))
        checks.number("eps", self.eps, least=0.0)
        checks.choice("activation", self.activation, KINDS)
        for role in self.biases:
            checks.choice("biases", role, ("norm1", "norm2", *self.shapes()))
        if self.heads % self.key_heads:
            raise ValueError(f"key_heads: {self.key_heads}; it must be a divisor of the number of heads, {self.heads}")
        if self.fused and self.key_heads != self.heads:
            raise ValueError(f"key_heads: {self.key_heads}; with fused projections it must be heads, {self.heads}")

    def shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every linear role."""
        k, f, queries, keys = self.width, self.hidden, self.heads * self.head_width, self.key_heads * self.head_width
        inputs = {"qkv": (3 * queries, k)} if self.fused else {"q": (queries, k), "k": (keys, k), "v": (keys, k)}
        return inputs | {"o": (k, queries)} | ({"gate": (f, k)} if self.gated else {}) | {"up": (f, k), "down": (k, f)}


def block(
    x: Array,
    spec: BlockSpec,
    parameters: Parameters,
    adapters: Mapping[str, Adapter],
    mask: Array | None = None,
    tables: tuple[Array, Array] | None = None,
) -> tuple[Array, Any]:
    """y (B, T, k) of x (B, T, k). ``parameters``: (weight, bias or None) by role; ``adapters``: by role, any subset.

    ``mask`` is ``additive_mask``'s, ``tables`` are ``rotary_tables``' (None: no rotation).
    """
    caches: dict[str, Any] = {}

    def project(role: str, x: Array) -> Array:
        y, caches[role] = linear(x, *parameters[role], adapters.get(role))
        return y

    shapes = spec.shapes()
    checks.floats(x=x, **{f"parameters[{role!r}]": parameters[role][0] for role in shapes})
    if x.ndim != 3 or x.shape[-1] != spec.width:
        raise ValueError(f"x: shape {tuple(x.shape)}; it must be (B, T, {spec.width})")
    for role, shape in shapes.items():
        checks.shape(f"parameters[{role!r}]", parameters[role][0], shape)
    norm = layer_norm if spec.centred else rms_norm
    inner, caches["norm1"] = norm(x, *parameters["norm1"], spec.eps)
    if spec.fused:
        together = project("qkv", inner)
        third = together.shape[-1] // 3
        q, k, v = (together[..., i * third : (i + 1) * third] for i in range(3))
    else:
        q, k, v = (project(role, inner) for role in ("q", "k", "v"))
    q, k, v = (split_heads(part, spec.head_width) for part in (q, k, v))
    if tables is not None:
        q, k = rotary(q, tables)[0], rotary(k, tables)[0]
    out, caches["attention"] = attention(q, k, v, mask)
    x = x + project("o", join_heads(out))
    inner, caches["norm2"] = norm(x, *parameters["norm2"], spec.eps)
    if spec.gated:
        inner, caches["activation"] = gated(project("gate", inner), project("up", inner), spec.activation)
    else:
        inner, caches["activation"] = activation(project("up", inner), spec.activation)
    return x + project("down", inner), (spec, tables, caches)


def block_backward(dy: Array, cache: Any, *, weight_grad: bool = False) -> tuple[Array, dict[str, Any]]:
    """∂L/∂x (B, T, k), and the gradients of every role, in the reverse order of ``block``."""
    spec, tables, caches = cache
    grads: dict[str, Any] = {}

    def project(role: str, dy: Array) -> Array:
        dx, grads[role] = linear_backward(dy, caches[role], weight_grad=weight_grad)
        return dx

    inner = project("down", dy)
    if spec.gated:
        d_gate, d_up = gated_backward(inner, caches["activation"])
        inner = project("gate", d_gate) + project("up", d_up)
    else:
        inner = project("up", activation_backward(inner, caches["activation"]))
    inner, grads["norm2"] = norm_backward(inner, caches["norm2"], weight_grad=weight_grad)
    dy = dy + inner
    d_out = split_heads(project("o", dy), spec.head_width)
    dq, dk, dv = attention_backward(d_out, caches["attention"])
    if tables is not None:
        dq, dk = rotary_backward(dq, tables), rotary_backward(dk, tables)
    parts = [join_heads(part) for part in (dq, dk, dv)]
    if spec.fused:
        inner = project("qkv", arrays.concat(checks.namespace(dy=dy), parts, -1))
    else:
        inner = project("q", parts[0]) + project("k", parts[1]) + project("v", parts[2])
    inner, grads["norm1"] = norm_backward(inner, caches["norm1"], weight_grad=weight_grad)
    return dy + inner, grads


def split_heads(x: Array, width: int) -> Array:
    """(B, T, H·h) as (B, H, T, h), h = ``width``."""
    xp = checks.namespace(x=x)
    return arrays.permute(xp, xp.reshape(x, (*x.shape[:-1], x.shape[-1] // width, width)), (0, 2, 1, 3))


def join_heads(x: Array) -> Array:
    """(B, H, T, h) as (B, T, H·h)."""
    xp = checks.namespace(x=x)
    x = arrays.permute(xp, x, (0, 2, 1, 3))
    return xp.reshape(x, (*x.shape[:2], x.shape[2] * x.shape[3]))
