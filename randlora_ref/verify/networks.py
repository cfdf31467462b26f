"""What a block and a whole model have in common as points, and what changes nothing in either.

That is how rows are batched, what is hidden, what is merged.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from ..adapters import Adapter, RandLoRA
from . import stacks
from .configurations import Backend, Chosen
from .layers import with_learned
from .points import ALIKE, LIMIT, Point, Property, Results, alike, apart, differ

Array = Any
INPUTS = ("x", "pixels", "embeddings")  # what is differentiated beside weights and what adapters have learned


def learned(adapters: Mapping[str, Adapter], of: Mapping[str, Any]) -> Results:
    """What ``of`` has, by name, under the names of the learned arrays: by "name.array"."""
    return {f"{name}.{part}": getattr(of[name], part) for name, one in adapters.items() for part in one.LEARNED}


@dataclass(frozen=True, eq=False)
class Network(Point):
    """A block or a model of ``case``, its arrays on the host.

    ``values``: weights by saved name, what ``adapters`` have learned by "module.array", and ``INPUTS``. Linear
    ``modules`` and ``adapters`` by name; ``given``: ids, labels and attention_mask, of types of their own.
    """

    OUTPUT: ClassVar[str] = "logits"  # the output that has rows

    case: Any
    modules: Mapping[str, stacks.Layer]
    given: Results
    adapters: Mapping[str, Adapter]

    def adapted(self, adapters: Mapping[str, Adapter]) -> Self:
        """The same network with these adapters in place of its own."""
        gone = learned(self.adapters, self.adapters)
        values = {name: x for name, x in self.values.items() if name not in gone}
        return replace(self, values=values | learned(adapters, adapters), adapters=adapters)

    def with_values(self, values: Results) -> dict[str, Adapter]:
        """The adapters with the learned arrays of ``values``, in their library and precision."""
        return {name: with_learned(one, values, f"{name}.") for name, one in self.adapters.items()}

    @property
    def inputs(self) -> Results:
        """What of ``INPUTS`` there is."""
        return {name: self.values[name] for name in INPUTS if name in self.values}

    @property
    def table(self) -> str:
        """The name of a model's embeddings of tokens: the first tensor that is read."""
        return next(iter(self.values))

    def tied(self, module: str = "lm_head") -> bool:
        """Whether the weight of ``module`` is the token embedding too."""
        return module == "lm_head" and bool(self.case.keys.get("tie_word_embeddings"))


def some(network: Network, rows: slice) -> Network:
    """The same network, given some sequences alone, or all in another order."""
    given, inputs = ({name: x[rows] for name, x in own.items()} for own in (network.given, network.inputs))
    dy = network.dy[rows] if network.dy.ndim else network.dy
    return replace(network, values=network.values | inputs, given=given, dy=dy)


def shares(network: Network) -> Array:
    """By what each sequence alone counts in all (batch,): its share of the labels that do; one without labels."""
    if (labels := network.given.get("labels")) is None:
        return np.ones(network.case.batch)
    labels = labels[:, None] if labels.ndim == 1 else labels[:, 1:]
    counts = np.sum(labels.astype(np.int64) != -100, axis=1)  # NumPy 2.0.0 falls over narrow types beside −100
    return counts / max(1, np.sum(counts))


def each_alone(network: Network, backend: Backend) -> float:
    """Each sequence alone has the same output, and its loss and gradients add up, by its share of what counts."""
    if "logit_scale" in network.values:  # CLIP's loss is of pairs
        return 0.0
    right, rows = dict[str, Any](), (network.OUTPUT, *network.inputs)
    for b, share in enumerate(shares(network)):
        for name, x in some(network, slice(b, b + 1)).results(backend).items():
            right.setdefault(name, []).append(x if name == network.OUTPUT else share * x)
    right = {name: np.concatenate(x) if name in rows else sum(x) for name, x in right.items()}
    return alike(network, backend, right)


