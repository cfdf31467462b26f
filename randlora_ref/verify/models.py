"""GPT-2, Llama, ViT and CLIP of any configuration as points beside their stacks, and what must hold of whole models."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .. import models
from . import points, stacks
from .configurations import ROPE, SEEDS, Backend, Choose, Chosen, draw_adapter, draw_mask, entries
from .layers import pulled_back, update
from .networks import INPUTS, INVARIANCES, Network, learned
from .points import ALIKE, LIMIT, Property, Results, apart

Array = Any
KINDS: dict[str, Any] = {"GPT-2": models.GPT2, "Llama": models.Llama, "ViT": models.ViT, "CLIP": models.CLIP}


@dataclass(frozen=True)
class ModelCase:
    """A model of any configuration, ``keys`` of a config.json: ``adapters`` by module name, any subset of the linear.

    ``labels``: whether all, some or none of them count; ``dtypes``: of ids and labels; ``embedded``: embeddings are
    given in place of tokens.
    """

    name: str
    keys: Mapping[str, Any]
    batch: int
    size: int
    mask: tuple[tuple[int, ...], ...] | None
    labels: str
    dtypes: tuple[str, str]
    embedded: bool
    seed: int
    adapters: Mapping[str, Chosen] = field(default_factory=dict)

    @property
    def causal(self) -> bool:
        """Whether no logits see a later token."""
        return self.name in ("GPT-2", "Llama")

    def build(self) -> "Model":
        """The model, its arrays drawn as its stack asks for them."""
        rng, keys, tokens = np.random.default_rng(self.seed), self.keys, (self.batch, self.size)
        text, vision = keys.get("text_config", keys), keys.get("vision_config", keys)
        weights, given, inputs = Results(), Results(), Results()
        modules: dict[str, stacks.Layer] = {}
        longest = [int(np.iinfo(dtype).max) + 1 for dtype in self.dtypes]

        def tensor(name: str, *shape: int) -> Array:
            return weights.setdefault(name, entries(rng, name, *shape))

        if self.name != "ViT":
            given["ids"] = rng.integers(0, min(text["vocab_size"], longest[0]), tokens, self.dtypes[0])
            given |= {} if self.mask is None else {"attention_mask": np.array(self.mask)}
        special = text.get("eos_token_id", (text.get("pad_token_id") or 0) % text.get("vocab_size", 1))
        if self.name in ("Llama", "CLIP") and special < longest[0]:
            given["ids"][rng.random(tokens) < 0.3] = special
        if self.name != "CLIP":
            size, shape = (keys["num_labels"], tokens[:1]) if self.name == "ViT" else (keys["vocab_size"], tokens)
            given["labels"] = rng.integers(0, min(size, longest[1]), shape, self.dtypes[1])
            if self.labels != "all":
                given["labels"][rng.random(shape) < {"some": 0.5, "none": 1}[self.labels]] = -100
        if (side := vision.get("image_size")) is not None:
            inputs["pixels"] = rng.standard_normal((self.batch, vision["num_channels"], side, side))
        stacks.STACKS[self.name](stacks.Tensors(tensor, {}, modules), keys, given | inputs)
        if self.embedded and self.name != "ViT":  # as wide as the table that is read first
            inputs["embeddings"] = rng.standard_normal((*tokens, next(iter(weights.values())).shape[1]))
        # of one pair of CLIP's, or of vectors of one number, only rounding is left of ∂L/∂Z
        least = float(np.exp(weights["logit_scale"])) / self.batch if "logit_scale" in weights else 0.0
        bare = Model(weights | inputs, np.ones(()), self, modules, given, {}, size=least)
        return bare.adapted({name: one.adapter(modules[name][1]) for name, one in self.adapters.items()})


# What the config.json of a tiny model may hold: every key that changes what it computes; where several stand, together.
EPS, ACT, SIZES, FLAG = (1e-5, 1e-12, 0.5), tuple(stacks.ACTIVATIONS), ((6, 2), (4, 1), (3, 3), (12, 4)), (False, True)
TOWER: dict[str, Any] = {"num_hidden_layers": (1, 2), "hidden_size num_attention_heads": SIZES, "layer_norm_eps": EPS}
TOWER |= {"intermediate_size": (5, 7, 16), "hidden_act": ACT}
IMAGES = TOWER | {"image_size patch_size": ((4, 2), (2, 1), (3, 3), (6, 2)), "num_channels": (3, 1, 2)}
TEXTS = TOWER | {"vocab_size eos_token_id": ((9, 4), (9, 2), (300, 299), (5, 2)), "max_position_embeddings": (5, 8)}
GPT2: dict[str, Any] = {"n_layer": (1, 2), "n_embd n_head": SIZES, "n_inner": (None, 5, 16), "layer_norm_epsilon": EPS}
GPT2 |= {"activation_function": ACT, "vocab_size": (9, 300, 5), "n_positions": (5, 8), "tie_word_embeddings": FLAG}
HEADS = ((8, 2, None, None), (8, 2, 1, None), (4, 1, 1, 2), (5, 4, 2, 2), (7, 6, 3, 4), (12, 6, 2, None))
LLAMA: dict[str, Any] = {"hidden_size num_attention_heads num_key_value_heads head_dim": HEADS, "mlp_bias": FLAG}
LLAMA |= {"num_hidden_layers": (1, 2), "intermediate_size": (5, 7, 16), "rms_norm_eps": EPS, "hidden_act": ACT}
LLAMA |= {"vocab_size": (9, 300, 5), "max_position_embeddings": (5, 8), "rope_theta": (1e4, 7.5), "rope_scaling": ROPE}
LLAMA |= {"attention_bias": FLAG, "tie_word_embeddings": FLAG, "pad_token_id": (None, 3, -2)}
VIT = IMAGES | {"num_labels": (3, 2, 5), "qkv_bias": (True, False)}
CLIP = {"text_config": TEXTS, "vision_config": IMAGES, "projection_dim": (5, 3, 1)}
KEYS = {"GPT-2": GPT2, "Llama": LLAMA, "ViT": VIT, "CLIP": CLIP}


def draw_keys(options: Mapping[str, Any], choose: Choose) -> dict[str, Any]:
    """One of each of the ``options``."""
    found: dict[str, Any] = {}
    for names, values in options.items():
        chosen = draw_keys(values, choose) if isinstance(values, Mapping) else choose(values)
        found |= dict(zip(names.split(), chosen if " " in names else (chosen,), strict=True))
    return found


def draw_model(name: str, choose: Choose) -> ModelCase:
    """GPT-2, Llama, ViT or CLIP of any configuration, and any inputs."""
    batch, size, labels = choose((2, 3, 1)), choose((3, 2, 4, 5, 1)), choose(("all", "some", "some", "all", "none"))
    ids, types = ("int64", "int8", "int32", "uint8", "uint32"), ("int64", "int8", "int32", "uint16")
    dtypes = choose(ids), choose(types if labels == "all" else types[:3])  # −100 has a sign
    keys, mask = draw_keys(KEYS[name], choose), draw_mask(choose, batch, size)
    case = ModelCase(name, keys, batch, size, mask, labels, dtypes, choose((False, False, True)), choose(SEEDS))
    modules = tuple(case.build().modules)
    count = choose((2, 0, 1, 4, len(modules)))
    chosen = modules if count == len(modules) else [choose(modules) for _ in range(count)]
    return replace(case, adapters={module: draw_adapter(choose) for module in chosen})


@dataclass(frozen=True, eq=False)
class Model(Network):
    """A model by ``models`` and by its stack: the loss y and the logits. The gradients are the code's alone."""

    case: ModelCase
    whole: bool = True  # whether gradients of weights and inputs are asked for

    def forward(self, values: Results, constant: bool = False) -> tuple[Any, Array, Any]:
        """The model of ``values``, its loss and its cache; ``constant``: the padding token's row is one to the lookup.

        (That row gets no gradient from there, so it is what the complex step must not move.)
        """
        keys, table = self.case.keys, values[self.table]
        given = {name: Backend.of(table).array(x) for name, x in self.given.items()}
        given |= {name: values[name] for name in INPUTS if name in values}
        if constant and keys.get("pad_token_id") is not None and "embeddings" not in given:
            pads, rows = given["ids"].astype(np.int64) == keys["pad_token_id"] % keys["vocab_size"], table[given["ids"]]
            given["embeddings"] = np.where(pads[:, :, None], rows.real, rows)
        if self.case.causal:
            given["ids"] = given.pop("embeddings", given["ids"])
        others = {*INPUTS, *learned(self.adapters, self.adapters)}
        weights = {name: x for name, x in values.items() if name not in others}
        made = KINDS[self.case.name](dict(keys), weights, self.with_values(values))
        return made, *made.forward(**given)

    def run(self, values: Results, dy: Array | None = None) -> Results:
        """Loss, logits and gradients by ``models``; of dy it has one, that of the loss."""
        if dy is None:
            return {"y": self.forward(values, constant=True)[1]}
        made, y, cache = self.forward(values)
        grads = made.backward(cache, weights=self.whole, inputs=self.whole)
        found = {"y": y, "logits": cache.logits, **learned(self.adapters, grads)}
        for name, own in grads.items():  # a bias is among the weights, but not only there
            found |= {} if own.bias is None else {self.modules[name][0].replace(".weight", ".bias"): own.bias}
        if self.whole:
            found |= {name: getattr(grads.inputs, name, grads.inputs) for name in INPUTS if name in values}
        return found | (grads.weights or {})

    def expected(self, values: Results, dy: Array) -> Results:
        """Loss and logits by the stack."""
        updates = {name: update(one) for name, one in self.with_values(values).items()}
        read = stacks.Tensors(lambda name, *shape: values[name], updates, {})
        given = {name: x.astype(np.int64) for name, x in self.given.items()}
        return stacks.STACKS[self.case.name](read, self.case.keys, given | values)


