"""``randlora-ref verify`` for transformers: every pair of ``nn``, and whole models, by complex step and by pullback.

A *point* is a function of named arrays with its gradients. Along random directions u, Im f(p + ih·u)/h must be
⟨gradient, u⟩: three directions for each tensor. Where a tensor's derivatives cancel to less than a thousandth of the
largest (a key's bias has none: softmax does not see it), the difference is taken over that thousandth.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import numpy as np

from .. import models, nn, spec
from ..adapters import RandLoRA
from .complex_step import directional

Array = Any
LIMIT, FORMULA = 1e-12, "fixed; over max|b| or largest/2¹⁰"


class Point(NamedTuple):
    """``f(**values)`` is a real scalar; ``gradients`` has the keys of those values that are differentiated."""

    name: str
    f: Callable[..., Array]
    values: Mapping[str, Array]
    gradients: Mapping[str, Array]


def properties(rng: np.random.Generator) -> Iterator[tuple[str, float, float, str]]:
    """(name, figure, limit, formula of the limit) of every function of ``nn`` and every model."""
    for point in functions(rng):
        yield f"nn.{point.name}: worst gradient to the complex step", gap(rng, point), LIMIT, FORMULA
    for name in MODELS:
        for place in ("start", "generic"):
            point, pulled = model_point(rng, name, place == "start")
            yield f"{name} at the {place} point: worst gradient to the complex step", gap(rng, point), LIMIT, FORMULA
            yield f"{name} at the {place} point: ∂L/∂W through Eq. 4 to ∂L/∂Λ, ∂L/∂Γ", pulled, LIMIT, "fixed"


def gap(rng: np.random.Generator, point: Point) -> float:
    """The worst relative error of ⟨gradient, u⟩ to the complex step, over three directions of each tensor."""
    found = {}
    for key, gradient in point.gradients.items():
        value = np.asarray(point.values[key])
        u = [rng.standard_normal(value.shape) for _ in range(3)]

        def f(x: Array, key: str = key) -> Array:
            return point.f(**{**point.values, key: x})

        exact = [directional(f, value, one) for one in u]
        found[key] = np.array([float(np.sum(gradient * one)) for one in u]), np.array(exact, dtype=float)
    largest = max(float(np.max(np.abs(exact))) for _, exact in found.values())
    return max(_relative(ours, exact, largest) for ours, exact in found.values())


def _relative(a: Array, b: Array, largest: float) -> float:
    if not np.all(np.isfinite(a)) or not np.all(np.isfinite(b)):
        return float("inf")
    difference, size = float(np.max(np.abs(a - b))), max(float(np.max(np.abs(b))), 2.0**-10 * largest)
    return difference / size if size > 0 else difference


def functions(rng: np.random.Generator) -> Iterator[Point]:
    """Every function of ``nn`` but the block, which the models go through, at a point of pairwise distinct sizes."""

    def draw(*shape: int) -> Array:
        return rng.standard_normal(shape)

    def point(name: str, run: Callable[..., Any], back: Callable[..., Any], **values: Array) -> Point:
        """⟨dy, run(values)⟩ for a random dy, with ``back(dy, cache)`` giving the gradients in the order of values."""
        y, cache = run(**values)
        dy = draw(*y.shape)
        found = back(dy, cache)
        found = found if isinstance(found, tuple) else (found,)
        return Point(name, lambda **given: np.sum(dy * run(**given)[0]), values, dict(zip(values, found, strict=True)))

    def parameters(pair: tuple[Array, Any]) -> tuple[Array, ...]:
        return pair[0], pair[1].weight, pair[1].bias

    x, w, b, positive = draw(5, 7), draw(3, 7), draw(3), 1 + 0.1 * draw(7)

    def linear_back(dy: Array, cache: Any) -> tuple[Array, ...]:
        return parameters(nn.linear_backward(dy, cache, weight_grad=True))

    yield point("linear", nn.linear, linear_back, x=x, weight=w, bias=b)
    for norm in (nn.layer_norm, nn.rms_norm):

        def run(x: Array, weight: Array, bias: Array, norm: Any = norm) -> Any:
            return norm(x, weight, bias, 1e-5)

        def back(dy: Array, cache: Any) -> tuple[Array, ...]:
            return parameters(nn.norm_backward(dy, cache, weight_grad=True))

        yield point(norm.__name__, run, back, x=x, weight=positive, bias=draw(7))
    for kind in ("gelu", "gelu_tanh", "quick_gelu", "silu"):
        yield point(kind, lambda x, k=kind: nn.activation(x, k), nn.activation_backward, x=3 * x)
    yield point("gated", nn.gated, nn.gated_backward, gate=x, up=draw(5, 7))
    yield point("normalize", nn.normalize, nn.normalize_backward, x=x)
    table = draw(11, 3)
    ids = rng.integers(0, 11, (2, 9))
    yield point("embedding", lambda table: nn.embedding(ids, table), nn.embedding_backward, table=table)
    yield point("patches", lambda x: nn.patches(x, 2), nn.patches_backward, x=draw(2, 3, 4, 6))
    tables = nn.rotary_tables(x, 5, 6, 100.0)
    yield point("rotary", lambda x: nn.rotary(x, tables), nn.rotary_backward, x=draw(2, 5, 6))
    padding = np.array([[1, 1, 1, 0, 1], [0, 1, 1, 1, 1]])
    for name, causal, mask in (("attention", False, None), ("attention, causal and padded", True, padding)):
        seen = nn.additive_mask(x, 5, causal=causal, mask=mask)
        q, k, v = draw(2, 6, 5, 4), draw(2, 3, 5, 4), draw(2, 3, 5, 4)
        yield point(name, lambda q, k, v, m=seen: nn.attention(q, k, v, m), nn.attention_backward, q=q, k=k, v=v)
    labels = np.array([0, 6, -100, 3, 3])
    for scale in (1, 1000):
        z, run_z = scale * x, lambda logits: nn.cross_entropy(logits, labels)
        yield point(f"cross_entropy, logits of {scale}", run_z, lambda d, c: nn.cross_entropy_backward(c, d), logits=z)
    vectors = {"texts": draw(4, 3), "images": draw(4, 3), "log_scale": np.array(0.7)}
    yield point("contrastive", nn.contrastive, lambda d, c: nn.contrastive_backward(c, d), **vectors)


LAYERS = {"intermediate_size": 20, "num_hidden_layers": 2}
TEXT = LAYERS | {"hidden_size": 12, "vocab_size": 13, "max_position_embeddings": 7}
VISION = LAYERS | {"hidden_size": 15, "num_attention_heads": 3, "image_size": 8, "patch_size": 4}
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "GPT-2": (models.GPT2, {"vocab_size": 13, "n_positions": 7, "n_embd": 12, "n_layer": 2, "n_head": 3}),
    "Llama": (models.Llama, TEXT | {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4}),
    "ViT": (models.ViT, VISION | {"num_labels": 5}),
    "CLIP": (models.CLIP, {
        "text_config": TEXT | {"num_attention_heads": 3, "eos_token_id": 5}, "projection_dim": 7,
        "vision_config": VISION,
    }),
}  # fmt: skip


def model_point(rng: np.random.Generator, name: str, start: bool) -> tuple[Point, float]:
    """A model with RandLoRA in every linear layer of its blocks: its point, and its worst gap of the pullback."""
    kind, config = MODELS[name]
    own = kind.CONFIG.from_dict(config)
    weights = {}
    for saved, shape in (pair for one in own.modules() for pair in one.tensors.values()):
        weights[saved] = 0.2 * rng.standard_normal(shape) + ("norm" in saved or "ln_" in saved)
    dialect = "paper" if name in ("Llama", "ViT") else "peft"
    adapters = models.adapt(own, rank=3, dialect=dialect, alpha=2.0, dtype="float64")
    if not start:
        for key, one in adapters.items():
            lambda_, gamma = (0.1 * rng.standard_normal(x.shape) for x in (one.lambda_, one.gamma))
            adapters[key] = one.replace(lambda_=lambda_, gamma=gamma)
    ids, mask = rng.integers(0, 13, (3, 6)), np.array([[1] * 6, [1] * 4 + [0] * 2, [0] * 2 + [1] * 4])
    given: dict[str, Any] = {"ids": ids, "labels": np.where(mask, ids, -100), "attention_mask": mask}
    pixels = rng.standard_normal((3, 3, 8, 8))
    if name in ("ViT", "CLIP"):
        given = {"labels": np.array([0, 4, -100])} if name == "ViT" else {"ids": ids, "attention_mask": mask}
        given["pixels"] = pixels
    learned = {(key, part): getattr(one, part) for key, one in adapters.items() for part in ("lambda_", "gamma")}

    def run(**values: Array) -> tuple[Any, Any]:
        moved = {
            key: one.replace(lambda_=values[f"{key}/lambda_"], gamma=values[f"{key}/gamma"])
            for key, one in adapters.items()
        }
        model = kind(own, {key: values[key] for key in weights}, moved)
        return model, model.forward(**(given | ({"pixels": values["pixels"]} if "pixels" in given else {})))

    values = {**weights, **{f"{key}/{part}": x for (key, part), x in learned.items()}, "pixels": pixels}
    model, (_, cache) = run(**values)
    grads = model.backward(cache, weights=True, inputs=True)
    gradients = dict(grads.weights) | {f"{key}/{part}": getattr(grads[key], part) for key, part in learned}
    if "pixels" in given:
        gradients["pixels"] = getattr(grads.inputs, "pixels", grads.inputs)
    return Point(name, lambda **at: run(**at)[1][0], values, gradients), max(
        _pullback(model, key, grads) for key in adapters
    )


def _pullback(model: models.Model, name: str, grads: models.Gradients) -> float:
    """∂L/∂W of one adapted layer, pulled back through Eq. 4 by the specification, beside the adapter's gradients."""
    module, layer = model.modules[name], cast(RandLoRA, model.adapters[name])
    G = (grads.weights or {})[module.tensors["weight"][0]]
    bases, options = layer.bases, (layer.scaling, layer.dialect.pairing)
    pulled = spec.pullback(G.T if module.transposed else G, bases.A, bases.B, layer.lambda_, layer.gamma, *options)
    pairs = zip((grads[name].lambda_, grads[name].gamma), pulled, strict=True)
    return max(_relative(ours, expected, float(np.max(np.abs(pulled[0])))) for ours, expected in pairs)
