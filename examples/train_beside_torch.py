"""Ten training steps of one model, here and in PyTorch with PEFT: two columns of losses, equal to ten digits.

    python examples/train_beside_torch.py [--quick] [--steps 10]

A GPT-2 of ``transformers`` is saved to disk. Its checkpoint is loaded here, RandLoRA put into every linear layer of its
blocks, and AdamW trains Λ and Γ; beside it PEFT does the same with the same seed. All in float64, with the loss taken
from float64 logits on both sides (``transformers`` itself casts them to float32). Exit status 1 if a pair of losses
differs in its first ten digits. Needs torch, transformers, peft and safetensors.
"""

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from randlora_ref import models
from randlora_ref.optim import START, adamw

RANK, ALPHA, SEED, RATE = 4, 8.0, 3, 2e-3
LEARNED = ("lambda_", "gamma")


def here(folder: Path, ids: np.ndarray, steps: int) -> Iterator[float]:
    """The loss before each step, and after the last, with this package alone."""
    from safetensors.numpy import load_file

    weights = {name: x.astype(np.float64) for name, x in load_file(folder / "model.safetensors").items()}
    config = models.GPT2Config.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    start = models.adapt(config, rank=RANK, dialect="peft", alpha=ALPHA, seed=SEED)  # float32, as PEFT's start is
    adapters = {
        name: one.replace(**{part: getattr(one, part).astype(np.float64) for part in LEARNED})
        for name, one in start.items()
    }
    state = START
    for _ in range(steps + 1):
        model = models.GPT2(config, weights, adapters)
        loss, cache = model.forward(ids, ids)
        yield float(loss)
        found = model.backward(cache)
        values = {(name, part): getattr(one, part) for name, one in adapters.items() for part in LEARNED}
        grads = {(name, part): getattr(found[name], part) for name, part in values}
        values, state = adamw(values, grads, state, lr=RATE)
        adapters = {name: one.replace(**{p: values[name, p] for p in LEARNED}) for name, one in adapters.items()}


def in_torch(folder: Path, ids: np.ndarray, steps: int) -> Iterator[float]:
    """The same with transformers, PEFT and torch's AdamW."""
    import peft
    import torch
    import transformers

    base = transformers.GPT2LMHeadModel.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float64)
    config = peft.RandLoraConfig(
        r=RANK,
        randlora_alpha=ALPHA,
        randlora_dropout=0.0,
        projection_prng_key=SEED,
        target_modules=["c_attn", "c_proj", "c_fc"],
        fan_in_fan_out=True,
    )
    model = peft.get_peft_model(base, config).double().eval()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    tokens = torch.from_numpy(ids)
    for _ in range(steps + 1):
        logits = model(input_ids=tokens).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        yield loss.item()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def save_model(folder: Path, quick: bool) -> int:
    """A random GPT-2, saved as transformers saves it; the size of its vocabulary."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    width, layers, vocabulary = (48, 2, 50) if quick else (192, 4, 500)
    sizes = {"n_embd": width, "n_head": 3, "n_layer": layers, "vocab_size": vocabulary, "n_positions": 64}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    model.save_pretrained(folder)
    return vocabulary


def main() -> int:
    """Train twice and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller model")
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vocabulary = save_model(folder, arguments.quick)
        ids = np.random.default_rng(0).integers(0, vocabulary, (4, 16 if arguments.quick else 48))
        pairs = list(zip(here(folder, ids, arguments.steps), in_torch(folder, ids, arguments.steps), strict=True))
    print(f"{'step':>4}  {'randlora_ref':>18}  {'torch + PEFT':>18}  {'difference':>10}")
    for step, (ours, theirs) in enumerate(pairs):
        print(f"{step:4}  {ours:18.14f}  {theirs:18.14f}  {abs(ours - theirs) / theirs:10.1e}")
    equal = all(abs(ours - theirs) <= 0.5e-10 * theirs for ours, theirs in pairs)
    falls = all(after[0] < before[0] for before, after in pairwise(pairs))
    print("equal to ten digits" if equal else "DIFFERENT within ten digits", "and falling" if falls else "")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
