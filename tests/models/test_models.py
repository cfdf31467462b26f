"""The four models: gradients by complex step, any array library, any subset of adapters, and what they refuse."""

from typing import Any

import numpy as np
import pytest

from randlora_ref import checks, models, nn
from randlora_ref.verify import blocks


def build(name: str, dtype: str = "float64", seed: int = 0) -> tuple[Any, dict[str, np.ndarray], dict[str, Any], Any]:
    """Configuration, weights, learned values of every adapter, and inputs of one model, all on the host."""
    rng, (kind, keys) = np.random.default_rng(seed), blocks.MODELS[name]
    config = kind.CONFIG.from_dict(keys)
    shapes = {saved: shape for one in config.modules() for saved, shape in one.tensors.values()}
    weights = {
        saved: (0.2 * rng.standard_normal(shape) + ("norm" in saved or "ln_" in saved)).astype(dtype)
        for saved, shape in shapes.items()
    }
    ids = rng.integers(0, 13, (3, 6))
    given = {"ids": ids, "labels": ids, "attention_mask": np.array([[1] * 6, [1] * 4 + [0] * 2, [0] * 2 + [1] * 4])}
    pixels = rng.standard_normal((3, 3, 8, 8)).astype(dtype)
    if name == "ViT":
        given = {"pixels": pixels, "labels": np.array([0, 4, -100])}
    if name == "CLIP":
        given = {"ids": ids, "pixels": pixels, "attention_mask": given["attention_mask"]}
    return kind, weights, given, config


def results(name: str, library: Any, dtype: str = "float64", dialect: str = "peft") -> dict[str, np.ndarray]:
    """Loss, logits and every gradient by name, brought to the host; its adapters are not at their start."""
    kind, weights, given, config = build(name, dtype)
    own = {key: library.array(x) for key, x in weights.items()}
    bare = kind(config, own)
    adapters = models.adapt(bare, rank=3, seed=2, alpha=2.0, dialect=dialect)
    for index, (key, one) in enumerate(adapters.items()):
        rng = np.random.default_rng(index)
        learned = {
            part: library.array((0.1 * rng.standard_normal(getattr(one, part).shape)).astype(dtype))
            for part in ("lambda_", "gamma")
        }
        adapters[key] = one.replace(**learned)
    model = bare.replace(adapters)
    loss, cache = model.forward(**{key: library.array(x) for key, x in given.items()})
    grads = model.backward(cache, weights=True, inputs=True)
    found = {"loss": loss, "logits": cache.logits} | dict(grads.weights or {})
    found |= {f"{key}/{part}": getattr(grads[key], part) for key in adapters for part in ("lambda_", "gamma")}
    inputs = grads.inputs if isinstance(grads.inputs, tuple) else (grads.inputs,)
    found |= {f"inputs/{index}": x for index, x in enumerate(inputs)}
    return {key: library.host(x) for key, x in found.items()}


def test_every_gradient_by_the_complex_step_and_the_pullback() -> None:
    """At the start and at a generic point: weights, adapters, pixels; ∂L/∂W through Eq. 4 gives ∂L/∂Λ and ∂L/∂Γ."""
    found = list(blocks.properties(np.random.default_rng(0)))
    assert sum("point" in name for name, *_ in found) == 16
    for name, figure, limit, _ in found:
        assert figure <= limit, name


@pytest.mark.parametrize("name", blocks.MODELS)
def test_a_wrong_gradient_is_seen(name: str) -> None:
    """The audit's own check fails for one slightly wrong tensor, at the start of training too."""
    rng = np.random.default_rng(0)
    point, _ = blocks.model_point(rng, name, start=True)
    largest = max(float(np.max(np.abs(x))) for x in point.gradients.values())
    keys = [key for key, x in point.gradients.items() if np.max(np.abs(x)) > 0.1 * largest]
    for key in (keys[0], keys[-1]):
        wrong = {**point.gradients, key: (1 + 1e-8) * point.gradients[key]}
        few = {one: wrong[one] for one in {key, *keys}}
        assert not blocks.gap(rng, point._replace(gradients=few)) <= blocks.LIMIT


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "CLIP"])
def test_embedding_gradient_by_the_complex_step(name: str) -> None:
    """``inputs``: the gradient of the embedded tokens, given in their place."""
    kind, weights, given, config = build(name)
    model = kind(config, weights)
    table = "text_model.embeddings.token_embedding" if name == "CLIP" else model.TOKENS
    embedded = weights[f"{table}.weight"][given["ids"]]

    def loss(x: Any) -> Any:
        return model.forward(**(given | ({"embeddings": x} if name == "CLIP" else {"ids": x})))

    value, cache = loss(embedded)
    assert value == model.forward(**given)[0]
    inputs = model.backward(cache, inputs=True).inputs
    gradient = inputs.embeddings if name == "CLIP" else inputs
    point = blocks.Point(name, lambda x: loss(x)[0], {"x": embedded}, {"x": gradient})
    assert blocks.gap(np.random.default_rng(0), point) <= blocks.LIMIT


