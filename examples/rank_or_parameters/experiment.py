"""What an experiment is: its cells, each one method of one size on one task, and how one run of a cell is made."""

import functools
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from measures import cut, degrees_of_freedom, ranks
from train import (
    DivergedError,
    Recipe,
    learned,
    load_state,
    of_adapters,
    of_weights,
    save_state,
    train,
    with_values,
)

from randlora_ref import models


class Cell(NamedTuple):
    """One method of one size on one task. ``rank`` and ``count`` are those of ``models.adapt``."""

    task: str
    steps: int
    method: str
    rank: int | None = None
    count: int | None = None

    @property
    def name(self) -> str:
        """As rows have it."""
        return "/".join(map(str, self))

    @property
    def options(self) -> dict[str, int]:
        """What ``models.adapt`` is told of the size."""
        return {key: x for key, x in (("rank", self.rank), ("count", self.count)) if x is not None}


@functools.cache
def base_model(kind: type[Any], config: Any, path: Path | None, dtype: str = "float32") -> Any:
    """The model of saved weights, or one that is not trained."""
    if path is None:
        return kind(config, models.initial_weights(config, 0))
    with np.load(path, allow_pickle=False) as file:
        return kind(config, {name: file[name].astype(dtype, copy=False) for name in file.files})


def comparison(
    task: str, steps: int, width: int, modules: int, terms: Sequence[int], ranks: Sequence[int], methods: Sequence[str]
) -> Iterator[Cell]:
    """The cells of one task, on ``modules`` layers whose smaller side is ``width`` w.

    RandLoRA two ways: n terms of rank R/n for each n of ``terms`` and each rank R of the update, so that the number of
    values moves at one R, and R at one number of values (modules·n·(R/n + w), where R/n is small beside w). R = w is
    RandLoRA itself, and R = w/2 is RandLoRA-b. Beside it ``methods`` with as many values as RandLoRA itself has, and
    full fine-tuning.
    """
    for n in terms:
        for R in ranks:
            if R % n == 0:
                yield Cell(task, steps, "randlora", R // n, modules * n * (R // n + width))
        for method in methods:
            yield Cell(task, steps, method, None, modules * (width + n * width))
    yield Cell(task, steps, "full")


class Experiment:
    """One domain: its cells, its pre-trained model and its data. A subclass says all that is not said here."""

    NAME, NEEDS = "", ("sklearn", "matplotlib")
    BATCH, PRETRAINING = 64, 400  # examples in a step, and steps before anything is adapted

    def __init__(self, quick: bool, folder: Path) -> None:
        self.quick, self.folder, self.path = quick, folder, folder / f"{self.NAME}.npz"
        self.pretraining = 10 if quick else self.PRETRAINING
        self.seeds = (1, 2) if quick else (1, 2, 3, 4, 5)  # of the results

    def cells(self) -> list[Cell]:
        """All of them, in the order in which they are run."""
        raise NotImplementedError

    def setting(self) -> dict[str, Any]:
        """What rows depend on beside the cell: rows of another setting are not mixed with these."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Whatever is made once, before the runs: the pre-trained model, into the folder."""

    def pretrain(self, kind: Any, config: Any, task: str, dtype: str = "float32") -> None:
        """Weights learned on ``task``, into a file, unless it is there; what was stopped goes on from where it was."""
        recipe, stopped, state = Recipe(self.pretraining, 3e-3), self.path.with_suffix(".state"), None
        if self.path.exists():
            return
        if stopped.exists():
            state = load_state(stopped, recipe)
        start = {(name, "weight"): x for name, x in models.initial_weights(config, 0).items()}
        objective, batch = of_weights(kind, config), functools.partial(self.batch, task, 0)
        for until in range(100, recipe.steps + 100, 100):
            state = train(objective, start, batch, recipe, state=state, until=min(until, recipe.steps))
            save_state(stopped, state, recipe)
        partial = self.path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez_compressed(file, **{name: x.astype(dtype) for (name, _), x in state.values.items()})
        os.replace(partial, self.path)
        stopped.unlink()

    def model(self, cell: Cell | None = None) -> Any:
        """The model whose modules a cell adapts; without a cell, one of the same shapes that is not trained yet."""
        raise NotImplementedError

    def batch(self, task: str, seed: int, step: int) -> Any:
        """The arguments of the model's ``forward`` for one step."""
        raise NotImplementedError

    def score(self, model: Any, task: str, split: str) -> dict[str, float]:
        """ "loss", and whatever else, of a model on a split: "train", "valid" or "test"."""
        raise NotImplementedError

    def adapters(self, cell: Cell, model: Any, seed: int, **more: Any) -> dict[str, Any]:
        """The cell's adapters at their start: RandLoRA as the paper has it, LoRA with α = 2r."""
        extra: dict[str, Any] = {"lora": {"scaling": 2.0}}.get(cell.method, {})
        if cell.method in ("randlora", "randlora_b"):
            extra = {"dialect": "paper"}
        return models.adapt(model, method=cell.method, seed=seed, **cell.options, **extra, **more)

    def objective(self, cell: Cell, model: Any, adapters: dict[str, Any]) -> Any:
        """What is made small."""
        return of_adapters(model, adapters)

    def scored(self, cell: Cell, model: Any, adapters: dict[str, Any], split: str) -> dict[str, float]:
        """The score of the model with these adapters."""
        return self.score(model.replace(adapters), cell.task, split)

    def trained(self, cell: Cell, rate: float, seed: int) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """(model, its trained adapters, figures of the training). Raises DivergedError."""
        model = self.model(cell)
        adapters, begin = self.adapters(cell, model, seed), time.perf_counter()
        batch = functools.partial(self.batch, cell.task, seed)
        state = train(self.objective(cell, model, adapters), learned(adapters), batch, Recipe(cell.steps, rate))
        seconds = time.perf_counter() - begin
        pieces = np.array_split(np.array(state.curve), min(10, cell.steps))
        figures = {"ms": 1e3 * seconds / cell.steps, "curve": [round(float(np.mean(one)), 4) for one in pieces]}
        return model, with_values(adapters, state.values), figures

    def fit(self, cell: Cell, rate: float, seed: int, split: str) -> dict[str, Any]:
        """The figures of one run; a run that diverges has the loss None. Of a result also what its update is like."""
        try:
            model, adapters, figures = self.trained(cell, rate, seed)
        except DivergedError:
            return {"loss": None}
        found = self.scored(cell, model, adapters, split)
        if split != "test":
            return {"loss": found["loss"]}
        found |= {"train": self.scored(cell, model, adapters, "train")["loss"]} | figures
        found |= {"values": sum(one.num_parameters() for one in adapters.values())} | ranks(adapters)
        if cell.method == "full":
            smaller = min(min(one.shape) for one in adapters.values())
            several = [2**i for i in range(smaller.bit_length()) if 2**i < smaller]
            scores = {k: self.scored(cell, model, cut(adapters, k), split)["loss"] for k in several}
            found["cut"] = {str(k): loss for k, loss in scores.items()}
        return found

    def beside(self) -> Iterator[dict[str, Any]]:
        """Rows that belong to no cell."""
        yield from ()

    def directions(self, config: Any, module: str) -> Iterator[dict[str, Any]]:
        """In how many directions ``module`` moves under each method of each size, its learned values, a step's time.

        Of full fine-tuning, whose ΔW is what is learned, the directions are the values.
        """
        task = self.cells()[0].task
        for cell in dict.fromkeys(cell._replace(task=task, steps=0) for cell in self.cells()):
            adapter = self.adapters(cell, config, 1, dtype="float64")[module]
            values = adapter.num_parameters()
            found = {"values": values, "directions": values if cell.method == "full" else degrees_of_freedom(adapter)}
            yield {"split": "directions", "size": cell[2:], **found, "ms": round(1e3 * self.seconds(cell), 2)}

    def seconds(self, cell: Cell) -> float:
        """A step's time, the least of eight, on a model that is not trained."""
        model = self.model()
        adapters = self.adapters(cell, model, 1)
        objective, values, times = self.objective(cell, model, adapters), learned(adapters), []
        for _ in range(8):
            begin = time.perf_counter()
            train(objective, values, functools.partial(self.batch, cell.task, 1), Recipe(1, 0.0))
            times.append(time.perf_counter() - begin)
        return min(times)
