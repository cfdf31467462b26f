"""The commands as a user types them: what they print, their exit status, one line for what is wrong."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from randlora_ref import cli


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    try:
        status = cli.main(arguments)
    except SystemExit as stop:  # argparse's own way out
        status = int(stop.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


def test_verify_prints_a_figure_and_a_limit_for_each_property(capsys: Any) -> None:
    """Every line has both; the last counts them; status 0."""
    status, out, err = run(capsys, "verify", "--backend", "numpy")
    lines = out.splitlines()
    assert status == 0
    assert err == ""
    checked = [line for line in lines if re.match(r"ok  +[\d.e+-]+ <= +[\d.e+-]+  ", line)]
    assert len(checked) >= 16
    assert lines[-1].startswith(f"{len(checked)} properties hold, 0 fail")


def test_verify_fails_where_a_property_does(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Status 1, the property named, JSON that any parser reads although the figure is infinite."""
    from randlora_ref.adapters.randlora import RandLoRA

    monkeypatch.setattr(RandLoRA, "_S", None)
    status, out, _ = run(capsys, "verify", "--backend", "numpy")
    assert status == 1
    assert re.search(r"FAIL +inf <= +0  layer: stopped by TypeError", out)
    status, out, _ = run(capsys, "verify", "--backend", "numpy", "--json")
    found = json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert status == 1
    assert not found["ok"]
    assert any(one["figure"] == "inf" and not one["ok"] for one in found["properties"])


def test_dialects_lists_every_choice(capsys: Any) -> None:
    """Six rows, and where the two that run part."""
    status, out, _ = run(capsys, "dialects", "--json")
    found = json.loads(out)
    assert status == 0
    assert [row["name"] for row in found["dialects"]] == ["paper", "peft", "official", "nlg", "vision", "kradapter"]
    assert "pairing" in found["paper_and_peft_part_in"]
    assert "count_rule" not in found["paper_and_peft_part_in"]
    _, out, _ = run(capsys, "dialects")
    assert "paper and peft part in: pairing" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "required: COMMAND"),
        (("audit",), "invalid choice: 'audit'"),
        (("verify", "--backend", "jax"), "argument --backend: invalid choice: 'jax'"),
        (("verify", "--seed", "x"), "argument --seed: invalid int value: 'x'"),
        (("verify", "--seed", "-1"), "--seed: -1; it must be"),
    ],
)
def test_wrong_arguments(capsys: Any, arguments: tuple[str, ...], message: str) -> None:
    """Status 2 and the reason on stderr, nothing on stdout."""
    status, out, err = run(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert message in err
    assert "Traceback" not in err


def test_as_a_module_and_into_a_closed_pipe() -> None:
    """``python -m randlora_ref`` is the same command, and a reader that leaves early gets no traceback."""
    command = f"{sys.executable} -m randlora_ref dialects"
    done = subprocess.run(command.split(), capture_output=True, text=True, check=True)
    assert done.stdout.startswith("paper: ")
    root = Path(__file__).parents[1]
    piped = subprocess.run(f"{command} | true", shell=True, capture_output=True, text=True, check=True, cwd=root)
    assert piped.stderr == ""
