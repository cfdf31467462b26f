"""Whatever is put in place of an argument of a public door, or of a part of a file: a result, or a named refusal.

A door is called rightly but for one argument, or for one part of one: the value comes from ``ODD``. What it raises must
be a TypeError, a ValueError or, of ids and names, an IndexError or a KeyError, whose message names an argument and says
what it must be. An odd value that happens to be right is no fault.
"""

import datetime
import fractions
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import randlora_ref as rl
from randlora_ref import conformance, models, nn, optim, rank
from randlora_ref.adapters import FullFineTuning, LoRA, NoLA, RandLoRAa, VeRA, contraction_costs, vera_bases
from randlora_ref.bases import tile
from randlora_ref.conformance import vectors

ODD: tuple[Any, ...] = (
    None, True, False, "", "x", "\ud800\x1b[2J", b"x", -1, 0, 1, 2, 3, 10**30, -(10**30), 2**63, 2**64, 1.5,
    -0.5, np.nan, np.inf, -np.inf, 1e308, 5e-324, 1j, fractions.Fraction(1, 3), Decimal("NaN"), (), [], {},
    set(), [1], (1, 2), [[1]], ((1, 2),), [[[]]], {"a": 1}, {1: 2}, {"shape": [1]}, range(3), object(), type,
    len, datetime.date(2020, 1, 1), slice(2), np.uint8(3), np.int8(-1), np.uint64(2**64 - 1), np.float16(2),
    np.float32("nan"), np.bool_(True), np.datetime64("2020"), np.str_("x"), np.array(3), np.array(1.0),
    np.zeros(0), np.zeros((0, 3)), np.zeros((2, 0)), np.ones(3), np.ones((3, 4)), np.ones((4, 3)), np.ones((2,
    3, 4)), np.ones((1, 1, 1, 1)), np.ones((4, 3), "f4"), np.ones((4, 3), "f2"), np.ones((4, 3), ">f8"),
    np.ones((4, 3), int), np.ones((4, 3), bool), np.ones((4, 3), complex), np.full((4, 3), np.nan), np.full((4,
    3), 1e308), np.array([None, "x"]), np.array(["x"]), np.array(object()), np.ones((4, 3)).view(np.matrix),
    np.ma.masked_array(np.ones((4, 3)), np.eye(4, 3)), np.zeros((4, 3), "V8"), np.array([2**64 - 1], "u8"),
    "paper", "nlg",
)  # fmt: skip

bases = rl.draw_bases(shapes=[(4, 3)], rank=2, dtype="float64")
layer = rl.RandLoRA.start(4, 3, 2, "paper", bases=bases, dtype="float64")
x, weight, dy = np.ones((2, 3)), np.ones((4, 3)), np.ones((2, 4))
vector = np.ones(3)
_, cache = layer.forward(x, weight)
text = models.GPT2Config(n_layer=1, n_head=2, n_embd=4, vocab_size=5, n_positions=4)
weights = {saved: np.ones(shape) for one in text.modules() for saved, shape in one.tensors.values()}
gpt2 = models.GPT2(text, weights)
ids = np.array([[1, 2, 3]])
_, run = gpt2.forward(ids, ids)
images = models.ViTConfig(8, 8, 1, 2, image_size=4, patch_size=2, num_labels=3)
vit = models.ViT(images, {saved: np.ones(s) for one in images.modules() for saved, s in one.tensors.values()})
case = next(one for one in conformance.stored_cases() if one.kind == "layer")
block_spec = {"width": 4, "hidden": 5, "heads": 2, "key_heads": 1, "head_width": 2, "eps": 1e-5, "activation": "silu"}
full = FullFineTuning.start(4, 3, dtype="float64")
SIZE = {"out_features": 4, "in_features": 3}
FACTORS = {"A": bases.A, "B": bases.B, "lambda_": layer.lambda_, "gamma": layer.gamma}
MADE = {"dtype": "float64", "xp": np, "device": None}
RECORD = {name: getattr(rl.DIALECTS["peft"], name) for name in rl.DIALECTS["peft"].__dataclass_fields__}
low = LoRA.start(4, 3, 2, dtype="float64")
vera, nola, many = (kind.start(4, 3, 2, dtype="float64") for kind in (VeRA, NoLA, RandLoRAa))
_, attended = nn.attention(np.ones((1, 2, 3, 4)), np.ones((1, 2, 3, 4)), np.ones((1, 2, 3, 4)))
_, losses = nn.cross_entropy(x, np.array([0, 1]))

