"""Whole models against ``transformers`` and PEFT in float64: loss, logits, every gradient of adapters and weights.

``transformers`` falls to float32 in places even in a float64 model. ``exact`` cases replace those places (the loss,
Llama's norm and rotary angles) and agree to 1e-10; the cases as shipped agree to 1e-6.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from randlora_ref import models
from randlora_ref.adapters import LoRA, VeRA

pytestmark = [
    pytest.mark.crosscheck,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
SMALL = {"num_attention_heads": 3, "num_hidden_layers": 2, "bos_token_id": 0, "eos_token_id": 5, "pad_token_id": 1}
TEXT = {"hidden_size": 12, "intermediate_size": 20, "vocab_size": 17, "max_position_embeddings": 9}
VISION = {"hidden_size": 15, "intermediate_size": 22, "image_size": 8, "patch_size": 4}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 7.0,
    "low_freq_factor": 1.5,
    "high_freq_factor": 5.0,
    "original_max_position_embeddings": 40,
}
CONFIGS: dict[str, tuple[Any, str, str, dict[str, Any]]] = {  # ours, theirs, its configuration, its arguments
    "gpt2": (
        models.GPT2, "GPT2LMHeadModel", "GPT2Config",
        {"n_embd": 12, "n_head": 3, "n_layer": 2, "vocab_size": 17, "n_positions": 9, "eos_token_id": 5},
    ),
    "llama": (
        models.Llama, "LlamaForCausalLM", "LlamaConfig",
        SMALL | TEXT | {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4, "attention_bias": True},
    ),
    "llama tied": (
        models.Llama, "LlamaForCausalLM", "LlamaConfig",
        SMALL | TEXT | {"mlp_bias": True, "tie_word_embeddings": True, "rope_theta": 50.0},
    ),
    "llama 3": (
        models.Llama, "LlamaForCausalLM", "LlamaConfig",
        SMALL | TEXT | {"head_dim": 12, "num_key_value_heads": 1, "rope_theta": 30.0, "rope_scaling": LLAMA3},
    ),
    "llama linear, padding among the ids": (
        models.Llama, "LlamaForCausalLM", "LlamaConfig",
        SMALL | TEXT | {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 50.0},
                        "pad_token_id": 7},
    ),
    "llama tied, last row padding": (
        models.Llama, "LlamaForCausalLM", "LlamaConfig",
        SMALL | TEXT | {"tie_word_embeddings": True, "pad_token_id": -1},
    ),
    "vit": (models.ViT, "ViTForImageClassification", "ViTConfig", SMALL | VISION | {"num_labels": 4}),
    "clip": (
        models.CLIP, "CLIPModel", "CLIPConfig",
        {"text_config": SMALL | TEXT, "vision_config": SMALL | VISION, "projection_dim": 7},
    ),
    "clip largest token": (
        models.CLIP, "CLIPModel", "CLIPConfig",
        {"text_config": SMALL | TEXT | {"eos_token_id": 2}, "vision_config": SMALL | VISION, "projection_dim": 7},
    ),
}  # fmt: skip
RANDLORA = {"r": 3, "randlora_alpha": 6, "randlora_dropout": 0.0, "projection_prng_key": 5}
ALL_LINEAR = ["c_attn", "c_proj", "c_fc", "q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "gate_proj", "up_proj",
              "down_proj", "fc1", "fc2"]  # fmt: skip


def theirs(name: str, folder: Path, exact: bool) -> Any:
    """A random float64 model of ``transformers``, its checkpoint, and the map from saved names to its own."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from safetensors.numpy import load_file

    torch.manual_seed(1)
    _, model_class, config_class, arguments = CONFIGS[name]
    config = getattr(transformers, config_class)(**arguments, attn_implementation="sdpa")
    model = getattr(transformers, model_class)(config).double().eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            norm = "norm" in key or "ln_" in key or "layrnorm" in key
            parameter.copy_(0.2 * torch.randn_like(parameter) + (1.0 if norm and key.endswith("weight") else 0.0))
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    own = dict(model.named_parameters())
    parameters = {
        saved: next(p for p in own.values() if p.shape == array.shape and np.array_equal(p.detach().numpy(), array))
        for saved, array in weights.items()
    }
    if exact and name.startswith("llama"):
        _replace_float32(torch, model)
    return SimpleNamespace(
        torch=torch, model=model, weights=weights, parameters=parameters,
        config=json.loads((folder / "config.json").read_text(encoding="utf-8")),
    )  # fmt: skip


