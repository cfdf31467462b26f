"""Commands for a person: what they print fits any stream, one line says what is wrong, nothing waits in vain."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest

import randlora_ref as rl
from randlora_ref import cli, models, terminal
from randlora_ref.models import adapt

COMMANDS = ("verify", "check", "vectors", "rank", "count", "claims", "dialects")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    try:
        status = cli.main(arguments)
    except SystemExit as stop:
        status = int(stop.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


def objects() -> list[Any]:
    """One of each kind of object that holds arrays."""
    from randlora_ref.adapters import LoRA, NoLA, RandLoRAa, VeRA
    from randlora_ref.rank import spectrum

    config = models.GPT2Config(n_layer=1, n_head=2, n_embd=64, vocab_size=50, n_positions=32)
    shapes = {saved: shape for one in config.modules() for saved, shape in one.tensors.values()}
    weights = {name: np.zeros(shape) for name, shape in shapes.items()}
    layers = [kind.start(64, 48, 4) for kind in (rl.RandLoRA, LoRA, VeRA, NoLA, RandLoRAa)]
    model = models.GPT2(config, weights, adapt(models.GPT2(config, weights), rank=4))
    found = [rl.certify_rank(np.eye(300)), spectrum(np.eye(300)), rl.conformance.stored_cases()[0]]
    return [*layers, layers[0].bases, model, *found]


@pytest.mark.parametrize("one", objects(), ids=lambda one: type(one).__name__)
def test_a_repr_fits_a_few_lines(one: Any) -> None:
    """Under 600 characters, no address, no array's entries, and the kind is named."""
    text = repr(one)
    assert len(text) < 600
    assert "0x" not in text
    assert "array(" not in text
    assert type(one).__name__ in text


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_an_example_that_parses(capsys: Any, name: str) -> None:
    """And every argument of the example is one that the command has."""
    status, out, err = run(capsys, name, "--help")
    last = out.strip().splitlines()[-1]
    assert (status, err) == (0, "")
    assert last.startswith(f"example: randlora-ref {name}")
    assert cli.parser().parse_args(last.split()[2:]).name == name


def test_dialects_stand_side_by_side(capsys: Any) -> None:
    """A row for each choice, a column for each dialect."""
    _, out, _ = run(capsys, "dialects")
    head, *rows = out.splitlines()
    assert head.split() == list(rl.DIALECTS)
    found = {row.split()[0]: row for row in rows if row.strip()}
    for name, dialect in rl.DIALECTS.items():
        place = head.index(name)
        assert found["pairing"][place:].startswith(dialect.pairing)
        assert found["lambda_start"][place:].startswith(dialect.lambda_start)


def test_verify_is_grouped_and_has_one_legend(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part is named once, each formula once, and each line points to its formula."""
    from randlora_ref.verify import audit

    found = [
        audit.Property(f"{part}: {what}", 0.0, 1.0, how) for part in "ab" for what, how in (("x", "p"), ("y", "q"))
    ]
    monkeypatch.setattr(audit, "PARTS", {"own": lambda *_: iter(found)})
    _, out, _ = run(capsys, "verify", "--backend", "numpy")
    lines = out.splitlines()
    assert [lines.count(part) for part in "ab"] == [1, 1]
    assert lines[-4:-1] == ["limits:", "  [a] p", "  [b] q"]
    marks = [line[-5:] for line in lines if line.startswith("ok")]
    assert marks == ["[a] x", "[b] y"] * 2


def test_rank_has_a_row_a_step_and_no_more_unless_asked(capsys: Any) -> None:
    """Rank, of, proof; hashes, primes and singular values on request."""
    drawn = ("rank", "--shape", "20", "16", "--rank", "4", "--steps", "2")
    _, out, _ = run(capsys, *drawn)
    head, *rows, _ = out.splitlines()
    assert head.split() == ["rank", "of", "proof"]
    assert [row.split()[:5] for row in rows] == [
        ["step", "0", "0", "16", "exact:"], ["step", "1", "4", "16", "exact:"], ["step", "2", "16", "16", "exact:"]
    ]  # fmt: skip
    assert "SHA-256" not in out
    assert "singular" not in out
    assert "SHA-256" in run(capsys, *drawn, "--proof")[1]
    assert "singular values" in run(capsys, *drawn, "--spectrum")[1]
    assert json.loads(run(capsys, *drawn, "--json")[1])["spectra"] == {}


@pytest.mark.slow
def test_a_thousand_rows_take_five_seconds(capsys: Any) -> None:
    """Two steps of a 1024×1024 layer, on one core."""
    from time import process_time

    begin = process_time()
    status, out, _ = run(capsys, "rank", "--shape", "1024", "1024", "--steps", "2")
    assert status == 0
    assert [int(rank) for rank in re.findall(r"^step \d +(\d+)", out, re.MULTILINE)] == [0, 8, 1024]
    assert process_time() - begin <= 10  # of all threads


LARGE = "100000000"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rank", "--shape", LARGE, LARGE), "it must fit in memory"),
        (("rank", "--shape", LARGE, LARGE, "--dialect", "peft"), "it must fit in memory"),
        (("rank", "--steps", "1000000000000"), "steps: .*it must fit in memory"),
        (("rank", ""), "source: ''; it must be the path"),
        (("rank", "/dev/zero"), "it must be an .npz of factors"),
        (("rank", "--rank", "0"), "rank: 0; it must be"),
        (("rank", "--kind", "thick"), "kind: 'thick'"),
        (("rank", "--kind", "nan"), "kind: nan"),
        (("rank", "--lambda-start", "nan"), "--lambda-start: nan; it must be"),
        (("rank", "--steps", "-1"), "steps: -1; it must be"),
        (("rank", "--seed", "1" * 5000), "seed"),
        (("count", "--model", "\x1b[2J\ud800"), r"\\x1b\[2J"),
        (("vectors", "/dev/null/x"), "Not a directory"),
        (("check", "x.json\x00"), "embedded null|x.json"),
        (("check", "--exec", "'"), "command"),
        (("check", "a:b", "--dtype", "int8"), "target|dtype"),
        ((), "required: COMMAND"),
    ],
)  # fmt: skip
def test_an_error_is_one_line_and_at_once(capsys: Any, arguments: tuple[str, ...], message: str) -> None:
    """Status 2, nothing on stdout, a line of characters that any terminal takes for text."""
    begin = monotonic()
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("randlora-ref")
    assert err.count("\n") == 1
    assert err[:-1].isprintable()
    assert re.search(message, err)
    assert monotonic() - begin < 5


def test_an_archive_that_unpacks_to_more_than_is_read(capsys: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """The sum of its members' sizes is looked at before any is unpacked."""
    from randlora_ref.rank import factors

    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, factor0=np.zeros((300, 100)), factor1=np.zeros((100, 300)))
    monkeypatch.setattr(factors, "MOST_BYTES", 1 << 18)
    monkeypatch.setattr(np, "asarray", lambda *_: pytest.fail("it was unpacked first"))
    status, _, err = run(capsys, "rank", str(path))
    assert status == 2
    assert re.search(r"it must be an .npz of factors; it unpacks to 480\d\d\d bytes; at most 262144 are read", err)


