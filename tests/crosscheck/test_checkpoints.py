"""Checkpoints of the real ``transformers`` and adapters of the real PEFT, from their folders and live, and back.

Each method on each model, random weights of every kind, in float64: logits are compared, and the merged weights loaded
by ``transformers``. Nothing is fetched.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from randlora_ref import models
from randlora_ref.interop import load_peft, save_peft

pytestmark = [
    pytest.mark.crosscheck,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
SMALL = {"num_attention_heads": 4, "num_hidden_layers": 2, "hidden_size": 12, "intermediate_size": 20}
IDS = {"bos_token_id": 0, "eos_token_id": 5, "pad_token_id": 1}
TEXT = SMALL | IDS | {"vocab_size": 17, "max_position_embeddings": 9}
VISION = SMALL | {"image_size": 8, "patch_size": 4}
MODELS: dict[str, tuple[Any, str, str, dict[str, Any], list[str]]] = {  # ours, theirs, arguments, what is adapted
    "gpt2": (
        models.GPT2, "GPT2LMHeadModel", "GPT2Config",
        {"n_embd": 12, "n_head": 3, "n_layer": 2, "vocab_size": 17, "n_positions": 9, "eos_token_id": 5},
        ["c_attn", "c_proj", "c_fc"],
    ),
    "llama": (
        models.Llama, "LlamaForCausalLM", "LlamaConfig", TEXT | {"num_key_value_heads": 2, "head_dim": 4},
        ["q_proj", "v_proj", "up_proj", "down_proj"],
    ),
    "mistral": (
        models.Llama, "MistralForCausalLM", "MistralConfig",
        TEXT | {"num_key_value_heads": 2, "head_dim": 4, "sliding_window": None}, ["q_proj", "o_proj"],
    ),
    "qwen2": (
        models.Llama, "Qwen2ForCausalLM", "Qwen2Config", TEXT | {"num_key_value_heads": 2, "head_dim": 4},
        ["q_proj", "k_proj", "down_proj"],
    ),
    "vit": (
        models.ViT, "ViTForImageClassification", "ViTConfig", VISION | {"num_labels": 4},
        ["q_proj", "v_proj", "fc1", "fc2"],
    ),
    "clip": (
        models.CLIP, "CLIPModel", "CLIPConfig", {"text_config": TEXT, "vision_config": VISION, "projection_dim": 7},
        ["q_proj", "out_proj", "fc1", "text_projection"],
    ),
}  # fmt: skip
METHODS = {
    "randlora": ("RandLoraConfig", {"r": 3, "randlora_alpha": 6, "projection_prng_key": 5}),
    "lora": ("LoraConfig", {"r": 3, "lora_alpha": 5}),
    "vera": ("VeraConfig", {"r": 3, "projection_prng_key": 5}),
}


@pytest.fixture(autouse=True)
def _frameworks() -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("peft")


def random(model: Any, among: str = "") -> Any:
    """``model`` in float64, parameters random whose name has ``among`` in it."""
    import torch

    with torch.no_grad():
        for key, parameter in model.double().eval().named_parameters():
            norm = ("norm" in key or "ln_" in key) and key.endswith("weight")
            if among in key:
                parameter.copy_(0.2 * torch.randn_like(parameter) + norm)
    return model


def base(name: str, **keys: Any) -> Any:
    import torch
    import transformers

    torch.manual_seed(1)
    _, model_class, config_class, arguments, _ = MODELS[name]
    config = getattr(transformers, config_class)(**arguments | keys, attn_implementation="sdpa")
    return random(getattr(transformers, model_class)(config))


def adapted(model: Any, method: str, among: str | None = None, **keys: Any) -> Any:
    """PEFT's model around ``model``, learned values random: the adapter's, or those that have ``among`` in the name."""
    import peft

    config_class, arguments = METHODS[method]
    return random(peft.get_peft_model(model, getattr(peft, config_class)(**arguments | keys)), among or f"{method}_")


def inputs(name: str) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    given: dict[str, Any] = {}
    if name != "vit":
        given["ids"] = rng.integers(6, 17, (2, 7))
        given["ids"][:, 5] = 5
    if name in ("vit", "clip"):
        given["pixels"] = rng.standard_normal((2, 3, 8, 8))
    return given


def theirs(model: Any, given: dict[str, Any]) -> Any:
    import torch

    names = {"ids": "input_ids", "pixels": "pixel_values"}
    with torch.no_grad():
        out = model(**{names.get(key, key): torch.tensor(x) for key, x in given.items()})
    return (out.logits if hasattr(out, "logits") else out.logits_per_text).numpy()


def ours(model: Any, name: str, given: dict[str, Any]) -> Any:
    logits = model.forward(**given)[1].logits
    return logits if name != "clip" else logits.reshape(2, 2)


def close(found: Any, right: Any) -> None:
    """To what ``transformers`` computes in float32 inside its float64 models."""
    assert found.shape == right.shape
    assert np.max(np.abs(found - right)) <= 2e-6 * np.max(np.abs(right))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_from_folders_live_and_back(name: str, method: str, tmp_path: Path) -> None:
    """The same logits from the folders, from the live state dict, in PEFT from what we write, and merged."""
    import peft
    import transformers
    from safetensors.numpy import save_file

    kind, model_class, _, _, targets = MODELS[name]
    base(name).save_pretrained(tmp_path / "base")
    model, given = adapted(base(name), method, target_modules=targets), inputs(name)
    model.save_pretrained(tmp_path / "adapter")
    right = theirs(model, given)
    assert np.max(np.abs(right - theirs(base(name), given))) > 1e-3
    read = kind.from_pretrained(tmp_path / "base", adapter=tmp_path / "adapter")
    assert len(read.adapters) == len(load_peft(tmp_path / "adapter").modules) > 1
    close(ours(read, name, given), right)
    live = kind.from_state_dict(model.config, model.state_dict(), adapter=model.peft_config["default"])
    close(ours(live, name, given), right)
    for saved, x in read.weights.items():
        np.testing.assert_array_equal(live.weights[saved], x)

    save_peft(load_peft(tmp_path / "adapter"), tmp_path / "written")
    again = peft.PeftModel.from_pretrained(base(name), str(tmp_path / "written")).double()
    np.testing.assert_array_equal(theirs(again, given), right)

    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "config.json").write_text((tmp_path / "base" / "config.json").read_text())
    save_file(read.merge(), tmp_path / "merged" / "model.safetensors", metadata={"format": "pt"})
    merged, report = getattr(transformers, model_class).from_pretrained(
        tmp_path / "merged", output_loading_info=True, dtype="float64"
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    close(theirs(merged.eval(), given), right)
