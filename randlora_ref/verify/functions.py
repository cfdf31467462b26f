"""Every function of ``nn`` as a point, beside ``spec.block`` or the plain formula, and what they are blind to."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .. import nn, spec
from .configurations import ROPE, SEEDS, Backend, Choose, draw_mask
from .points import Point, Results

Array = Any
Drawn = Callable[
    [Choose, np.random.Generator], tuple[Any, ...]
]  # a ``Function`` but for dy; last its size where dy is 1
LEADING = ((3,), (), (1,), (2, 3), (0,), (2, 1, 2))


def flat(found: Any) -> list[Array]:
    """The arrays of nested tuples in order, None left out."""
    if isinstance(found, tuple):
        return [x for part in found for x in flat(part)]
    return [] if found is None else [found]


@dataclass(frozen=True, eq=False)
class Function(Point):
    """A function with one output: ``back`` and ``gradients`` answer in the order of ``values``."""

    forward: Callable[..., Any]
    back: Callable[..., Any]
    value: Callable[..., Array]
    gradients: Callable[..., Any]

    def run(self, values: Results, dy: Array | None = None) -> Results:
        """By ``nn``."""
        y, cache = self.forward(**values)
        return {"y": y} | ({} if dy is None else dict(zip(values, flat(self.back(dy, cache)), strict=True)))

    def expected(self, values: Results, dy: Array) -> Results:
        """By ``spec`` or the plain formula."""
        found = zip(values, flat(self.gradients(dy, **values)), strict=True)
        return {"y": np.asarray(self.value(**values))} | {name: x + 0 * values[name] for name, x in found}


def alike_in_both(name: str, **options: Any) -> list[Callable[..., Any]]:
    """The function of ``nn`` and that of ``spec`` of the same name, and the latter's gradient."""
    return [partial(getattr(room, name + end), **options) for room, end in ((nn, ""), (spec, ""), (spec, "_backward"))]


def linear(choose: Choose, rng: np.random.Generator) -> tuple[Any, ...]:
    """A layer without adapter; ``layers`` has those with one."""
    out, in_, leading = choose((3, 1, 5)), choose((4, 1, 7)), choose(LEADING)
    values: Results = {"x": rng.standard_normal((*leading, in_)), "weight": rng.standard_normal((out, in_))}
    values |= {"bias": rng.standard_normal(out)} if choose((True, False)) else {}

    def gradients(dy: Array, x: Array, weight: Array, bias: Array | None = None) -> Any:
        return spec.linear_backward(dy, x, weight, bias, None)[1:4]

    back, value = partial(nn.linear_backward, weight_grad=True), partial(spec.linear, bias=None)
    return values, nn.linear, back, value, gradients


def norm(name: str, choose: Choose, rng: np.random.Generator) -> tuple[Any, ...]:
    """LayerNorm or RMSNorm, with and without a bias."""
    width, leading, eps = choose((5, 3, 2, 16)), choose(LEADING), choose((1e-5, 1e-12, 0.5))
    x, weight = rng.standard_normal((*leading, width)) + choose((0.0, 10.0)), rng.standard_normal(width)
    values = {"x": x, "weight": weight} | ({"bias": rng.standard_normal(width)} if choose((True, False)) else {})
    run, value, gradients = alike_in_both(name, bias=None, eps=eps)
    c = x - np.mean(x, axis=-1, keepdims=True) * (name == "layer_norm")
    root = np.sqrt(np.min(np.mean(c * c, axis=-1), initial=1.0) + eps)  # g/root is what ∂L/∂x is a difference of
    size = float(np.max(np.abs(weight)) / root)
    return values, run, partial(nn.norm_backward, weight_grad=True), value, gradients, size


def normalize(choose: Choose, rng: np.random.Generator) -> tuple[Any, ...]:
    """y = x/√Σx²."""
    values = {"x": choose((1.0, 1e-9)) * rng.standard_normal((*choose(LEADING), choose((3, 1, 8))))}

    def length(x: Array) -> Array:
        return np.sqrt(np.sum(x * x, axis=-1, keepdims=True))

    def gradients(dy: Array, x: Array) -> Array:
        y = x / length(x)
        return (dy - y * np.sum(y * dy, axis=-1, keepdims=True)) / length(x)

    return values, nn.normalize, nn.normalize_backward, lambda x: x / length(x), gradients


