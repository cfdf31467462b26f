"""Rank or parameters in vision and language: a CLIP on digits and captions, moved to other pixels and another tongue.

    python examples/rank_or_parameters/vision_language.py [--quick] [--folder DIR] [--processes 2]

A CLIP of two blocks a tower learns which of forty English captions belongs to one of scikit-learn's 8×8 digits: "a thin
narrow three". Thin or bold, narrow or wide is measured on the image. Then the pixels are permuted and the captions are
German, "eine dünne schmale drei", of words that were not seen; adapters of all linear layers of the blocks of both
towers are trained, everything else frozen. What counts is zero-shot accuracy: the right one of the forty captions.
"""

import functools
import hashlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from experiment import Cell, Experiment, base_model, comparison
from plan import main
from vision import SPLITS, digits, pixels

from randlora_ref import models

WIDTH, LAYERS = 48, 2
MODULES = 2 * 6 * LAYERS
ENGLISH = (
    ("a",), ("thin", "bold"), ("narrow", "wide"),
    ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
)  # fmt: skip
GERMAN = (
    ("eine",), ("dünne", "fette"), ("schmale", "breite"),
    ("Null", "Eins", "Zwei", "Drei", "Vier", "Fünf", "Sechs", "Sieben", "Acht", "Neun"),
)  # fmt: skip
WORDS = {word: i for i, word in enumerate(word for tongue in (ENGLISH, GERMAN) for place in tongue for word in place)}
BEGIN, END = len(WORDS), len(WORDS) + 1
LENGTH = len(ENGLISH) + 2
TASK = "permuted, German"
CONFIG = models.CLIPConfig.from_dict(
    {
        "projection_dim": 32,
        "text_config": {
            "vocab_size": END + 1, "max_position_embeddings": LENGTH, "hidden_size": WIDTH, "num_attention_heads": 4,
            "intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS, "eos_token_id": END,
        },
        "vision_config": {
            "image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": WIDTH, "num_attention_heads": 4,
            "intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS,
        },
    }
)  # fmt: skip


@functools.cache
def captions(task: str) -> np.ndarray:
    """The forty captions (40, 6) as numbers of words: caption 20·bold + 10·wide + digit."""
    tongue = GERMAN if task == TASK else ENGLISH
    rows = [
        (BEGIN, *(WORDS[word] for word in (tongue[0][0], weight, breadth, digit)), END)
        for weight in tongue[1]
        for breadth in tongue[2]
        for digit in tongue[3]
    ]
    return np.array(rows)


@functools.cache
def described() -> np.ndarray:
    """The number of each image's caption (1797,): bold has more ink, wide a larger spread than half of its digit."""
    ink = (digits()[0] + 1).reshape(-1, 8, 8)
    columns, total = np.arange(8), ink.sum(axis=(1, 2))
    centre = (ink.sum(axis=1) @ columns) / total
    spread = (ink.sum(axis=1) * (columns - centre[:, None]) ** 2).sum(axis=1) / total
    result = digits()[1].copy()
    for digit in range(10):
        own = digits()[1] == digit
        result[own] += 20 * (total[own] > np.median(total[own])) + 10 * (spread[own] > np.median(spread[own]))
    return result


class VisionLanguage(Experiment):
    """CLIP on digits and captions."""

    NAME = "vision_language"
    BATCH, PRETRAINING = 40, 600  # a pair of each caption, so that no two of a batch are alike

    def setting(self) -> dict[str, Any]:
        """Sizes, and what was read."""
        import sklearn

        read = hashlib.sha256(digits()[0].astype(np.int8).tobytes() + described().tobytes()).hexdigest()[:16]
        sizes = {"width": WIDTH, "layers": LAYERS, "pretraining": self.pretraining, "batch": self.BATCH}
        return {"sklearn": sklearn.__version__, "digits": read, **sizes}

    def cells(self) -> list[Cell]:
        """The one shift."""
        methods = ("lora", "randlora_a", "vera")
        if self.quick:
            return [*comparison(TASK, 3, WIDTH, MODULES, (2,), (2, 48), methods)]
        return [*comparison(TASK, 300, WIDTH, MODULES, (2, 8, 24), (2, 8, 24, 48), methods)]

    def prepare(self) -> None:
        """The weights that are adapted."""
        self.pretrain(models.CLIP, CONFIG, "digits")

    def model(self, cell: Cell | None = None) -> models.CLIP:
        """The pre-trained one."""
        return base_model(models.CLIP, CONFIG, self.path if cell else None)

    def batch(self, task: str, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The captions, and for each an image of the training split that it describes."""
        rng = np.random.default_rng((seed, step))
        chosen = [rng.choice(np.flatnonzero(described()[SPLITS["train"]] == caption)) for caption in range(40)]
        return captions(task), pixels(pixels_of(task))[chosen].astype(np.float32)

    def score(self, model: models.CLIP, task: str, split: str) -> dict[str, float]:
        """Of images against the forty captions: the loss of the right one, and how often it has the best score."""
        chosen = SPLITS[split]
        images = model.encode_image(pixels(pixels_of(task))[chosen].astype(np.float32))
        scores = model.logits(model.encode_text(captions(task)), images).T  # (N, 40)
        right, largest = described()[chosen], scores.max(axis=1)
        loss = np.log(np.exp(scores - largest[:, None]).sum(axis=1)) + largest - scores[np.arange(len(right)), right]
        found = scores.argmax(axis=1)
        of_digit = float(np.mean(found % 10 == right % 10))
        return {"loss": float(np.mean(loss)), "accuracy": float(np.mean(found == right)), "digit": of_digit}

    def beside(self) -> Iterator[dict[str, Any]]:
        """The start, and in how many directions one square layer of each size moves."""
        before = {task: self.score(self.model(self.cells()[0]), task, "test") for task in ("digits", TASK)}
        yield {"split": "before", "scores": before}
        yield from self.directions(CONFIG, "vision_model.encoder.layers.0.self_attn.q_proj")


def pixels_of(task: str) -> str:
    """The task of ``vision`` whose pixels are shown."""
    return "permuted" if task == TASK else "digits"


if __name__ == "__main__":
    sys.exit(main(VisionLanguage))
