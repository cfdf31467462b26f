"""Folders that are cut off, fuzzed, or contradict themselves: one line that names the file, never another exception."""

import contextlib
import json
from pathlib import Path
from typing import Any

import folders
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from randlora_ref import load_peft, models

METHODS = list(folders.CONFIGS)
SHAPES = {"h.0.mlp.c_fc": (9, 5), "h.10.mlp.c_proj": (5, 9)}
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
FEW = settings().max_examples // 4  # each is a file or two
EXAMPLES = settings(max_examples=FEW, suppress_health_check=[HealthCheck.function_scoped_fixture])
SIZES = st.one_of(
    st.integers(-2, 12), st.sampled_from([2**31, 2**63, 2**64, 10**30, -(2**63)]), st.none(), st.booleans(),
    st.floats(), st.text(max_size=3), st.lists(st.integers(0, 3), max_size=2),
)  # fmt: skip


def loads(folder: Path, *files: str) -> bool:
    """Whether an adapter is loaded, and made layers of; else its ValueError is one line that names one of ``files``."""
    try:
        read = load_peft(folder, SHAPES)
        for name in SHAPES:
            assert read.layer(name).shape == SHAPES[name]
    except ValueError as refusal:
        error = str(refusal)
    else:
        return True
    assert any(file in error for file in files), error
    assert "\n" not in error
    return False


@pytest.mark.parametrize("method", METHODS)
@EXAMPLES
@given(part=st.floats(0, 1, exclude_max=True))
def test_cut_off_anywhere(method: str, tmp_path: Path, part: float) -> None:
    folder = folders.adapter(tmp_path, method, folders.tensors(method, SHAPES))
    for file in (WEIGHTS, CONFIG):
        whole = (folder / file).read_bytes()
        (folder / file).write_bytes(whole[: int(part * len(whole))])
        assert not loads(folder, file)
        (folder / file).write_bytes(whole)


@pytest.mark.parametrize("method", METHODS)
@EXAMPLES
@given(data=st.data())
def test_headers_that_claim_something_else(method: str, tmp_path: Path, data: Any) -> None:
    """Sizes, places and dtypes of a tensor replaced one by one: negative, huge, no number, another tensor's."""
    tensors = folders.tensors(method, SHAPES)
    folders.adapter(tmp_path, method, tensors)
    header, content = folders.header(tensors)
    entry = header[data.draw(st.sampled_from(sorted(header)))]
    key = data.draw(st.sampled_from(["shape", "data_offsets", "dtype"]))
    if key == "dtype":
        entry[key] = data.draw(st.one_of(st.sampled_from(["F64", "F16", "F8_E4M3", "I32", "X"]), SIZES))
    elif data.draw(st.booleans()):
        entry[key] = data.draw(st.one_of(SIZES, st.lists(SIZES, max_size=4)))
    else:
        entry[key][data.draw(st.integers(0, len(entry[key]) - 1))] = data.draw(SIZES)
    folders.write_raw(tmp_path / WEIGHTS, json.dumps(header).encode(), content)
    assert loads(tmp_path, WEIGHTS) == (header == folders.header(tensors)[0])  # True == 1, and so are its bytes


@pytest.mark.parametrize("method", METHODS)
@EXAMPLES
@given(place=st.integers(0, 4000), value=st.integers(0, 255))
def test_any_byte_replaced(method: str, tmp_path: Path, place: int, value: int) -> None:
    """A number may change, and then the rest is read; nothing else than a ValueError comes of it."""
    for file in (WEIGHTS, CONFIG):
        folder = folders.adapter(tmp_path, method, folders.tensors(method, SHAPES))
        whole = bytearray((folder / file).read_bytes())
        whole[place % len(whole)] = value
        (folder / file).write_bytes(bytes(whole))
        loads(folder, WEIGHTS, CONFIG)


