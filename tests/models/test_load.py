"""Checkpoints and state dicts with adapters: the same model as from its arrays, and every fault named.

That `transformers` and PEFT compute the same of the same folders is in ``tests/crosscheck``.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import folders
import numpy as np
import pytest

from randlora_ref import models

from .small import MODELS, build

TYPES = {"GPT-2": "gpt2", "Llama": "llama", "ViT": "vit", "CLIP": "clip"}
SAVED = {"Llama": {"mlp_bias": True}}


def checkpoint(folder: Path, name: str, shards: int = 1, dtype: str = "float64", **keys: Any) -> tuple[Any, ...]:
    """The class, the folder, weights in ``dtype`` and inputs."""
    kind, _, weights, given = build(name, **keys)
    weights = {saved: x.astype(dtype) for saved, x in weights.items()}
    keys = {"model_type": TYPES[name], **MODELS[name][1], **keys}
    return kind, folders.checkpoint(folder, keys, weights, shards), weights, given


def logits(model: Any, given: dict[str, Any]) -> Any:
    return model.forward(**given)[1].logits


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_is_the_model_of_its_arrays(name: str, shards: int, tmp_path: Path) -> None:
    kind, folder, weights, given = checkpoint(tmp_path, name, shards)
    read = kind.from_pretrained(folder)
    for saved, x in weights.items():
        np.testing.assert_array_equal(read.weights[saved], x)
    np.testing.assert_array_equal(logits(read, given), logits(build(name)[0](read.config, weights), given))


@pytest.mark.parametrize("method", folders.CONFIGS)
@pytest.mark.parametrize("name", MODELS)
def test_an_adapter_is_on_its_modules_and_merges(name: str, method: str, tmp_path: Path) -> None:
    """Beside the weights and merged into them the logits are the same, and laid out as files are."""
    kind, folder, _, given = checkpoint(tmp_path, name)
    shapes = {one: shape for one, shape in models.layer_shapes(folder).items() if "mlp.fc1" in one or "c_proj" in one}
    shapes = shapes or dict(list(models.layer_shapes(folder).items())[2:5])
    shapes = {one: shape for one, shape in shapes.items() if "vit.enc" not in one and one in models_of(kind, folder)}
    adapter = folders.adapter(tmp_path / "adapter", method, folders.tensors(method, shapes))
    model = kind.from_pretrained(folder, adapter=adapter)
    assert model.adapters.keys() == shapes.keys()
    with_adapters = logits(model, given)
    assert np.max(np.abs(with_adapters - logits(kind.from_pretrained(folder), given))) > 1e-4
    merged = model.merge()
    assert all(x.flags.c_contiguous and x.shape == model.weights[saved].shape for saved, x in merged.items())
    np.testing.assert_allclose(logits(kind(model.config, merged), given), with_adapters, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match=r"adapter.*no linear module of the base model"):
        kind.from_pretrained(folder, adapter=rename(adapter, "layers", "strata"))


def models_of(kind: Any, folder: Path) -> set[str]:
    return {one.name for one in kind.CONFIG.from_dict(json.loads((folder / "config.json").read_text())).modules()}


def rename(folder: Path, old: str, new: str) -> Path:
    """The adapter with other module names."""
    from randlora_ref.interop.tensors import read_tensors

    path = folder / "adapter_model.safetensors"
    folders.write(path, {key.replace(old, new).replace(".h.", ".strata."): x for key, x in read_tensors(path).items()})
    return folder


@pytest.mark.parametrize(("saved", "asked", "found"), [
    ("float16", None, "float32"), ("float32", None, "float32"), ("float64", None, "float64"),
    ("float64", "float32", "float32"), ("float16", "float64", "float64"),
])  # fmt: skip
def test_precisions(saved: str, asked: Any, found: str, tmp_path: Path) -> None:
    """Half precisions come as float32 unless something else is asked for."""
    kind, folder, weights, _ = checkpoint(tmp_path, "GPT-2", dtype=saved)
    read = kind.from_pretrained(folder, dtype=asked)
    for name, x in weights.items():
        assert read.weights[name].dtype == found
        np.testing.assert_array_equal(read.weights[name], x.astype(found))
    with pytest.raises(ValueError, match="dtype: 'float16'; it must be one of None, float32, float64"):
        kind.from_pretrained(folder, dtype="float16")


def test_bfloat16_comes_value_for_value(tmp_path: Path) -> None:
    kind, folder, weights, _ = checkpoint(tmp_path, "Llama", dtype="float32")
    bits = {name: (x.view(np.uint32) >> 16).astype(np.uint16) for name, x in weights.items()}
    folders.write(folder / "model.safetensors", bits)
    for name, x in kind.from_pretrained(folder).weights.items():
        np.testing.assert_array_equal(x.view(np.uint32), bits[name].astype(np.uint32) << 16)


def test_any_library_and_device(library: Any, tmp_path: Path) -> None:
    kind, folder, weights, _ = checkpoint(tmp_path, "ViT")
    shapes = {"vit.layers.0.mlp.fc1": (20, 15)}
    adapter = folders.adapter(tmp_path / "adapter", "randlora", folders.tensors("randlora", shapes))
    model = kind.from_pretrained(folder, adapter=adapter, xp=library.xp, device=library.device)
    np.testing.assert_array_equal(library.host(model.weights["classifier.weight"]), weights["classifier.weight"])
    library.host(model.adapters["vit.layers.0.mlp.fc1"].delta_weight())


class Tensor:
    """As much of a tensor of PyTorch as is asked for."""

    def __init__(self, x: Any) -> None:
        self.x, self.dtype = x, f"torch.{x.dtype}"

    def detach(self) -> "Tensor":
        return self

    cpu = detach

    def numpy(self) -> Any:
        return self.x


def test_names_that_a_tensor_goes_by(tmp_path: Path) -> None:
    """PEFT's prefix, a base model's names, a tied head's, buffers, the new names of ViT and its old ones."""
    kind, config, weights, given = build("GPT-2")
    right = logits(kind(config, weights), given)
    tied = weights | {"lm_head.weight": weights["transformer.wte.weight"]}
    buffers = {"transformer.h.0.attn.bias": np.ones((1, 1, 7, 7), bool)}
    bare = {name.removeprefix("transformer."): x for name, x in weights.items()}
    wrapped = {f"base_model.model.{name.replace('c_attn', 'c_attn.base_layer')}": x for name, x in tied.items()}
    keys = {"model_type": "gpt2", **MODELS["GPT-2"][1]}
    (tmp_path / "config.json").write_text(json.dumps(keys))
    for tensors in (weights, tied | buffers, bare, wrapped):
        for given_config in (
            config,
            keys,
            tmp_path,
            str(tmp_path / "config.json"),
            SimpleNamespace(to_dict=lambda: keys),
        ):
            live = {name: Tensor(x) for name, x in tensors.items()}
            read = kind.from_state_dict(given_config, live)
            np.testing.assert_array_equal(logits(read, given), right)
            assert not np.shares_memory(read.weights["transformer.wte.weight"], weights["transformer.wte.weight"])

    kind, config, weights, given = build("ViT")
    old = {"attention.query": "q_proj", "attention.key": "k_proj", "attention.value": "v_proj"}
    old |= {"attention.output.dense": "attention.o_proj", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2"}

    def new(name: str) -> str:
        for part, other in {"encoder.layer": "layers", **old}.items():
            name = name.replace(part, other)
        return name

    renamed = {new(name): x for name, x in weights.items()}
    assert renamed.keys() != weights.keys()
    np.testing.assert_array_equal(
        logits(kind.from_state_dict(config, renamed), given), logits(kind(config, weights), given)
    )


def test_what_was_trained_beside_the_adapter_is_in_the_model(tmp_path: Path) -> None:
    """A bias, a module, and a head that its table is no longer tied to."""
    kind, folder, weights, given = checkpoint(tmp_path, "GPT-2")
    attn, norm = "transformer.h.0.attn.c_attn", "transformer.ln_f"
    t = folders.tensors("lora", {attn: (36, 12)})
    rng = np.random.default_rng(2)
    head, bias, ln = rng.standard_normal((13, 12)), rng.standard_normal(36), rng.standard_normal(12)
    key = "base_model.model."
    t |= {f"{key}{attn}.base_layer.bias": bias, f"{key}lm_head.weight": head, f"{key}{norm}.weight": ln}
    t |= {f"{key}{norm}.original_module.bias": ln, f"{key}count": np.array(1)}
    adapter = folders.adapter(tmp_path / "a", "lora", t, bias="all", modules_to_save=["lm_head", "ln_f"])
    model = kind.from_pretrained(folder, adapter=adapter)
    changed = weights | {f"{attn}.bias": bias, "lm_head.weight": head, f"{norm}.weight": ln}
    config = kind.CONFIG.from_dict({**MODELS["GPT-2"][1], "tie_word_embeddings": False})
    assert model.weights.keys() == changed.keys()
    np.testing.assert_array_equal(logits(model, given), logits(kind(config, changed, model.adapters), given))
    changed_t = t | {f"{key}{norm}.modules_to_save.weight": ln + 1}
    folders.adapter(tmp_path / "a", "lora", changed_t, bias="all", modules_to_save=["lm_head", "ln_f"])
    with pytest.raises(ValueError, match=r"ln_f.*differs from another name of 'transformer\.ln_f\.weight'"):
        kind.from_pretrained(folder, adapter=adapter)


def test_merging_rounds_once() -> None:
    """The sum is taken in float64: 1 + 2⁻¹¹ + 2⁻³⁰ is just above the middle of two numbers of float16."""
    from randlora_ref.adapters import FullFineTuning

    delta = np.full((1, 1), 2.0**-11 + 2.0**-30)
    layer = FullFineTuning(out_features=1, in_features=1, delta=delta)
    merged = layer.merge(np.ones((1, 1), np.float16))
    assert (merged.dtype, float(merged[0, 0])) == (np.float16, 1 + 2.0**-10)
    assert layer.unmerge(merged).dtype == np.float16
    with pytest.raises(TypeError, match="weight: dtype float64; it must be float32"):
        layer.replace(delta=delta.astype(np.float32)).merge(np.ones((1, 1)))
    kind, config, weights, _ = build("GPT-2")
    model = kind(config, weights, models.adapt(kind(config, weights), ["c_fc"], rank=2))
    for saved, x in model.merge("float16").items():
        np.testing.assert_array_equal(x, model.merge()[saved].astype(np.float16))
    head = models.adapt(model, ["lm_head"], rank=2)
    with pytest.raises(ValueError, match=r"lm_head: shares 'transformer\.wte\.weight' with another module"):
        model.replace(head).merge()


def test_position_ids_of_padding_on_the_left() -> None:
    """A text padded on the left has the logits and the gradients that it has alone."""
    kind, config, weights, _ = build("GPT-2")
    model, ids = kind(config, weights), np.array([[3, 7, 1, 12]])
    padded, mask = np.array([[0, 0, 3, 7, 1, 12]]), np.array([[0, 0, 1, 1, 1, 1]])
    labels, positions = np.array([[-100, -100, -100, 7, 1, 12]]), np.array([[0, 0, 0, 1, 2, 3]])
    loss, cache = model.forward(padded, labels, attention_mask=mask, position_ids=positions)
    alone, cache_alone = model.forward(ids, ids)
    np.testing.assert_allclose(cache.logits[:, 2:], cache_alone.logits, rtol=1e-12)
    np.testing.assert_allclose(loss, alone, rtol=1e-12)
    ours, right = (model.backward(one, weights=True).weights for one in (cache, cache_alone))
    for saved, x in right.items():
        np.testing.assert_allclose(ours[saved], x, rtol=1e-9, atol=1e-14)
    counted = model.forward(padded, position_ids=np.array([[0, 1, 2, 3, 4, 5]]))[1].logits
    np.testing.assert_array_equal(counted, model.forward(padded)[1].logits)
    with pytest.raises(IndexError, match="position_ids"):
        model.forward(padded, position_ids=positions + 7)
    kind, config, weights, _ = build("Llama")
    with pytest.raises(ValueError, match="position_ids: given; it must be left out"):
        kind(config, weights).forward(ids, position_ids=positions[:, :4])


def test_mistral_and_qwen2_are_llamas() -> None:
    own = MODELS["Llama"][1]
    read = models.LlamaConfig.from_dict
    assert {"q", "k", "v"} == read({**own, "model_type": "qwen2", "use_sliding_window": False}).towers()[0].spec.biases
    assert not read({**own, "model_type": "mistral", "sliding_window": None}).towers()[0].spec.biases
    assert read({"model_type": "mistral", "sliding_window": None}).intermediate_size == 14336
    assert read({"model_type": "qwen2"}).vocab_size == 151936
    for keys in (
        {"model_type": "mistral"}, {"model_type": "mistral", "sliding_window": 4096},
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8},
        {"model_type": "qwen2", "layer_types": ["full_attention", "sliding_attention"]},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="sliding_window"):
            read({**own, **keys})


