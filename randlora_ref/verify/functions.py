"""Every function of ``nn`` as a point, beside ``spec.block`` or the plain formula, and what they are blind to."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import arrays, nn, spec
from .configurations import ROPE, Choose, draw_mask
from .points import Point, Results

Array = Any
Drawn = Callable[[Choose, np.random.Generator], Point]
LEADING = ((3,), (), (1,), (2, 3), (0,), (2, 1, 2))


def pair(
    values: Results, run: Callable[..., Any], back: Callable[..., Any], value: Callable[..., Array],
    gradients: Callable[..., Any], rng: np.random.Generator,
) -> Point:  # fmt: skip
    """The point of a function with one output: ``back`` and ``gradients`` answer in the order of ``values``."""

    def named(found: Any) -> Results:
        found = found if isinstance(found, tuple) else (found,)
        return dict(zip(values, (x for x in found if x is not None), strict=True))

    def code(values: Results, dy: Array | None) -> Results:
        y, cache = run(**values)
        return {"y": y} | ({} if dy is None else named(back(dy, cache)))

    def specification(values: Results, dy: Array | None) -> Results:
        return {"y": np.asarray(value(**values))} | ({} if dy is None else named(gradients(dy, **values)))

    return Point(values, np.asarray(rng.standard_normal(np.shape(value(**values)))), code, specification)


def beside(x: Array, host: Array) -> Array:
    """A host array brought to the library and device of ``x``."""
    return None if host is None else arrays.from_numpy(arrays.namespace_of("x", x), host, arrays.device_of(x))


def linear(choose: Choose, rng: np.random.Generator) -> Point:
    """A layer without adapter, or with one; its gradients by the spec's G = ∂L/∂ΔW, pulled back in ``blocks``."""
    out, in_, leading, bias = choose((3, 1, 5)), choose((4, 1, 7)), choose(LEADING), choose((True, False))
    values = {"x": rng.standard_normal((*leading, in_)), "weight": rng.standard_normal((out, in_))}
    values |= {"bias": rng.standard_normal(out)} if bias else {}

    def back(dy: Array, cache: Any) -> tuple[Array, ...]:
        dx, grads = nn.linear_backward(dy, cache, weight_grad=True)
        return dx, grads.weight, grads.bias

    def gradients(dy: Array, x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, ...]:
        found = spec.linear_backward(dy, x, weight, bias, None)
        return found.x, found.weight, None if bias is None else found.bias + 0 * bias

    return pair(values, nn.linear, back, lambda x, weight, bias=None: spec.linear(x, weight, bias), gradients, rng)


def norm(centred: bool) -> Drawn:
    """LayerNorm or RMSNorm, with and without a bias."""
    ours, plain = (nn.layer_norm, spec.layer_norm) if centred else (nn.rms_norm, spec.rms_norm)
    plain_back = spec.layer_norm_backward if centred else spec.rms_norm_backward

    def draw(choose: Choose, rng: np.random.Generator) -> Point:
        width, leading, eps = choose((5, 3, 2, 16)), choose(LEADING), choose((1e-5, 1e-12, 0.5))
        values = {
            "x": rng.standard_normal((*leading, width)) + choose((0.0, 10.0)),
            "weight": rng.standard_normal(width),
        }
        values |= {"bias": rng.standard_normal(width)} if choose((True, False)) else {}

        def back(dy: Array, cache: Any) -> tuple[Array, ...]:
            dx, grads = nn.norm_backward(dy, cache, weight_grad=True)
            return dx, grads.weight, grads.bias

        def run(x: Array, weight: Array, bias: Array | None = None) -> Any:
            return ours(x, weight, bias, eps)

        def value(x: Array, weight: Array, bias: Array | None = None) -> Array:
            return plain(x, weight, bias, eps)

        def gradients(dy: Array, x: Array, weight: Array, bias: Array | None = None) -> Any:
            dx, d_weight, d_bias = plain_back(dy, x, weight, bias, eps)
            return dx, d_weight + 0 * weight, None if bias is None else d_bias + 0 * bias

        found, x = pair(values, run, back, value, gradients, rng), values["x"]
        c = x - np.mean(x, axis=-1, keepdims=True) * centred
        root = np.sqrt(np.mean(c * c, axis=-1, keepdims=True) + eps)
        return found._replace(size=float(np.max(np.abs(found.dy * values["weight"]) / root, initial=0.0)))

    return draw


