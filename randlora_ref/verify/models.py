"""GPT-2, Llama, ViT and CLIP of any configuration as points beside their stacks, and what must hold of whole models."""

from dataclasses import replace
from typing import Any

import numpy as np

from .. import models, spec
from ..adapters import Adapter, RandLoRA
from . import points, stacks
from .block import of_adapters, with_values
from .configurations import Backend, Network
from .layers import as_update, pulled_back
from .points import ALIKE, LIMIT, Point, Property, Results, apart

Array = Any
KINDS: dict[str, Any] = {"GPT-2": models.GPT2, "Llama": models.Llama, "ViT": models.ViT, "CLIP": models.CLIP}


def forward(model: Network, values: Results, constant: bool = False) -> tuple[Any, Array, Any]:
    """The model of ``values``, its loss and its cache; ``constant``: the padding token's row is one to the lookup.

    (That row gets no gradient from there, so it is what the complex step must not move.)
    """
    keys, table = model.case.keys, values[next(iter(model.weights))]
    given = {name: Backend.of(table).array(x) for name, x in model.given.items()}
    given |= {name: values[name] for name in model.floats}
    if constant and keys.get("pad_token_id") is not None and "embeddings" not in given:
        ids, rows = given["ids"].astype(np.int64), table[given["ids"]]
        given["embeddings"] = np.where((ids == keys["pad_token_id"] % keys["vocab_size"])[:, :, None], rows.real, rows)
    if model.case.causal:
        given["ids"] = given.pop("embeddings", given["ids"])
    weights, adapters = {name: values[name] for name in model.weights}, with_values(model.adapters, values)
    made = KINDS[model.case.name](dict(keys), weights, adapters)
    return made, *made.forward(**given)


def results(model: Network, values: Results, whole: bool = True) -> Results:
    """Loss, logits and gradients by the code; without those of weights and inputs unless ``whole``."""
    made, y, cache = forward(model, values)
    grads = made.backward(cache, weights=whole, inputs=whole)
    found = {"y": y, "logits": cache.logits, **of_adapters(model.adapters, grads)}
    for name, own in grads.items():  # a bias is among the weights, but not only there
        found |= {} if own.bias is None else {model.modules[name][0].replace(".weight", ".bias"): own.bias}
    found |= {name: getattr(grads.inputs, name, grads.inputs) for name in model.floats if grads.inputs is not None}
    return found | (grads.weights or {})


def update(adapter: Adapter) -> Array:
    """ΔW (out, in) on the host, RandLoRA's by the specification."""
    if not isinstance(adapter, RandLoRA):
        return adapter.delta_weight()
    own = as_update(adapter)
    return spec.delta_weight(*own[:4], adapter.shape, own.scaling, own.pairing, own.orientation)


def point(model: Network) -> Point:
    """A model by ``models`` and by its stack: the loss y and the logits. The gradients are the code's alone."""

    def code(values: Results, dy: Array | None) -> Results:
        return results(model, values) if dy is not None else {"y": forward(model, values, constant=True)[1]}

    def specification(values: Results, dy: Array) -> Results:
        updates = {name: update(one) for name, one in with_values(model.adapters, values).items()}
        read = stacks.Tensors(lambda name, *shape: values[name], updates, {})
        given = {name: x.astype(np.int64) for name, x in model.given.items()}
        return stacks.STACKS[model.case.name](read, model.case.keys, given | values)

    values = model.weights | of_adapters(model.adapters, model.adapters) | model.floats
    # of one pair of CLIP's, or of vectors of one number, only rounding is left of ∂L/∂Z
    size = float(np.exp(values["logit_scale"])) / model.case.batch if "logit_scale" in values else 0.0
    return Point(values, model.dy, code, specification, size)


def embeddings(model: Network) -> Array:
    """Those of the tokens (b, T, k): the table is the first tensor that is read."""
    return next(iter(model.weights.values()))[model.given["ids"]]


def tied(model: Network, module: str = "lm_head") -> bool:
    """Whether the weight of ``module`` is the token embedding too."""
    return module == "lm_head" and bool(model.case.keys.get("tie_word_embeddings"))


# -- what must hold of a whole model -----------------------------------------------------------------------


def pullback(model: Network, backend: Backend) -> float:
    """∂L/∂W of every adapted layer, pulled back through its ΔW: the gradients of what it has learned."""
    found, right = point(model).results(backend), Results()
    for name, one in model.adapters.items():
        saved, _, turned = model.modules[name]
        own = pulled_back(one, found[saved].T if turned else found[saved])
        right |= {} if tied(model, name) else {f"{name}.{part}": x for part, x in own.items()}
    largest = max(float(np.max(np.abs(x))) for name, x in found.items() if name not in ("y", "logits"))
    return apart(found, right, right, 1e-3 * largest)


def tied_head(model: Network, backend: Backend) -> float:
    """The gradient of a table that is the head too is the lookup's and the head's, each as in an untied model."""
    if not tied(model):
        return 0.0
    table, keys = next(iter(model.weights)), {**model.case.keys, "tie_word_embeddings": False}
    weights = model.weights | {"lm_head.weight": model.weights[table]}
    right = point(model._replace(case=replace(model.case, keys=keys), weights=weights)).results(backend)
    right[table] = right[table] + right.pop("lm_head.weight")
    return apart(point(model).results(backend), right, right)


def asked_for(model: Network, backend: Backend) -> float:
    """Where those of weights and inputs are not asked for, gradients of adapters and biases are the same, and alone."""
    place = point(model)
    found = place._replace(run=lambda values, dy: results(model, values, whole=False)).results(backend)
    others = found.keys() & {next(iter(model.weights)), *model.floats}
    return float("inf") if others else apart(found, place.results(backend), found)


PROPERTIES = tuple(one for one in points.PROPERTIES if one not in (points.GRADIENTS, points.COTANGENT))
OF_MODELS = (
    Property("∂L/∂W pulled back through ΔW", pullback, 1e-11, "over max(max|b|, largest/10³)"),
    Property("a tied head's gradient is a sum", tied_head, LIMIT, ALIKE),
    Property("adapters' gradients alone", asked_for, LIMIT, ALIKE),
)
