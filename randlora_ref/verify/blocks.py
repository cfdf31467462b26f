"""``randlora-ref verify`` for transformers: every pair of ``nn``, and whole models, by complex step and by pullback.

A *point* is a function of named arrays with its gradients. Along random directions u, Im f(p + ih·u)/h must be
⟨gradient, u⟩: three directions for each tensor. Where a tensor's derivatives cancel to less than a thousandth of the
largest (a key's bias has none: softmax does not see it), the difference is taken over that thousandth.

Complex numbers are for NumPy. On another array library the same points are taken in float64, and values and gradients
must be NumPy's, which the complex step holds.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np

from .. import arrays, models, nn, spec
from ..adapters import RandLoRA
from .complex_step import directional

Array = Any
Bring = Callable[[Array], Array]  # takes a host array to the library and device that compute
LIMIT, FORMULA = 1e-12, "fixed; over max|b| or largest/2¹⁰"


class Point(NamedTuple):
    """``f(**values)`` is a real scalar; ``gradients`` has the keys of those values that are differentiated.

    ``results`` are what the forward pass gave there.
    """

    name: str
    f: Callable[..., Array]
    values: Mapping[str, Array]
    gradients: Mapping[str, Array]
    results: tuple[Array, ...] = ()


def properties(rng: np.random.Generator, bring: Bring | None = None) -> Iterator[tuple[str, float, float, str]]:
    """(name, figure, limit, formula of the limit) of every function of ``nn`` and every model.

    ``bring`` takes a host array to another library and device, where all is beside NumPy's results; None: the host.
    """
    host = points(copy.deepcopy(rng))
    for name, point, pulled in points(rng, bring or np.asarray):
        if bring is None:
            yield f"{name}: worst gradient to the complex step", gap(rng, point), LIMIT, FORMULA
        else:
            limit = 0 if name in ("nn.linear", "nn.embedding", "nn.patches") else LIMIT  # of these no sum is rounded
            yield f"{name}: values and gradients to NumPy's", apart(next(host)[1], point), limit, FORMULA
        if pulled is not None:
            yield f"{name}: ∂L/∂W through Eq. 4 to ∂L/∂Λ, ∂L/∂Γ", pulled, LIMIT, "fixed"


def points(rng: np.random.Generator, bring: Bring = np.asarray) -> Iterator[tuple[str, Point, float | None]]:
    """Every function and every model at both points, by name, with a model's worst gap of the pullback."""
    for point in functions(rng, bring):
        yield f"nn.{point.name}", point, None
    for name in MODELS:
        for place in ("start", "generic"):
            yield f"{name} at the {place} point", *model_point(rng, name, place == "start", bring)


def apart(here: Point, there: Point) -> float:
    """The worst relative error of the results and gradients of ``there``, another library's, to those of ``here``."""
    found, right = ([arrays.to_numpy(x) for x in (*one.results, *one.gradients.values())] for one in (there, here))
    largest = max(float(np.max(np.abs(x))) for x in right)
    return max(_relative(*pair, largest) for pair in zip(found, right, strict=True))


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
    if a.shape != b.shape or not np.all(np.isfinite(a)) or not np.all(np.isfinite(b)):
        return float("inf")
    difference, size = float(np.max(np.abs(a - b))), max(float(np.max(np.abs(b))), 2.0**-10 * largest)
    return difference / size if size > 0 else difference


def functions(rng: np.random.Generator, bring: Bring = np.asarray) -> Iterator[Point]:
    """Every function of ``nn`` but the block, which the models go through, at a point of pairwise distinct sizes."""

    def draw(*shape: int) -> Array:
        return bring(np.rint(2.0**10 * rng.standard_normal(shape)) / 2.0**10)  # products of two are added exactly

    def point(name: str, run: Callable[..., Any], back: Callable[..., Any], **values: Array) -> Point:
        """⟨dy, run(values)⟩ for a random dy, with ``back(dy, cache)`` giving the gradients in the order of values."""
        y, cache = run(**values)
        dy = draw(*y.shape)
        found = back(dy, cache)
        gradients = dict(zip(values, found if isinstance(found, tuple) else (found,), strict=True))
        return Point(name, lambda **given: np.sum(dy * run(**given)[0]), values, gradients, (y,))

    def whole(backward: Callable[..., Any], dy: Array, cache: Any) -> tuple[Array, ...]:
        dx, grads = backward(dy, cache, weight_grad=True)
        return dx, grads.weight, grads.bias

    x, w, b, gain = draw(5, 7), draw(3, 7), draw(3), 1 + 0.1 * draw(7)
    yield point("linear", nn.linear, partial(whole, nn.linear_backward), x=x, weight=w, bias=b)
    for norm in (nn.layer_norm, nn.rms_norm):
        run, back = partial(norm, eps=1e-5), partial(whole, nn.norm_backward)
        yield point(norm.__name__, run, back, x=x, weight=gain, bias=draw(7))
    for kind in ("gelu", "gelu_tanh", "quick_gelu", "silu"):
        yield point(kind, lambda x, k=kind: nn.activation(x, k), nn.activation_backward, x=3 * x)
    yield point("gated", nn.gated, nn.gated_backward, gate=x, up=draw(5, 7))
    yield point("normalize", nn.normalize, nn.normalize_backward, x=x)
    table = draw(11, 3)
    ids = bring(rng.integers(0, 11, (2, 9)))
    yield point("embedding", lambda table: nn.embedding(ids, table), nn.embedding_backward, table=table)
    yield point("patches", lambda x: nn.patches(x, 2), nn.patches_backward, x=draw(2, 3, 4, 6))
    tables = nn.rotary_tables(x, 5, 6, 100.0)
    yield point("rotary", lambda x: nn.rotary(x, tables), nn.rotary_backward, x=draw(2, 5, 6))
    padding = bring(np.array([[1, 1, 1, 0, 1], [0, 1, 1, 1, 1]]))
    for name, causal, mask in (("attention", False, None), ("attention, causal and padded", True, padding)):
        seen = nn.additive_mask(x, 5, causal=causal, mask=mask)
        q, k, v = draw(2, 6, 5, 4), draw(2, 3, 5, 4), draw(2, 3, 5, 4)
        yield point(name, lambda q, k, v, m=seen: nn.attention(q, k, v, m), nn.attention_backward, q=q, k=k, v=v)
    labels = bring(np.array([0, 6, -100, 3, 3]))
    for scale in (1, 1000):
        z, run_z = scale * x, lambda logits: nn.cross_entropy(logits, labels)
        yield point(f"cross_entropy, logits of {scale}", run_z, lambda d, c: nn.cross_entropy_backward(c, d), logits=z)
    vectors = {"texts": draw(4, 3), "images": draw(4, 3), "log_scale": bring(np.array(0.7))}
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


