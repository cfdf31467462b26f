"""The four models at one example each: what they hold, transfer and refuse. What they compute: test_properties."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from models.small import MODELS, build
from strategies import holds

from randlora_ref import models
from randlora_ref.verify import models as verified


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_shared(name: str) -> None:
    """A model holds the very arrays it is given, and has a gradient for each of them, and for no other."""
    kind, config, weights, given = build(name)
    model = kind(config, weights, models.adapt(config, rank=3, dtype="float64"))
    assert all(model.weights[key] is x for key, x in weights.items())
    assert all(model.replace({}).weights[key] is x for key, x in weights.items())
    assert model.backward(model.forward(**given)[1], weights=True).weights.keys() == weights.keys()


def test_adapters_share_one_pair_of_bases() -> None:
    """Every adapter holds the same two arrays, drawn for the largest layer; endings choose modules as PEFT's do."""
    config = models.LlamaConfig.from_dict(MODELS["Llama"][1])
    adapters = models.adapt(config, ["q_proj", "model.layers.1.mlp.down_proj", "lm_head"], rank=4)
    assert list(adapters) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.down_proj",
        "lm_head",
    ]
    assert len({id(one.bases.A) for one in adapters.values()}) == 1
    assert len(models.adapt(config)) == 2 * 7
    with pytest.raises(ValueError, match="modules: 'proj'"):
        models.adapt(config, ["proj"])