def activation(kind: str, choose: Choose, rng: np.random.Generator) -> tuple[Any, ...]:
    """One of the four activations; SwiGLU's product with it is ``gated``."""
    x = choose((1.0, 4.0, 30.0)) * rng.standard_normal((*choose(LEADING), choose((4, 1, 9))))
    run, value, gradients = alike_in_both("activation", kind=kind)
    # erf is right to its own last place, so exact GELU is to x's, not to its own small one far to the left
    size = float(np.max(np.abs(x), initial=0.0)) * (kind == "gelu")
    return {"x": x}, run, nn.activation_backward, value, gradients, size


def gated(choose: Choose, rng: np.random.Generator) -> tuple[Any, ...]:
    """f(gate)∘up."""
    kind, shape = choose(("silu", "gelu", "gelu_tanh", "quick_gelu")), (*choose(LEADING), 4)
    values = {name: 2 * rng.standard_normal(shape) for name in ("gate", "up")}

    def gradients(dy: Array, gate: Array, up: Array) -> tuple[Array, Array]:
        return spec.activation_backward(dy * up, gate, kind), dy * spec.activation(gate, kind)

    run = partial(nn.gated, kind=kind)
    return values, run, nn.gated_backward, lambda gate, up: spec.activation(gate, kind) * up, gradients


def embedding(choose: Choose, rng: np.random.Generator) -> tuple[Any, ...]:
    """Rows by id, of every integer type, repeated and absent ones, and a table longer than a byte counts."""
    size, dtype = choose((5, 1, 300)), choose(("int64", "uint8", "int16", "uint32"))
    ids = rng.integers(0, min(size, 256), choose(((2, 3), (1, 9), (0,), (4,)))).astype(dtype)

    one_hot = (ids.reshape(-1)[:, None] == np.arange(size)).astype(np.float32)

    def run(table: Array) -> Any:
        return nn.embedding(Backend.of(table).array(ids), table)

    def value(table: Array) -> Array:
        return (one_hot @ table).reshape(*ids.shape, 3)

    def gradients(dy: Array, table: Array) -> Array:
        return one_hot.T @ dy.reshape(-1, 3)

    return {"table": rng.standard_normal((size, 3))}, run, nn.embedding_backward, value, gradients


def patches(choose: Choose, rng: np.random.Generator) -> tuple[Any, ...]:
    """Each pixel in its patch, by the number of the pixel that stands there."""
    size, (batch, channels, down, across) = choose((2, 1, 3)), choose(((2, 3, 2, 1), (1, 1, 1, 3), (3, 2, 2, 2)))
    shape = (batch, channels, down * size, across * size)
    numbers = np.arange(shape[1] * shape[2] * shape[3]).reshape(shape[1:])
    corners = [(size * i, size * j) for i in range(down) for j in range(across)]
    order = np.array([numbers[:, i : i + size, j : j + size].reshape(-1) for i, j in corners])

    def gradients(dy: Array, pixels: Array) -> Array:
        return dy.reshape(batch, -1)[:, np.argsort(order.reshape(-1))].reshape(shape)

    values, run = {"pixels": rng.standard_normal(shape)}, partial(nn.patches, size=size)
    return values, run, nn.patches_backward, lambda pixels: pixels.reshape(batch, -1)[:, order], gradients


def rotary(choose: Choose, rng: np.random.Generator) -> tuple[Any, ...]:
    """Heads turned, under each scaling of the angles."""
    size, width, theta, scaling = choose((3, 1, 40)), choose((2, 4, 10)), choose((10000.0, 7.5)), choose(ROPE)
    values = {"x": rng.standard_normal((*choose(LEADING), size, width))}

    def run(x: Array) -> Any:
        return nn.rotary(x, nn.rotary_tables(x, size, width, theta, scaling=scaling))

    def gradients(dy: Array, x: Array) -> Array:
        return spec.rotary_backward(dy, tables(x.dtype))

    tables = partial(spec.rotary_tables, size, width, theta, scaling)
    return values, run, nn.rotary_backward, lambda x: spec.rotary(x, tables(x.real.dtype)), gradients


