"""Configurations: every field checked where it comes in, the spellings that `transformers` reads, the rest refused."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from randlora_ref import models
from randlora_ref.models.clip import TextConfig, VisionConfig
from randlora_ref.nn.rotary import RotaryScaling

KINDS: list[Any] = [
    models.GPT2Config,
    models.LlamaConfig,
    models.ViTConfig,
    models.CLIPConfig,
    TextConfig,
    VisionConfig,
]
NAN, INF = float("nan"), float("inf")
WRONG = {  # by the type of a field: what it must not hold
    int: [0, -4, 2.0, 8.5, True, "8", "x", [8], NAN, None],
    float: [-1e-6, NAN, INF, -INF, "1e-05", "x", True, [1.0], 1j, 10**400, None],
    bool: ["false", "true", 0, 1, 1.0, None],
    str: ["relu", "", 3, True, ["gelu"], None],
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def wrong_fields() -> Iterator[Any]:
    """(kind, key, a value of the wrong type or out of range) for every field of every configuration."""
    for kind in KINDS:
        for one in dataclasses.fields(kind):
            types = getattr(one.type, "__args__", (one.type,))
            for value in WRONG.get(types[0], [3, "x", {"model_type": "bert"}, ["x"]]):
                if not (value is None and type(None) in types) and not (
                    one.name.endswith("_id") and value in (0, -4) and value is not False
                ):
                    yield pytest.param(kind, one.name, value, id=f"{kind.__name__}-{one.name}-{value!r:.12}")


@pytest.mark.parametrize(("kind", "key", "value"), list(wrong_fields()))
def test_every_field_is_checked(kind: Any, key: str, value: Any) -> None:
    """From the constructor and from a dictionary alike, by the key's name."""
    for make in (kind.from_dict, lambda keys: kind(**keys)):
        with pytest.raises((TypeError, ValueError), match=key):
            make({key: value})


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_numpy_become_python_numbers(kind: Any) -> None:
    """NumPy's integers and floats are taken, and no field keeps one."""
    plain = kind()
    given = {
        one.name: {int: np.int16, float: np.float64}[type(value)](value)
        for one in dataclasses.fields(kind)
        if type(value := getattr(plain, one.name)) in (int, float) and value < 2**15
    }
    assert given
    made = kind(**given)
    assert made == plain
    assert all(type(getattr(made, name)) is type(getattr(plain, name)) for name in given)
    assert hash(made) == hash(plain)


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        (models.GPT2Config, {"n_embd": 770}, "n_embd: 770; it must be a multiple of n_head, 12"),
        (models.LlamaConfig, {"hidden_size": 4097}, "hidden_size: 4097; it must be a multiple of num_attention_heads"),
        (models.LlamaConfig, {"num_key_value_heads": 5}, "num_attention_heads: 32; .* of num_key_value_heads, 5"),
        (models.LlamaConfig, {"head_dim": 3}, "head_dim: 3; it must be even"),
        (models.LlamaConfig, {"hidden_size": 96}, "head_dim: 3; it must be even"),
        (models.LlamaConfig, {"rope_theta": 0}, "rope_theta: 0; .* above 0"),
        (models.LlamaConfig, {"pad_token_id": 32000}, "pad_token_id: 32000; "),
        (models.LlamaConfig, {"pad_token_id": -32001}, "pad_token_id: -32001; "),
        (models.ViTConfig, {"image_size": 225}, "image_size: 225; it must be a multiple of patch_size, 16"),
        (
            models.ViTConfig,
            {"num_attention_heads": 7},
            "hidden_size: 768; .* of num_attention_heads, 7",
        ),
        (TextConfig, {"num_attention_heads": 7}, "hidden_size: 512; it must be a multiple of num_attention_heads, 7"),
    ],
)
def test_numbers_that_do_not_fit(kind: Any, keys: dict[str, Any], message: str) -> None:
    for make in (kind.from_dict, lambda keys: kind(**keys)):
        with pytest.raises(ValueError, match=message):
            make(keys)


@pytest.mark.parametrize("kind", KINDS)
def test_no_mapping(kind: Any) -> None:
    for config in (None, 3, "config.json", [("vocab_size", 3)]):
        with pytest.raises(TypeError, match="config: "):
            kind.from_dict(config)


