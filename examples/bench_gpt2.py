"""Forward and backward of a GPT-2 with RandLoRA in every linear layer, here and with transformers + PEFT.

    python examples/bench_gpt2.py [--quick] [--vocabulary 50257] [--repeat 5]

GPT-2-small's width (768, 12 heads), 2 layers, 4×256 tokens, float32, r = 32. The same weights, bases and learned values
on both sides; they run in turns in one process, and the medians and their ratio are printed. The peak of memory above
the loaded model is then taken in a process for each. Needs torch, transformers and peft.
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
from typing import Any

import numpy as np

RANK = 32


def sizes(quick: bool, vocabulary: int) -> dict[str, Any]:
    """The keys of the configuration that differ from GPT-2 small's."""
    small = {"n_embd": 192, "n_head": 3, "vocab_size": 1000} if quick else {"vocab_size": vocabulary}
    return {"n_layer": 2, "n_positions": 256, "bos_token_id": 0, "eos_token_id": 0, **small}


def tokens(quick: bool, vocabulary: int) -> Any:
    """Four rows of random tokens."""
    limit = sizes(quick, vocabulary)["vocab_size"]
    return np.random.default_rng(0).integers(0, limit, (4, 64 if quick else 256))


def theirs(quick: bool, vocabulary: int, folder: Path) -> Callable[[], float]:
    """A step of transformers + PEFT: loss and gradients of all learned values. Its checkpoint is left in ``folder``."""
    import peft
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    config = transformers.GPT2Config(**sizes(quick, vocabulary), attn_implementation="sdpa")
    model = transformers.GPT2LMHeadModel(config).eval()
    if not (folder / "config.json").exists():
        model.save_pretrained(folder)
    targets = ["c_attn", "c_proj", "c_fc"]
    options = {"randlora_alpha": 64, "randlora_dropout": 0.0, "fan_in_fan_out": True, "projection_prng_key": 0}
    wrapped = peft.get_peft_model(model, peft.RandLoraConfig(r=RANK, target_modules=targets, **options))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "randlora_lambda" in name:
                parameter.fill_(0.01)
    ids = torch.from_numpy(tokens(quick, vocabulary))

    def step() -> float:
        wrapped.zero_grad(set_to_none=True)
        loss = wrapped(input_ids=ids, labels=ids).loss
        loss.backward()
        return float(loss)

    return step


def ours(quick: bool, vocabulary: int, folder: Path) -> Callable[[], float]:
    """The same step here, from the checkpoint in ``folder``."""
    from safetensors.numpy import load_file

    from randlora_ref import models

    weights = load_file(folder / "model.safetensors")
    config = models.GPT2Config.from_dict(json.loads((folder / "config.json").read_text()))
    start = models.adapt(config, rank=RANK, dialect="peft", seed=0, alpha=64.0)
    adapters = {name: one.replace(lambda_=np.full_like(one.lambda_, 0.01)) for name, one in start.items()}
    model = models.GPT2(config, weights, adapters)
    ids = tokens(quick, vocabulary)

    def step() -> float:
        loss, cache = model.forward(ids, ids)
        model.backward(cache)
        return float(loss)  # type: ignore[arg-type]

    return step


def resident(key: str) -> int:
    """A figure of this process in KiB, as Linux has it: VmRSS is what is resident, VmHWM the most since its reset."""
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if key in line).split()[1])


def peak(make: Callable[..., Callable[[], float]], *arguments: Any) -> float:
    """MiB by which the resident memory of this process rises above the loaded model's in three steps."""
    step = make(*arguments)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    before = resident("VmRSS")
    for _ in range(3):
        step()
    return (resident("VmHWM") - before) / 1024


def measure(quick: bool, vocabulary: int, repeat: int, folder: Path) -> None:
    """Times in turns, then memory in two processes; prints both with their ratios."""
    pairs = {"transformers + PEFT": theirs(quick, vocabulary, folder), "randlora_ref": ours(quick, vocabulary, folder)}
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
        command = [sys.executable, __file__, "--peak", side, "--folder", str(folder), "--vocabulary", str(vocabulary)]
        found = subprocess.run(command + ["--quick"] * quick, check=True, capture_output=True, text=True).stdout
        peaks.append(float(found.split()[-1]))
    print(f"peak memory above the loaded model: theirs {peaks[0]:.0f} MiB, ours {peaks[1]:.0f} MiB")


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model: shows that it runs, measures nothing")
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--peak", choices=["theirs", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.peak:
        make = theirs if arguments.peak == "theirs" else ours
        print(peak(make, arguments.quick, arguments.vocabulary, arguments.folder))
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments.quick, arguments.vocabulary, arguments.repeat, Path(folder))


if __name__ == "__main__":
    main()