def normalize(choose: Choose, rng: np.random.Generator) -> Point:
    """y = x/√Σx²."""
    values = {"x": choose((1.0, 1e-9)) * rng.standard_normal((*choose(LEADING), choose((3, 1, 8))))}

    def value(x: Array) -> Array:
        return x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True))

    def gradients(dy: Array, x: Array) -> Array:
        y = value(x)
        return (dy - y * np.sum(y * dy, axis=-1, keepdims=True)) / np.sqrt(np.sum(x * x, axis=-1, keepdims=True))

    return pair(values, nn.normalize, nn.normalize_backward, value, gradients, rng)


def activation(kind: str) -> Drawn:
    """One of the four activations; SwiGLU's product with it is ``gated``."""

    def draw(choose: Choose, rng: np.random.Generator) -> Point:
        values = {"x": choose((1.0, 4.0, 30.0)) * rng.standard_normal((*choose(LEADING), choose((4, 1, 9))))}
        found = pair(
            values, lambda x: nn.activation(x, kind), nn.activation_backward, lambda x: spec.activation(x, kind),
            lambda dy, x: spec.activation_backward(dy, x, kind), rng,
        )  # fmt: skip
        # erf is right to its own last place, so exact GELU is to x's, not to its own small one far to the left
        return found._replace(size=float(np.max(np.abs(values["x"]), initial=0.0)) * (kind == "gelu"))

    return draw


def gated(choose: Choose, rng: np.random.Generator) -> Point:
    """f(gate)∘up."""
    kind, shape = choose(("silu", "gelu", "gelu_tanh", "quick_gelu")), (*choose(LEADING), 4)
    values = {name: 2 * rng.standard_normal(shape) for name in ("gate", "up")}

    def gradients(dy: Array, gate: Array, up: Array) -> tuple[Array, Array]:
        return spec.activation_backward(dy * up, gate, kind), dy * spec.activation(gate, kind)

    return pair(
        values, lambda gate, up: nn.gated(gate, up, kind), nn.gated_backward,
        lambda gate, up: spec.activation(gate, kind) * up, gradients, rng,
    )  # fmt: skip


def embedding(choose: Choose, rng: np.random.Generator) -> Point:
    """Rows by id, of every integer type, repeated and absent ones, and a table longer than a byte counts."""
    size, dtype = choose((5, 1, 300)), choose(("int64", "uint8", "int16", "uint32"))
    ids = rng.integers(0, min(size, 256), choose(((2, 3), (1, 9), (0,), (4,)))).astype(dtype)

    def code(values: Results, dy: Array | None) -> Results:
        y, cache = nn.embedding(beside(values["table"], ids), values["table"])
        return {"y": y} | ({} if dy is None else {"table": nn.embedding_backward(dy, cache)})

    def specification(values: Results, dy: Array | None) -> Results:
        one_hot = (ids.reshape(-1)[:, None] == np.arange(size)).astype(values["table"].dtype)
        y = (one_hot @ values["table"]).reshape(*ids.shape, 3)
        return {"y": y} | ({} if dy is None else {"table": one_hot.T @ dy.reshape(-1, 3)})

    return Point({"table": rng.standard_normal((size, 3))}, rng.standard_normal((*ids.shape, 3)), code, specification)


def patches(choose: Choose, rng: np.random.Generator) -> Point:
    """Each pixel in its patch, by the place it is read from."""
    size, (batch, channels, down, across) = choose((2, 1, 3)), choose(((2, 3, 2, 1), (1, 1, 1, 3), (3, 2, 2, 2)))
    shape = (batch, channels, down * size, across * size)
    place = np.array([
        [c * shape[2] * shape[3] + (i * size + a) * shape[3] + j * size + b
         for c in range(channels) for a in range(size) for b in range(size)]
        for i in range(down) for j in range(across)
    ])  # fmt: skip

    def value(pixels: Array) -> Array:
        return pixels.reshape(batch, -1)[:, place]

    def gradients(dy: Array, pixels: Array) -> Array:
        return dy.reshape(batch, -1)[:, np.argsort(place.reshape(-1))].reshape(shape)

    values = {"pixels": rng.standard_normal(shape)}
    return pair(values, lambda pixels: nn.patches(pixels, size), nn.patches_backward, value, gradients, rng)