def _replace_float32(torch: Any, model: Any) -> None:
    """Llama's norm and rotary angles in float64."""

    def norm(self: Any, x: Any) -> Any:
        return self.weight * x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.variance_epsilon)

    def rotary(self: Any, x: Any, position_ids: Any) -> Any:
        config = self.config
        width, rope = config.head_dim, config.rope_parameters
        frequency = rope["rope_theta"] ** (-torch.arange(0, width, 2).double() / width)
        if rope["rope_type"] != "default":
            from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

            with patch.object(torch, "float", torch.float64):  # theirs, but for the dtype that it names
                frequency, scaling = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu")
            assert (frequency.dtype, scaling) == (torch.float64, 1.0)
        angles = torch.cat([position_ids.double()[:, :, None] * frequency] * 2, dim=-1)
        return angles.cos(), angles.sin()

    for child in model.modules():
        if type(child).__name__ == "LlamaRMSNorm":
            child.forward = norm.__get__(child)
        if type(child).__name__ == "LlamaRotaryEmbedding":
            child.forward = rotary.__get__(child)


def example(name: str) -> dict[str, Any]:
    """Inputs: padding on the right and, for one text, on the left; labels at padding ignored."""
    rng = np.random.default_rng(3)
    ids = rng.integers(6, 17, (3, 7))
    mask = np.ones_like(ids)
    mask[1, 5:], mask[2, :2] = 0, 0
    if name == "vit":
        return {"pixels": rng.standard_normal((3, 3, 8, 8)), "labels": np.array([0, 3, 3])}
    if name.startswith("clip"):
        ids[:, 4] = 5  # the end of the text
        return {"ids": ids, "attention_mask": mask, "pixels": rng.standard_normal((3, 3, 8, 8))}
    labels = np.where(mask == 1, ids, -100)
    labels[0, 3] = -100
    return {"ids": ids, "labels": labels, "attention_mask": mask}


def run_theirs(peer: Any, model: Any, inputs: dict[str, Any], exact: bool) -> tuple[float, Any]:
    """Loss and logits of theirs, gradients left in its parameters; the loss from float64 logits if ``exact``."""
    torch = peer.torch
    names = {"ids": "input_ids", "pixels": "pixel_values"}
    given = {names.get(key, key): torch.from_numpy(value) for key, value in inputs.items()}
    if "ids" in inputs and "pixels" in inputs:
        out = model(**given, return_loss=True)
        loss, logits = out.loss, out.logits_per_text
    else:
        out = model(**given)
        loss, logits = out.loss, out.logits
        if exact:
            labels = given["labels"]
            rows, labels = (
                (logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()) if "ids" in inputs else (logits, labels)
            )
            loss = torch.nn.functional.cross_entropy(rows, labels)
    loss.backward()
    return loss.item(), logits.detach().numpy()


def error(ours: Any, expected: Any, floor: float) -> float:
    """max|a − b| over max|b|, or over ``floor`` where b cancels to less (a key's bias: its true gradient is 0)."""
    ours, expected = np.asarray(ours), np.asarray(expected)
    assert ours.shape == expected.shape
    assert np.all(np.isfinite(ours))
    return float(np.max(abs(ours - expected)) / max(np.max(abs(expected)), floor))


