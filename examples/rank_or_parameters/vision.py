"""Rank or parameters in vision: a ViT on real digits, moved to other pixels.

    python examples/rank_or_parameters/vision.py [--quick] [--folder DIR] [--processes 2]

A ViT of two blocks learns scikit-learn's 8×8 digits, 1,797 scanned ones. Then its pixels change, and adapters of all
linear layers of the blocks are trained, everything else frozen:

    inverted    the brightness of every pixel
    permuted    one fixed permutation of the pixels
    blended     the same permutation, and three fifths of one digit over two fifths of another; the label is the first's
"""

import functools
import hashlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from experiment import Cell, Experiment, base_model, comparison
from plan import main
from train import Recipe, learned, of_adapters, train, with_values

from randlora_ref import models

WIDTH, LAYERS = 64, 2
MODULES = 6 * LAYERS
CONFIG = models.ViTConfig.from_dict(
    {
        "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 10,
    }
)  # fmt: skip
SPLITS = {"train": slice(0, 1000), "valid": slice(1000, 1300), "test": slice(1300, 1797)}
TASKS = ("inverted", "permuted", "blended")
CONTROL = Cell("permuted", 50, "randlora", 8, MODULES * 8 * (8 + WIDTH))  # refitted by a test, in float64
CONTROL_RATE, CONTROL_SEED = 0.01, 1


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels (1797, 64) between -1 and 1, and labels, in an order that mixes the writers."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    return found.data[order] / 8.0 - 1.0, found.target[order].astype(np.int64)


@functools.cache
def pixels(task: str) -> np.ndarray:
    """(1797, 1, 8, 8) in float64, of the task that was learned first ("digits") or of one that is learned then."""
    flat, rng = digits()[0], np.random.default_rng(1)
    if task == "inverted":
        flat = -flat
    elif task in ("permuted", "blended"):
        flat = flat[:, rng.permutation(64)]
    return flat.reshape(-1, 1, 8, 8)


def images(task: str, chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The images of ``chosen`` rows; each blended with another of them."""
    own = pixels(task)[chosen]
    return 0.6 * own + 0.4 * own[rng.permutation(len(own))] if task == "blended" else own


class Vision(Experiment):
    """ViT on digits."""

    NAME = "vision"

    def setting(self) -> dict[str, Any]:
        """Sizes, and what was read."""
        import sklearn

        read = hashlib.sha256(digits()[0].astype(np.int8).tobytes()).hexdigest()[:16]
        sizes = {"width": WIDTH, "layers": LAYERS, "pretraining": self.pretraining, "batch": self.BATCH}
        return {"sklearn": sklearn.__version__, "digits": read, **sizes}

    def cells(self) -> list[Cell]:
        """All three shifts with few steps, the hardest with three times as many."""
        methods = ("lora", "randlora_a", "vera", "nola")
        if self.quick:
            return [*comparison("permuted", 3, WIDTH, MODULES, (2,), (2, 64), methods[:3])]
        sizes = (WIDTH, MODULES, (2, 8, 32), (2, 8, 32, 64), methods)
        budgets = [(task, 100) for task in TASKS] + [("blended", 300)]
        return [cell for task, steps in budgets for cell in comparison(task, steps, *sizes)]

    def prepare(self) -> None:
        """The weights that are adapted; rounded to float16, so that the file is small and exact."""
        self.pretrain(models.ViT, CONFIG, "digits", "float16")

    def model(self, cell: Cell | None = None, dtype: str = "float32") -> models.ViT:
        """The pre-trained one."""
        return base_model(models.ViT, CONFIG, self.path if cell else None, dtype)

    def batch(self, task: str, seed: int, step: int, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
        """Images of the training split, and their labels."""
        rng = np.random.default_rng((seed, step))
        chosen = rng.integers(0, SPLITS["train"].stop, self.BATCH)
        return images(task, chosen, rng).astype(dtype), digits()[1][chosen]

    def score(self, model: models.ViT, task: str, split: str) -> dict[str, float]:
        """Mean loss and accuracy."""
        chosen = np.arange(len(digits()[1]))[SPLITS[split]]
        labels, shown = digits()[1][chosen], images(task, chosen, np.random.default_rng(2))
        loss, cache = model.forward(shown.astype(model.precision), labels)
        return {"loss": float(loss), "accuracy": float(np.mean(cache.logits.argmax(axis=1) == labels))}

    def beside(self) -> Iterator[dict[str, Any]]:
        """The start and the ceiling, the control, and in how many directions one square layer of each size moves."""
        before = {task: self.score(self.model(CONTROL), task, "test") for task in ("digits", *TASKS)}
        yield {"split": "before", "scores": before}
        yield {"split": "control", "cell": CONTROL.name, **control(self)}
        yield from self.directions(CONFIG, "vit.layers.0.attention.q_proj")


def control(experiment: Vision) -> dict[str, float]:
    """The figures of one short run in float64, which any machine can repeat: its last loss and its test loss."""
    model = experiment.model(CONTROL, "float64")
    adapters = experiment.adapters(CONTROL, model, CONTROL_SEED)
    batch = functools.partial(experiment.batch, CONTROL.task, CONTROL_SEED, dtype="float64")
    state = train(of_adapters(model, adapters), learned(adapters), batch, Recipe(CONTROL.steps, CONTROL_RATE))
    trained = model.replace(with_values(adapters, state.values))
    return {"last": state.curve[-1], **experiment.score(trained, CONTROL.task, "test")}


if __name__ == "__main__":
    sys.exit(main(Vision))
