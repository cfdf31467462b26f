"""What the models' doors take and refuse: weights, adapters, ids, labels, masks, pixels, caches, module names."""

from typing import Any

import numpy as np
import pytest
from models.small import MODELS, build

from randlora_ref import models, nn
from randlora_ref.adapters import LoRA


def everything(model: Any, given: dict[str, Any]) -> list[np.ndarray]:
    """Loss, logits and all gradients."""
    loss, cache = model.forward(**given)
    return [loss, cache.logits, *(model.backward(cache, weights=True).weights or {}).values()]


# -- weights and adapters ------------------------------------------------------------------------------------


def test_what_is_no_model() -> None:
    kind, config, weights, _ = build("GPT-2")
    for wrong in (None, 3, "config.json", models.LlamaConfig()):
        with pytest.raises(TypeError, match=r"config: .* GPT2Config"):
            kind(wrong, weights)
    for wrong in (None, 3, [weights], list(weights)):
        with pytest.raises(TypeError, match="weights: "):
            kind(config, wrong)
    for wrong in (3, "x", [LoRA.start(12, 12, 2)]):
        with pytest.raises(TypeError, match="adapters: "):
            kind(config, weights, wrong)


@pytest.mark.parametrize("name", MODELS)
def test_float16_and_subclasses_are_refused(name: str) -> None:
    kind, config, weights, _ = build(name)
    with pytest.raises(TypeError, match="dtype float16; it must be float32, float64 or complex"):
        kind(config, {key: x.astype(np.float16) for key, x in weights.items()})
    key = next(key for key, x in weights.items() if x.ndim == 2)
    for wrong in (weights[key].view(np.matrix), np.ma.masked_array(weights[key])):
        with pytest.raises(TypeError, match=rf"{key}: (matrix|MaskedArray)"):
            kind(config, weights | {key: wrong})
    with pytest.raises(TypeError, match=f"{key}: dtype >f8"):
        kind(config, weights | {key: weights[key].astype(">f8")})


def test_adapters_are_checked_when_the_model_is_made() -> None:
    """Library, device, precision and kind, naming the adapter; not at their first use."""
    import array_api_strict as xp

    kind, config, weights, _ = build("GPT-2")
    key = "transformer.h.1.mlp.c_fc"
    named = rf"adapters\['{key}'\]: "
    for dtype in ("float32", "float16"):
        for adapter in (LoRA.start(48, 12, 3, dtype=dtype), models.adapt(config, [key], rank=3, dtype=dtype)[key]):
            with pytest.raises(TypeError, match=f"{named}dtype {dtype}; it must be float"):
                kind(config, weights, {key: adapter})
            with pytest.raises(TypeError, match=named):
                kind(config, weights).replace({key: adapter})
    with pytest.raises(TypeError, match=f"{named}an array of array_api_strict"):
        kind(config, weights, {key: LoRA.start(48, 12, 3, dtype="float64", xp=xp)})
    moved = {name: xp.asarray(x, device=xp.Device("device1")) for name, x in weights.items()}
    with pytest.raises(TypeError, match=f"{named}.*device"):
        kind(config, moved, {key: LoRA.start(48, 12, 3, dtype="float64", xp=xp)})
    for wrong in (None, 3, LoRA, weights["transformer.h.1.mlp.c_fc.weight"]):
        with pytest.raises(TypeError, match=f"{named}.*it must be an adapter"):
            kind(config, weights, {key: wrong})


def test_an_adapter_that_says_nothing_of_what_it_learns() -> None:
    """Any object that does what the protocol says is an adapter."""
    kind, config, weights, given = build("GPT-2")
    key = "transformer.h.1.mlp.c_fc"
    inner = LoRA.start(48, 12, 3, dtype="float64")

    class Wrapped:
        shape = inner.shape
        forward = staticmethod(inner.forward)
        backward = staticmethod(inner.backward)

    expected = kind(config, weights).forward(**given)[0]
    assert abs(kind(config, weights, {key: Wrapped()}).forward(**given)[0] - expected) <= 1e-14


