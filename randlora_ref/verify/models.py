"""GPT-2, Llama, ViT and CLIP of any configuration as points beside their stacks, and what must hold of whole models."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from .. import models, spec
from ..adapters import Adapter, RandLoRA
from . import points, stacks
from .block import as_update, learned, pulled_back, with_values
from .configurations import Backend, Chosen, Model
from .functions import beside
from .points import ALIKE, Point, Property, Results, alike, apart

Array = Any
KINDS: dict[str, Any] = {"GPT-2": models.GPT2, "Llama": models.Llama, "ViT": models.ViT, "CLIP": models.CLIP}
CAUSAL = ("GPT-2", "Llama")


def forward(model: Model, values: Results, constant: bool = False) -> tuple[Any, Array, Any]:
    """The model of ``values``, its loss and its cache; ``constant``: the padding token's row is one to the lookup.

    (That row gets no gradient from there, so it is what the complex step must not move.)
    """
    keys, table = model.case.keys, values[next(iter(model.weights))]
    given = {name: beside(table, x) for name, x in model.given.items()} | {name: values[name] for name in model.floats}
    if constant and keys.get("pad_token_id") is not None and "embeddings" not in given:
        ids, rows = given["ids"].astype(np.int64), table[given["ids"]]
        given["embeddings"] = np.where((ids == keys["pad_token_id"] % keys["vocab_size"])[:, :, None], rows.real, rows)
    if model.case.name in CAUSAL:
        given["ids"] = given.pop("embeddings", given["ids"])
    weights, adapters = {name: values[name] for name in model.weights}, with_values(model.adapters, values)
    made = KINDS[model.case.name](dict(keys), weights, adapters)
    return made, *made.forward(**given)


def results(model: Model, values: Results, whole: bool = True) -> Results:
    """Loss, logits and gradients by the code; without those of weights and inputs unless ``whole``."""
    made, y, cache = forward(model, values)
    grads = made.backward(cache, weights=whole, inputs=whole)
    found = {"y": y, "logits": cache.logits, **learned(model.adapters, grads)}
    for name, own in grads.items():  # a bias is among the weights, but not only there
        found |= {} if own.bias is None else {model.modules[name][0].replace(".weight", ".bias"): own.bias}
    found |= {name: getattr(grads.inputs, name, grads.inputs) for name in model.floats if grads.inputs is not None}
    return found | (grads.weights or {})


def update(adapter: Adapter) -> Array:
    """ΔW (out, in) on the host, RandLoRA's by the specification."""
    own = as_update(adapter) if isinstance(adapter, RandLoRA) else None
    return spec.delta_weight(*own[:4], adapter.shape, own.scaling, own.pairing) if own else adapter.delta_weight()


def point(model: Model) -> Point:
    """A model by ``models`` and by its stack: the loss y and the logits. The gradients are the code's alone."""

    def code(values: Results, dy: Array | None) -> Results:
        return results(model, values) if dy is not None else {"y": forward(model, values, constant=True)[1]}

    def specification(values: Results, dy: Array | None) -> Results:
        updates = {name: update(one) for name, one in with_values(model.adapters, values).items()}
        read = stacks.Tensors(lambda name, *shape: values[name], updates, {})
        given = {name: x.astype(np.int64) for name, x in model.given.items()}
        return stacks.STACKS[model.case.name](read, model.case.keys, given | values)

    values = model.weights | learned(model.adapters) | model.floats
    # of one pair of CLIP's, or of vectors of one number, only rounding is left of ∂L/∂Z
    size = float(np.exp(values["logit_scale"])) / model.case.batch if "logit_scale" in values else 0.0
    return Point(values, np.ones(()), code, specification, size)


def tied(model: Model, module: str = "lm_head") -> bool:
    """Whether the weight of ``module`` is the token embedding too."""
    return module == "lm_head" and bool(model.case.keys.get("tie_word_embeddings"))


# -- what must hold of a whole model -----------------------------------------------------------------------


def pullback(model: Model, backend: Backend) -> float:
    """∂L/∂W of every adapted layer, pulled back through its ΔW: the gradients of what it has learned."""
    found, right = point(model).results(backend), Results()
    for name, one in model.adapters.items():
        saved, _, turned = model.modules[name]
        own = pulled_back(one, found[saved].T if turned else found[saved])
        right |= {} if tied(model, name) else {f"{name}.{part}": x for part, x in own.items()}
    largest = max(float(np.max(np.abs(x))) for name, x in found.items() if name not in ("y", "logits"))
    return apart(found, right, right, 1e-3 * largest)


def tied_head(model: Model, backend: Backend) -> float:
    """The gradient of a table that is the head too is the lookup's and the head's, each as in an untied model."""
    if not tied(model):
        return 0.0
    table, keys = next(iter(model.weights)), {**model.case.keys, "tie_word_embeddings": False}
    weights = model.weights | {"lm_head.weight": model.weights[table]}
    right = point(model._replace(case=replace(model.case, keys=keys), weights=weights)).results(backend)
    right[table] = right[table] + right.pop("lm_head.weight")
    return apart(point(model).results(backend), right, right)


def some(model: Model, rows: slice) -> Model:
    """The same model, given some sequences alone, or all in another order."""
    given, floats = ({name: x[rows] for name, x in own.items()} for own in (model.given, model.floats))
    return model._replace(given=given, floats=floats)


