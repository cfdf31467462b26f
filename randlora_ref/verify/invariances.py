"""What changes nothing in a network, a block or a whole model: how rows are batched, what is hidden, what is merged."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..adapters import Adapter, RandLoRA
from . import block, models, stacks
from .configurations import Backend, BlockCase, Chosen, Network
from .points import ALIKE, LIMIT, Point, Property, Results, alike, apart, differ

Array = Any


def point(network: Network) -> Point:
    """A block or a model as a point."""
    return block.point(network) if isinstance(network.case, BlockCase) else models.point(network)


def output(network: Network) -> str:
    """The name of the output that has rows."""
    return "y" if isinstance(network.case, BlockCase) else "logits"


def some(network: Network, rows: slice) -> Network:
    """The same network, given some sequences alone, or all in another order."""
    given, floats = ({name: x[rows] for name, x in own.items()} for own in (network.given, network.floats))
    return network._replace(given=given, floats=floats, dy=network.dy[rows] if network.dy.ndim else network.dy)


def shares(network: Network) -> Array:
    """By what each sequence alone counts in all (batch,): its share of the labels that do; one without labels."""
    if (labels := network.given.get("labels")) is None:
        return np.ones(network.case.batch)
    labels = labels[:, None] if labels.ndim == 1 else labels[:, 1:]
    counts = np.sum(labels.astype(np.int64) != -100, axis=1)  # NumPy 2.0.0 falls over narrow types beside −100
    return counts / max(1, np.sum(counts))


def each_alone(network: Network, backend: Backend) -> float:
    """Each sequence alone has the same output, and its loss and gradients add up, by its share of what counts."""
    if not isinstance(network.case, BlockCase) and network.case.name == "CLIP":  # its loss is of pairs
        return 0.0
    right, rows = dict[str, Any](), (output(network), *network.floats)
    for b, share in enumerate(shares(network)):
        for name, x in point(some(network, slice(b, b + 1))).results(backend).items():
            right.setdefault(name, []).append(x if name == output(network) else share * x)
    right = {name: np.concatenate(x) if name in rows else sum(x) for name, x in right.items()}
    return alike(point(network), backend, right)


def order(network: Network, backend: Backend) -> float:
    """The batch from its last to its first: loss and gradients are the same."""
    right = point(network).results(backend)
    right |= {name: right[name][::-1] for name in (output(network), *network.floats)}
    if "logit_scale" in right:  # of all pairs
        right["logits"] = right["logits"][:, ::-1]
    return alike(point(some(network, slice(None, None, -1))), backend, right)


def changed(network: Network, backend: Backend, tokens: Array) -> Iterator[Results]:
    """Results with the block's x or the model's embeddings given, then with others at ``tokens`` (b or 1, T)."""
    name = "x" if "x" in network.floats else "embeddings"
    x = network.floats[name] if name in network.floats else models.embeddings(network)
    for one in (x, np.where(tokens[:, :, None], 7.0 - x, x)):
        yield point(network._replace(floats=network.floats | {name: one})).results(backend)


def padding(network: Network, backend: Backend) -> float:
    """Other content at padded tokens that no loss reads: every other entry is the same, bit for bit."""
    case, given, dy = network.case, dict(network.given), network.dy
    if network.mask is None:
        return 0.0
    hidden, pooled = network.mask == 0, "pixels" in network.floats
    if pooled:
        hidden[np.arange(case.batch), stacks.end_of_text(given["ids"].astype(np.int64), case.keys)] = False
    elif "labels" in given:
        given["labels"] = np.where(np.roll(hidden, 1, axis=1), np.int64(-100), given["labels"])
    else:
        dy = np.where(hidden[:, :, None], 0.0, dy)
    for own in (pair := list(changed(network._replace(given=given, dy=dy), backend, hidden))):
        own[output(network)] = own[output(network)] * (True if pooled else ~hidden[:, :, None])
    return differ(*pair)


def causality(network: Network, backend: Backend) -> float:
    """Where it is causal, no output sees a later token: the same bits whatever comes."""
    if not network.case.causal:
        return 0.0
    later = np.arange(network.case.size)[None, :] >= network.case.size // 2
    found, right = ({"": own[output(network)][:, ~later[0]]} for own in changed(network, backend, later))
    return differ(found, right)


def merged_transposed(adapter: Adapter) -> bool:
    """Whether the dialect's own merge is W0 + ΔWᵀ, as vision's of a square layer, whose forward has ΔW."""
    square = adapter.shape[0] == adapter.shape[1]
    return square and isinstance(adapter, RandLoRA) and adapter.dialect.orientation == "square_transposed"


def merged(network: Network, backend: Backend) -> float:
    """W0 + ΔW in place of an adapter: the same outputs, and the same gradients of all inputs and weights."""
    weights, rest = dict(network.weights), dict(network.adapters)
    for name in [name for name in rest if not models.tied(network, name)]:
        saved, _, turned = network.modules[name]
        one, weight = rest.pop(name), weights[saved].T if turned else weights[saved]
        whole = one.merge(weight)
        if merged_transposed(one):
            whole = weight + (whole - weight).T
        weights[saved] = whole.T if turned else whole
    right = point(network._replace(weights=weights, adapters=rest)).results(backend)
    return alike(point(network), backend, right)


def one_more(network: Network, backend: Backend) -> float:
    """An adapter at its start with ΔW = 0 in every linear module that has none: nothing else changes."""
    start = Chosen("randlora", 2, True, network.case.seed, {"dialect": "paper"})
    more = {name: start.adapter(shape) for name, (_, shape, _) in network.modules.items()}
    right = point(network).results(backend)
    return apart(point(network._replace(adapters=more | network.adapters)).results(backend), right, right)


INVARIANCES = (
    Property("each sequence alone, gradients add up", each_alone, LIMIT, ALIKE),
    Property("order of the batch", order, LIMIT, ALIKE),
    Property("content of padding: entries that differ", padding, 0, "bits"),
    Property("causality: entries that differ", causality, 0, "bits"),
    Property("merged weights", merged, LIMIT, ALIKE),
    Property("one more adapter at its start", one_more, LIMIT, ALIKE),
)