def attention(choose: Choose, rng: np.random.Generator) -> tuple[Any, ...]:
    """Causal or not, padded or not, grouped keys, tokens that see nothing, and scores large and small."""
    batch, size, width, keys, group = choose((2, 1)), choose((4, 1, 6)), choose((3, 1)), choose((2, 1)), choose((1, 3))
    causal, rows, scale = choose((False, True)), draw_mask(choose, batch, size), choose((1.0, 30.0))
    mask = None if rows is None else np.array(rows)
    heads = {"q": keys * group, "k": keys, "v": keys}
    values = {name: rng.standard_normal((batch, count, size, width)) for name, count in heads.items()}
    values["q"] *= scale
    seen = spec.visible(size, causal, mask)

    def run(q: Array, k: Array, v: Array) -> Any:
        return nn.attention(q, k, v, nn.additive_mask(q, size, causal=causal, mask=Backend.of(q).array(mask)))

    # ∂L/∂S is a difference of sums over v, and ∂L/∂q one of those times k
    least = np.max(np.abs(values["v"])) * width**0.5 * max(np.max(np.abs(values["q"])), np.max(np.abs(values["k"])))
    _, value, gradients = alike_in_both("attention", seen=seen)
    return values, run, nn.attention_backward, value, gradients, float(least)


def cross_entropy(choose: Choose, rng: np.random.Generator) -> tuple[Any, ...]:
    """Labels that all, some or none count, of every integer type, logits small and large."""
    rows, size, ignored = choose((4, 1, 9)), choose((5, 1, 300)), choose((-100, 0, -1))
    counts = choose(("all", "some", "none"))
    labels = rng.integers(0, size, rows).astype(choose(("int64", "int16", "int32")))
    labels[: {"all": 0, "some": rows // 2, "none": rows}[counts]] = ignored
    values = {"logits": choose((1.0, 100.0)) * rng.standard_normal((rows, size)) + choose((0.0, 1000.0, -1000.0))}

    def run(logits: Array) -> Any:
        return nn.cross_entropy(logits, Backend.of(logits).array(labels), ignored=ignored)

    _, value, gradients = alike_in_both("cross_entropy", labels=labels, ignored=ignored)
    size = 1 / rows  # of p and e_label, whose difference may cancel
    return values, run, lambda dy, cache: nn.cross_entropy_backward(cache, dy), value, gradients, size


def contrastive(choose: Choose, rng: np.random.Generator) -> tuple[Any, ...]:
    """½(cross-entropy of Z by rows + by columns), Z = exp(log_scale)·texts imagesᵀ, with the diagonal as labels."""
    count, width = choose((3, 1, 5)), choose((4, 1))
    values = {name: rng.standard_normal((count, width)) for name in ("texts", "images")}
    values["log_scale"], labels = np.array(choose((0.7, -2.0, 3.0))), np.arange(count)

    def value(texts: Array, images: Array, log_scale: Array) -> Array:
        Z = np.exp(log_scale) * (texts @ images.T)
        return (spec.cross_entropy(Z, labels) + spec.cross_entropy(Z.T, labels)) / 2

    def gradients(dy: Array, texts: Array, images: Array, log_scale: Array) -> Any:
        scale = np.exp(log_scale)
        Z = scale * (texts @ images.T)
        dZ = spec.cross_entropy_backward(dy, Z, labels) + spec.cross_entropy_backward(dy, Z.T, labels).T
        return scale * (dZ @ images) / 2, scale * (dZ.T @ texts) / 2, np.sum(dZ * Z) / 2

    # dZ is a difference of probabilities, so the gradients are of its products with the vectors and with Z
    scale, most = float(np.exp(values["log_scale"])), float(max(np.max(np.abs(values[name])) for name in values))
    size = scale * max(most, width * most**2) / count
    back = nn.contrastive_backward
    return values, nn.contrastive, lambda dy, cache: back(cache, dy), value, gradients, size


PLAIN = (linear, normalize, gated, embedding, patches, rotary, attention, cross_entropy, contrastive)
FUNCTIONS: dict[str, Drawn] = {name: partial(norm, name) for name in ("layer_norm", "rms_norm")}
FUNCTIONS |= {kind: partial(activation, kind) for kind in ("gelu", "gelu_tanh", "quick_gelu", "silu")}
FUNCTIONS |= {one.__name__: one for one in PLAIN}


def draw_function(name: str, choose: Choose) -> Point:
    """A function of ``nn`` at a drawn point."""
    rng = np.random.default_rng(choose(SEEDS))
    values, forward, back, value, gradients, *scale = FUNCTIONS[name](choose, rng)
    dy = np.asarray(rng.standard_normal(np.shape(value(**values))))
    size = sum(scale) * float(np.max(np.abs(dy), initial=0.0))
    return Function(values, dy, forward, back, value, gradients, size=size)