Door = tuple[Callable[..., Any], Mapping[str, Any]]


def learned(adapter: Any) -> dict[str, Any]:
    """An adapter's own fields."""
    return {one.name: getattr(adapter, one.name) for one in fields(adapter) if one.init}


DOORS: dict[str, Door] = {
    "Bases": (rl.Bases, {"A": bases.A, "B": bases.B}),
    "Bases.slice": (bases.slice, {"n": 1, "D": 2, "d": 2}),
    "Dialect": (rl.Dialect, RECORD),
    "Dialect.terms": (rl.DIALECTS["peft"].terms, {"shape": (4, 3), "rank": 2, "context": None}),
    "nlg.terms": (rl.DIALECTS["nlg"].terms, {"shape": (4, 3), "rank": 2, "context": 4}),
    "Dialect.scaling": (rl.DIALECTS["peft"].scaling, {"rank": 2, "n": 2, "alpha": 4}),
    "paper.scaling": (rl.DIALECTS["paper"].scaling, {"rank": 2, "n": 2, "alpha": None}),
    "Dialect.start": (rl.DIALECTS["peft"].start, {"shape": (4, 3), "rank": 2, "n": 2}),
    "Dialect.num_parameters": (rl.DIALECTS["peft"].num_parameters, {"shape": (4, 3), "rank": 2}),
    "draw_bases": (
        rl.draw_bases,
        {
            "dialect": "paper",
            "seed": 0,
            "shapes": [(4, 3)],
            "rank": 2,
            "kind": "dense",
            "draw_dtype": None,
            "dtype": "float32",
            "context": None,
            "xp": np,
            "device": None,
        },
    ),
    "draw_bases, peft": (
        rl.draw_bases,
        {"dialect": "peft", "shapes": [(4, 3)], "rank": 2, "kind": "dense", "draw_dtype": None},
    ),
    "draw_bases, nlg": (rl.draw_bases, {"dialect": "nlg", "shapes": (), "rank": 2, "context": 4}),
    "tile": (
        tile,
        {
            "term": 1,
            "first": 0,
            "last": 2,
            "seed": 0,
            "rank": 2,
            "kind": "dense",
            "D_max": 4,
            "dtype": "float32",
            "xp": np,
        },
    ),
    "RandLoRA": (rl.RandLoRA, learned(layer)),
    "RandLoRA.start": (
        rl.RandLoRA.start,
        {
            **SIZE,
            "rank": 2,
            "dialect": "paper",
            "seed": 0,
            "alpha": 4,
            "bases": bases,
            "scaling": None,
            "kind": "dense",
            "dtype": "float64",
        },
    ),
    "RandLoRA.start, drawn": (
        rl.RandLoRA.start,
        {**SIZE, "rank": 2, "dialect": "peft", "seed": 0, "alpha": 4, "kind": "dense", **MADE},
    ),
    "forward": (layer.forward, {"x": x, "weight": weight, "bias": None, "dropout_mask": None}),
    "backward": (layer.backward, {"dy": dy, "cache": cache}),
    "merge": (layer.merge, {"weight": weight}),
    "unmerge": (layer.unmerge, {"weight": weight}),
    "replace": (layer.replace, {"lambda_": layer.lambda_, "gamma": layer.gamma}),
    **{type(one).__name__: (type(one), learned(one)) for one in (low, vera, nola, many, full)},
    **{
        f"{type(one).__name__}.backward": (one.backward, {"dy": dy, "cache": one.forward(x, weight)[1]})
        for one in (low, vera, nola, many, full)
    },
    "LoRA.start": (LoRA.start, {**SIZE, "rank": 2, "alpha": 8, "seed": 0, **MADE}),
    "VeRA.start": (
        VeRA.start,
        {**SIZE, "rank": 2, "bases": vera_bases([(4, 3)], 2, dtype="float64"), "d_initial": 0.1, "seed": 0, **MADE},
    ),
    "NoLA.start": (NoLA.start, {**SIZE, "rank": 2, "num_bases": 3, "alpha": 1, "seed": 0, **MADE}),
    "RandLoRAa.start": (RandLoRAa.start, {**SIZE, "rank": 2, "scale": None, "seed": 0, **MADE}),
    "FullFineTuning.start": (FullFineTuning.start, {**SIZE, **MADE}),
    "randlora_b": (rl.randlora_b, {**SIZE, "rank": 2, "dialect": "paper", "seed": 0, "alpha": 2}),
    "vera_bases": (vera_bases, {"shapes": [(4, 3)], "rank": 2, "seed": 0, **MADE}),
    "convert": (rl.convert, {"layer": layer, "dialect": "paper"}),
    "contraction_costs": (contraction_costs, {"rows": 2, "D": 4, "d": 3, "n": 2, "r": 2}),
    "certify_rank": (rl.certify_rank, {"source": weight, "work_limit": 10, "seed": 0, "progress": None}),
    "spectrum": (rank.spectrum, {"source": weight, "threshold": None}),
    "randlora_factors": (rank.randlora_factors, FACTORS),
    "rank_after_steps": (
        rank.rank_after_steps,
        {
            **FACTORS,
            "shape": (4, 3),
            "steps": 1,
            "scaling": 1.0,
            "pairing": "literal",
            "orientation": "paper",
            "largest_move": 0.01,
            "seed": 0,
        },
    ),
    "predicted_rank": (rank.predicted_rank, {"columns": 3, "zero_probability": 0.5, "rank": 2}),
    "load_factors": (rank.load_factors, {"path": "nowhere.npz"}),
    "linear": (nn.linear, {"x": x, "weight": weight, "bias": None, "adapter": layer}),
    "linear_backward": (nn.linear_backward, {"dy": dy, "cache": nn.linear(x, weight)[1]}),
    "layer_norm": (nn.layer_norm, {"x": x, "weight": vector, "bias": vector, "eps": 1e-5}),
    "rms_norm": (nn.rms_norm, {"x": x, "weight": vector, "bias": None, "eps": 1e-5}),
    "norm_backward": (nn.norm_backward, {"dy": x, "cache": nn.layer_norm(x, vector, vector, 1e-5)[1]}),
    "activation": (nn.activation, {"x": x, "kind": "silu"}),
    "activation_backward": (nn.activation_backward, {"dy": x, "slope": x}),
    "gated": (nn.gated, {"gate": x, "up": x, "kind": "silu"}),
    "gated_backward": (nn.gated_backward, {"dy": x, "cache": nn.gated(x, x)[1]}),
    "additive_mask": (nn.additive_mask, {"like": x, "size": 3, "mask": np.ones((2, 3), int)}),
    "attention": (
        nn.attention,
        {"q": np.ones((1, 2, 3, 4)), "k": np.ones((1, 2, 3, 4)), "v": np.ones((1, 2, 3, 4)), "mask": None},
    ),
    "attention_backward": (nn.attention_backward, {"do": np.ones((1, 2, 3, 4)), "cache": attended}),
    "block spec": (nn.BlockSpec, block_spec),
    "embedding": (nn.embedding, {"ids": np.array([1, 2]), "table": weight}),
    "embedding_backward": (
        nn.embedding_backward,
        {"dy": np.ones((2, 3)), "cache": nn.embedding(np.array([1, 2]), weight)[1]},
    ),
    "cross_entropy": (nn.cross_entropy, {"logits": x, "labels": np.array([0, 1]), "ignored": -100}),
    "cross_entropy_backward": (nn.cross_entropy_backward, {"cache": losses, "dloss": 1.0, "through": None}),
    "contrastive": (nn.contrastive, {"texts": x, "images": x, "log_scale": np.array(0.0)}),
    "contrastive_backward": (nn.contrastive_backward, {"cache": nn.contrastive(x, x, np.array(0.0))[1], "dloss": 1.0}),
    "normalize": (nn.normalize, {"x": x}),
    "normalize_backward": (nn.normalize_backward, {"dy": x, "cache": nn.normalize(x)[1]}),
    "erf": (nn.erf, {"x": x}),
    "patches": (nn.patches, {"pixels": np.ones((1, 2, 4, 4)), "size": 2}),
    "rotary": (nn.rotary, {"x": np.ones((1, 2, 4)), "tables": nn.rotary_tables(x, 2, 4, 10.0)}),
    "rotary_backward": (nn.rotary_backward, {"dy": np.ones((1, 2, 4)), "tables": nn.rotary_tables(x, 2, 4, 10.0)}),
    "rotary_tables": (nn.rotary_tables, {"like": x, "size": 3, "width": 4, "theta": 10.0}),
    "sgd": (optim.sgd, {"values": {"a": x}, "grads": {"a": x}, "state": optim.START, "lr": 0.1, "momentum": 0.1}),
    "adamw": (
        optim.adamw,
        {"values": {"a": x}, "grads": {"a": x}, "state": optim.START, "lr": 0.1, "betas": (0.9, 0.99)},
    ),
    "GPT2Config": (models.GPT2Config, {"vocab_size": 5, "n_positions": 4, "n_embd": 4, "n_layer": 1, "n_head": 2}),
    "GPT2Config.from_dict": (models.GPT2Config.from_dict, {"config": {"n_layer": 1, "n_embd": 4, "n_head": 2}}),
    "LlamaConfig.from_dict": (
        models.LlamaConfig.from_dict,
        {"config": {"hidden_size": 4, "num_attention_heads": 2, "head_dim": None}},
    ),
    "ViTConfig.from_dict": (models.ViTConfig.from_dict, {"config": {"hidden_size": 4, "num_attention_heads": 2}}),
    "CLIPConfig.from_dict": (
        models.CLIPConfig.from_dict,
        {"config": {"text_config": {}, "vision_config": {}, "projection_dim": 4}},
    ),
    "GPT2": (models.GPT2, {"config": text, "weights": weights, "adapters": None}),
    "GPT2.forward": (gpt2.forward, {"ids": ids, "labels": ids, "attention_mask": None}),
    "GPT2.backward": (gpt2.backward, {"cache": run}),
    "ViT.forward": (vit.forward, {"pixels": np.ones((1, 3, 4, 4)), "labels": np.array([1])}),
    "adapt": (
        models.adapt,
        {"model": text, "modules": None, "rank": 2, "dialect": "peft", "seed": 0, "kind": "dense", "dtype": None},
    ),
    "check": (
        conformance.check,
        {
            "implementation": conformance.reference,
            "kinds": ["layer"],
            "cases": [case],
            "dtype": None,
            "target": None,
            "dialect": None,
            "progress": None,
        },
    ),
    "check_target": (
        conformance.check_target,
        {
            "target": "a:b",
            "command": None,
            "kinds": None,
            "dtype": None,
            "case": None,
            "dialect": None,
            "random": 0,
            "seed": 0,
        },
    ),
    "pytest_cases": (
        conformance.pytest_cases,
        {"implementation": conformance.reference, "kinds": None, "dtype": None, "dialect": None},
    ),
    "search": (
        conformance.search,
        {
            "implementation": conformance.reference,
            "count": 1,
            "seed": 0,
            "target": None,
            "kinds": None,
            "dtype": None,
            "dialect": None,
        },
    ),
    "find_case": (conformance.find_case, {"id_": "exact-001-hand-3x2"}),
    "random_case": (conformance.random_case, {"index": 1, "seed": 0, "dialect": "peft"}),
    "Case.cast": (case.cast, {"dtype": "float32"}),
    "limits": (conformance.limits, {"case": case, "dtype": None}),
}
OFFERED = "only paper's and peft's are offered|not offered|which no other|no case is left"
REFUSED = re.compile(f"must|needs|no array among|give one of|{OFFERED}")
# Work without end, and functions that are called.
FIXED = {("search", "count"), ("certify_rank", "progress"), ("check", "progress")}