def test_eps_may_be_zero_and_head_dim_may_be_free() -> None:
    """What is right stays right: eps 0, heads that do not divide where head_dim is given, ids of any sign."""
    assert models.LlamaConfig(rms_norm_eps=0).rms_norm_eps == 0.0
    assert models.LlamaConfig(hidden_size=4100, head_dim=64).towers()[0].spec.head_width == 64
    assert models.GPT2Config(n_inner=8).towers()[0].spec.hidden == 8
    assert models.GPT2Config().towers()[0].spec.hidden == 3072
    assert TextConfig(eos_token_id=0).eos_token_id == 0


def test_both_spellings_of_gpt2() -> None:
    """`transformers` has these four names for GPT-2's; both given and different contradict each other."""
    names = {
        "num_attention_heads": "n_head",
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "max_position_embeddings": "n_positions",
    }
    values = dict(zip(names, (3, 12, 2, 9), strict=True))
    expected = models.GPT2Config(n_head=3, n_embd=12, n_layer=2, n_positions=9)
    assert models.GPT2Config.from_dict(values) == expected
    assert models.GPT2Config.from_dict(values | {names[key]: value for key, value in values.items()}) == expected
    for alias, key in names.items():
        with pytest.raises(ValueError, match=f"{alias}: {values[alias]}; it must be {values[alias] + 1}, as {key} is"):
            models.GPT2Config.from_dict(values | {key: values[alias] + 1})


def test_towers_of_clip() -> None:
    """``text_config_dict`` replaces ``text_config``: keys that it leaves out are defaults, as in `transformers`."""
    plain = {"hidden_size": 96, "vocab_size": 50, "num_attention_heads": 4, "eos_token_id": 7}
    config = models.CLIPConfig.from_dict(
        {"text_config": plain, "text_config_dict": {"hidden_size": 16}, "vision_config_dict": {"patch_size": 16}}
    )
    assert config.text_config == TextConfig(hidden_size=16)
    assert config.vision_config == VisionConfig(patch_size=16)
    read = models.CLIPConfig.from_dict
    assert read({"text_config": plain, "text_config_dict": {}}).text_config == TextConfig()
    assert read({"text_config": plain, "text_config_dict": None}).text_config == TextConfig(**plain)
    assert read({"text_config": None}).text_config == TextConfig()
    assert read({"text_config": {"projection_dim": 9}, "projection_dim": 7}).projection_dim == 7
    for key in ("text_config", "text_config_dict", "vision_config", "vision_config_dict"):
        for wrong in (3, "x", [], 0):
            with pytest.raises((TypeError, ValueError), match=key):
                read({key: wrong})
        with pytest.raises(ValueError, match=rf"{key}: hidden_size: 0"):
            read({key: {"hidden_size": 0}})


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", ["rope_type", "type"])
def test_rope_scaling_is_read(key: str, kind: str) -> None:
    """Either key, and either name of the kind; the constructor takes a mapping as well, and the record."""
    rest, read = {name: value for name, value in LLAMA3.items() if name != "rope_type"}, models.LlamaConfig.from_dict
    for given, scaling in (
        ({kind: "llama3", **rest}, RotaryScaling(8.0, 1.0, 4.0, 8192)),
        ({kind: "linear", "factor": 2}, RotaryScaling(2.0)),
        ({kind: "default"}, None),
        ({}, None),
        (None, None),
    ):
        config = read({key: given, "rope_theta": 5e5})
        assert (config.rope_scaling, config.rope_theta) == (scaling, 5e5)
        assert config == models.LlamaConfig(rope_scaling=given, rope_theta=5e5)
        assert config == models.LlamaConfig(rope_scaling=scaling, rope_theta=5e5)
        assert hash(config) == hash(dataclasses.replace(config))
    assert read({key: {kind: "default", "rope_theta": 50}, "rope_theta": 70.0}).rope_theta == 50.0  # as there
    short = {name: value for name, value in LLAMA3.items() if name != "original_max_position_embeddings"}
    config = read({key: short, "max_position_embeddings": 64})
    assert config.rope_scaling == RotaryScaling(8.0, 1.0, 4.0, 64)  # its default there, too


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_type": "yarn"}, "'yarn'"),
        ({"rope_type": "dynamic"}, "'dynamic'"),
        ({"rope_type": "longrope"}, "'longrope'"),
        ({"rope_type": None}, "None"),
        ({"rope_type": ["llama3"]}, "llama3"),
        ({"type": "linear"}, "type 'linear'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"attention_factor": 1.0}, "attention_factor"),
        ({"rope_type": "default"}, "factor"),
        ({"rope_type": "linear"}, "low_freq_factor|high_freq|original"),
        ({"factor": 0.5}, "factor: 0.5"),
        ({"factor": "8.0"}, "factor: '8.0'"),
        ({"factor": NAN}, "factor: nan"),
        ({"factor": True}, "factor: True"),
        ({"factor": None}, "factor: None"),
        ({"low_freq_factor": 0.0}, "low_freq_factor: 0.0"),
        ({"low_freq_factor": 4.0}, "high_freq_factor: 4.0; .* above 4"),
        ({"high_freq_factor": INF}, "high_freq_fac"),
        ({"original_max_position_embeddings": -1}, "original_max_position_embeddings: -1"),
        ({"original_max_position_embeddings": 8192.0}, "original_max_position_embeddings: 8192.0"),
        ({"rope_theta": -1.0}, "rope_theta: -1.0"),
        ({"rope_theta": "5e5"}, "rope_theta: '5e5'"),
    ],
)
def test_rope_scaling_refused(key: str, change: dict[str, Any], message: str) -> None:
    """Kinds that are not computed, keys that a kind does not have, and every number that cannot be one."""
    with pytest.raises(ValueError, match=message):
        models.LlamaConfig.from_dict({key: {**LLAMA3, **change}})


