"""Adapters of every method by rank and by count, weights to begin with, and CLIP's texts and images one by one."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models.small import MODELS, build

from randlora_ref import DIALECTS, Dialect, certify_rank, models
from randlora_ref.adapters import RandLoRA, RandLoRAa, randlora_b
from randlora_ref.models.adapting import METHODS

SIZED = [method for method in METHODS if method != "full"]


def total(adapters: dict[str, Any]) -> int:
    """All learned values."""
    return sum(one.num_parameters() for one in adapters.values())


def wide_vit(width: int, layers: int = 2) -> models.ViTConfig:
    """A ViT of blocks (w, w) four times, (4w, w) and (w, 4w)."""
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    return models.ViTConfig.from_dict(sizes | {"num_attention_heads": 1, "image_size": 8, "patch_size": 4})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_every_method_starts_and_learns(name: str, method: str) -> None:
    """ΔW = 0 at the start but in NoLA, so the loss is the bare model's; every adapted module has a gradient."""
    kind, config, weights, inputs = build(name)
    if name == "CLIP":
        inputs["ids"] = np.where(np.arange(6) == 3, 5, inputs["ids"] % 5)  # the text ends, and is read, at its fourth
    bare = kind(config, weights)
    adapters = models.adapt(bare, method=method, **({} if method == "full" else {"rank": 2}))
    loss, cache = bare.replace(adapters).forward(**inputs)
    if method != "nola":
        assert loss == pytest.approx(bare.forward(**inputs)[0], rel=1e-13)
    grads = bare.replace(adapters).backward(cache)
    for module, adapter in adapters.items():
        moved = max(float(np.max(np.abs(getattr(grads[module], part)))) for part in adapter.LEARNED)
        assert adapter.delta_weight().dtype == np.float64
        assert "k_proj" in module or moved > 1e-9, module  # a key's gradient may be small


@pytest.mark.parametrize("method", METHODS)
def test_what_layers_share(method: str) -> None:
    """One pair of bases, or draws of each layer's own; the same seed gives the same bits, another seed others."""
    config, options = build("ViT")[1], {} if method == "full" else {"rank": 3}
    one, again = (models.adapt(config, method=method, seed=5, **options) for _ in range(2))
    other = models.adapt(config, method=method, seed=6, **options)
    first, second = [name for name in one if name.endswith("q_proj")]
    frozen = {"randlora": "_B", "randlora_b": "_B", "full": "delta"}.get(method, "A")
    values = [
        getattr(found[name], frozen) for found, name in ((one, first), (again, first), (one, second), (other, first))
    ]
    assert np.array_equal(values[0], values[1])
    assert np.array_equal(values[0], values[2]) == (method in ("randlora", "randlora_b", "vera", "full"))
    assert np.array_equal(values[0], values[3]) == (method == "full")
    if method in ("randlora", "randlora_b"):
        assert one[first].bases is one[second].bases


RULES = [replace(DIALECTS["paper"], count_rule=rule) for rule in ("ceil", "floor+1", "ceil+1")]


@settings(max_examples=25)
@given(st.sampled_from(SIZED), st.sampled_from(["ViT", "CLIP"]), st.integers(1, 4000), st.sampled_from(RULES))
def test_no_size_is_nearer_to_a_count(method: str, name: str, count: int, dialect: Dialect) -> None:
    """Against the counts of every rank (of NoLA, of every number of bases) nearby."""
    config = build(name)[1]
    first_blocks = [one.name for one in config.modules() if one.linear and ".layers.0." in one.name]
    options: dict[str, Any] = {"modules": first_blocks}
    options |= {"dialect": dialect} if method in ("randlora", "randlora_b") else {}
    found = models.adapt(config, method=method, count=count, **options)
    if method == "nola":
        assert abs(total(found) - count) <= len(found) or total(found) == 2 * len(found)
        return
    first = next(iter(found.values()))
    rank = 2 * first.rank + 1 if method == "randlora_b" else first.rank
    nearby = range(max(1 + (method == "randlora_b"), rank - 4), rank + 5)
    if method.startswith("randlora"):
        nearby = range(1 + (method == "randlora_b"), 18)  # every n that there is
    least = min(abs(total(models.adapt(config, method=method, rank=r, **options)) - count) for r in nearby)
    assert abs(total(found) - count) == least