def call(name: str, argument: str, value: Any) -> str | None:
    """None, or what the door did that is neither a result nor a refusal that names what is wrong."""
    door, good = DOORS[name]
    try:
        with np.errstate(all="ignore"):
            door(**{**good, argument: value})
    except (TypeError, ValueError, IndexError, KeyError) as error:
        if type(error) in (TypeError, ValueError, IndexError, KeyError) and REFUSED.search(str(error)):
            return None
        return f"{type(error).__name__}: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@st.composite
def odd_values(draw: Any, good: Any) -> Any:
    """One odd value, or the good one with an odd part."""
    value = draw(st.sampled_from(range(len(ODD))))
    kind = draw(st.integers(0, 3))
    if kind == 0 and isinstance(good, tuple | list) and good:
        place = draw(st.integers(0, len(good) - 1))
        return type(good)([*good[:place], ODD[value], *good[place + 1 :]])
    if kind == 0 and isinstance(good, dict):
        key = draw(st.sampled_from([*good, "more"]))
        return {**good, key: ODD[value]}
    return ODD[value]


# ``search`` is hypothesis' own, and the lowest version that is declared does not know that this can be unhealthy.
NESTED = {"suppress_health_check": [one for one in HealthCheck if one.name in ("nested_given", "too_slow")]}


