"""What each public call costs on CuPy: kernels started, products handed to cuBLAS, copies to the host.

``launches.json`` holds the numbers for each version of CuPy, at the sizes below; a test compares. Forward and backward
passes are counted apart. The numbers are CuPy's own and do not depend on what NumPy computes in the kernels' place.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from randlora_ref import adapters, draw_bases, models, nn, optim

RECORD = Path(__file__).with_name("launches.json")
OUT, IN, RANK, ROWS = 12, 20, 4, 64
LAYERS = {"intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 3}
TEXT = LAYERS | {"hidden_size": 12, "vocab_size": 13, "max_position_embeddings": 7}
VISION = LAYERS | {"hidden_size": 15, "image_size": 8, "patch_size": 4}
MODELS: dict[str, dict[str, Any]] = {
    "GPT2": {"vocab_size": 13, "n_positions": 7, "n_embd": 12, "n_layer": 2, "n_head": 3},
    "Llama": TEXT | {"num_key_value_heads": 1},
    "ViT": VISION | {"num_labels": 5},
    "CLIP": {"text_config": TEXT | {"eos_token_id": 5}, "vision_config": VISION, "projection_dim": 7},
}


class Ledger:
    """Calls by name and what each took; arrays for them."""

    def __init__(self, cupy: Any, counts: Callable[[], dict[str, int]]) -> None:
        self.cupy, self.counts, self.rows = cupy, counts, dict[str, dict[str, int]]()
        self.rng = np.random.default_rng(0)

    def __call__(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The result of ``call``, which is entered under ``name``."""
        before = self.counts()
        result = call(*args, **kwargs)
        self.rows[name] = {key: number - before[key] for key, number in self.counts().items()}
        return result

    def normal(self, *shape: int) -> Any:
        """A float32 array."""
        return self.cupy.asarray(self.rng.standard_normal(shape).astype(np.float32))

    def integers(self, most: int, *shape: int) -> Any:
        """An int64 array of values below ``most``."""
        return self.cupy.asarray(self.rng.integers(0, most, shape))


def parts(ledger: Ledger) -> None:
    """Every function of ``nn``."""

    def pair(name: str, back: str, *args: Any, note: str = "", **kwargs: Any) -> Any:
        y, cache = ledger(f"nn.{name}{note}", getattr(nn, name), *args, **kwargs)
        if back:
            ledger(f"nn.{back}{note}", getattr(nn, back), ledger.normal(*y.shape), cache)
        return cache

    normal = ledger.normal
    x = normal(2, 5, 12)
    pair("linear", "linear_backward", x, normal(7, 12), normal(7))
    for name in ("layer_norm", "rms_norm"):
        cache = pair(name, "", x, normal(12), normal(12), 1e-5)
        ledger(f"nn.norm_backward of {name}", nn.norm_backward, x, cache, weight_grad=True)
    for kind in ("gelu", "gelu_tanh", "quick_gelu", "silu"):
        pair("activation", "activation_backward", x, kind, note=f" {kind}")
    ledger("nn.erf", nn.erf, x)
    pair("gated", "gated_backward", x, x)
    pair("normalize", "normalize_backward", x)
    pair("embedding", "embedding_backward", ledger.integers(13, 2, 5), normal(13, 12))
    pair("patches", "patches_backward", normal(2, 3, 8, 8), 4)
    tables = ledger("nn.rotary_tables", nn.rotary_tables, x, 5, 4, 100.0)
    pair("rotary", "rotary_backward", normal(2, 6, 5, 4), tables)
    padding = ledger.cupy.asarray(np.array([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]]))
    mask = ledger("nn.additive_mask", nn.additive_mask, x, 5, causal=True, mask=padding)
    q, k, v = normal(2, 6, 5, 4), normal(2, 3, 5, 4), normal(2, 3, 5, 4)
    pair("attention", "attention_backward", q, k, v, mask)
    labels = ledger.integers(13, 10)
    ledger("nn.check_range", nn.check_range, labels=(labels, 13, -100))
    _, cache = ledger("nn.cross_entropy", nn.cross_entropy, normal(10, 13), labels)
    ledger("nn.cross_entropy_backward", nn.cross_entropy_backward, cache)
    _, cache = ledger("nn.contrastive", nn.contrastive, normal(4, 3), normal(4, 3), normal())
    ledger("nn.contrastive_backward", nn.contrastive_backward, cache)
    plain = {"heads": 3, "key_heads": 3, "eps": 1e-5, "activation": "gelu_tanh", "fused": True}
    grouped = {"heads": 3, "key_heads": 1, "eps": 1e-5, "activation": "silu", "centred": False, "gated": True}
    for note, kind in ((" of GPT-2", plain), (" of Llama", grouped)):
        spec = nn.BlockSpec(width=12, hidden=20, head_width=4, **kind)
        parameters = {role: (normal(*shape), None) for role, shape in spec.shapes().items()}
        parameters |= {role: (normal(12), None) for role in ("norm1", "norm2")}
        turned = nn.rotary_tables(x, 5, 4, 100.0) if "gated" in kind else None
        pair("block", "block_backward", x, spec, parameters, {}, mask, turned, note=note)