@given(st.sampled_from([(2, 4), (2, 6), (5, 10), (2, 10), (5, 5)]), st.integers(1, 3))
def test_equal_counts_are_exact_where_they_can_be(sizes: tuple[int, int], layers: int) -> None:
    """On blocks of hidden 4w: LoRA of rank (n + 1)/3, and VeRA and NoLA where the layers divide what is left."""
    n, w = sizes
    config, count = wide_vit(w, layers), 6 * layers * w * (n + 1)
    assert total(models.adapt(config, rank=w // n)) == count
    for method in ("randlora", "lora", "randlora_a", "nola"):
        assert (
            total(
                models.adapt(
                    config, method=method, count=count, **({"dialect": "paper"} if method == "randlora" else {})
                )
            )
            == count
        )
    assert models.adapt(config, method="lora", count=count)["vit.layers.0.mlp.fc1"].rank == (n + 1) // 3


@settings(max_examples=20)
@given(st.integers(1, 12), st.integers(1, 4), st.sampled_from(["randlora", "randlora_a", "randlora_b"]))
def test_terms_of_a_given_rank(terms: int, rank: int, method: str) -> None:
    """Rank beside count: so many terms, more than fill the matrix too; and the rank they prove once trained."""
    config, w = wide_vit(8, 1), 8
    asked, own = (2 * rank, rank) if method == "randlora_b" else (rank, rank)
    adapters = models.adapt(config, method=method, rank=asked, count=6 * terms * (own + w), dtype="float64")
    adapter = adapters["vit.layers.0.mlp.fc1"]
    assert (adapter.n, adapter.rank, total(adapters)) == (terms, own, 6 * terms * (own + w))
    rng = np.random.default_rng(terms)
    learned = {part: rng.standard_normal(getattr(adapter, part).shape) for part in adapter.LEARNED}
    expected = min(own if method == "randlora_a" else terms * own, w)
    assert certify_rank(adapter.replace(**learned)).rank == expected


def test_terms_by_the_layer() -> None:
    """A dialect with a number of terms; -a has no dialect, and takes it as ``terms``."""
    five = replace(DIALECTS["peft"], num_terms=5)
    assert RandLoRA.start(6, 4, 3, five).n == five.terms((6, 4), 3) == 5
    assert (randlora_b(6, 4, 4, dialect=five).n, randlora_b(6, 4, 4, dialect=five).rank) == (5, 2)
    assert RandLoRAa.start(6, 4, 3, terms=5).lambda_.shape == (5, 3)
    for wrong in (0, True, 2.0):
        with pytest.raises(ValueError, match=r"num_terms: .*; it must be a positive integer"):
            replace(five, num_terms=wrong)
        with pytest.raises(ValueError, match=r"terms: .*; it must be a positive integer"):
            RandLoRAa.start(6, 4, 3, terms=wrong)


def test_scaling_and_alpha() -> None:
    """s as given, or α/r."""
    config = build("ViT")[1]
    for method in ("randlora", "lora", "nola", "randlora_a", "randlora_b"):
        assert {one.scaling for one in models.adapt(config, method=method, rank=4, scaling=0.75).values()} == {0.75}
    for method, rank in (("randlora", 4), ("lora", 4), ("nola", 4), ("randlora_b", 2)):
        assert {one.scaling for one in models.adapt(config, method=method, rank=4, alpha=6).values()} == {6 / rank}
    assert models.adapt(config, rank=4, dtype="float64", kind="sparse", seed=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "dora"}, "method: 'dora'; it must be one of randlora, lora, "),
        ({"method": "full", "rank": 3}, "rank: 3; full has none, so it must be left out"),
        ({"method": "full", "count": 3}, "count: 3; full has none"),
        ({"method": "lora", "dialect": "peft"}, "dialect: 'peft'; lora has none"),
        ({"method": "vera", "alpha": 2.0}, r"alpha: 2\.0; vera has none"),
        ({"method": "lora", "rank": 2, "count": 99}, "count: 99; it must be left out beside a rank"),
        ({"method": "randlora_b", "rank": 1}, "rank: 1; it must be an integer of at least 2"),
        ({"count": 0}, "count: 0; it must be a positive integer"),
        ({"rank": 2.5, "count": 10}, r"rank: 2\.5; it must be a positive integer"),
        ({"seed": -1}, "seed: -1; it must be an integer in"),
        ({"method": "lora", "alpha": float("nan")}, "alpha: nan; it must be a finite number"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.adapt(build("ViT")[1], **options)


@pytest.mark.parametrize("name", MODELS)
def test_initial_weights(name: str) -> None:
    """A model takes them; outputs are of their inputs' size; the loss is that of a guess; a seed settles every bit."""
    kind, config, _, inputs = build(name)
    weights, again, other = (models.initial_weights(config, seed, dtype="float64") for seed in (3, 3, 4))
    assert all(np.array_equal(weights[key], again[key]) for key in weights)
    assert any(not np.array_equal(weights[key], other[key]) for key in weights)
    loss, _ = kind(config, weights).forward(**inputs)
    guess = {"ViT": np.log(5), "CLIP": np.log(3)}.get(name, np.log(13))
    assert abs(loss - guess) < (3 if name == "CLIP" else 1.5)
    assert all(one.dtype == np.float32 for one in models.initial_weights(config).values())
    wide = models.initial_weights(wide_vit(64, 1))
    for key, one in wide.items():
        if one.ndim == 2 and "classifier" not in key:
            assert np.std(one) * np.sqrt(one.shape[1]) == pytest.approx(1, abs=0.05), key
        if key.endswith("bias"):
            assert not one.any()
        if "layernorm" in key and key.endswith("weight"):
            assert (one == 1).all()
    with pytest.raises(ValueError, match="dtype: 'float16'; it must be one of float32, float64"):
        models.initial_weights(config, dtype="float16")


def test_clip_takes_texts_and_images_apart() -> None:
    """As many of each as there are: the scores are those of the pairs' forward pass, and unit vectors' products."""
    kind, config, weights, inputs = build("CLIP")
    model = kind(config, weights, models.adapt(config, rank=3, dtype="float64", method="lora"))
    cache = model.forward(**inputs)[1]
    texts = model.encode_text(inputs["ids"], attention_mask=inputs["attention_mask"])
    images = model.encode_image(inputs["pixels"])
    np.testing.assert_allclose(np.sum(texts * texts, axis=1), 1, rtol=1e-14)
    np.testing.assert_allclose(model.logits(texts, images), cache.logits, rtol=1e-13)
    np.testing.assert_allclose(model.logits(texts[:2], images), cache.logits[:2], rtol=1e-13)
    assert model.logits(texts, images[:1]).shape == (3, 1)
    with pytest.raises(ValueError, match=r"images: shape \(3, 2\); it must be \(3, 7\)"):
        model.logits(texts, images[:, :2])
    with pytest.raises(ValueError, match=r"pixels: shape \(2, 3, 8, 8\); it must be \(3, 3, 8, 8\)"):
        model.forward(inputs["ids"], inputs["pixels"][:2])
    with pytest.raises(IndexError, match="ids: holds 23"):
        model.encode_text(inputs["ids"] + 13)