@settings(**NESTED)
@given(st.data())
def test_doors_refuse_by_name(data: Any) -> None:
    name = data.draw(st.sampled_from([*DOORS]))
    argument = data.draw(st.sampled_from([one for one in DOORS[name][1] if (name, one) not in FIXED]))
    good = DOORS[name][1][argument]
    value = data.draw(odd_values(None if argument in ("cache", "tables", "state") else good))  # opaque
    assert call(name, argument, value) is None


@pytest.mark.slow
@settings(max_examples=20_000, **NESTED)
@given(st.data())
def test_doors_refuse_by_name_whatever_comes(data: Any) -> None:
    test_doors_refuse_by_name.hypothesis.inner_test(data)


def every_place(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all parts of a JSON value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, part in parts for path in every_place(part, (*at, key)))]


def with_part(value: Any, path: tuple[Any, ...], part: Any) -> Any:
    """``value`` with another part at ``path``."""
    if not path:
        return part
    if isinstance(value, dict):
        return {**value, path[0]: with_part(value[path[0]], path[1:], part)}
    return [*value[: path[0]], with_part(value[path[0]], path[1:], part), *value[path[0] + 1 :]]


RESULTS = {"format": "randlora-results", "version": 1, "results": {case.id: {"y": [[1.0]], "dx": vectors.encode([1])}}}
CASES = {kind: next(one for one in conformance.stored_cases() if one.kind == kind) for kind in conformance.cases.KINDS}
JSON = st.sampled_from([
    None, True, 0, -1, 1.5, 2**70, 1e308, "", "x", "\ud800\x1b[2J", [], {}, [[]], [None], {"shape": [2**40]},
    "unsupported: x", {"shape": [-1], "dtype": "int", "data": []}, {"shape": [1], "dtype": "float32", "data": "zz"},
    [1] * 100,
])  # fmt: skip