def test_rope_scaling_that_is_incomplete_or_contradictory() -> None:
    read = models.LlamaConfig.from_dict
    for missing in ("factor", "low_freq_factor", "high_freq_factor"):
        with pytest.raises(ValueError, match=rf"rope_scaling: has \[.*; of .* it must be \[.*'{missing}'"):
            read({"rope_scaling": {name: value for name, value in LLAMA3.items() if name != missing}})
    with pytest.raises(
        ValueError, match=r"rope_scaling: has \['factor'\]; of rope_type 'default' it must be \[\]"
    ):  # no kind: the default one
        read({"rope_scaling": {"factor": 2.0}})
    with pytest.raises(ValueError, match=r"rope_parameters: .* as rope_scaling is"):
        read({"rope_scaling": LLAMA3, "rope_parameters": {"rope_type": "default"}})
    assert read({"rope_scaling": LLAMA3, "rope_parameters": LLAMA3}) == read({"rope_scaling": LLAMA3})
    assert read({"rope_scaling": None, "rope_parameters": LLAMA3}) == read({"rope_scaling": LLAMA3})
    with pytest.raises(ValueError, match=r"partial_rotary_factor: 0\.5"):
        read({"partial_rotary_factor": 0.5})


def test_labels_of_vit() -> None:
    """How many there are."""
    read = models.ViTConfig.from_dict
    assert read({"id2label": {"0": "a", "1": "b", "2": "c"}}).num_labels == 3
    assert read({"id2label": {"0": "a", "1": "b"}, "num_labels": 2}).num_labels == 2
    assert read({"id2label": None, "num_labels": 4}).num_labels == 4
    assert read({"id2label": None}).num_labels == 2
    with pytest.raises(ValueError, match=r"id2label: .* as num_labels says"):
        read({"id2label": {"0": "a", "1": "b"}, "num_labels": 3})
    for wrong in (5, "ab", ["a", "b"]):
        with pytest.raises(ValueError, match="id2label: "):
            read({"id2label": wrong})


def test_problems_of_vit() -> None:
    """A regression, which one label means without a problem type, is refused when the configuration is made."""
    assert models.ViTConfig.from_dict({"problem_type": "single_label_classification"}) == models.ViTConfig()
    assert models.ViTConfig.from_dict({"problem_type": None}) == models.ViTConfig()
    for problem in ("regression", "multi_label_classification", "x", 3):
        with pytest.raises(ValueError, match="problem_type: "):
            models.ViTConfig.from_dict({"problem_type": problem, "num_labels": 3})
    for keys in ({"num_labels": 1}, {"id2label": {"0": "a"}}):
        with pytest.raises(ValueError, match="num_labels: 1; regression"):
            models.ViTConfig.from_dict(keys)
    with pytest.raises(ValueError, match="num_labels: 1; regression"):
        models.ViTConfig(num_labels=1)