def faults(weights: dict[str, Any]) -> dict[str, tuple[dict[str, Any], str]]:
    """One fault each, and words of the message."""
    name = "transformer.h.1.mlp.c_fc.weight"
    rest = {key: x for key, x in weights.items() if key != name}
    nan = weights[name].copy()
    nan[1, 2] = np.nan
    return {
        "misspelled": (
            rest | {"transformer.h.1.mlp.c_fc.wieght": weights[name]},
            rf"missing '{name}'; .*; the nearest there is 'transformer\.h\.1\.mlp\.c_fc\.wieght'",
        ),
        "unknown": (weights | {"transformer.h.7.ln_1.bias": nan[0] * 0}, r"unknown 'transformer\.h\.7\.ln_1\.bias'"),
        "misshapen": (weights | {name: weights[name].T}, rf"{name}: shape \(48, 12\); it must be \(12, 48\)"),
        "NaN": (weights | {name: nan}, rf"{name}: holds NaN"),
        "integers": (weights | {name: np.ones((12, 48), int)}, rf"'{name}' of dtype int64; it must be of floats"),
        "untied": (weights | {"lm_head.weight": nan[:, :1] * 0}, "'lm_head.weight' differs from another name of"),
        "an adapter's": (weights | {"transformer.h.0.lora_A.default.weight": np.ones((2, 2))}, "lora_A"),
    }