def layers(ledger: Ledger) -> None:
    """Every adapter: its start, a pass each way, what it can do with a weight; RandLoRA's orders of contraction."""
    cupy, methods = ledger.cupy, dict[str, Callable[..., Any]]()
    for dialect in ("paper", "peft"):
        methods[f"RandLoRA {dialect}"] = lambda dialect=dialect, **where: adapters.RandLoRA.start(
            OUT, IN, RANK, dialect=dialect, **where
        )
    for kind in (adapters.LoRA, adapters.VeRA, adapters.RandLoRAa):
        methods[kind.__name__] = lambda kind=kind, **where: kind.start(OUT, IN, RANK, **where)
    methods["NoLA"] = lambda **where: adapters.NoLA.start(OUT, IN, RANK, num_bases=3, **where)
    methods["FullFineTuning"] = lambda **where: adapters.FullFineTuning.start(OUT, IN, **where)
    methods["randlora_b"] = lambda **where: adapters.randlora_b(OUT, IN, RANK, **where)
    x, weight, dy = ledger.normal(ROWS, IN), ledger.normal(OUT, IN), ledger.normal(ROWS, OUT)
    for name, start in methods.items():
        layer = ledger(f"{name}, start", start, xp=cupy, device=cupy.cuda.Device())
        orders = ("merged", "thin", "termwise") if name.startswith("RandLoRA ") else ("",)
        for order in orders:
            one = replace(layer, order=order) if order else layer
            _, cache = ledger(f"{name}, forward {order}".rstrip(), one.forward, x, weight)
            ledger(f"{name}, backward {order}".rstrip(), one.backward, dy, cache)
        ledger(f"{name}, delta_weight", layer.delta_weight)
        ledger(f"{name}, merge", layer.merge, weight)


def whole_models(ledger: Ledger) -> None:
    """Every model with RandLoRA in all linear modules of its blocks: a pass each way."""
    for name, keys in MODELS.items():
        kind = getattr(models, name)
        config = kind.CONFIG.from_dict(keys)
        shapes = {saved: shape for one in config.modules() for saved, shape in one.tensors.values()}
        bare = kind(config, {saved: ledger.normal(*shape) for saved, shape in shapes.items()})
        model = bare.replace(ledger(f"{name}, adapt", models.adapt, bare, rank=3, dialect="paper"))
        ids, pixels = ledger.integers(13, 3, 6), ledger.normal(3, 3, 8, 8)
        given = {"GPT2": (ids, ids), "Llama": (ids, ids), "ViT": (pixels, ledger.integers(5, 3)), "CLIP": (ids, pixels)}
        _, cache = ledger(f"{name}, forward", model.forward, *given[name])
        ledger(f"{name}, backward", model.backward, cache)
        ledger(f"{name}, backward to weights and inputs", model.backward, cache, weights=True, inputs=True)


def steps_and_bases(ledger: Ledger) -> None:
    """An optimiser's step of one tensor, its first and any later one; drawing bases."""
    values, grads = {"a": ledger.normal(3, 4)}, {"a": ledger.normal(3, 4)}
    for name, step in (("sgd", optim.sgd), ("adamw", optim.adamw)):
        options = {"momentum": 0.9} if name == "sgd" else {}
        _, state = ledger(f"optim.{name}, first step", step, values, grads, lr=0.1, **options)
        ledger(f"optim.{name}, later step", step, values, grads, state, lr=0.1, **options)
    for dialect, kind in (("paper", "dense"), ("paper", "sparse"), ("peft", "dense")):
        where = {"shapes": [(OUT, IN)], "rank": RANK, "kind": kind, "xp": ledger.cupy}
        ledger(f"draw_bases {dialect} {kind}", draw_bases, dialect, **where)


def report(stand_in: Any, write: bool) -> None:
    """Prints every row as JSON; ``write`` puts them into the record, under the version of CuPy."""
    ledger = Ledger(stand_in.cupy, stand_in.counts)
    for measure in (parts, layers, whole_models, steps_and_bases):
        measure(ledger)
    print(json.dumps(ledger.rows))
    if write:
        record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
        record[stand_in.cupy.__version__] = ledger.rows
        versions = []
        for version, rows in sorted(record.items()):
            lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
            versions.append(f"  {json.dumps(version)}: {{\n{lines}\n  }}")
        RECORD.write_text("{\n" + ",\n".join(versions) + "\n}\n")