@pytest.mark.parametrize("method", METHODS)
@EXAMPLES
@given(data=st.data())
def test_settings_of_any_kind(method: str, tmp_path: Path, data: Any) -> None:
    """PEFT's own keys, and those that a method does not have."""
    beside = ["bias", "modules_to_save", "rank_pattern", "alpha_pattern", "sparse", "use_rslora"]
    value = data.draw(st.one_of(SIZES, st.dictionaries(st.text(max_size=3), SIZES, max_size=2)))
    key = data.draw(st.sampled_from([*folders.CONFIGS[method], *beside]))
    loads(folders.adapter(tmp_path, method, folders.tensors(method, SHAPES), **{key: value}), CONFIG, WEIGHTS)


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [
        ("randlora", "r", 2.0), ("randlora", "r", 4), ("randlora", "projection_prng_key", -1), ("lora", "r", 0),
        ("lora", "rank_pattern", {"c_fc": 4}), ("lora", "rank_pattern", ["c_fc"]),
        ("lora", "rank_pattern", {"c_fc": 2.5}),
        ("lora", "alpha_pattern", {"x": "y"}), ("lora", "alpha_pattern", {"[": 1}), ("lora", "use_rslora", "true"),
        ("vera", "r", 10**9), ("vera", "modules_to_save", 3), ("vera", "modules_to_save", "head"),
        ("lora", "fan_in_fan_out", "yes"), ("lora", "peft_type", None), ("lora", "peft_type", ["LORA"]),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(method: str, key: str, value: Any, tmp_path: Path) -> None:
    """Whether a module needs them or not."""
    folder = folders.adapter(tmp_path, method, folders.tensors(method, SHAPES), **{key: value})
    with pytest.raises(ValueError, match=r"adapter_(config\.json|model\.safetensors): .*; it must "):
        load_peft(folder)


def test_the_same_key_twice_in_a_configuration(tmp_path: Path) -> None:
    """JSON readers keep the last of two; which one was meant no file says."""
    folders.adapter(tmp_path, "lora", folders.tensors("lora", SHAPES))
    (tmp_path / CONFIG).write_text((tmp_path / CONFIG).read_text()[:-1] + ', "r": 4}')
    assert not loads(tmp_path, CONFIG)


# ---------------------------------------------------------------------------------------------------------
# Checkpoints
# ---------------------------------------------------------------------------------------------------------

KEYS = {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12, "vocab_size": 11,
        "num_hidden_layers": 1, "max_position_embeddings": 6}  # fmt: skip


def checkpoint(folder: Path, keys: dict[str, Any] = KEYS) -> dict[str, Any]:
    """``folder`` with a Llama, and its weights."""
    weights = models.initial_weights(models.LlamaConfig.from_dict(KEYS))
    folders.checkpoint(folder, keys, weights)
    return weights


def refused(folder: Path, *messages: str) -> None:
    """A checkpoint is refused in one line that has all of ``messages``."""
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        models.Llama.from_pretrained(folder)
    assert all(message in str(error.value) for message in messages), error.value


@EXAMPLES
@given(part=st.floats(0, 1, exclude_max=True))
def test_a_checkpoint_cut_off_anywhere(tmp_path: Path, part: float) -> None:
    checkpoint(tmp_path)
    for file in ("model.safetensors", "config.json"):
        whole = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(whole[: int(part * len(whole))])
        refused(tmp_path, file)
        (tmp_path / file).write_bytes(whole)


def test_files_of_another_model(tmp_path: Path) -> None:
    for keys in ({"model_type": "gpt2"}, {"model_type": "llama", "num_hidden_layers": 10**12}, {"hidden_size": "8"},
                 {"model_type": "llama", "quantization_config": {"bits": 4}}, {"vocab_size": 10**12}):  # fmt: skip
        checkpoint(tmp_path, KEYS | keys)
        refused(tmp_path, str(tmp_path))
    (tmp_path / "config.json").unlink()
    refused(tmp_path, "config.json")
    checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    refused(tmp_path, "model.safetensors")


@EXAMPLES
@given(data=st.data())
def test_a_config_of_any_kind(tmp_path: Path, data: Any) -> None:
    """Whatever a key holds, a checkpoint is read or refused in one line that names the folder."""
    key = data.draw(st.sampled_from(sorted(KEYS)))
    checkpoint(tmp_path, KEYS | {key: data.draw(st.one_of(SIZES, st.dictionaries(st.text(max_size=3), SIZES)))})
    with contextlib.suppress(ValueError):
        models.Llama.from_pretrained(tmp_path)
        return
    refused(tmp_path, str(tmp_path))


def test_a_state_dict_is_checked_as_files_are() -> None:
    """What is no array, and what has no name, is named too."""
    weights = models.initial_weights(models.LlamaConfig.from_dict(KEYS))
    key = "model.layers.0.self_attn.q_proj.weight"
    for changed, message in (
        (weights | {f"base_model.model.{key}": weights[key] + 1}, key),
        (weights | {key: "text"}, f"{key}: str; it must be an array"),
        (weights | {key: weights[key].astype(object)}, f"'{key}' of dtype object"),
        ({**weights, 3: weights[key]}, "unknown '3'"),
    ):
        with pytest.raises(ValueError, match=rf"^state_dict: .*{message}"):
            models.Llama.from_state_dict(KEYS, changed)
