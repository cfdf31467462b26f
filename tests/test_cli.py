"""The commands as a user types them: what they print, their exit status, one line for what is wrong."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
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


@pytest.fixture
def drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit draws one subject of each part: what holds of all of them is drawn in their own tests."""
    from randlora_ref.verify import audit

    monkeypatch.setattr(audit, "DRAWN", {part: names[:1] for part, names in audit.DRAWN.items()})


def test_verify_prints_a_figure_and_a_limit_for_each_property(capsys: Any, drawn_once: None) -> None:
    """Every line has both; the last counts them; status 0."""
    status, out, err = run(capsys, "verify", "--backend", "numpy")
    lines = out.splitlines()
    assert status == 0
    assert err == ""
    checked = [line for line in lines if re.match(r"ok  +[\d.e+-]+ <= +[\d.e+-]+  ", line)]
    assert len(checked) >= 57
    assert lines[-1].startswith(f"{len(checked)} properties hold, 0 fail")


def test_verify_fails_where_a_property_does(capsys: Any, drawn_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Status 1, the property named, JSON that any parser reads although the figure is infinite."""
    from randlora_ref.adapters.randlora import RandLoRA

    monkeypatch.setattr(RandLoRA, "forward", None)
    status, out, _ = run(capsys, "verify", "--backend", "numpy")
    assert status == 1
    assert re.search(r"FAIL +inf <= +0  \[.\] layer: stopped by TypeError", out)
    status, out, _ = run(capsys, "verify", "--backend", "numpy", "--json")
    found = json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert status == 1
    assert not found["ok"]
    assert any(one["figure"] == "inf" and not one["ok"] for one in found["properties"])


def test_verify_says_what_computed(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions, processor and BLAS; a negative figure is as wrong as one beyond its limit."""
    import platform

    from randlora_ref.verify import audit

    monkeypatch.setattr(audit, "PARTS", {"own": lambda *_: iter([audit.Property("below", -1.0, 1.0, "none")])})
    status, out, _ = run(capsys, "verify", "--backend", "numpy", "--json")
    found = json.loads(out)
    assert status == 1
    assert found["properties"][0] == {
        "backend": "numpy", "name": "below", "figure": -1.0, "limit": 1.0, "formula": "none", "ok": False
    }  # fmt: skip
    assert found["versions"].keys() == {"randlora_ref", "python", "numpy"}
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["numpy"] == np.__version__
    assert found["processor"]
    assert np.show_config(mode="dicts")["Build Dependencies"]["blas"]["version"] in found["blas"]
    assert "gpu" not in found


NO_DRIVER = "raise OSError('cudaErrorInsufficientDriver: CUDA driver\\nversion is insufficient')"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (
            f"def getDeviceCount(): {NO_DRIVER}",
            "OSError: cudaErrorInsufficientDriver: CUDA driver version is insufficient",
        ),
        ("def getDeviceCount(): return 0", "RuntimeError: no device"),
        ("raise ImportError('libcudart.so.12: no such file')", "ImportError: libcudart.so.12: no such file"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_cupy_without_a_device_or_broken_is_one_line(
    capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, reason: str
) -> None:
    """NumPy is audited, CuPy named with the reason; asked for alone, it is an error."""
    from randlora_ref.verify import audit

    (tmp_path / "cupy.py").write_text(f"{source}\nimport sys\ncuda = runtime = sys.modules[__name__]\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(audit, "PARTS", {"own": lambda *_: iter([audit.Property("one", 0.0, 0.0, "none")])})
    for arguments, expected in ((("verify",), 0), (("verify", "--json"), 0), (("verify", "--backend", "cupy"), 2)):
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, "cupy", raising=False)
            status, out, err = run(capsys, *arguments)
            sys.modules.pop("cupy", None)
        assert status == expected
        line = f"installed and not audited: {reason}"
        if status == 2:
            assert (out, err) == ("", f"randlora-ref verify: --backend: 'cupy' is {line}\n")
        elif "--json" in arguments:
            assert json.loads(out)["not_audited"] == {"cupy": line}
        else:
            assert out.splitlines()[0] == f"cupy: {line}"
            assert out.splitlines()[-1].startswith("1 properties hold, 0 fail")


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
        (("verify", "--seed", "-1"), "seed: -1; it must be"),
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
    assert "paper: arXiv" in done.stdout
    root = Path(__file__).parents[1]
    piped = subprocess.run(f"{command} | true", shell=True, capture_output=True, text=True, check=True, cwd=root)
    assert piped.stderr == ""


def test_rank_shows_the_first_steps(capsys: Any) -> None:
    """0, r, d from PEFT's start; 0, d from the authors' CLIP code's (``facts`` §4)."""
    drawn = ("rank", "--shape", "20", "16", "--rank", "4", "--steps", "2", "--spectrum", "--json")
    for start, ranks in (((), [0, 4, 16]), (("--lambda-start", "0.1", "--gamma-start", "0"), [0, 16, 16])):
        status, out, _ = run(capsys, *drawn, *start)
        found, spectra = json.loads(out)["certificates"].values(), json.loads(out)["spectra"].values()
        assert status == 0
        assert [one["rank"] for one in found] == [one["numerical_rank"] for one in spectra] == ranks
        assert all(one["exact"] for one in found)


def test_rank_says_beside_each_step_that_certificates_are_of_what_is_stored(capsys: Any) -> None:
    """The numerical rank after each certificate, and what rounding can do; of a start alone, nothing is rounded."""
    _, out, _ = run(capsys, "rank", "--shape", "20", "16", "--rank", "4", "--steps", "1", "--proof", "--spectrum")
    figures = re.findall(r"^step (\d): (?:numerical )?rank (\d+) of 16", out, re.MULTILINE)
    assert figures == [("0", "0"), ("0", "0"), ("1", "4"), ("1", "4")]
    assert "what is stored" in out.splitlines()[-1]
    _, out, _ = run(capsys, "rank", "--shape", "20", "16", "--rank", "4")
    assert "what is stored" not in out


def test_rank_of_a_file_of_factors(capsys: Any, tmp_path: Path) -> None:
    """A ``.npz``; and what is none, is cut short or holds a pickle is refused in one line."""
    whole, cut, pickled = (tmp_path / name for name in ("whole.npz", "cut.npz", "pickled.npz"))
    np.savez(whole, factor0=np.ones((3, 1)), factor1=np.ones((1, 4)))
    cut.write_bytes(whole.read_bytes()[:60])
    np.savez(pickled, matrix=np.array([[print]], dtype=object))
    status, out, _ = run(capsys, "rank", str(whole))
    assert status == 0
    assert out.startswith("update: rank 1 of 3 (not full, exact)")
    for bad in (cut, pickled, tmp_path / "missing.npz"):
        status, out, err = run(capsys, "rank", str(bad))
        assert (status, out) == (2, "")
        assert err.startswith(f"randlora-ref rank: {bad}: it must be an .npz of factors")
        assert err.count("\n") == 1


def test_a_product_beyond_float64_keeps_its_certificate(capsys: Any, tmp_path: Path) -> None:
    """The rank is proven all the same; that there is no spectrum is said, on a line of its own and in JSON."""
    path = tmp_path / "large.npz"
    np.savez(path, factor0=np.full((3, 1), 1e200), factor1=np.full((1, 4), 1e200))
    status, out, err = run(capsys, "rank", str(path))
    assert (status, err) == (0, "")
    assert out.startswith("update: rank 1 of 3 (not full, exact)")
    assert "update: no spectrum: factors: their product overflows float64" in out
    found = json.loads(run(capsys, "rank", str(path), "--json")[1])
    assert found["certificates"]["update"]["rank"] == 1
    assert "overflows" in found["spectra"]["update"]


def test_count_beside_the_printed(capsys: Any) -> None:
    """PEFT's published count of Llama-3.2-3B, and one at any rank."""
    _, out, _ = run(capsys, "count", "--model", "Llama-3.2-3B", "--method", "randlora")
    assert re.search(r"randlora +32 +9,289,728 +9,289,728$", out.strip())
    status, out, _ = run(capsys, "count", "--model", "Llama-3.2-3B", "--method", "lora", "--rank", "1", "--json")
    assert status == 0
    assert json.loads(out)[0]["learned"] == 9_175_040 // 32
    no_rank = ("--model", "Llama-3.2-3B", "--method", "lora", "--rank", "0")
    for wrong in (("--rank", "3"), ("--model", "GPT-5"), no_rank):
        status, _, err = run(capsys, "count", *wrong)
        assert status == 2
        assert "must be" in err or "needs" in err


def test_check_passes_the_reference_and_names_a_fault(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Status 0 and every case; status 1 and the diagnosis, for a function of a module in the current folder."""
    status, out, _ = run(capsys, "check", "randlora_ref.conformance:reference")
    assert status == 0
    assert re.search(r"PASSED, \d{3} cases passed, 0 failed, 0 not fully checked", out)
    monkeypatch.chdir(Path(__file__).parents[1] / "examples")
    status, out, _ = run(capsys, "check", "wrong:crossed", "--kinds", "layer", "--json")
    found = json.loads(out)
    assert status == 1
    assert not found["passed"]
    assert "crossed pairing" in found["diagnosis"]
    case = found["failures"][0]["case"]
    status, out, _ = run(capsys, "check", "wrong:crossed", "--case", case)
    assert status == 1
    assert f"FAIL {case}" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give one of peft, module:function, a results file, or a command"),
        (("nowhere:function",), "'nowhere:function': No module named 'nowhere'"),
        (("missing.json",), "missing.json: No such file or directory"),
        (("--exec", "no-such-program"), "'no-such-program': No such file or directory; it must be a program"),
        (("randlora_ref.conformance:reference", "--dialect", "lora"), "dialect: 'lora'; it must be one of paper, peft"),
        (("randlora_ref.conformance:reference", "--dialect", "lora", "--random", "3"), "dialect: 'lora'; it must be"),
        (("peft", "--case", "layer-999"), "case: 'layer-999'; it must be an id of the vectors"),
        (("a:b", "--random", "-1"), "--random: -1; it must be"),
        (("randlora_ref.conformance:reference", "--kinds", "layers"), "kinds: 'layers'; it must be some of layer"),
    ],
)
def test_check_of_what_is_not_there(capsys: Any, arguments: tuple[str, ...], message: str) -> None:
    """One line that names it, status 2."""
    status, out, err = run(capsys, "check", *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["paper", "peft", "official", "nlg", "vision", "kradapter"])
def test_check_holds_a_target_to_a_dialect(capsys: Any, name: str) -> None:
    status, out, _ = run(capsys, "check", "randlora_ref.conformance:reference", "--dialect", name)
    assert status == 0
    assert re.search(rf"--dialect {name}: PASSED, \d{{2,3}} cases passed, 0 failed, 0 not fully checked", out)


@pytest.mark.parametrize("fault", [TypeError, KeyError, IndexError, AttributeError])
def test_a_fault_of_the_package_is_no_bad_argument(capsys: Any, monkeypatch: Any, fault: type[Exception]) -> None:
    """It shows as what it is, where it is."""
    from randlora_ref import conformance

    def broken(*_: Any, **__: Any) -> None:
        raise fault("of our own")

    monkeypatch.setattr(conformance, "check_target", broken)
    with pytest.raises(fault, match="of our own"):
        cli.main(("check", "a:b"))


def test_a_module_that_cannot_be_imported_is_one_line(capsys: Any, monkeypatch: Any, tmp_path: Path) -> None:
    """Whatever it raises."""
    (tmp_path / "breaks.py").write_text("len(3)")
    (tmp_path / "garbled.py").write_text("def (:")
    monkeypatch.chdir(tmp_path)
    for module, reason in (("breaks", "TypeError: object of type 'int'"), ("garbled", "SyntaxError: ")):
        status, out, err = run(capsys, "check", f"{module}:f")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert f"target: '{module}:f': {reason}" in err


def test_an_adapter_whose_arrays_are_of_other_precisions_is_one_line(capsys: Any, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    from randlora_ref import Bases
    from randlora_ref.interop import PeftAdapter, save_peft

    config = {"peft_type": "RANDLORA", "r": 2, "randlora_alpha": 8, "projection_prng_key": 3}
    lambda_, gamma = {"a": np.ones((2, 2), np.float16)}, {"a": np.ones((2, 4), np.float16)}
    save_peft(PeftAdapter(Bases(np.ones((2, 4)), np.ones((2, 4, 2))), lambda_, gamma, config), tmp_path)
    status, out, err = run(capsys, "rank", str(tmp_path))
    assert (status, out) == (2, "")
    assert "A: dtype float64; it must be float16 or narrower, as lambda_ is\n" in err


def test_too_little_memory_is_one_line(capsys: Any) -> None:
    status, out, err = run(capsys, "rank", "--shape", "100000000", "100000000", "--rank", "100000000")
    assert (status, out, err.count("\n")) == (2, "", 1)


def test_vectors_are_written(capsys: Any, tmp_path: Path) -> None:
    """Manifest, schema and cases, under one megabyte in all."""
    status, out, _ = run(capsys, "vectors", str(tmp_path / "here"))
    written = [Path(line) for line in out.splitlines()]
    assert status == 0
    assert {"MANIFEST.json", "schema.json", "layer-exact.json"} <= {path.name for path in written}
    assert sum(path.stat().st_size for path in written) < 1_000_000


def test_claims_has_a_verdict_for_each(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each statement with its place and its evidence; two of them here, all in their own tests."""
    from randlora_ref.paper import claims

    monkeypatch.setattr(claims, "CHECKS", claims.CHECKS[:2])
    status, out, _ = run(capsys, "claims", "--json")
    found = json.loads(out)
    assert status == 0
    assert len(found) == 2
    assert all(one["verdict"] in ("holds", "holds corrected", "fails") and one["evidence"] for one in found)


@pytest.mark.parametrize("command", [("check", "peft"), ("check", "peft", "--case", "exact-001-hand-3x2")])
def test_what_is_not_installed_is_named(capsys: Any, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    """One line with the extra to install, status 2: not a report of failures that are none of PEFT's."""
    for name in ("peft", "torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    status, out, err = run(capsys, *command)
    assert (status, out) == (2, "")
    wanted = rf"randlora-ref {command[0]}: needs (peft|torch): pip install 'randlora-ref\[crosscheck\]'\n"
    assert re.fullmatch(wanted, err)