def compare(
    name: str, peer: Any, wrapped: Any, adapters: dict[str, Any], learned: dict[str, Any], limit: float
) -> None:
    """Everything of one model, ours with ``adapters`` against ``wrapped``.

    ``learned`` maps our name of a learned value to a function from an adapted module of theirs to its gradient.
    """
    inputs = example(name)
    loss, logits = run_theirs(peer, wrapped, inputs, exact=limit < 1e-9)
    model = CONFIGS[name][0](peer.config, peer.weights, adapters)
    our_loss, cache = model.forward(**inputs)
    grads = model.backward(cache, weights=True)
    seen: Any = True  # theirs gives padding in front of the text some output, where ours has seen nothing
    if "labels" in inputs and "ids" in inputs:
        seen = inputs["attention_mask"][..., None] == 1
    assert abs(our_loss - loss) <= limit * abs(loss)
    assert error(np.where(seen, cache.logits, 0), np.where(seen, logits, 0), 0.0) <= limit
    scale = max(np.max(abs(p.grad.numpy())) for p in peer.parameters.values())
    if name.startswith(
        "clip"
    ):  # of vectors that are nearly alike its gradients are differences of numbers of this size
        scale = max(scale, np.exp(peer.weights["logit_scale"]) / len(inputs["ids"]))
    assert grads.weights is not None
    assert grads.weights.keys() == peer.parameters.keys()
    for key, parameter in peer.parameters.items():
        assert error(grads.weights[key], parameter.grad.numpy(), 1e-3 * scale) <= limit, key
    assert adapters
    modules = dict(wrapped.named_modules())
    for key in adapters:
        for our_name, gradient in learned.items():
            expected = gradient(modules[f"base_model.model.{key}"]).numpy()
            assert error(getattr(grads[key], our_name), expected, 1e-3 * scale) <= limit, (key, our_name)


def wrap(peer: Any, config: Any) -> tuple[Any, dict[str, Any]]:
    """The peer's model with PEFT's adapters in float64 and its adapted modules; learned values are drawn at random."""
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(peer.model, config).double().eval()
    with peer.torch.no_grad():
        for key, parameter in wrapped.named_parameters():
            if any(part in key for part in ("randlora_", "vera_lambda", "lora_")):
                parameter.copy_(0.15 * peer.torch.randn_like(parameter))
            parameter.requires_grad_(True)
    adapted = {key: one for key, one in wrapped.named_modules() if hasattr(one, "base_layer")}
    return wrapped, {key.removeprefix("base_model.model."): one for key, one in adapted.items()}


def values(module: Any, kind: str) -> Any:
    """PEFT's tensor of an adapted module as an array."""
    return module.get_parameter(kind).detach().numpy()


def randlora(name: str, folder: Path, limit: float, targets: list[str], **options: Any) -> None:
    """A model with RandLoRA in ``targets``, its bases drawn by us from PEFT's seed, its learned values PEFT's."""
    peft = pytest.importorskip("peft")
    peer = theirs(name, folder, exact=limit < 1e-9)
    fan = {"fan_in_fan_out": True} if name == "gpt2" else {}
    wrapped, adapted = wrap(peer, peft.RandLoraConfig(target_modules=targets, **RANDLORA, **fan, **options))
    config = CONFIGS[name][0].CONFIG.from_dict(peer.config)
    kind = next((kind for kind in ("sparse", "very_sparse") if options.get(kind)), "dense")
    start = models.adapt(config, list(adapted), rank=3, seed=5, alpha=6.0, kind=kind, dtype="float64")
    assert start.keys() == adapted.keys()
    adapters = {
        key: start[key].replace(
            lambda_=values(one, "randlora_lambda.default").T, gamma=values(one, "randlora_gamma.default")
        )
        for key, one in adapted.items()
    }
    learned = {
        "lambda_": lambda one: one.randlora_lambda["default"].grad.T,
        "gamma": lambda one: one.randlora_gamma["default"].grad,
    }
    compare(name, peer, wrapped, adapters, learned, limit)


@pytest.mark.parametrize("name", CONFIGS)
def test_randlora_in_every_linear_layer(name: str, tmp_path: Path) -> None:
    """All tensors to 1e-10, where theirs stays in float64."""
    randlora(name, tmp_path, 1e-10, ALL_LINEAR)