@pytest.mark.parametrize("fault", [
    "misspelled", "unknown", "misshapen", "NaN", "integers", "untied", "an adapter's"
])  # fmt: skip
def test_bad_weights_are_named(fault: str, tmp_path: Path) -> None:
    kind, folder, weights, _ = checkpoint(tmp_path, "GPT-2")
    bad, match = faults(weights)[fault]
    folders.write(folder / "model.safetensors", bad)
    for make, start in (
        (lambda: kind.from_pretrained(folder), str(folder)),
        (lambda: kind.from_state_dict(folder, bad), "state_dict: "),
    ):
        with pytest.raises(ValueError, match=match) as error:
            make()
        assert str(error.value).startswith(start)
        assert "\n" not in str(error.value)


def test_bad_folders_are_named(tmp_path: Path) -> None:
    kind, folder, _, _ = checkpoint(tmp_path, "GPT-2", shards=2)
    index = folder / "model.safetensors.index.json"
    whole = json.loads(index.read_text())["weight_map"]
    name, place = next(iter(whole.items()))
    for weight_map, match in (
        ([], "weight_map"),
        ({**whole, name: "../other.safetensors"}, "must give the file of each tensor, in this folder"),
        ({**whole, "x": "other.safetensors"}, r"other\.safetensors: header: .*; it must be a safetensors file"),
        ({**whole, name: "model-00002-of-00002.safetensors"}, f"'{name}' is in this file or in"),
        ({**whole, "x": place}, "'x' is in this file or in"),
        ({key: x for key, x in whole.items() if key != name}, f"'{name}' is in this file or in"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(ValueError, match=match) as error:
            kind.from_pretrained(folder)
        assert str(error.value).startswith(str(folder))
    index.unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors.*it must be a safetensors file"):
        kind.from_pretrained(folder)
    for text, match in (("{", "config.json"), ('{"model_type": "bert"}', "model_type: 'bert'"), ("[]", "list")):
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match=match) as error:
            kind.from_pretrained(folder)
        assert str(folder / "config.json") in str(error.value)


def test_the_readmes_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From folders to logits, gradients and merged weights, as they stand there."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (lines,) = [block for block in readme.split("```python\n") if block.startswith("from randlora_ref import models")]
    _, _, _, given = checkpoint(tmp_path / "checkpoint", "GPT-2")
    shapes = {"transformer.h.0.attn.c_attn": (36, 12)}
    folders.adapter(tmp_path / "adapter", "randlora", folders.tensors("randlora", shapes))
    monkeypatch.chdir(tmp_path)
    known = {"ids": given["ids"], "labels": given["labels"]}
    exec(lines.split("```")[0], known)
    assert known["cache"].logits.shape == (3, 6, 13)
    assert known["grads"]["transformer.h.0.attn.c_attn"].lambda_.shape == (4, 3)
    assert known["merged"].keys() == known["model"].weights.keys()


def test_an_adapter_of_a_vit_by_its_old_names(tmp_path: Path) -> None:
    """As adapters are named that were trained before `transformers` renamed the modules."""
    kind, folder, _, given = checkpoint(tmp_path, "ViT")
    t = folders.tensors("lora", {"vit.encoder.layer.1.attention.attention.query": (15, 15)})
    parts = "encoder.layer.1.attention.attention.query", "layers.1.attention.q_proj"
    new = {key.replace(*parts): x for key, x in t.items()}
    old = kind.from_pretrained(folder, adapter=folders.adapter(tmp_path / "old", "lora", t))
    read = kind.from_pretrained(folder, adapter=folders.adapter(tmp_path / "new", "lora", new))
    assert old.adapters.keys() == read.adapters.keys() == {"vit.layers.1.attention.q_proj"}
    np.testing.assert_array_equal(logits(old, given), logits(read, given))
