"""Adapter folders of every method: what was written is read, what was trained is kept, contradictions are named."""

import json
from pathlib import Path
from typing import Any

import folders
import numpy as np
import pytest

from randlora_ref import load_peft
from randlora_ref.interop import PeftAdapter, PeftLoRA, PeftVeRA

SHAPES = {"h.2.q": (6, 8), "h.10.q": (9, 5)}
KEY = "base_model.model.h.2.q"


def crossed(A: Any, B: Any, lambda_: Any, gamma: Any, s: float, shape: tuple[int, int]) -> Any:
    """ΔW of PEFT's stored arrays, term by term as it flattens them: column f = k·n + j of B meets row k of term j."""
    (r, n), (D, d) = lambda_.shape, (max(shape), min(shape))
    M = np.zeros((D, d))
    for j in range(n):
        for k in range(r):
            f = k * n + j
            M += np.outer(B[:D, f // r, f % r], s * lambda_[k, j] * A[k, 0, :d] * gamma[j])
    return M if shape[0] >= shape[1] else M.T


def right(method: str, t: dict[str, Any], name: str, shape: tuple[int, int], alpha: float = 5.0) -> Any:
    """ΔW by its definition."""
    key = f"base_model.model.{name}"
    if method == "lora":
        return alpha / 3 * t[f"{key}.lora_B.weight"] @ t[f"{key}.lora_A.weight"]
    if method == "vera":
        A, B = t["base_model.vera_A"][:, : shape[1]], t["base_model.vera_B"][: shape[0]]
        return t[f"{key}.vera_lambda_b"][:, None] * (B * t[f"{key}.vera_lambda_d"]) @ A
    bases = t["base_model.randlora_A"], t["base_model.randlora_B"]
    return crossed(*bases, t[f"{key}.randlora_lambda"], t[f"{key}.randlora_gamma"], 2.0, shape)


@pytest.mark.parametrize(("method", "kind"), [("randlora", PeftAdapter), ("lora", PeftLoRA), ("vera", PeftVeRA)])
def test_every_method_is_read(method: str, kind: Any, library: Any, tmp_path: Path) -> None:
    """In natural order, in the base model's shapes, on any library."""
    t = folders.tensors(method, SHAPES)
    saved = load_peft(folders.adapter(tmp_path, method, t), SHAPES, xp=library.xp, device=library.device)
    assert type(saved) is kind
    assert saved.modules == ["h.2.q", "h.10.q"]
    for name, shape in SHAPES.items():
        layer = saved.layer(name)
        assert layer.shape == shape
        np.testing.assert_allclose(library.host(layer.delta_weight()), right(method, t, name, shape), rtol=1e-12)
    assert load_peft(tmp_path, dtype="float32").layer("h.2.q", (6, 8)).delta_weight().dtype == np.float32


def test_a_module_of_its_own_rank_and_alpha(tmp_path: Path) -> None:
    """Patterns are the ends of names from a dot on; rank-stabilised scaling is α/√r."""
    t = folders.tensors("lora", SHAPES)
    t |= {f"{KEY}.lora_A.weight": np.ones((2, 8)), f"{KEY}.lora_B.weight": np.ones((6, 2))}
    patterns = {"rank_pattern": {"2.q": 2, "q": 3}, "alpha_pattern": {"h.2.q": 7, ".*z": 1}}
    saved = load_peft(folders.adapter(tmp_path, "lora", t, **patterns))
    assert [saved.layer(name).scaling for name in saved.modules] == [3.5, 5 / 3]
    saved = load_peft(folders.adapter(tmp_path, "lora", t, **patterns, use_rslora=True))
    np.testing.assert_allclose([saved.layer(name).scaling for name in saved.modules], [7 / 2**0.5, 5 / 3**0.5])
    with pytest.raises(ValueError, match=r"A: shape \(2, 8\); it must be \(3, 8\)"):
        load_peft(folders.adapter(tmp_path, "lora", t))


def test_what_was_trained_beside_is_kept_and_counted(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    from randlora_ref import save_peft

    beside = {
        f"{KEY}.base_layer.bias": np.ones(6),
        "base_model.model.norm.num_batches_tracked": np.array(3),
        "base_model.model.head.weight": np.full((4, 8), 2.0),
    }
    t = folders.tensors("randlora", SHAPES) | beside
    folder = folders.adapter(tmp_path / "in", "randlora", t, bias="randlora_only", modules_to_save=["head"])
    saved = load_peft(folder)
    assert saved.extra.keys() == beside.keys()
    assert saved.num_parameters() == {
        "h.2.q": 2 * (3 + 6), "h.10.q": 2 * (3 + 5), f"{KEY}.base_layer.bias": 6, "base_model.model.head.weight": 32
    }  # fmt: skip
    save_peft(saved, tmp_path / "out")
    from safetensors.numpy import load_file

    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert written.keys() == t.keys()
    for key, x in t.items():
        np.testing.assert_array_equal(written[key], x)


COPY = f"{KEY}.randlora_A"
CONTRADICTIONS: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [  # method, tensors (None: gone), keys, words
    ("randlora", {"h.2.q.randlora_lambda": np.ones((3, 2))}, {}, r"h\.2\.q\.randlora_lambda.* only one of its module"),
    ("randlora", {f"{KEY}.randlora_lambda": np.ones(6)}, {}, r"randlora_lambda \(6,\); it must"),
    ("randlora", {f"{KEY}.randlora_gamma": np.ones(6)}, {}, r"randlora_gamma \(6,\); it must"),
    ("randlora", {f"{KEY}.randlora_gamma": None}, {}, "each module needs randlora_lambda and randlora_gamma"),
    ("randlora", {f"{KEY}.randlora_gamma": np.ones((3, 6))}, {}, r"gamma: shape \(3, 6\); it must be \(2, 6\)"),
    ("randlora", {f"{KEY}.randlora_gamma": np.full((2, 6), np.nan)}, {}, "randlora_gamma: holds NaN"),
    ("randlora", {COPY: np.ones((3, 1, 6))}, {}, f"{COPY}: differs from another randlora_A"),
    ("randlora", {"base_model.randlora_A": np.ones((3, 2, 6))}, {}, r"randlora_A \(3, 2, 6\).*must be \(r, 1, d\)"),
    ("randlora", {"base_model.randlora_A": None}, {}, "or neither"),
    ("randlora", {f"{KEY}.randlora_lambda.second": np.ones((3, 2))}, {}, "second: unknown"),
    ("randlora", {"base_model.model.head.weight": np.ones(3)}, {}, r"head\.weight: unknown"),
    ("randlora", {"base_model.model.norm.bias": np.ones(3)}, {}, r"norm\.bias: unknown"),
    ("randlora", {}, {"sparse": "false"}, "sparse: 'false'; it must be one of None, True, False"),
    ("randlora", {}, {"r": 2}, r"h\.2\.q: lambda_: shape \(2, 3\); it must be \(n, 2\)"),
    ("randlora", {}, {"r": True}, "r: True; it must be a positive integer"),
    ("randlora", {}, {"randlora_alpha": None}, "randlora_alpha: None; it must be a finite number"),
    ("randlora", {}, {"bias": "lora_only"}, "bias: 'lora_only'; it must be one of none, all, randlora_only"),
    ("lora", {f"{KEY}.lora_magnitude_vector": np.ones(6)}, {}, "lora_magnitude_vector: unknown"),
    ("lora", {}, {"use_dora": True}, "use_dora: True is not implemented"),
    ("lora", {}, {"rank_pattern": [1]}, r"rank_pattern: \[1\]; it must be a mapping"),
    ("lora", {}, {"alpha_pattern": {"(": 1}}, r"alpha_pattern: .* a regular expression: missing"),
    ("vera", {"base_model.vera_A": np.ones(3)}, {}, r"A \(3,\), B \(9, 3\); they must be \(r, in\)"),
    ("lora", {}, {"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa' is not implemented"),
    ("lora", {f"{KEY}.lora_A.weight": np.ones((3, 8, 1, 1))}, {}, r"\(3, 8, 1, 1\); it must be .* a matrix"),
    ("vera", {f"{KEY}.vera_lambda_b": np.ones((6, 1))}, {}, r"vera_lambda_b \(6, 1\); it must"),
    ("vera", {"base_model.vera_A": None, "base_model.vera_B": None}, {}, "holds no bases; they must be saved"),
    ("vera", {}, {"peft_type": "IA3"}, "peft_type: 'IA3'; it must be one of RANDLORA, LORA, VERA"),
]


@pytest.mark.parametrize(("method", "changed", "keys", "match"), CONTRADICTIONS)
def test_contradictions_are_named(
    method: str, changed: dict[str, Any], keys: dict[str, Any], match: str, tmp_path: Path
) -> None:
    t = {key: x for key, x in (folders.tensors(method, SHAPES) | changed).items() if x is not None}
    with pytest.raises(ValueError, match=match) as error:
        load_peft(folders.adapter(tmp_path, method, t, **keys))
    assert str(error.value).startswith(str(tmp_path / "adapter_"))


def test_another_base_model_is_named(tmp_path: Path) -> None:
    folder = folders.adapter(tmp_path, "lora", folders.tensors("lora", SHAPES))
    with pytest.raises(
        ValueError, match=r"h\.10\.q: no linear module of the base model; the nearest there is 'h\.1\.q'"
    ):
        load_peft(folder, {"h.2.q": (6, 8), "h.1.q": (9, 5)})


HEADERS = {
    "cut off": lambda text, data: (text, data[:-1]),
    "longer": lambda text, data: (text, data + b"\0"),
    "in the header": lambda text, data: (text[:20], b""),
    "no object": lambda text, data: (b"[1]", b""),
    "key twice": lambda text, data: (text[:-1] + b"," + text[1:], data),
    "negative size": lambda text, data: (text.replace(b"[2, 3]", b"[-2, -3]"), data),
    "other size": lambda text, data: (text.replace(b"[2, 3]", b"[2, 4]"), data),
    "size of a terabyte": lambda text, data: (text.replace(b"[2, 3]", b"[1000000000000, 3]"), data),
    "terabyte announced": lambda text, data: (
        text.replace(b"[2, 3]", b"[3000000000000]").replace(b"[0, 24]", b"[0, 12000000000000]"),
        data,
    ),
    "gap": lambda text, data: (text.replace(b"[0, 24]", b"[8, 32]"), data + b"\0" * 8),
    "no shape": lambda text, data: (text.replace(b'"shape"', b'"form"'), data),
    "text for a size": lambda text, data: (text.replace(b"[2, 3]", b'["2", 3]'), data),
    "eight bits": lambda text, data: (text.replace(b"F32", b"F8_E4M3"), data),
}


@pytest.mark.parametrize("fault", HEADERS)
def test_a_file_that_contradicts_itself_is_named(fault: str, tmp_path: Path) -> None:
    """One fault each; nothing of the size that a header claims is allocated."""
    from randlora_ref.interop.tensors import read_tensors

    entries, data = folders.header({"x": np.ones((2, 3), np.float32)})
    folders.write_raw(tmp_path / "a.safetensors", json.dumps(entries).encode(), data)
    assert read_tensors(tmp_path / "a.safetensors")["x"].shape == (2, 3)
    folders.write_raw(tmp_path / "a.safetensors", *HEADERS[fault](json.dumps(entries).encode(), data))
    with pytest.raises(ValueError, match=r"a\.safetensors: (header|x): .*; it must be a safetensors file") as error:
        read_tensors(tmp_path / "a.safetensors")
    assert "\n" not in str(error.value)