def test_sizes_that_cannot_be_from_python() -> None:
    """The layer, the bases, the certificate: refused by name before any work."""
    large = int(LARGE)
    thin = ((np.ones((large // 10, 1)), np.ones((1, large // 10))),)
    for call in (
        lambda: rl.RandLoRA.start(large, large, 8), lambda: rl.draw_bases(shapes=[(large, large)], rank=8),
        lambda: rl.certify_rank(thin), lambda: rl.adapters.FullFineTuning.start(large, large),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"^(shapes?|factors): \d+ by \d+.*it must fit in memory, \d+ GiB"):
            call()


@pytest.mark.parametrize("error", [MemoryError(), MemoryError("Unable to allocate 3 TiB"), OSError(28, "No space")])
def test_what_the_machine_lacks_is_one_line(capsys: Any, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    from randlora_ref import conformance

    def short(*_: Any) -> None:
        raise error

    monkeypatch.setattr(conformance, "write_vectors", short)
    status, out, err = run(capsys, "vectors", "x")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert len(err) > len("randlora-ref vectors: \n")


def test_a_plot_without_matplotlib_is_said_before_the_work(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(cli, "steps", lambda *_: pytest.fail("it worked first"))
    status, _, err = run(capsys, "rank", "--plot", "x.png")
    assert (status, err) == (2, "randlora-ref rank: needs matplotlib: pip install 'randlora-ref[plot]'\n")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_output_is_whole_on_any_stdout(encoding: str) -> None:
    """Every line comes, of a table and of JSON, and the JSON is the same."""
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C"}
    commands = "['dialects'], ['dialects', '--json'], ['rank', '--help']"
    program = f"from randlora_ref.cli import main\nfor command in {commands}: print('====') or main(command)"
    command, folder = [sys.executable, "-c", program], Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, env=environment, cwd=folder, check=True)
    _, table, data, text = done.stdout.decode(encoding).split("====")
    assert done.stderr == b""
    assert json.loads(data)["dialects"][0]["stored"].endswith("Γ (n, d)")
    assert table.rstrip().splitlines()[-1].startswith("paper and peft part in")
    assert ("Lambda (n, r)" in table) == (encoding != "utf-8")
    assert text.rstrip().endswith("--steps 2")


def test_progress_is_for_long_work_on_a_terminal(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the first two seconds, then a line that goes in the end; nothing where there is no terminal."""
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    for watched, wait, wanted in ((True, 1.9, False), (True, 2.1, True), (False, 9.0, False)):
        monkeypatch.setattr(sys.stderr, "isatty", lambda watched=watched: watched)
        with cli.Progress() as progress:
            progress("work", 0.1)
            now[0] += wait
            progress("work", 0.5)
        err = capsys.readouterr().err
        assert (err == "\r\x1b[Kwork, 50 %\r\x1b[K") == wanted
        assert bool(err) == wanted


@pytest.mark.parametrize("arguments", [("check", "x.json"), ("rank", "x.npz"), ("rank", "."), ("count", ".")])
def test_a_pipe_in_place_of_a_file_is_refused(
    capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: tuple[str, str]
) -> None:
    """Nobody may ever write into it, so nothing waits for its end."""
    monkeypatch.chdir(tmp_path)
    for name in ("x.json", "x.npz", "adapter_config.json"):
        os.mkfifo(name)
    status, out, err = run(capsys, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "no regular file" in err
