"""Rank or parameters without a task: how near each method comes to a given matrix, with so many learned values.

    python examples/rank_or_parameters/matrices.py [--quick] [--folder DIR] [--processes 2]

Targets: an orthogonal matrix, a Gaussian one, one whose singular values fall as 1/i, one of rank 3, a sparse one, all
63×63; and what full fine-tuning changed in one layer of each model of the other experiments (``vision.py``,
``language.py``, ``vision_language.py``). Each method's ΔW is trained towards the target M, and its error is
‖ΔW − M‖/‖M‖ (Frobenius). No matrix of rank k comes nearer than the first k terms of M's singular value decomposition;
that bound is reported beside the errors.
"""

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from experiment import Cell, Experiment
from language import Language
from plan import main, rate_of
from vision import Vision
from vision_language import VisionLanguage

from randlora_ref import models

WIDTH = 63
SYNTHETIC = ("orthogonal", "gaussian", "1/i", "rank 3", "sparse")
REAL = {  # by target: the experiment, the task and the layer
    "ViT": (Vision, "permuted", "vit.layers.0.attention.v_proj"),
    "GPT-2": (Language, "rot13", "transformer.h.0.attn.c_proj"),
    "CLIP": (VisionLanguage, "permuted, German", "vision_model.encoder.layers.0.self_attn.v_proj"),
}
TERMS = {63: (3, 7, 21), 64: (2, 8, 32), 60: (3, 15, 30), 48: (2, 8, 24)}  # by width, n that divide it


def synthetic(name: str) -> np.ndarray:
    """A target (63, 63)."""
    rng = np.random.default_rng(3)
    U, V = (np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0] for _ in range(2))
    if name == "orthogonal":
        return U
    if name == "gaussian":
        return rng.standard_normal((WIDTH, WIDTH))
    if name == "1/i":
        return (U / np.arange(1, WIDTH + 1)) @ V.T
    if name == "rank 3":
        return U[:, :3] @ V[:, :3].T
    return rng.standard_normal((WIDTH, WIDTH)) * (rng.random((WIDTH, WIDTH)) < 0.02)


class Matrices(Experiment):
    """Targets, and the methods' distance from them. A "model" is a target."""

    NAME = "matrices"

    def setting(self) -> dict[str, Any]:
        """What the targets come from."""
        settings = {kind.NAME: kind(self.quick, self.folder).setting() for kind, _, _ in REAL.values()}
        return {"width": WIDTH, "real": settings}

    def cells(self) -> list[Cell]:
        """Every method at three counts for every target."""
        found, steps = [], 20 if self.quick else 400
        for task in ("orthogonal", "ViT") if self.quick else (*SYNTHETIC, *REAL):
            width = WIDTH if task in SYNTHETIC else {"ViT": 64, "GPT-2": 60, "CLIP": 48}[task]
            for n in TERMS[width][: 1 if self.quick else 3]:
                r, count = width // n, width + n * width
                found += [Cell(task, steps, method, None, count) for method in ("lora", "randlora_a", "vera", "nola")]
                found.append(Cell(task, steps, "randlora", r, count))
                found.append(Cell(task, steps, "randlora_b", r, n * (r // 2 + width)))
        return found

    def prepare(self) -> None:
        """The targets, each of norm √width."""
        if not self.path.exists():
            targets = {name: synthetic(name) for name in SYNTHETIC}
            for name, (kind, task, layer) in REAL.items():
                other = kind(self.quick, self.folder)
                other.prepare()
                (cell,) = (one for one in other.cells() if one.method == "full" and one.task == task)
                targets[name] = other.trained(cell, rate_of(-5), 1)[1][layer].delta_weight()
            scaled = {name: M * (len(M) ** 0.5 / np.linalg.norm(M)) for name, M in targets.items()}
            np.savez(self.path, **{name.replace("/", "|"): M.astype(np.float32) for name, M in scaled.items()})

    def model(self, cell: Cell | None = None) -> np.ndarray:
        """The target."""
        return target(self.path, cell.task) if cell else synthetic("orthogonal").astype(np.float32)

    def adapters(self, cell: Cell, model: Any, seed: int, **more: Any) -> dict[str, Any]:
        """One adapter of a square layer, the classifier of a ViT that has as many labels as its width."""
        config = models.ViTConfig(hidden_size=len(model), num_labels=len(model), num_attention_heads=1)
        return super().adapters(cell, config, seed, modules="classifier", **more)

    def batch(self, task: str, seed: int, step: int) -> None:
        """None: every step sees the whole target."""

    def objective(self, cell: Cell, model: np.ndarray, adapters: dict[str, Any]) -> Any:
        """‖ΔW − M‖²/‖M‖². In front of the weight −M, the identity's rows come out as those of (ΔW − M)ᵀ."""
        (layer,), identity, size = adapters.values(), np.eye(len(model), dtype=model.dtype), float(np.sum(model**2))

        def objective(values: Any, batch: None) -> tuple[float, Any]:
            adapter = layer.replace(**{part: x for (_, part), x in values.items()})
            y, cache = adapter.forward(identity, -model, keep_merged=True)
            grads = adapter.backward((2 / size) * y, cache)[1]
            return float(np.sum(y * y)) / size, {key: getattr(grads, key[1]) for key in values}

        return objective

    def scored(self, cell: Cell, model: np.ndarray, adapters: dict[str, Any], split: str) -> dict[str, float]:
        """The relative error; there are no splits."""
        (layer,) = adapters.values()
        return {"loss": float(np.linalg.norm(layer.delta_weight() - model) / np.linalg.norm(model))}

    def beside(self) -> Iterator[dict[str, Any]]:
        """The least error of any matrix of rank k, for each target."""
        for task in dict.fromkeys(cell.task for cell in self.cells()):
            sigma = np.linalg.svd(target(self.path, task).astype(np.float64), compute_uv=False)
            left = np.sqrt(np.cumsum((sigma**2)[::-1])[::-1] / np.sum(sigma**2))
            yield {"split": "bound", "task": task, "errors": [round(float(x), 5) for x in left]}  # of rank 0, 1, …


@functools.cache
def target(path: Path, name: str) -> np.ndarray:
    """A saved target."""
    with np.load(path, allow_pickle=False) as file:
        return file[name.replace("/", "|")]


if __name__ == "__main__":
    sys.exit(main(Matrices))
