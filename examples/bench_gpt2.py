"""Forward and backward of a GPT-2 with RandLoRA in every linear layer, here and with transformers + PEFT.

    python examples/bench_gpt2.py [--quick] [--vit] [--vocabulary 50257] [--repeat 5]

GPT-2-small's width (768, 12 heads), 2 layers, 4×256 tokens, float32, r = 32; with ``--vit`` ViT-B's width, 2 layers, 4
pictures of 197 tokens, exact GELU. The same weights, bases and learned values on both sides; they run in turns in one
process, and the medians and their ratio are printed. The peak of memory above the loaded model is then taken in a
process for each. Needs torch, transformers and peft.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RANK = 32


class Job(NamedTuple):
    """What is measured, and where the checkpoint lies."""

    quick: bool
    vit: bool
    vocabulary: int
    folder: Path

    def sizes(self) -> dict[str, Any]:
        """The keys of the configuration that differ from GPT-2 small's, or from ViT-B's."""
        if self.vit:
            small = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "image_size": 64}
            return {"num_hidden_layers": 2, "num_labels": 10, **(small if self.quick else {})}
        small = {"n_embd": 192, "n_head": 3, "vocab_size": 1000}
        sizes = {"n_layer": 2, "n_positions": 256, "bos_token_id": 0, "eos_token_id": 0}
        return sizes | (small if self.quick else {"vocab_size": self.vocabulary})

    def inputs(self) -> dict[str, np.ndarray]:
        """Four rows of random tokens with themselves as labels, or four random pictures."""
        rng = np.random.default_rng(0)
        if self.vit:
            side = 64 if self.quick else 224
            return {"pixels": rng.standard_normal((4, 3, side, side)).astype(np.float32), "labels": np.arange(4)}
        ids = rng.integers(0, self.sizes()["vocab_size"], (4, 64 if self.quick else 256))
        return {"ids": ids, "labels": ids}


def theirs(job: Job) -> Callable[[], float]:
    """A step of transformers + PEFT: loss and gradients of all learned values. Its checkpoint is left in the folder."""
    import peft
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    names = ("ViTConfig", "ViTForImageClassification") if job.vit else ("GPT2Config", "GPT2LMHeadModel")
    config = getattr(transformers, names[0])(**job.sizes(), attn_implementation="sdpa")
    model = getattr(transformers, names[1])(config).eval()
    if not (job.folder / "config.json").exists():
        model.save_pretrained(job.folder)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"] if job.vit else ["c_attn", "c_proj", "c_fc"]
    options = {"randlora_alpha": 64, "randlora_dropout": 0.0, "fan_in_fan_out": not job.vit, "projection_prng_key": 0}
    wrapped = peft.get_peft_model(model, peft.RandLoraConfig(r=RANK, target_modules=targets, **options))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "randlora_lambda" in name:
                parameter.fill_(0.01)
    renamed = {"ids": "input_ids", "pixels": "pixel_values"}
    inputs = {renamed.get(name, name): torch.from_numpy(x) for name, x in job.inputs().items()}

    def step() -> float:
        wrapped.zero_grad(set_to_none=True)
        loss = wrapped(**inputs).loss
        loss.backward()
        return float(loss)

    return step


def ours(job: Job) -> Callable[[], float]:
    """The same step here, from the checkpoint in the folder."""
    from safetensors.numpy import load_file

    from randlora_ref import models

    weights = load_file(job.folder / "model.safetensors")
    kind = models.ViT if job.vit else models.GPT2
    config = kind.CONFIG.from_dict(json.loads((job.folder / "config.json").read_text(encoding="utf-8")))
    start = models.adapt(config, rank=RANK, dialect="peft", seed=0, alpha=64.0)
    adapters = {name: one.replace(lambda_=np.full_like(one.lambda_, 0.01)) for name, one in start.items()}
    model, inputs = kind(config, weights, adapters), job.inputs()

    def step() -> float:
        loss, cache = model.forward(**inputs)
        model.backward(cache)
        return float(loss)

    return step


def resident(key: str) -> int:
    """A figure of this process in KiB, as Linux has it: VmRSS is what is resident, VmHWM the most since its reset."""
    return int(
        next(
            line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if key in line
        ).split()[1]
    )


def peak(make: Callable[[Job], Callable[[], float]], job: Job) -> float:
    """MiB by which the resident memory of this process rises above the loaded model's in three steps."""
    step = make(job)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    before = resident("VmRSS")
    for _ in range(3):
        step()
    return (resident("VmHWM") - before) / 1024


def measure(job: Job, repeat: int) -> None:
    """Times in turns, then memory in two processes; prints both with their ratios."""
    pairs = {"transformers + PEFT": theirs(job), "randlora_ref": ours(job)}
    losses = {name: step() for name, step in pairs.items()}
    times: dict[str, list[float]] = {name: [] for name in pairs}
    for _ in range(repeat):
        for name, step in pairs.items():
            begun = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - begun)
    for name in pairs:
        found = times[name]
        print(f"{name:22} loss {losses[name]:.6f}   median {statistics.median(found):.3f} s   best {min(found):.3f} s")
    first, second = (times[name] for name in pairs)
    pairs_of_times = [round(a / b, 2) for a, b in zip(first, second, strict=True)]
    print(f"time, theirs/ours: median {statistics.median(first) / statistics.median(second):.2f}", end="")
    print(f", best {min(first) / min(second):.2f}, each pair {pairs_of_times}")
    peaks = []
    for side in ("theirs", "ours"):
        command = [sys.executable, __file__, "--peak", side, "--folder", str(job.folder)]
        command += ["--vocabulary", str(job.vocabulary)] + ["--quick"] * job.quick + ["--vit"] * job.vit
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks.append(float(found.split()[-1]))
    print(f"peak memory above the loaded model: theirs {peaks[0]:.0f} MiB, ours {peaks[1]:.0f} MiB")


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model: shows that it runs, measures nothing")
    parser.add_argument("--vit", action="store_true", help="ViT-B's width, with its exact GELU")
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--peak", choices=["theirs", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    job = Job(arguments.quick, arguments.vit, arguments.vocabulary, arguments.folder or Path())
    if arguments.peak:
        print(peak(theirs if arguments.peak == "theirs" else ours, job))
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(job._replace(folder=Path(folder)), arguments.repeat)


if __name__ == "__main__":
    main()
