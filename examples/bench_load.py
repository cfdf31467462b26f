"""How long a checkpoint with an adapter takes to load, beside ``safetensors.numpy.load_file`` of the same files.

    python examples/bench_load.py [--quick]

A GPT-2 of random float32 weights and a RandLoRA adapter in PEFT's layout, its bases stored in the folder, once and once
more for each layer as PEFT does. Both sides are warm, in turn, in one process; medians of five. Needs the ``peft``
extra.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

from randlora_ref import models
from randlora_ref.interop import PeftAdapter, save_peft

SIZES = {"n_embd": 768, "n_head": 12, "n_layer": 12, "vocab_size": 50257, "n_positions": 1024}
QUICK = {"n_embd": 192, "n_head": 4, "n_layer": 3, "vocab_size": 5000, "n_positions": 128}


def write(folder: Path, sizes: dict[str, int], rank: int) -> list[Path]:
    """A checkpoint and an adapter on its q, k, v projections; the two files of tensors."""
    keys = {"model_type": "gpt2", **sizes}
    config = models.GPT2Config.from_dict(keys)
    save_file(models.initial_weights(config, seed=0), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(keys))
    layers = models.adapt(config, ["c_attn"], rank=rank)
    settings = {"peft_type": "RANDLORA", "r": rank, "randlora_alpha": 640, "projection_prng_key": 0}
    bases = next(iter(layers.values())).bases
    lambda_, gamma = ({name: getattr(one, what) for name, one in layers.items()} for what in ("lambda_", "gamma"))
    save_peft(PeftAdapter(bases, lambda_, gamma, settings), folder / "adapter")
    path = folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    for name in layers:
        for basis in "AB":
            copy = tensors[f"base_model.randlora_{basis}"]
            tensors[f"base_model.model.{name}.randlora_{basis}"] = copy
    save_file(tensors, path, metadata={"format": "pt"})
    return [folder / "model.safetensors", path]


def seconds(*calls: Callable[[], Any]) -> list[float]:
    """The median of five of each call, in turn, after one that does not count."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(6):
        for call, own in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            if turn:
                own.append(time.perf_counter() - started)
    return [statistics.median(own) for own in times]


def main() -> None:
    """Prints sizes, times and their ratio."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small model")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write(folder, QUICK if quick else SIZES, 8 if quick else 32)
        ours, theirs = seconds(
            lambda: models.GPT2.from_pretrained(folder, adapter=folder / "adapter"),
            lambda: [load_file(path) for path in files],
        )
        mebibytes = sum(path.stat().st_size for path in files) / 2**20
    print(f"{mebibytes:.0f} MiB: from_pretrained {ours:.3f} s, load_file {theirs:.3f} s, ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