def rotary(choose: Choose, rng: np.random.Generator) -> Point:
    """Heads turned, under each scaling of the angles."""
    size, width, theta, scaling = choose((3, 1, 40)), choose((2, 4, 10)), choose((10000.0, 7.5)), choose(ROPE)
    values = {"x": rng.standard_normal((*choose(LEADING), size, width))}

    def run(x: Array) -> Any:
        return nn.rotary(x, nn.rotary_tables(x, size, width, theta, scaling=scaling))

    def value(x: Array) -> Array:
        return spec.rotary(x, spec.rotary_tables(size, width, theta, scaling, x.real.dtype))

    def gradients(dy: Array, x: Array) -> Array:
        return spec.rotary_backward(dy, spec.rotary_tables(size, width, theta, scaling, x.dtype))

    return pair(values, run, nn.rotary_backward, value, gradients, rng)


def attention(choose: Choose, rng: np.random.Generator) -> Point:
    """Causal or not, padded or not, grouped keys, tokens that see nothing, and scores large and small."""
    batch, size, width, keys, group = choose((2, 1)), choose((4, 1, 6)), choose((3, 1)), choose((2, 1)), choose((1, 3))
    causal, rows, scale = choose((False, True)), draw_mask(choose, batch, size), choose((1.0, 30.0))
    mask = None if rows is None else np.array(rows)
    heads = {"q": keys * group, "k": keys, "v": keys}
    values = {name: rng.standard_normal((batch, count, size, width)) for name, count in heads.items()}
    values["q"] *= scale
    seen = spec.visible(size, causal, mask)

    def run(q: Array, k: Array, v: Array) -> Any:
        return nn.attention(q, k, v, nn.additive_mask(q, size, causal=causal, mask=beside(q, mask)))

    def gradients(dy: Array, q: Array, k: Array, v: Array) -> Any:
        return spec.attention_backward(dy, q, k, v, seen)

    found = pair(values, run, nn.attention_backward, lambda q, k, v: spec.attention(q, k, v, seen), gradients, rng)
    sizes = {name: float(np.max(np.abs(x))) for name, x in values.items()}
    scores = float(np.max(np.abs(found.dy))) * sizes["v"] * width**0.5  # ∂L/∂S is a difference of such
    return found._replace(size=scores * max(sizes["q"], sizes["k"]))


def cross_entropy(choose: Choose, rng: np.random.Generator) -> Point:
    """Labels that all, some or none count, of every integer type, logits small and large."""
    rows, size, ignored = choose((4, 1, 9)), choose((5, 1, 300)), choose((-100, 0, -1))
    counts = choose(("all", "some", "none"))
    labels = rng.integers(0, size, rows).astype(choose(("int64", "int16", "int32")))
    labels[: {"all": 0, "some": rows // 2, "none": rows}[counts]] = ignored
    values = {"logits": choose((1.0, 100.0)) * rng.standard_normal((rows, size)) + choose((0.0, 1000.0, -1000.0))}

    def run(logits: Array) -> Any:
        return nn.cross_entropy(logits, beside(logits, labels), ignored=ignored)

    def value(logits: Array) -> Array:
        return spec.cross_entropy(logits, labels, ignored)

    def gradients(dy: Array, logits: Array) -> Array:
        return spec.cross_entropy_backward(dy, logits, labels, ignored)

    found = pair(values, run, lambda dy, cache: nn.cross_entropy_backward(cache, dy), value, gradients, rng)
    return found._replace(size=float(abs(found.dy)) / rows)  # of p + e_label, whose difference may cancel


def contrastive(choose: Choose, rng: np.random.Generator) -> Point:
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

    return pair(
        values, nn.contrastive, lambda dy, cache: nn.contrastive_backward(cache, dy), value, gradients, rng
    )  # fmt: skip


FUNCTIONS: dict[str, Drawn] = {
    "linear": linear,
    "layer_norm": norm(centred=True),
    "rms_norm": norm(centred=False),
    "normalize": normalize,
    **{kind: activation(kind) for kind in ("gelu", "gelu_tanh", "quick_gelu", "silu")},
    "gated": gated,
    "embedding": embedding,
    "patches": patches,
    "rotary": rotary,
    "attention": attention,
    "cross_entropy": cross_entropy,
    "contrastive": contrastive,
}