@pytest.mark.parametrize("name", [name for name in CONFIGS if "padding" not in name])
def test_as_shipped(name: str, tmp_path: Path) -> None:
    """With the places where theirs is in float32, all tensors to 1e-6; padding adds no such place."""
    randlora(name, tmp_path, 1e-6, ALL_LINEAR)


@pytest.mark.parametrize("kind", ["sparse", "very_sparse"])
def test_sparse_bases(kind: str, tmp_path: Path) -> None:
    randlora("gpt2", tmp_path, 1e-10, ALL_LINEAR, **{kind: True})


@pytest.mark.parametrize(
    ("name", "targets"),
    [("gpt2", ["c_attn"]), ("llama", ["q_proj", "down_proj"]), ("vit", ["fc1", "classifier"]),
     ("clip", ["visual_projection", "text_projection", "v_proj"]), ("llama", ["lm_head", "v_proj"])],
)  # fmt: skip
def test_some_linear_layers(name: str, targets: list[str], tmp_path: Path) -> None:
    """Any subset, heads and projections too."""
    randlora(name, tmp_path, 1e-10, targets)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_lora(name: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    peer = theirs(name, tmp_path, exact=True)
    fan = {"fan_in_fan_out": True} if name == "gpt2" else {}
    wrapped, adapted = wrap(peer, peft.LoraConfig(r=3, lora_alpha=5, target_modules=ALL_LINEAR, **fan))
    adapters = {}
    for key, one in adapted.items():
        A, B = values(one, "lora_A.default.weight"), values(one, "lora_B.default.weight")
        adapters[key] = LoRA(out_features=B.shape[0], in_features=A.shape[1], rank=3, A=A, B=B, alpha=5)
    learned = {
        "A": lambda one: one.lora_A["default"].weight.grad,
        "B": lambda one: one.lora_B["default"].weight.grad,
    }
    compare(name, peer, wrapped, adapters, learned, 1e-10)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_vera(name: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    peer = theirs(name, tmp_path, exact=True)
    fan = {"fan_in_fan_out": True} if name == "gpt2" else {}
    wrapped, adapted = wrap(peer, peft.VeraConfig(r=3, target_modules=ALL_LINEAR, projection_prng_key=5, **fan))
    modules = {one.name: one for one in CONFIGS[name][0].CONFIG.from_dict(peer.config).modules()}
    adapters = {}
    for key, one in adapted.items():
        out_features, in_features = modules[key].shape
        adapters[key] = VeRA(
            out_features=out_features,
            in_features=in_features,
            rank=3,
            A=one.vera_A["default"].numpy(),
            B=one.vera_B["default"].numpy(),
            lambda_b=values(one, "vera_lambda_b.default"),
            lambda_d=values(one, "vera_lambda_d.default"),
        )
    learned = {
        "lambda_b": lambda one: one.vera_lambda_b["default"].grad,
        "lambda_d": lambda one: one.vera_lambda_d["default"].grad,
    }
    compare(name, peer, wrapped, adapters, learned, 1e-10)


def test_the_comparison_can_fail(tmp_path: Path) -> None:
    """Another pairing, and a start in place of PEFT's learned values, are both seen."""
    peft = pytest.importorskip("peft")
    peer = theirs("gpt2", tmp_path, exact=True)
    wrapped, adapted = wrap(peer, peft.RandLoraConfig(target_modules=ALL_LINEAR, fan_in_fan_out=True, **RANDLORA))
    config = models.GPT2Config.from_dict(peer.config)
    start = models.adapt(config, list(adapted), rank=3, seed=5, alpha=6.0, dtype="float64")
    with pytest.raises(AssertionError):
        compare("gpt2", peer, wrapped, start, {}, 1e-6)


def fields_of(config: Any) -> dict[str, Any]:
    """A configuration's fields by name, a tower's under its own."""
    found = {key: value for key, value in vars(config).items() if not key.endswith("_config")}
    for key in ("text_config", "vision_config"):
        if hasattr(config, key):
            found |= {f"{key}.{part}": value for part, value in fields_of(getattr(config, key)).items()}
    return found


ALIASES = {"num_attention_heads": 3, "hidden_size": 12, "num_hidden_layers": 2, "max_position_embeddings": 9}
PLAIN = {"hidden_size": 96, "vocab_size": 50, "num_attention_heads": 4, "eos_token_id": 7}


@pytest.mark.parametrize(
    ("ours", "keys"),
    [
        (models.GPT2Config, {}),
        (models.GPT2Config, ALIASES | {"n_inner": 20}),
        (models.LlamaConfig, {}),
        (models.LlamaConfig, {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}, "rope_theta": 70.0}),
        (models.LlamaConfig, {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 70.0}),
        (models.LlamaConfig, {"rope_scaling": LLAMA3, "pad_token_id": 3}),
        (models.LlamaConfig, {"rope_scaling": LLAMA3 | {"rope_theta": 9.0}, "max_position_embeddings": 64}),
        (models.LlamaConfig, {"rope_scaling": {key: LLAMA3[key] for key in list(LLAMA3)[:4]}}),
        (models.LlamaConfig, {"model_type": "mistral", "sliding_window": None}),
        (models.LlamaConfig, {"model_type": "qwen2", "tie_word_embeddings": True, "num_key_value_heads": 2}),
        (models.ViTConfig, {}),
        (models.ViTConfig, {"id2label": {"0": "a", "1": "b", "2": "c"}}),
        (models.CLIPConfig, {}),
        (models.CLIPConfig, {"text_config_dict": {"hidden_size": 16}, "vision_config_dict": {"patch_size": 16}}),
        (models.CLIPConfig, {"text_config": PLAIN, "text_config_dict": {"hidden_size": 16}, "projection_dim": 7}),
        (models.CLIPConfig, {"text_config": PLAIN, "text_config_dict": {}}),
        (models.CLIPConfig, {"text_config": PLAIN | {"projection_dim": 9}, "vision_config": {"hidden_size": 24}}),
    ],
)
def test_configurations_are_read_alike(ours: Any, keys: dict[str, Any]) -> None:
    """Every field of ours has the value that theirs has, or its default where theirs has none."""
    transformers = pytest.importorskip("transformers")
    theirs = {"mistral": "MistralConfig", "qwen2": "Qwen2Config"}.get(keys.get("model_type", ""), ours.__name__)
    expected = getattr(transformers, theirs).from_dict(keys)
    flat = fields_of(expected)
    for key, value in fields_of(ours.from_dict(keys)).items():
        if key == "rope_theta":
            assert value == expected.rope_parameters["rope_theta"]
        elif key == "rope_scaling":
            scaling = {
                part: x for part, x in (vars(value) if value else {}).items() if part in expected.rope_parameters
            }
            assert scaling.items() <= expected.rope_parameters.items()
            assert (value is None) == (expected.rope_parameters["rope_type"] == "default")
        elif key in ("num_labels", "model_type"):
            assert value == getattr(expected, key)
        elif theirs in ("MistralConfig", "Qwen2Config") and key in ("attention_bias", "mlp_bias"):
            assert value is False
        else:
            assert value is None or flat[key] == value, key


@pytest.mark.parametrize("name", ["gpt2", "llama", "llama tied", "vit", "clip"])
def test_all_linear(name: str, tmp_path: Path) -> None:
    """PEFT's "all-linear" takes ViT's classifier and CLIP's projections, no language model's head, tied or not."""
    peft = pytest.importorskip("peft")
    peer = theirs(name, tmp_path, exact=False)
    _, adapted = wrap(peer, peft.RandLoraConfig(target_modules="all-linear", **RANDLORA))
    config = CONFIGS[name][0].CONFIG.from_dict(peer.config)
    assert models.adapt(config, "all-linear", rank=3).keys() == adapted.keys()