def model_point(rng: np.random.Generator, name: str, start: bool, bring: Bring = np.asarray) -> tuple[Point, float]:
    """A model with RandLoRA in every linear layer of its blocks: its point, and its worst gap of the pullback."""
    kind, config = MODELS[name]
    own = kind.CONFIG.from_dict(config)
    weights = {}
    for saved, shape in (pair for one in own.modules() for pair in one.tensors.values()):
        weights[saved] = bring(0.2 * rng.standard_normal(shape) + ("norm" in saved or "ln_" in saved))
    dialect = "paper" if name in ("Llama", "ViT") else "peft"
    adapters = models.adapt(kind(own, weights), rank=3, dialect=dialect, alpha=2.0)
    if not start:
        for key, one in adapters.items():
            lambda_, gamma = (bring(0.1 * rng.standard_normal(x.shape)) for x in (one.lambda_, one.gamma))
            adapters[key] = one.replace(lambda_=lambda_, gamma=gamma)
    ids, mask = rng.integers(0, 13, (3, 6)), np.array([[1] * 6, [1] * 4 + [0] * 2, [0] * 2 + [1] * 4])
    given: dict[str, Any] = {"ids": ids, "labels": np.where(mask, ids, -100), "attention_mask": mask}
    pixels = bring(rng.standard_normal((3, 3, 8, 8)))
    if name in ("ViT", "CLIP"):
        given = {"labels": np.array([0, 4, -100])} if name == "ViT" else {"ids": ids, "attention_mask": mask}
    given = {key: bring(x) for key, x in given.items()} | ({"pixels": pixels} if name in ("ViT", "CLIP") else {})
    learned = {(key, part): getattr(one, part) for key, one in adapters.items() for part in ("lambda_", "gamma")}

    def run(**values: Array) -> tuple[Any, Any]:
        moved = {
            key: one.replace(lambda_=values[f"{key}/lambda_"], gamma=values[f"{key}/gamma"])
            for key, one in adapters.items()
        }
        model = kind(own, {key: values[key] for key in weights}, moved)
        return model, model.forward(**(given | ({"pixels": values["pixels"]} if "pixels" in given else {})))

    values = {**weights, **{f"{key}/{part}": x for (key, part), x in learned.items()}, "pixels": pixels}
    model, (loss, cache) = run(**values)
    grads = model.backward(cache, weights=True, inputs=True)
    gradients = dict(grads.weights) | {f"{key}/{part}": getattr(grads[key], part) for key, part in learned}
    if "pixels" in given:
        gradients["pixels"] = getattr(grads.inputs, "pixels", grads.inputs)
    point = Point(name, lambda **at: run(**at)[1][0], values, gradients, (loss, cache.logits))
    return point, max(_pullback(model, key, grads) for key in adapters)


def _pullback(model: models.Model, name: str, grads: models.Gradients) -> float:
    """∂L/∂W of one adapted layer, pulled back through Eq. 4 by the specification, beside the adapter's gradients."""
    module, layer = model.modules[name], cast(RandLoRA, model.adapters[name])
    G = (grads.weights or {})[module.tensors["weight"][0]]
    bases, options = layer.bases, (layer.scaling, layer.dialect.pairing)
    pulled = spec.pullback(G.T if module.transposed else G, bases.A, bases.B, layer.lambda_, layer.gamma, *options)
    own, right = (list(map(arrays.to_numpy, pair)) for pair in ((grads[name].lambda_, grads[name].gamma), pulled))
    return max(_relative(*pair, float(np.max(np.abs(right[0])))) for pair in zip(own, right, strict=True))