def refused(read: Callable[[], Any]) -> bool:
    """Whether a file was read, or refused by a ValueError in one line."""
    try:
        read()
    except ValueError as error:
        return "\n" not in str(error)
    return True


@given(st.data())
def test_a_case_of_a_file_is_read_or_refused(data: Any) -> None:
    """A part of a stored case is another value, or gone."""
    good = json.loads(json.dumps(vectors.case_to_json(CASES[data.draw(st.sampled_from([*CASES]))])))
    path = data.draw(st.sampled_from(every_place(good)))
    assert refused(lambda: vectors.case_from_json(with_part(good, path, data.draw(JSON)), "here"))


@given(st.data())
def test_results_are_read_or_refused_and_judged(tmp_path_factory: Any, data: Any) -> None:
    """A part of a results file is another value; the file may be cut; what is read gets a report in printable lines."""
    folder = tmp_path_factory.getbasetemp()
    path = data.draw(st.sampled_from(every_place(RESULTS)))
    content = json.dumps(with_part(RESULTS, path, data.draw(JSON)))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.integers(0, 4)) == 0 else content
    (folder / "r.json").write_text(content, encoding="utf-8")
    reports = []
    assert refused(lambda: reports.append(conformance.check(vectors.results_file(folder / "r.json"), cases=[case])))
    for report in reports:
        assert not report.passed
        assert all(line.isprintable() for line in report.lines())


@given(st.binary(max_size=40), st.integers(0, 2000), st.integers(0, 2000))
def test_an_archive_is_read_or_refused(tmp_path_factory: Any, noise: bytes, at: int, cut: int) -> None:
    """A stored update with noise in it, or cut."""
    path = Path(tmp_path_factory.getbasetemp()) / "u.npz"
    np.savez(path, factor0=np.ones((3, 1)), factor1=np.ones((1, 4)))
    content = path.read_bytes()
    path.write_bytes((content[:at] + noise + content[at + len(noise) :])[: cut or None])
    assert refused(lambda: rl.certify_rank(rank.load_factors(path)))
