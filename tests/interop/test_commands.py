"""``randlora-ref rank`` and ``count`` of an adapter's folder: in the layers' own shapes, or said for which."""

import json
from pathlib import Path
from typing import Any

import folders
import numpy as np
import pytest

from randlora_ref import certify_rank, draw_bases, load_peft
from randlora_ref.cli import main

NAMES = {"transformer.h.10.attn.c_attn": (36, 12), "transformer.h.2.attn.c_attn": (36, 12)}
NAMES |= {"transformer.h.2.mlp.c_fc": (48, 12)}
GPT2 = {"model_type": "gpt2", "n_embd": 12, "n_head": 3, "n_layer": 11, "vocab_size": 13, "n_positions": 7}


def run(capsys: Any, *arguments: Any) -> tuple[int, Any, str]:
    """Status, what was printed as JSON if it was asked for, stderr."""
    status = main([str(one) for one in arguments])
    captured = capsys.readouterr()
    return status, json.loads(captured.out) if "--json" in arguments and not status else captured.out, captured.err


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(GPT2))
    return tmp_path / "base"


def lame(folder: Path, rows: int, shapes: dict[str, tuple[int, int]] = NAMES) -> Path:
    """A RandLoRA adapter; the first ``rows`` rows of B are zero but for one column, so low layers have rank 1."""
    t = folders.tensors("randlora", shapes)
    t["base_model.randlora_B"][:rows, :, 1:] = 0
    t["base_model.randlora_B"][:rows, 1:, :] = 0
    return folders.adapter(folder, "randlora", t)


def test_a_rank_is_of_the_layers_own_matrix(capsys: Any, base: Path, tmp_path: Path) -> None:
    """Rows of B that a layer does not slice add no rank: 1 of 12, where the whole of B would say 12."""
    folder = lame(tmp_path / "adapter", 36)
    right = {"transformer.h.2.attn.c_attn": 1, "transformer.h.2.mlp.c_fc": 12, "transformer.h.10.attn.c_attn": 1}
    for where in (base, base / "config.json"):
        status, found, _ = run(capsys, "rank", folder, "--base", where, "--json")
        assert status == 0
        assert {name: one["rank"] for name, one in found["certificates"].items()} == right
        assert list(found["certificates"]) == list(right)
        assert all(found["certificates"][name]["details"]["shape"] == list(NAMES[name]) for name in right)
        assert {name: one["numerical_rank"] for name, one in found["spectra"].items()} == right
    _, out, _ = run(capsys, "rank", folder, "--base", base)
    assert out.splitlines()[-1] == "3 modules: 3 certified, 1 of full rank, ranks 1 to 12"
    status, found, _ = run(capsys, "rank", folder, "--json")
    assert (status, found["certificates"], found["spectra"]) == (0, {}, {})
    assert found["modules"]["transformer.h.2.mlp.c_fc"].startswith(
        "rank 1 to 12, by its shape, from (12, 12) to (48, 12)"
    )
    assert '"rank"' not in json.dumps(found)


def test_without_the_base_what_holds_of_every_shape_is_certified(capsys: Any, tmp_path: Path) -> None:
    folder = folders.adapter(tmp_path, "randlora", folders.tensors("randlora", NAMES))
    _, found, _ = run(capsys, "rank", folder, "--json")
    assert [one["rank"] for one in found["certificates"].values()] == [12] * 3
    assert set(found["modules"].values()) == {
        "of any shape from (12, 12) to (48, 12), or turned round; --base tells it"
    }
    folder = folders.adapter(tmp_path, "lora", folders.tensors("lora", NAMES))
    _, found, _ = run(capsys, "rank", folder, "--json")
    assert [one["rank"] for one in found["certificates"].values()] == [3] * 3
    folder = folders.adapter(tmp_path, "vera", folders.tensors("vera", NAMES))
    _, found, _ = run(capsys, "rank", folder, "--json")
    assert found["certificates"] == {}
    assert found["modules"]["transformer.h.2.mlp.c_fc"].startswith(
        "rank 1 to 3, by its shape, from (48, 1) to (48, 12)"
    )


@pytest.mark.parametrize("draw_dtype", ["bfloat16", "float16"])
def test_bases_that_are_not_saved_are_drawn_for_the_bases_shapes(
    draw_dtype: Any, capsys: Any, base: Path, tmp_path: Path
) -> None:
    t = {key: x for key, x in folders.tensors("randlora", NAMES, "float32").items() if "randlora_A" not in key}
    t.pop("base_model.randlora_B")
    folder = folders.adapter(tmp_path / "adapter", "randlora", t)
    status, out, err = run(capsys, "rank", folder)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "holds no bases; shapes must list" in err
    _, found, _ = run(capsys, "rank", folder, "--base", base, "--draw-dtype", draw_dtype, "--json")
    saved = load_peft(folder, NAMES, draw_dtype=draw_dtype)
    drawn = draw_bases("peft", seed=5, shapes=list(NAMES.values()), rank=3, draw_dtype=draw_dtype)
    np.testing.assert_array_equal(saved.bases.B, drawn.B)
    for name, one in found["certificates"].items():
        assert one["details"]["sha256"] == certify_rank(saved.layer(name)).details["sha256"]
    status, found, _ = run(capsys, "count", folder, "--json")
    assert found["learned"] == {
        "transformer.h.2.attn.c_attn": 60, "transformer.h.2.mlp.c_fc": 60, "transformer.h.10.attn.c_attn": 60
    }  # fmt: skip
    assert (status, found["all"]) == (0, 180)


@pytest.mark.parametrize(("arguments", "match"), [
    (("rank", "FOLDER", "--shape", 4, 3), "--shape: says nothing about"),
    (("rank", "FOLDER", "--steps", 0), "--steps: says nothing about"),
    (("rank", "FOLDER", "--lambda-start", 0), "--lambda-start: says nothing about"),
    (("rank", "--base", "BASE"), "--base: says nothing about no folder"),
    (("rank", "x.npz", "--base", "BASE"), "--base: says nothing about 'x.npz'"),
    (("rank", "FOLDER", "--base", "none"), "none: "),
    (("count", "FOLDER", "--rank", 3), "--rank: says nothing about"),
    (("count", "none"), "adapter_config.json"),
])  # fmt: skip
def test_options_that_do_not_belong_together(
    arguments: Any, match: str, capsys: Any, base: Path, tmp_path: Path
) -> None:
    folder = lame(tmp_path / "adapter", 36)
    given = [{"FOLDER": folder, "BASE": base}.get(one, one) for one in arguments]
    status, out, err = run(capsys, *given)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert match in err
