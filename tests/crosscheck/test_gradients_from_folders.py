"""From the folders of ``transformers`` and the real PEFT to the loss and its gradients, each method on each model.

Float32 checkpoints and adapters as they are saved, read in float64: the loss, logits and gradients of all that is
learned are those of the live models in float64. So are ranks and counts of the folders.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from randlora_ref import cli, load_peft, models, save_peft

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

pytestmark = [
    pytest.mark.crosscheck,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
LIMIT = 1e-5  # theirs computes in float32 in places, in a float64 model too, and weights here are large
SMALL = {"num_attention_heads": 3, "num_hidden_layers": 2, "bos_token_id": 0, "eos_token_id": 5, "pad_token_id": 1}
TEXT = {"hidden_size": 12, "intermediate_size": 20, "vocab_size": 17, "max_position_embeddings": 9}
GROUPED = SMALL | TEXT | {"num_attention_heads": 6, "num_key_value_heads": 2}
VISION = {"hidden_size": 15, "intermediate_size": 22, "image_size": 8, "patch_size": 4}
MODELS: dict[str, tuple[Any, str, dict[str, Any], list[str]]] = {  # ours, theirs, its configuration, modules to adapt
    "gpt2": (
        models.GPT2, "GPT2LMHeadModel",
        {"n_embd": 12, "n_head": 3, "n_layer": 2, "vocab_size": 17, "n_positions": 9, "eos_token_id": 5},
        ["c_attn", "c_proj", "c_fc"],
    ),
    "llama": (models.Llama, "LlamaForCausalLM", GROUPED, ["q_proj", "k_proj", "o_proj", "up_proj", "down_proj"]),
    "llama tied": (models.Llama, "LlamaForCausalLM", GROUPED | {"tie_word_embeddings": True}, ["v_proj", "gate_proj"]),
    "mistral": (models.Llama, "MistralForCausalLM", GROUPED | {"sliding_window": None}, ["q_proj", "down_proj"]),
    "qwen2": (models.Llama, "Qwen2ForCausalLM", GROUPED, ["q_proj", "v_proj", "o_proj", "down_proj"]),
    "vit": (models.ViT, "ViTForImageClassification", SMALL | VISION | {"num_labels": 4}, ["q_proj", "o_proj", "fc1"]),
    "clip": (
        models.CLIP, "CLIPModel",
        {"text_config": SMALL | TEXT, "vision_config": SMALL | VISION, "projection_dim": 7},
        ["q_proj", "out_proj", "fc2", "visual_projection"],
    ),
}  # fmt: skip
METHODS: dict[str, tuple[str, dict[str, Any], dict[str, tuple[str, bool]]]] = {  # by learned value: PEFT's, transposed
    "randlora": (
        "RandLoraConfig",
        {"r": 3, "randlora_alpha": 6, "randlora_dropout": 0.0, "projection_prng_key": 5},
        {"lambda_": ("randlora_lambda.default", True), "gamma": ("randlora_gamma.default", False)},
    ),
    "lora": (
        "LoraConfig",
        {"r": 3, "lora_alpha": 5},
        {"A": ("lora_A.default.weight", False), "B": ("lora_B.default.weight", False)},
    ),
    "vera": (
        "VeraConfig",
        {"r": 3, "projection_prng_key": 5},
        {"lambda_b": ("vera_lambda_b.default", False), "lambda_d": ("vera_lambda_d.default", False)},
    ),
}
LEARNED = ("randlora_lambda", "randlora_gamma", "vera_lambda", "lora_")


def built(name: str, method: str | None, folder: Path, dtype: Any = None, **options: Any) -> Any:
    """A random model of ``transformers`` saved in ``folder``/base, PEFT's adapter of it in ``folder``/adapter."""
    ours, model_class, arguments, targets = MODELS[name]
    torch.manual_seed(1)
    model_type = getattr(transformers, model_class)
    model = model_type(model_type.config_class(**arguments)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            norm = "norm" in key or "ln_" in key or "layrnorm" in key
            parameter.copy_(0.2 * torch.randn_like(parameter) + (1.0 if norm and key.endswith("weight") else 0.0))
    model = model if dtype is None else model.to(dtype)
    model.save_pretrained(folder / "base")
    if method is None:
        return SimpleNamespace(ours=ours, model_type=model_type, base=folder / "base", model=model)
    config_class, settings, learned = METHODS[method]
    fan = {"fan_in_fan_out": True} if name == "gpt2" else {}
    settings = settings | {"target_modules": targets} | fan | options
    wrapped = peft.get_peft_model(model, getattr(peft, config_class)(**settings)).eval()
    with torch.no_grad():
        for key, parameter in wrapped.named_parameters():
            if any(part in key for part in LEARNED):
                parameter.copy_(0.3 * torch.randn_like(parameter))
            elif parameter.requires_grad:  # trained beside the adapter
                parameter.add_(0.1 * torch.randn_like(parameter))
    wrapped.save_pretrained(folder / "adapter")
    return SimpleNamespace(
        ours=ours, model_type=model_type, base=folder / "base", adapter=folder / "adapter", model=wrapped,
        learned=learned,
    )  # fmt: skip


def example(name: str, dtype: str = "float64") -> dict[str, Any]:
    """Inputs of a model, padding on the right."""
    rng = np.random.default_rng(3)
    ids, pixels = rng.integers(6, 17, (3, 7)), rng.standard_normal((3, 3, 8, 8)).astype(dtype)
    if name == "vit":
        return {"pixels": pixels, "labels": np.array([0, 3, 3])}
    mask = np.ones_like(ids)
    mask[1, 5:] = 0
    if name == "clip":
        ids[:, 4] = 5  # the end of the text
        return {"ids": ids, "attention_mask": mask, "pixels": pixels}
    return {"ids": ids, "labels": np.where(mask == 1, ids, -100), "attention_mask": mask}


def run(model: Any, inputs: dict[str, Any]) -> tuple[Any, Any]:
    """The loss and the logits of one of theirs."""
    names = {"ids": "input_ids", "pixels": "pixel_values"}
    given = {names.get(key, key): torch.from_numpy(value) for key, value in inputs.items()}
    out = model(**given, **({"return_loss": True} if {"ids", "pixels"} <= inputs.keys() else {}))
    return out.loss, getattr(out, "logits_per_text", None) if "pixels" in inputs and "ids" in inputs else out.logits


def near(ours: Any, expected: Any, floor: float = 0.0, limit: float = LIMIT) -> bool:
    """Whether two arrays agree to ``limit`` of the largest entry, or of ``floor``."""
    ours, expected = np.asarray(ours), np.asarray(expected)
    assert ours.shape == expected.shape
    return bool(np.max(np.abs(ours - expected)) <= limit * max(np.max(np.abs(expected)), floor))


def agree(name: str, peer: Any, model: Any) -> None:
    """Logits, loss and every gradient of what is learned; ``model`` is ours in float64."""
    inputs, wrapped = example(name), peer.model.double()
    for parameter in wrapped.parameters():
        parameter.grad = None
    loss, logits = run(wrapped, inputs)
    loss.backward()
    our_loss, cache = model.forward(**inputs)
    grads = model.backward(cache)
    seen = inputs["attention_mask"][..., None] == 1 if "labels" in inputs and "ids" in inputs else True
    assert near(np.where(seen, cache.logits, 0), np.where(seen, logits.detach().numpy(), 0))
    assert abs(our_loss - loss.item()) <= LIMIT * abs(loss.item())
    adapted = {key: one for key, one in wrapped.named_modules() if hasattr(one, "base_layer")}
    adapted = {key.removeprefix("base_model.model."): one for key, one in adapted.items() if "merged" in dir(one)}
    assert model.adapters.keys() == adapted.keys()
    expected = {
        (key, ours): (one.get_parameter(path).grad.T if turned else one.get_parameter(path).grad).numpy()
        for key, one in adapted.items()
        for ours, (path, turned) in peer.learned.items()
    }
    floor = 1e-3 * max(np.max(np.abs(value)) for value in expected.values())
    assert floor > 0
    for (key, ours), value in expected.items():
        assert near(getattr(grads[key], ours), value, floor), (key, ours)


PAIRS = [(name, method) for name in MODELS for method in METHODS]


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_a_checkpoint_with_an_adapter(name: str, method: str, tmp_path: Path) -> None:
    """From two folders to logits and gradients; the base alone computes something else."""
    peer = built(name, method, tmp_path)
    agree(name, peer, peer.ours.from_pretrained(peer.base, adapter=peer.adapter, dtype="float64"))
    plain = peer.ours.from_pretrained(str(peer.base), dtype="float64")
    with pytest.raises(AssertionError):
        agree(name, peer, plain)


def test_merging_into_float16_rounds_once(tmp_path: Path) -> None:
    """W0 + ΔW is added in float32, as torch adds float32 numbers, and rounded at the end."""
    peer = built("llama", "randlora", tmp_path, dtype=torch.float16)
    model = peer.ours.from_pretrained(peer.base, adapter=peer.adapter)
    for key, x in model.merge(dtype="float16").items():
        name = key.removesuffix(".weight")
        wide = torch.from_numpy(np.array(model.weights[key]))
        if name in model.adapters:
            wide = wide + torch.from_numpy(np.array(model.adapters[name].delta_weight()))
        assert np.array_equal(x, wide.half().numpy()), key


@pytest.mark.parametrize("method", METHODS)
def test_trained_biases_are_kept(method: str, tmp_path: Path) -> None:
    peer = built("gpt2", method, tmp_path, bias=f"{method}_only")
    agree("gpt2", peer, peer.ours.from_pretrained(peer.base, adapter=peer.adapter, dtype="float64"))
    save_peft(load_peft(peer.adapter), tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(peer.model_type.from_pretrained(peer.base), tmp_path / "ours").eval()
    assert near(run(again.double(), example("gpt2"))[1].detach(), run(peer.model.double(), example("gpt2"))[1].detach())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("name", "kept"), [("vit", "classifier"), ("llama", "lm_head")])
def test_modules_to_save_are_kept(name: str, kept: str, method: str, tmp_path: Path) -> None:
    peer = built(name, method, tmp_path, modules_to_save=[kept])
    agree(name, peer, peer.ours.from_pretrained(peer.base, adapter=peer.adapter, dtype="float64"))
    save_peft(load_peft(peer.adapter), tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(peer.model_type.from_pretrained(peer.base), tmp_path / "ours").eval()
    inputs = example(name)
    assert near(run(again.double(), inputs)[1].detach(), run(peer.model.double(), inputs)[1].detach())


@pytest.mark.parametrize("method", METHODS)
def test_ranks_and_counts_of_a_folder(method: str, tmp_path: Path, capsys: Any) -> None:
    """Each layer in its own shape, in natural order; the count is that of PEFT's trainable values."""
    peer = built("gpt2", method, tmp_path)
    assert cli.main(["rank", str(peer.adapter), "--base", str(peer.base), "--json"]) == 0
    certificates = json.loads(capsys.readouterr().out)["certificates"]
    modules = [f"transformer.h.{i}.{name}" for i in range(2) for name in
               ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]  # fmt: skip
    assert list(certificates) == modules
    deltas = {
        key: peer.model.get_submodule(f"base_model.model.{key}").get_delta_weight("default").detach().double().numpy()
        for key in modules
    }
    for key, one in certificates.items():
        assert one["rank"] == np.linalg.matrix_rank(deltas[key], tol=1e-5 * np.linalg.norm(deltas[key], 2)), key
    assert cli.main(["count", str(peer.adapter), "--json"]) == 0
    trained = sum(p.numel() for p in peer.model.parameters() if p.requires_grad)
    assert str(trained) in capsys.readouterr().out


def test_left_padding_with_position_ids(tmp_path: Path) -> None:
    """GPT-2 as ``generate`` runs it: positions count what is no padding; loss, logits and every weight's gradient."""
    peer = built("gpt2", None, tmp_path)
    inputs = example("gpt2")
    mask = np.ones_like(inputs["ids"])
    mask[0, :3], mask[2, :2] = 0, 0
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    inputs |= {"attention_mask": mask, "labels": np.where(mask == 1, inputs["ids"], -100), "position_ids": positions}
    loss, logits = run(peer.model.double(), inputs)
    loss.backward()
    model = peer.ours.from_pretrained(peer.base, dtype="float64")
    our_loss, cache = model.forward(**inputs)
    seen = mask[..., None] == 1
    assert near(np.where(seen, cache.logits, 0), np.where(seen, logits.detach().numpy(), 0))
    assert abs(our_loss - loss.item()) <= LIMIT * loss.item()
    weights, own = model.backward(cache, weights=True).weights, dict(peer.model.named_parameters())
    for key, value in weights.items():
        assert near(value, own[key].grad.numpy(), 1e-2), key
    without = model.forward(**{key: x for key, x in inputs.items() if key != "position_ids"})[1]
    assert not near(np.where(seen, without.logits, 0), np.where(seen, logits.detach().numpy(), 0))
