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
from ..adapters import Adapter, base
from .activation import KINDS
from .attention import attend, attend_backward, check_mask
from .linear import project
from .norm import apply_norm, apply_norm_backward
from .rotary import check_tables, rotate

Array = Any
Parameters = Mapping[str, tuple[Array, Array | None]]
Adapters = Mapping[str, Adapter]
NORMS = ("norm1", "norm2")


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
            checks.choice("biases", role, (*NORMS, *self.shapes()))
        if self.heads % self.key_heads:
            raise ValueError(f"key_heads: {self.key_heads}; it must be a divisor of the number of heads, {self.heads}")
        if self.fused and self.key_heads != self.heads:
            raise ValueError(f"key_heads: {self.key_heads}; with fused projections it must be heads, {self.heads}")

    def shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every linear role."""
        k, f, queries, keys = self.width, self.hidden, self.heads * self.head_width, self.key_heads * self.head_width
        inputs = {"qkv": (3 * queries, k)} if self.fused else {"q": (queries, k), "k": (keys, k), "v": (keys, k)}
        return inputs | {"o": (k, queries)} | ({"gate": (f, k)} if self.gated else {}) | {"up": (f, k), "down": (k, f)}


def split_heads(xp: Any, x: Array, width: int) -> Array:
    """(B, T, H·h) as (B, H, T, h), h = ``width``."""
    return arrays.permute(xp, xp.reshape(x, (*x.shape[:-1], x.shape[-1] // width, width)), (0, 2, 1, 3))


def join_heads(xp: Any, x: Array) -> Array:
    """(B, H, T, h) as (B, T, H·h)."""
    x = arrays.permute(xp, x, (0, 2, 1, 3))
    return xp.reshape(x, (*x.shape[:2], x.shape[2] * x.shape[3]))


def check_block(x: Array, spec: BlockSpec, parameters: Parameters, mask: Array | None, tables: Any) -> Any:
    """The namespace of a block's arguments, once they fit ``spec`` and one another; an adapter checks its own."""
    shapes = {**dict.fromkeys(NORMS, (spec.width,)), **spec.shapes()}
    weights = {f"parameters[{role!r}]": parameters[role][0] for role in shapes}
    biases: dict[str, Any] = {f"parameters[{role!r}][1]": parameters[role][1] for role in shapes}
    cos, sin = tables or (None, None)
    xp = checks.floats(x=x, mask=mask, cos=cos, sin=sin, **weights, **biases)
    checks.shaped(x.ndim == 3 and x.shape[-1] == spec.width, "x", x, f"(B, T, {spec.width})")
    for shape, weight, bias in zip(shapes.values(), weights.items(), biases.items(), strict=True):
        checks.shape(*weight, shape)
        if bias[1] is not None:
            checks.shape(*bias, shape[:1])
    check_mask(mask, *x.shape[:2])
    if tables is not None:
        check_tables("q and k", (*x.shape[:2], spec.head_width), tables)
    return xp


def block(
    x: Array, spec: BlockSpec, parameters: Parameters, adapters: Adapters, mask: Array | None = None, tables: Any = None
) -> tuple[Array, Any]:
    """y (B, T, k) of x (B, T, k). ``parameters``: (weight, bias or None) by role; ``adapters``: by role, any subset.

    ``mask`` is ``additive_mask``'s, ``tables`` are ``rotary_tables``' (None: no rotation).
    """
    xp, caches = check_block(x, spec, parameters, mask, tables), dict[str, Any]()

    def apply(role: str, x: Array) -> Array:
        if role in NORMS:
            y, caches[role] = apply_norm(xp, x, *parameters[role], spec.eps, spec.centred)
        else:
            y, caches[role] = project(xp, x, *parameters[role], adapters.get(role))
        return y

    normed = apply("norm1", x)  # (B, T, k)
    if spec.fused:
        heads = split_heads(xp, apply("qkv", normed), spec.head_width)  # (B, 3·H, T, h)
        q, k, v = (heads[:, i * spec.heads : (i + 1) * spec.heads, :, :] for i in range(3))
    else:
        q, k, v = (split_heads(xp, apply(role, normed), spec.head_width) for role in ("q", "k", "v"))
    if tables is not None:
        q, k = rotate(xp, q, *tables), rotate(xp, k, *tables)
    output, caches["attention"] = attend(xp, q, k, v, mask)  # (B, H, T, h)
    residual = x + apply("o", join_heads(xp, output))  # (B, T, k)
    normed = apply("norm2", residual)
    value, slope = KINDS[spec.activation](xp, apply("gate" if spec.gated else "up", normed))  # (B, T, f)
    up = apply("up", normed) if spec.gated else None
    hidden = value if up is None else value * up
    caches["activation"] = value, slope, up
    return residual + apply("down", hidden), (spec, tables, caches)


def block_backward(dy: Array, cache: Any, *, weight_grad: bool = False) -> tuple[Array, dict[str, Any]]:
    """∂L/∂x (B, T, k), and the gradients of every role, in the reverse order of ``block``."""
    (spec, tables, caches), grads = cache, dict[str, Any]()
    xp = checks.cotangent("dy", dy, tuple(caches["norm1"][0].shape), caches["norm1"][0])

    def pull_back(role: str, dy: Array) -> Array:
        backward = apply_norm_backward if role in NORMS else base.project_backward
        dx, grads[role] = backward(xp, dy, caches[role], weight_grad)
        return dx

    d_hidden = pull_back("down", dy)  # (B, T, f)
    value, slope, up = caches["activation"]
    if spec.gated:
        d_normed = pull_back("gate", d_hidden * up * slope) + pull_back("up", d_hidden * value)
    else:
        d_normed = pull_back("up", d_hidden * slope)
    d_residual = dy + pull_back("norm2", d_normed)  # (B, T, k)
    d_output = split_heads(xp, pull_back("o", d_residual), spec.head_width)  # (B, H, T, h)
    dq, dk, dv = attend_backward(xp, d_output, caches["attention"])
    if tables is not None:
        dq, dk = rotate(xp, dq, tables[0], -tables[1]), rotate(xp, dk, tables[0], -tables[1])
    if spec.fused:
        d_normed = pull_back("qkv", join_heads(xp, arrays.concat(xp, [dq, dk, dv], 1)))
    else:
        dq, dk, dv = (pull_back(role, join_heads(xp, x)) for role, x in (("q", dq), ("k", dk), ("v", dv)))
        d_normed = dq + dk + dv
    return d_residual + pull_back("norm1", d_normed), grads
