"""Training, as every experiment of this folder does it: one loop over one tree of values.

The *tree* is a dictionary of all arrays that are learned, under keys (module, part) for adapters and (saved name,
"weight") for a whole model. An *objective* takes the tree and a batch and gives the loss and a tree of gradients. The
loop is AdamW with a linear warm-up, a cosine to zero and gradients clipped by their common norm; ``Recipe`` says how.
What it leaves, a ``State``, can be saved, and gone on with: a run that was stopped ends bit for bit as one that was
not, as batch number t depends on t alone.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from randlora_ref import optim

Key = tuple[str, str]
Tree = dict[Key, Any]
Objective = Callable[[Tree, Any], tuple[float, Tree]]


@dataclass(frozen=True)
class Recipe:
    """``rate`` is the largest of the schedule; ``groups`` has factors on it by part, 1 where none is given."""

    steps: int
    rate: float
    groups: Mapping[str, float] = field(default_factory=dict)
    warmup: float = 0.1  # share of the steps
    clip: float = 1.0  # largest norm of all gradients together
    weight_decay: float = 0.0

    def rate_at(self, step: int) -> float:
        """The rate of step 0, 1, …: rises linearly through the warm-up, then falls to zero as half a cosine."""
        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return self.rate * (step + 1) / rising
        return self.rate * 0.5 * (1 + math.cos(math.pi * (step + 1 - rising) / (self.steps + 1 - rising)))


class State(NamedTuple):
    """Where a training stands: the tree, AdamW's state by group of parts, and the loss before each step so far."""

    values: Tree
    optimiser: dict[str, optim.State]
    curve: tuple[float, ...] = ()


class DivergedError(ArithmeticError):
    """A loss or a gradient is not finite: the rate is too large."""


def train(
    objective: Objective, values: Tree, batch: Callable[[int], Any], recipe: Recipe, *, state: State | None = None,
    until: int | None = None
) -> State:  # fmt: skip
    """Train from ``values``, or go on from ``state``, to the end of the recipe or to step ``until``.

    Raises DivergedError for a loss or gradient that is not finite.
    """
    state = State(values, {}) if state is None else state
    for step in range(len(state.curve), recipe.steps if until is None else until):
        loss, grads = objective(state.values, batch(step))
        norm = math.sqrt(sum(float(np.vdot(g, g)) for g in grads.values()))
        if not math.isfinite(loss + norm):
            raise DivergedError(f"step {step}: loss {loss}, norm of the gradients {norm}")
        share = min(1.0, recipe.clip / norm) if norm else 1.0
        values, optimiser = {}, {}
        for part in dict.fromkeys(part for _, part in state.values):  # a group
            own = {key: x for key, x in state.values.items() if key[1] == part}
            rate = recipe.rate_at(step) * recipe.groups.get(part, 1.0)
            new, optimiser[part] = optim.adamw(
                own, {key: share * grads[key] for key in own}, state.optimiser.get(part, optim.START), lr=rate,
                weight_decay=recipe.weight_decay,
            )  # fmt: skip
            values |= new
        state = State(values, optimiser, (*state.curve, loss))
    return state


# ---------------------------------------------------------------------------------------------------------
# What is trained: adapters of a model, or the model itself
# ---------------------------------------------------------------------------------------------------------


def learned(adapters: Mapping[str, Any]) -> Tree:
    """The tree of adapters: every learned array under (module, part)."""
    return {(name, part): getattr(one, part) for name, one in adapters.items() for part in one.LEARNED}


def with_values(adapters: Mapping[str, Any], values: Tree) -> dict[str, Any]:
    """The adapters with the values of such a tree."""
    return {name: one.replace(**{part: values[name, part] for part in one.LEARNED}) for name, one in adapters.items()}


def of_adapters(model: Any, adapters: Mapping[str, Any]) -> Objective:
    """The loss of ``model`` as a function of its adapters' values; a batch is the arguments of ``forward``."""

    def objective(values: Tree, batch: Any) -> tuple[float, Tree]:
        current = model.replace(with_values(adapters, values))
        loss, cache = current.forward(*batch)
        grads = current.backward(cache)
        return float(loss), {(name, part): getattr(grads[name], part) for name, part in values}

    return objective


def of_weights(kind: Any, config: Any) -> Objective:
    """The loss of a model without adapters as a function of all its weights."""

    def objective(values: Tree, batch: Any) -> tuple[float, Tree]:
        model = kind(config, {name: x for (name, _), x in values.items()})
        loss, cache = model.forward(*batch)
        grads = model.backward(cache, weights=True).weights
        return float(loss), {key: grads[key[0]] for key in values}

    return objective


# ---------------------------------------------------------------------------------------------------------
# A state on disk
# ---------------------------------------------------------------------------------------------------------


def save_state(path: Path, state: State, recipe: Recipe) -> None:
    """Write ``state`` with the recipe that it belongs to; the file is whole or not there."""
    arrays, keys = dict[str, Any](), list(state.values)
    for i, key in enumerate(keys):
        arrays[f"value{i}"] = state.values[key]
        if state.optimiser:
            arrays[f"first{i}"] = state.optimiser[key[1]].first[key]
            arrays[f"second{i}"] = state.optimiser[key[1]].second[key]
    about = {"recipe": asdict(recipe), "keys": keys, "curve": state.curve}
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, about=json.dumps(about), **arrays)
    os.replace(partial, path)


def load_state(path: Path, recipe: Recipe) -> State:
    """The state that ``save_state`` wrote. A ValueError for one of another recipe, or a file that is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            keys = [(name, part) for name, part in about["keys"]]
            values, first, second = (
                {key: file[f"{what}{i}"] for i, key in enumerate(keys) if f"{what}{i}" in file}
                for what in ("value", "first", "second")
            )
    except (OSError, KeyError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a saved state: {error}") from None
    if about["recipe"] != json.loads(json.dumps(asdict(recipe))):
        raise ValueError(f"{path}: of {about['recipe']}; it must be of {asdict(recipe)}")
    optimiser, curve = dict[str, optim.State](), tuple(about["curve"])
    for part in dict.fromkeys(part for _, part in keys) if first else ():
        firsts, seconds = ({key: x for key, x in one.items() if key[1] == part} for one in (first, second))
        optimiser[part] = optim.State(len(curve), firsts, seconds)
    return State(values, optimiser, curve)