def pullback(model: Model, backend: Backend) -> float:
    """∂L/∂W of every adapted layer, pulled back through its ΔW: the gradients of what it has learned."""
    found, right = model.results(backend), Results()
    for name, one in model.adapters.items():
        saved, _, turned = model.modules[name]
        own = pulled_back(one, found[saved].T if turned else found[saved])
        right |= {} if model.tied(name) else {f"{name}.{part}": x for part, x in own.items()}
    largest = max(float(np.max(np.abs(x))) for name, x in found.items() if name not in ("y", "logits"))
    return apart(found, right, right, 1e-3 * largest)


def tied_head(model: Model, backend: Backend) -> float:
    """The gradient of a table that is the head too is the lookup's and the head's, each as in an untied model."""
    if not model.tied():
        return 0.0
    table, keys = model.table, {**model.case.keys, "tie_word_embeddings": False}
    values = model.values | {"lm_head.weight": model.values[table]}
    right = replace(model, case=replace(model.case, keys=keys), values=values).results(backend)
    right[table] = right[table] + right.pop("lm_head.weight")
    return apart(model.results(backend), right, right)


def asked_for(model: Model, backend: Backend) -> float:
    """Where those of weights and inputs are not asked for, gradients of adapters and biases are the same, and alone."""
    found = replace(model, whole=False).results(backend)
    others = found.keys() & {model.table, *model.inputs}
    return float("inf") if others else apart(found, model.results(backend), found)


POINTS = tuple(one for one in points.PROPERTIES if one not in (points.GRADIENTS, points.COTANGENT))
OF_MODELS = (
    Property("∂L/∂W pulled back through ΔW", pullback, 1e-11, "over max(max|b|, largest/10³)"),
    Property("a tied head's gradient is a sum", tied_head, LIMIT, ALIKE),
    Property("adapters' gradients alone", asked_for, LIMIT, ALIKE),
)
PROPERTIES = (*POINTS, points.DRAWN_STEP, *INVARIANCES, *OF_MODELS)