@pytest.mark.parametrize("name", blocks.MODELS)
@pytest.mark.parametrize(("dtype", "dialect"), [("float64", "paper"), ("float32", "peft")])
def test_any_array_library(library: Any, name: str, dtype: str, dialect: str) -> None:
    """The same results on every library and device, on read-only arrays, in the precision of the weights."""
    plain = type("Plain", (), {"array": staticmethod(np.array), "host": staticmethod(np.asarray)})
    expected, u = results(name, plain, dialect=dialect), {"float64": 2.0**-53, "float32": 2.0**-24}[dtype]
    largest = max(float(np.max(np.abs(x))) for x in expected.values())
    for key, x in results(name, library, dtype, dialect).items():
        assert x.dtype == dtype, key
        assert np.max(np.abs(x - expected[key])) <= 2000 * u * max(np.max(np.abs(expected[key])), 0.01 * largest), key


@pytest.mark.parametrize("name", blocks.MODELS)
def test_weights_are_shared_and_bare_results_agree(name: str) -> None:
    """Adapters at their start change no result; ``weights=False`` gives the same adapters' gradients and no others."""
    kind, weights, given, config = build(name)
    bare = kind(config, weights)
    model = bare.replace(models.adapt(bare, rank=3, dialect="paper"))
    assert all(model.weights[key] is x for key, x in weights.items())
    (plain, plain_cache), (loss, cache) = bare.forward(**given), model.forward(**given)
    assert np.allclose(loss, plain, rtol=1e-14, atol=0)
    assert np.allclose(cache.logits, plain_cache.logits, rtol=1e-12, atol=1e-14)
    with_weights, without = model.backward(cache, weights=True), model.backward(cache)
    assert without.weights is None
    assert without.inputs is None
    assert with_weights.weights is not None
    assert with_weights.weights.keys() == weights.keys()
    assert with_weights.keys() == without.keys() >= model.adapters.keys()
    for key in model.adapters:
        assert np.allclose(without[key].lambda_, with_weights[key].lambda_, rtol=1e-10, atol=1e-14)
    for key, own in bare.backward(plain_cache).items():  # without adapters: the biases alone
        saved = bare.modules[key].tensors["bias"][0]
        assert np.allclose(own.bias, with_weights.weights[saved], rtol=1e-10, atol=1e-14)


def test_adapters_share_one_pair_of_bases() -> None:
    """Every adapter holds the same two arrays, drawn for the largest layer; endings choose modules as PEFT's do."""
    config = models.LlamaConfig.from_dict(blocks.MODELS["Llama"][1])
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

    for name in blocks.MODELS:
        kind, weights, given, config = build(name)
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


def test_large_logits_and_long_input_stay_finite() -> None:
    """Weights forty times as large, and as many tokens as there are places, in float32; the loss overflows nowhere."""
    kind, weights, _, config = build("GPT-2", "float32")
    ids = np.random.default_rng(0).integers(0, 13, (2, 7))
    model = kind(config, {key: 40 * x for key, x in weights.items()})
    loss, cache = model.forward(ids, ids)
    assert np.max(np.abs(cache.logits)) > 1e3
    assert np.isfinite(loss)
    assert all(np.all(np.isfinite(x)) for x in (model.backward(cache, weights=True).weights or {}).values())


def test_a_text_of_padding_alone() -> None:
    """A text that is all padding and has no label leaves loss and gradients finite, and takes no part."""
    kind, weights, given, config = build("Llama")
    model = kind(config, weights)
    given["labels"] = np.where(given["attention_mask"] == 1, given["labels"], -100)
    short = {key: x[:2] for key, x in given.items()}
    empty = {key: np.concatenate([x[:2], fill]) for (key, x), fill in zip(
        given.items(), (given["ids"][2:], np.full((1, 6), -100), np.zeros((1, 6), dtype=int)), strict=True
    )}  # fmt: skip
    (loss, cache), (expected, _) = model.forward(**empty), model.forward(**short)
    assert abs(loss - expected) <= 1e-14 * expected
    assert all(np.all(np.isfinite(x)) for x in (model.backward(cache, weights=True).weights or {}).values())


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
    kind, weights, _, config = build("GPT-2")
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


@pytest.mark.parametrize("name", blocks.MODELS)
def test_bad_inputs(name: str) -> None:
    kind, weights, given, config = build(name)
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
    keys = blocks.MODELS["GPT-2"][1] | {"model_type": "gpt2", "bos_token_id": 1, "attn_pdrop": 0.1, "n_inner": None}
    _, weights, given, config = build("GPT-2")
    assert models.GPT2Config.from_dict(keys) == config
    assert models.GPT2(keys, weights).forward(**given)[0] == models.GPT2(config, weights).forward(**given)[0]
    llama = models.LlamaConfig.from_dict({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}})
    assert llama.rope_theta == 5.0
    small = given | {"labels": given["labels"].astype(np.uint8), "ids": given["ids"].astype(np.int16)}
    assert models.GPT2(config, weights).forward(**small)[0] == models.GPT2(config, weights).forward(**given)[0]
    assert models.ViTConfig.from_dict({"id2label": {"0": "a", "1": "b", "2": "c"}}).num_labels == 3
    assert checks.namespace(w=weights["transformer.wte.weight"]) is np
    assert nn.IGNORED == -100