def each_alone(model: Model, backend: Backend) -> float:
    """Each sequence alone has the same logits, and its loss and gradients add up, by its share of what counts."""
    if model.case.name == "CLIP":  # its loss is of pairs
        return 0.0
    labels = model.given["labels"] if model.case.name == "ViT" else model.given["labels"][:, 1:]
    labels = labels.reshape(model.case.batch, -1).astype(np.int64)  # NumPy 2.0.0 falls over narrow types beside −100
    counts = np.sum(labels != -100, axis=1)
    alone = [point(some(model, slice(b, b + 1))).results(backend) for b in range(model.case.batch)]
    pieces = {name: [own[name] for own in alone] for name in alone[0]}
    for name in pieces.keys() - {"logits"}:
        pieces[name] = [x * (count / max(1, np.sum(counts))) for x, count in zip(pieces[name], counts, strict=True)]
    right = {name: np.concatenate(x) if name in ("logits", *model.floats) else sum(x) for name, x in pieces.items()}
    return alike(point(model), backend, right)


def order(model: Model, backend: Backend) -> float:
    """The batch from its last to its first: loss and gradients are the same."""
    right = point(model).results(backend)
    right |= {name: right[name][::-1] for name in ("logits", *model.floats)}
    if model.case.name == "CLIP":
        right["logits"] = right["logits"][:, ::-1]
    return alike(point(some(model, slice(None, None, -1))), backend, right)


def changed(model: Model, backend: Backend, tokens: Array) -> Iterator[Results]:
    """Results with the embeddings given, then with others at ``tokens`` (b or 1, T)."""
    x = model.floats.get("embeddings", next(iter(model.weights.values()))[model.given["ids"]])
    for one in (x, np.where(tokens[:, :, None], 7.0 - x, x)):
        yield point(model._replace(floats=model.floats | {"embeddings": one})).results(backend)


def padding(model: Model, backend: Backend) -> float:
    """Other content at padded tokens that no loss reads: every other entry is the same, bit for bit."""
    case, given = model.case, dict(model.given)
    if "attention_mask" not in given:
        return 0.0
    hidden = given["attention_mask"] == 0
    if case.name == "CLIP":
        hidden[np.arange(case.batch), stacks.end_of_text(given["ids"].astype(np.int64), case.keys)] = False
    else:
        given["labels"] = np.where(np.roll(hidden, 1, axis=1), np.int64(-100), given["labels"])
    found, right = changed(model._replace(given=given), backend, hidden)
    if case.name in CAUSAL:
        found["logits"], right["logits"] = (np.where(hidden[:, :, None], 0, own["logits"]) for own in (found, right))
    return float(sum(np.sum(~(x == right[name])) for name, x in found.items()))


def causality(model: Model, backend: Backend) -> float:
    """No logits see a later token: the same bits whatever comes."""
    if model.case.name not in CAUSAL:
        return 0.0
    later = np.arange(model.case.size)[None, :] >= model.case.size // 2
    found, right = (own["logits"][:, ~later[0]] for own in changed(model, backend, later))
    return float(np.sum(~(found == right)))


def merged(model: Model, backend: Backend) -> float:
    """W0 + ΔW in place of an adapter: the same loss and logits, and the same gradients of all weights."""
    weights, kept = dict(model.weights), {name: one for name, one in model.adapters.items() if tied(model, name)}
    for name in model.adapters.keys() - kept:
        saved, _, turned = model.modules[name]
        whole = model.adapters[name].merge(weights[saved].T if turned else weights[saved])
        weights[saved] = whole.T if turned else whole
    right = point(model._replace(weights=weights, adapters=kept)).results(backend)
    return alike(point(model), backend, right)


def one_more(model: Model, backend: Backend) -> float:
    """An adapter at its start with ΔW = 0 in every linear module that has none: nothing else changes."""
    start = Chosen("randlora", 2, True, model.case.seed, {"dialect": "paper"})
    more = {name: start.adapter(shape) for name, (_, shape, _) in model.modules.items()}
    right = point(model).results(backend)
    return apart(point(model._replace(adapters=more | model.adapters)).results(backend), right, right)


def asked_for(model: Model, backend: Backend) -> float:
    """Where those of weights and inputs are not asked for, gradients of adapters and biases are the same, and alone."""
    place = point(model)
    found = place._replace(run=lambda values, dy: results(model, values, whole=False)).results(backend)
    others = found.keys() & {next(iter(model.weights)), *model.floats}
    return float("inf") if others else apart(found, place.results(backend), found)


PROPERTIES = tuple(one for one in points.PROPERTIES if one.figure not in (points.gradients, points.cotangent))
OF_MODELS = (
    Property("∂L/∂W pulled back through ΔW", pullback, 1e-11, "over max(max|b|, largest/10³)"),
    Property("a tied head's gradient is a sum", tied_head, 1e-12, ALIKE),
    Property("each sequence alone, gradients add up", each_alone, 1e-12, ALIKE),
    Property("order of the batch", order, 1e-12, ALIKE),
    Property("content of padding: entries that differ", padding, 0, "bits"),
    Property("causality: entries that differ", causality, 0, "bits"),
    Property("merged weights", merged, 1e-12, ALIKE),
    Property("one more adapter at its start", one_more, 1e-12, ALIKE),
    Property("adapters' gradients alone", asked_for, 1e-12, ALIKE),
)