def order(network: Network, backend: Backend) -> float:
    """The batch from its last to its first: loss and gradients are the same."""
    right = network.results(backend)
    right |= {name: right[name][::-1] for name in (network.OUTPUT, *network.inputs)}
    if "logit_scale" in right:  # of all pairs
        right["logits"] = right["logits"][:, ::-1]
    return alike(some(network, slice(None, None, -1)), backend, right)


def changed(network: Network, backend: Backend, tokens: Array) -> Iterator[Results]:
    """Results with the block's x or the model's embeddings given, then with others at ``tokens`` (b or 1, T)."""
    name = "x" if "x" in network.values else "embeddings"
    x = network.values[name] if name in network.values else network.values[network.table][network.given["ids"]]
    for one in (x, np.where(tokens[:, :, None], 7.0 - x, x)):
        yield network.results(backend, values=network.values | {name: one})


def padding(network: Network, backend: Backend) -> float:
    """Other content at padded tokens that no loss reads: every other entry is the same, bit for bit."""
    case, given, dy = network.case, dict(network.given), network.dy
    if "attention_mask" not in given:
        return 0.0
    hidden, pooled = given["attention_mask"] == 0, "pixels" in network.values
    if pooled:
        hidden[np.arange(case.batch), stacks.end_of_text(given["ids"].astype(np.int64), case.keys)] = False
    elif "labels" in given:
        given["labels"] = np.where(np.roll(hidden, 1, axis=1), np.int64(-100), given["labels"])
    else:
        dy = np.where(hidden[:, :, None], 0.0, dy)
    for own in (pair := list(changed(replace(network, given=given, dy=dy), backend, hidden))):
        own[network.OUTPUT] = own[network.OUTPUT] * (True if pooled else ~hidden[:, :, None])
    return differ(*pair)


def causality(network: Network, backend: Backend) -> float:
    """Where it is causal, no output sees a later token: the same bits whatever comes."""
    if not network.case.causal:
        return 0.0
    later = np.arange(network.case.size)[None, :] >= network.case.size // 2
    found, right = ({"": own[network.OUTPUT][:, ~later[0]]} for own in changed(network, backend, later))
    return differ(found, right)


def merges_transposed(adapter: Adapter) -> bool:
    """Whether the dialect's own merge is W0 + ΔWᵀ, as vision's of a square layer, whose forward has ΔW."""
    if not isinstance(adapter, RandLoRA) or adapter.dialect.orientation != "square_transposed":
        return False
    return adapter.shape[0] == adapter.shape[1]


def merged(network: Network, backend: Backend) -> float:
    """W0 + ΔW in place of an adapter: the same outputs, and the same gradients of all inputs and weights."""
    weights, rest = Results(), dict(network.adapters)
    for name in [name for name in rest if not network.tied(name)]:
        (saved, _, turned), one = network.modules[name], rest.pop(name)
        W = network.values[saved]
        # a weight that is saved as (in, out) is turned for the merge, and turned back what is merged transposed
        weights[saved] = one.merge(W.T).T if turned != merges_transposed(one) else one.merge(W)
    alone = network.adapted(rest)
    return alike(network, backend, alone.results(backend, values=alone.values | weights))


def one_more(network: Network, backend: Backend) -> float:
    """An adapter at its start with ΔW = 0 in every linear module that has none: nothing else changes."""
    start = Chosen("randlora", 2, True, network.case.seed, {"dialect": "paper"})
    more = {name: start.adapter(shape) for name, (_, shape, _) in network.modules.items()}
    right = network.results(backend)
    return apart(network.adapted({**more, **network.adapters}).results(backend), right, right)


INVARIANCES = (
    Property("each sequence alone, gradients add up", each_alone, LIMIT, ALIKE),
    Property("order of the batch", order, LIMIT, ALIKE),
    Property("content of padding: entries that differ", padding, 0, "bits"),
    Property("causality: entries that differ", causality, 0, "bits"),
    Property("merged weights", merged, LIMIT, ALIKE),
    Property("one more adapter at its start", one_more, LIMIT, ALIKE),
)