def test_at_most_one_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward or backward pass reads at most one boolean of the device, and nothing else."""
    import array_api_strict as xp

    class Strict:
        array = staticmethod(lambda x: xp.asarray(x, device=xp.Device("device1")))

    for name in MODELS:
        kind, config, weights, given = build(name)
        bare = kind(config, {key: Strict.array(x) for key, x in weights.items()})
        model = bare.replace(models.adapt(bare, rank=3))
        reads: list[str] = []
        own = {key: Strict.array(x) for key, x in given.items()}
        with monkeypatch.context() as patch:
            for method in ("__bool__", "__float__", "__int__", "__index__", "__complex__"):
                original = getattr(type(own["ids" if "ids" in own else "pixels"]), method)

                def read(self: Any, original: Any = original, method: str = method, reads: Any = reads) -> Any:
                    reads.append(method)
                    return original(self)

                patch.setattr(type(own["ids" if "ids" in own else "pixels"]), method, read)
            _, cache = model.forward(**own)
            assert reads == ["__bool__"]
            model.backward(cache, weights=True, inputs=True)
            assert reads == ["__bool__"]


def test_logits_far_apart() -> None:
    """Weights forty times as large, logits beyond a thousand: neither precision loses more of them than the stack."""
    keys = MODELS["GPT-2"][1] | {"layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "n_inner": None}
    case = verified.ModelCase(
        "GPT-2", keys | {"tie_word_embeddings": True}, 2, 7, None, "all", ("int64", "int64"), False, seed=0
    )
    model = case.build()
    model = replace(model, values={key: 40 * x for key, x in model.values.items()})
    assert np.max(np.abs(model.results()["logits"])) > 1e3
    for one in verified.POINTS:
        holds("logits far apart", one, model)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        (models.GPT2Config, "activation_function", "relu"), (models.GPT2Config, "scale_attn_weights", False),
        (models.GPT2Config, "scale_attn_by_inverse_layer_idx", True), (models.GPT2Config, "add_cross_attention", True),
        (models.GPT2Config, "n_embd", 770), (models.GPT2Config, "n_layer", 0),
        (models.GPT2Config, "model_type", "bert"),
        (models.LlamaConfig, "rope_scaling", {"rope_type": "yarn"}), (models.LlamaConfig, "pretraining_tp", 2),
        (models.LlamaConfig, "rope_parameters", {"rope_type": "llama3"}), (models.LlamaConfig, "hidden_act", "relu"),
        (models.LlamaConfig, "rope_parameters", {"partial_rotary_factor": 0.5}),
        (models.LlamaConfig, "num_key_value_heads", 5), (models.LlamaConfig, "hidden_size", 4097),
        (models.ViTConfig, "image_size", 225), (models.ViTConfig, "problem_type", "multi_label_classification"),
        (models.ViTConfig, "num_attention_heads", 7), (models.CLIPConfig, "text_config", {"hidden_act": "relu"}),
        (models.CLIPConfig, "vision_config", {"patch_size": 31}),
    ],
)  # fmt: skip
def test_configurations_refused(kind: Any, key: str, value: Any) -> None:
    """What a model does not do is refused by its name."""
    names = {"rope_parameters": "rope", "num_attention_heads": "hidden_size"}
    names |= {"text_config": "hidden_act", "vision_config": "image_size"}
    with pytest.raises(ValueError, match=names.get(key, key)):
        kind.from_dict({key: value})


def test_bad_weights_and_adapters() -> None:
    """What is missing, unknown, turned, of another precision or of another shape is refused by its name."""
    kind, config, weights, _ = build("GPT-2")
    less = {key: x for key, x in weights.items() if key != "transformer.h.1.ln_1.bias"}
    with pytest.raises(KeyError, match=r"missing 'transformer\.h\.1\.ln_1\.bias'"):
        kind(config, less)
    with pytest.raises(KeyError, match=r"unknown 'lm_head\.weight'"):
        kind(config, weights | {"lm_head.weight": weights["transformer.wte.weight"]})
    turned = {"transformer.h.0.attn.c_attn.weight": weights["transformer.h.0.attn.c_attn.weight"].T}
    with pytest.raises(ValueError, match=r"c_attn\.weight: shape \(36, 12\); it must be \(12, 36\)"):
        kind(config, weights | turned)
    with pytest.raises(TypeError, match=r"ln_f\.bias: dtype float32"):
        kind(config, weights | {"transformer.ln_f.bias": weights["transformer.ln_f.bias"].astype(np.float32)})
    adapter = models.adapt(config, ["c_fc"], rank=3, dtype="float64")["transformer.h.0.mlp.c_fc"]
    with pytest.raises(KeyError, match="c_none"):
        kind(config, weights, {"c_none": adapter})
    with pytest.raises(ValueError, match=r"c_proj' is of shape \(48, 12\); it must be \(12, 12\)"):
        kind(config, weights, {"transformer.h.0.attn.c_proj": adapter})


@pytest.mark.parametrize("name", MODELS)
def test_bad_inputs(name: str) -> None:
    """Ids and labels out of range, shapes that do not fit, a cache without a loss: each by its name."""
    kind, config, weights, given = build(name)
    model = kind(config, weights)
    wrong: dict[str, list[tuple[Any, type[Exception], str]]] = {
        "ids": [
            (np.full((3, 6), 13), IndexError, "ids: holds 13"),
            (np.full((3, 6), -1), IndexError, "ids: holds -1"),
            (np.zeros((3, 8), dtype=int), ValueError, "ids: shape"),
            (np.zeros(3, dtype=int), ValueError, "ids: shape"),
            (np.zeros((3, 0), dtype=int), ValueError, "ids: shape"),
            (np.zeros((0, 6), dtype=int), ValueError, "ids: shape"),
        ],
        "labels": [(np.where(given.get("labels", 0) == 4, 99, given.get("labels", 0)), IndexError, "labels: holds 99")],
        "attention_mask": [(np.ones((3, 5), dtype=int), ValueError, "attention_mask: shape")],
        "pixels": [
            (np.zeros((3, 3, 8, 12)), ValueError, "pixels: shape"),
            (np.zeros((3, 1, 8, 8)), ValueError, "pixels: shape"),
            (np.zeros((3, 3, 8, 8), dtype=np.float32), TypeError, "float32"),
        ],
    }
    for key in given:
        for value, error, message in wrong[key]:
            with pytest.raises(error, match=message):
                model.forward(**(given | {key: value}))
    if name != "CLIP":
        _, cache = model.forward(**(given | {"labels": None}))
        with pytest.raises(ValueError, match="without labels"):
            model.backward(cache)


def test_from_dict_reads_a_whole_config_json() -> None:
    """Keys that do not matter are passed over; a dictionary serves in place of a configuration."""
    keys = MODELS["GPT-2"][1] | {"model_type": "gpt2", "bos_token_id": 1, "attn_pdrop": 0.1, "n_inner": None}
    _, config, weights, given = build("GPT-2")
    assert models.GPT2Config.from_dict(keys) == config
    assert models.GPT2(keys, weights).forward(**given)[0] == models.GPT2(config, weights).forward(**given)[0]
    llama = models.LlamaConfig.from_dict({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}})
    assert llama.rope_theta == 5.0