# -- inputs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "CLIP"])
def test_ids_and_labels_of_every_integer_type(library: Any, name: str) -> None:
    """Vocabularies that 8 bits cannot count, and an end of text that they cannot hold; every result is the same."""
    keys: dict[str, Any] = {"vocab_size": 300}
    if name == "CLIP":
        keys = {"text_config": MODELS["CLIP"][1]["text_config"] | {"vocab_size": 300, "eos_token_id": 299}}
    kind, config, weights, given = build(name, **keys)
    model = kind(config, {key: library.array(x) for key, x in weights.items()})
    given["ids"] = given["ids"] + 110  # 110 … 122
    if "labels" in given:
        given["labels"] = given["ids"]
    results = []
    for dtype in (np.int64, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.uint64):
        own = {key: x.astype(dtype) if key in ("ids", "labels") else x for key, x in given.items()}
        results.append([library.host(x) for x in everything(model, {key: library.array(x) for key, x in own.items()})])
    for found in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found, results[0], strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_inputs_refused_by_name(name: str) -> None:
    kind, config, weights, given = build(name)
    model, x = kind(config, weights), given.get("pixels", np.zeros(1))
    wrong: dict[str, list[Any]] = {
        "ids": [given.get("ids", x).astype(dtype) for dtype in (">i8", ">u2", "f8", "f4", "?")],
        "labels": [given.get("labels", x).astype(dtype) for dtype in (">i8", "f8", "?")],
        "attention_mask": [given.get("attention_mask", x).astype(dtype) for dtype in ("f8", ">i4", "c16")],
        "pixels": [x.astype(dtype) for dtype in ("f4", "f2", ">f8", "i8")] + [np.ma.masked_array(x)],
    }
    wrong["ids"] += [given.get("ids", np.zeros((1, 1))).view(np.matrix), [[1, 2]]]
    wrong["attention_mask"] += [np.ma.masked_array(given.get("attention_mask", x), mask=True)]
    for key in given:
        for value in wrong[key]:
            with pytest.raises(TypeError, match=f"{key}: "):
                model.forward(**(given | {key: value}))
    if "pixels" in given:
        with pytest.raises((TypeError, ValueError), match="pixels: "):
            model.forward(**(given | {"pixels": np.array(1.0)}))


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "CLIP"])
def test_masks_and_embeddings(name: str) -> None:
    """A mask of booleans or of any integers is one mask; embeddings must be of the model's precision and shape."""
    kind, config, weights, given = build(name)
    model = kind(config, weights)
    expected = everything(model, given)
    for mask in (given["attention_mask"].astype(bool), given["attention_mask"].astype(np.uint8) * 255):
        found = everything(model, given | {"attention_mask": mask})
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    for dtype in (np.float32, np.float16, int):
        embedded = np.zeros((3, 6, 12), dtype)
        changed = {"embeddings": embedded} if name == "CLIP" else {"ids": embedded}
        with pytest.raises(TypeError, match=f"{next(iter(changed))}: dtype"):
            model.forward(**(given | changed))
    if name == "CLIP":
        for shape in ((3, 6), (3, 5, 12), (3, 6, 11)):
            with pytest.raises(ValueError, match="embeddings: shape"):
                model.forward(**given, embeddings=np.zeros(shape))


# -- Llama's own: scaled turns, and the padding token ---------------------------------------------------------


