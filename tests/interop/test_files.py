"""PEFT's files without PEFT: written, read, and refused in one line when they are bad."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from randlora_ref import Bases, draw_bases
from randlora_ref.interop import PeftAdapter, load_peft, save_peft

CONFIG = {"peft_type": "RANDLORA", "r": 2, "randlora_alpha": 8, "projection_prng_key": 3}


@pytest.fixture
def adapter() -> PeftAdapter:
    pytest.importorskip("safetensors")
    rng = np.random.default_rng(0)

    def draw(*size: int) -> Any:
        return rng.standard_normal(size).astype(np.float32)

    names = {"a.q": (3, 5), "b.v": (2, 4)}
    lambda_ = {name: draw(n, 2) for name, (n, _) in names.items()}
    gamma = {name: draw(n, d) for name, (n, d) in names.items()}
    return PeftAdapter(Bases(draw(2, 6), draw(3, 7, 2)), lambda_, gamma, CONFIG)


def test_round_trip(adapter: PeftAdapter, tmp_path: Path) -> None:
    save_peft(adapter, tmp_path)
    read = load_peft(tmp_path)
    assert dict(read.config) == CONFIG
    assert np.array_equal(read.bases.A, adapter.bases.A)
    assert np.array_equal(read.bases.B, adapter.bases.B)
    assert set(read.lambda_) == {"a.q", "b.v"}
    for name, lambda_ in adapter.lambda_.items():
        assert np.array_equal(read.lambda_[name], lambda_)
        assert np.array_equal(read.gamma[name], adapter.gamma[name])
    assert read.layer("a.q", (5, 7)).scaling == 4.0
    assert read.layer("a.q").shape == (7, 5)
    with pytest.raises(KeyError, match=r"'c'; it must be one of a\.q, b\.v"):
        read.layer("c")


def test_arrays_of_any_library_make_the_same_file(library: Any, adapter: PeftAdapter, tmp_path: Path) -> None:
    """Byte for byte, wherever the arrays lie."""
    moved = {name: library.array(x) for name, x in adapter.lambda_.items()}
    gamma = {name: library.array(x) for name, x in adapter.gamma.items()}
    bases = Bases(library.array(adapter.bases.A), library.array(adapter.bases.B))
    save_peft(PeftAdapter(bases, moved, gamma, CONFIG), tmp_path / "here")
    save_peft(adapter, tmp_path / "host")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "here" / file).read_bytes() == (tmp_path / "host" / file).read_bytes()


def test_layouts_are_pefts(adapter: PeftAdapter, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    save_peft(adapter, tmp_path)
    shapes = {name: tensor.shape for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items()}
    assert shapes["base_model.randlora_A"] == (2, 1, 6)
    assert shapes["base_model.randlora_B"] == (7, 3, 2)
    assert shapes["base_model.model.a.q.randlora_lambda"] == (2, 3)
    assert shapes["base_model.model.a.q.randlora_gamma"] == (3, 5)


@pytest.mark.parametrize("draw_dtype", ["bfloat16", "float16"])
def test_bases_that_are_not_saved_are_drawn_in_the_type_asked_for(
    adapter: PeftAdapter, tmp_path: Path, draw_dtype: Any
) -> None:
    """The file does not say on which hardware the adapter was trained."""
    from safetensors.numpy import load_file, save_file

    save_peft(adapter, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    left = {name: tensor for name, tensor in tensors.items() if not name.endswith(("randlora_A", "randlora_B"))}
    save_file(left, tmp_path / "adapter_model.safetensors")
    read = load_peft(tmp_path, [(5, 7), (4, 7)], draw_dtype=draw_dtype)
    drawn = draw_bases("peft", seed=3, shapes=[(5, 7), (4, 7)], rank=2, draw_dtype=draw_dtype)
    assert np.array_equal(read.bases.A, drawn.A)
    assert np.array_equal(read.bases.B, drawn.B)
    default = load_peft(tmp_path, [(5, 7), (4, 7)])
    assert np.array_equal(default.bases.B, drawn.B) == (draw_dtype == "bfloat16")
    with pytest.raises(ValueError, match="draw_dtype: 'float32'; it must be one of bfloat16, float16"):
        load_peft(tmp_path, [(5, 7)], draw_dtype="float32")


def test_bfloat16_is_widened_by_bits(adapter: PeftAdapter, tmp_path: Path) -> None:
    save_peft(adapter, tmp_path)
    words = {
        "base_model.randlora_A": np.full((2, 1, 6), 0x3F80, np.uint16),  # 1
        "base_model.randlora_B": np.full((7, 3, 2), 0xC040, np.uint16),  # -3
        "base_model.model.m.randlora_lambda": np.full((2, 3), 0x3E00, np.uint16),  # 1/8
        "base_model.model.m.randlora_gamma": np.full((3, 5), 0x0001, np.uint16),  # the least number
    }
    header, data = {}, b""
    for name, tensor in words.items():
        offsets = [len(data), len(data) + tensor.nbytes]
        header[name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": offsets}
        data += tensor.tobytes()
    text = json.dumps(header).encode()
    (tmp_path / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    read = load_peft(tmp_path)
    assert read.bases.A.dtype == np.float32
    assert {float(read.bases.A.min()), float(read.bases.A.max())} == {1.0}
    assert np.all(read.bases.B == -3.0)
    assert np.all(read.lambda_["m"] == 0.125)
    assert np.all(read.gamma["m"] == 2.0**-133)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("adapter_config.json", b"{", "it must be PEFT's adapter configuration"),
        ("adapter_config.json", b"[" * 100000, "it must be PEFT's adapter configuration"),
        ("adapter_config.json", b"[]", "list; it must be PEFT's adapter configuration"),
        (
            "adapter_config.json",
            json.dumps({**CONFIG, "peft_type": "IA3"}).encode(),
            "peft_type: 'IA3'; it must be one of",
        ),
        ("adapter_config.json", json.dumps({**CONFIG, "r": "2"}).encode(), "r: '2'; it must be a positive integer"),
        ("adapter_config.json", None, "it must be PEFT's adapter configuration"),
        ("adapter_model.safetensors", b"\xff" * 100, "it must be a safetensors file"),
        ("adapter_model.safetensors", None, "it must be a safetensors file"),
    ],
)
def test_bad_files_are_refused_by_name(
    adapter: PeftAdapter, tmp_path: Path, name: str, content: bytes | None, match: str
) -> None:
    save_peft(adapter, tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=match) as error:
        load_peft(tmp_path)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["lambda_", "gamma"])
def test_learned_values_that_are_no_matrix_are_refused_by_name(adapter: PeftAdapter, tmp_path: Path, name: str) -> None:
    save_peft(replace(adapter, **{name: {**getattr(adapter, name), "a.q": np.ones(5, np.float32)}}), tmp_path)
    with pytest.raises(
        ValueError, match=rf"adapter_model\.safetensors: .*a\.q\.randlora_{name.strip('_')} \(5,\); it must"
    ):
        load_peft(tmp_path)
