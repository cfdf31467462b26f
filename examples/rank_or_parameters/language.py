"""Rank or parameters in language: a GPT-2 of characters, moved to a cipher of its text and to Python source.

    python examples/rank_or_parameters/language.py [--quick] [--folder DIR] [--processes 2]

A GPT-2 of two blocks learns the topics of Python's ``help()``, which every Python carries (``pydoc_data.topics``). Then
adapters of all linear layers of the blocks are trained, everything else frozen, on

    rot13     the same text, each letter replaced by the one thirteen places on: every statistic kept under other names
    source    Python source, of modules of the standard library
"""

import codecs
import functools
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from experiment import Cell, Experiment, base_model, comparison
from plan import main

from randlora_ref import models

WIDTH, LAYERS, LENGTH = 60, 2, 48
MODULES = 4 * LAYERS
LETTERS = "\n" + "".join(map(chr, range(32, 127)))  # whatever else is in a text becomes a blank
CONFIG = models.GPT2Config.from_dict(
    {"vocab_size": len(LETTERS), "n_positions": LENGTH, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4}
)
MOST = 400_000  # characters of a text that are read
SOURCES = (
    "argparse",
    "ast",
    "configparser",
    "datetime",
    "inspect",
    "pathlib",
    "tarfile",
    "textwrap",
    "typing",
    "zipfile",
)
TASKS = ("rot13", "source")


@functools.cache
def text(task: str) -> str:
    """The text of the task that was learned first ("topics") or of one that is learned then."""
    if task == "source":
        folder, read = Path(codecs.__file__).parent, []
        for name in SOURCES:
            path = folder / f"{name}.py"
            paths = (
                [path] if path.exists() else sorted((folder / name).glob("*.py"))
            )  # some are packages in later Pythons
            read += [one.read_text(encoding="utf-8") for one in paths]
        return "".join(read)[:MOST]
    from pydoc_data.topics import topics

    plain = "".join(topics[name] for name in sorted(topics))[:MOST]
    return codecs.encode(plain, "rot13") if task == "rot13" else plain


@functools.cache
def ids(task: str, split: str) -> np.ndarray:
    """Characters as numbers. Of each 20 pieces of the text the last is the test's, and the one before validation's."""
    number = {letter: i for i, letter in enumerate(LETTERS)}
    whole = np.array([number.get(letter, 1) for letter in text(task)])
    pieces = np.array_split(whole, 200)
    own = {"test": (19,), "valid": (18,), "train": range(18)}[split]
    return np.concatenate([one for i, one in enumerate(pieces) if i % 20 in own])


class Language(Experiment):
    """GPT-2 on characters."""

    NAME, NEEDS = "language", ("matplotlib",)
    BATCH, PRETRAINING = 8, 1500

    def setting(self) -> dict[str, Any]:
        """Sizes, and what was read."""
        read = {task: hashlib.sha256(text(task).encode()).hexdigest()[:16] for task in ("topics", "source")}
        sizes = {"width": WIDTH, "layers": LAYERS, "length": LENGTH, "pretraining": self.pretraining}
        return {"text": read, **sizes, "batch": self.BATCH}

    def cells(self) -> list[Cell]:
        """The cipher whole, source code at the ends."""
        methods = ("lora", "randlora_a", "vera")
        if self.quick:
            return [*comparison("rot13", 3, WIDTH, MODULES, (3,), (3, 60), methods)]
        rot13 = comparison("rot13", 250, WIDTH, MODULES, (3, 15, 30), (3, 15, 30, 60), methods)
        return [*rot13, *comparison("source", 250, WIDTH, MODULES, (3, 30), (3, 30, 60), methods)]

    def prepare(self) -> None:
        """The weights that are adapted."""
        self.pretrain(models.GPT2, CONFIG, "topics")

    def model(self, cell: Cell | None = None) -> models.GPT2:
        """The pre-trained one."""
        return base_model(models.GPT2, CONFIG, self.path if cell else None)

    def batch(self, task: str, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Windows of the training text, twice: each token is the label of the one before."""
        whole = ids(task, "train")
        first = np.random.default_rng((seed, step)).integers(0, len(whole) - LENGTH, self.BATCH)
        windows = whole[first[:, None] + np.arange(LENGTH)]
        return windows, windows

    def score(self, model: models.GPT2, task: str, split: str) -> dict[str, float]:
        """Mean loss in nats a character, of 128 windows that lie evenly in the text."""
        whole = ids(task, split)
        first = np.linspace(0, len(whole) - LENGTH, 128).astype(int)
        windows = whole[first[:, None] + np.arange(LENGTH)]
        return {"loss": float(model.forward(windows, windows)[0])}

    def beside(self) -> Iterator[dict[str, Any]]:
        """The start, and in how many directions one square layer of each size moves."""
        before = {task: self.score(self.model(self.cells()[0]), task, "test") for task in ("topics", *TASKS)}
        yield {"split": "before", "scores": before}
        yield from self.directions(CONFIG, "transformer.h.0.attn.c_proj")


if __name__ == "__main__":
    sys.exit(main(Language))