def test_scaled_turns_reach_every_block() -> None:
    """The model's logits from blocks whose tables are written out: place t is turned as place t/3."""
    kind, config, weights, given = build("Llama", rope_scaling={"type": "linear", "factor": 3.0}, rope_theta=50.0)
    model = kind(config, weights)
    angles = np.arange(6)[:, None] / 3 * 50.0 ** (-np.array([0, 2]) / 4)
    x, (tower,) = weights["model.embed_tokens.weight"][given["ids"]], config.towers()
    mask = nn.additive_mask(x, 6, causal=True, mask=given["attention_mask"])
    for layer in tower.layers:
        parts = {role: model.parameters(module) for role, module in layer.items()}
        x, _ = nn.block(x, tower.spec, parts, {}, mask, (np.cos(angles), np.sin(angles)))
    expected = nn.rms_norm(x, weights["model.norm.weight"], None, config.rms_norm_eps)[0] @ weights["lm_head.weight"].T
    assert np.max(np.abs(model.forward(**given)[1].logits - expected)) <= 1e-13


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("pad", [4, -2])
def test_padding_token_of_llama(library: Any, pad: int, tied: bool) -> None:
    """The lookup gives its row no gradient, a tied head does; nothing else changes. −2 is the last row but one."""
    scaling = {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    keys = {"tie_word_embeddings": tied, "rope_parameters": scaling}
    kind, config, weights, given = build("Llama", **keys)
    given["ids"][:, 1:3] = pad % 13
    table, found = "model.embed_tokens.weight", []
    for own in (config, build("Llama", **keys, pad_token_id=pad)[1]):
        model = kind(own, {key: library.array(x) for key, x in weights.items()})
        loss, cache = model.forward(**{key: library.array(x) for key, x in given.items()})
        grads = model.backward(cache, weights=True, inputs=True)
        found.append({"loss": loss, "inputs": grads.inputs, **(grads.weights or {})})
    plain, padded = ({key: library.host(x) for key, x in one.items()} for one in found)
    lookup = np.sum(plain["inputs"][given["ids"] == pad % 13], axis=0)
    assert np.max(np.abs(lookup)) > 1e-3
    row = padded[table][pad]
    assert np.allclose(row, plain[table][pad] - lookup, rtol=1e-12, atol=1e-15)
    assert tied or np.array_equal(row, np.zeros(12))
    padded[table], plain[table] = (np.delete(one[table], pad % 13, axis=0) for one in (padded, plain))
    assert all(np.array_equal(padded[key], x) for key, x in plain.items())


# -- adapt ---------------------------------------------------------------------------------------------------


def test_a_text_is_one_ending() -> None:
    config = build("Llama")[1]
    assert list(models.adapt(config, "q_proj", rank=3)) == list(models.adapt(config, ["q_proj"], rank=3))
    assert len(models.adapt(config, "self_attn.q_proj", rank=3)) == 2
    assert list(models.adapt(config, "lm_head", rank=3)) == ["lm_head"]
    for endings in (("q_proj", "v_proj"), {"q_proj", "v_proj"}, iter(["q_proj", "v_proj"])):
        assert len(models.adapt(config, endings, rank=3)) == 4
    for wrong, found in (
        ("proj", "'proj'"),
        ("", "''"),
        (".*q_proj", r"'\.\*q_proj'"),
        ([3], "3"),
        (["q_proj", ""], "''"),
    ):
        with pytest.raises(ValueError, match=f"modules: {found}; it must be"):
            models.adapt(config, wrong, rank=3)
    for wrong in (3, 2.5, True, models.GPT2):
        with pytest.raises(ValueError, match="modules: "):
            models.adapt(config, wrong, rank=3)
    for empty in ([], (), {}):
        with pytest.raises(ValueError, match="modules: "):
            models.adapt(config, empty, rank=3)


@pytest.mark.parametrize("name", MODELS)
def test_all_linear(name: str) -> None:
    """Every linear module but a language model's head, as PEFT takes them; the default is the blocks' alone."""
    config = build(name)[1]
    beside = {"ViT": {"classifier"}, "CLIP": {"text_projection", "visual_projection"}}.get(name, set())
    inside = set(models.adapt(config, rank=3))
    assert set(models.adapt(config, "all-linear", rank=3)) == inside | beside
    assert not inside & beside
