"""The package on the real CuPy, without a GPU: front end, dtypes, shapes, refusals and launches; no value and no time.

``run`` says how. Each test starts processes of its own, for CuPy must find its libraries when Python starts.
"""

import importlib.util
import inspect
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from randlora_ref import adapters, models, nn

pytestmark = pytest.mark.cupy_front
RUN = Path(__file__).with_name("run.py")
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def front() -> Run:
    """One mode of ``run``, if what it needs is there."""
    if importlib.util.find_spec("cupy_backends") is None:
        pytest.skip("CuPy is not installed")
    for tool in ("gcc", "nm"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    return lambda *arguments: subprocess.run([sys.executable, RUN, *arguments], capture_output=True, text=True)


@pytest.fixture(scope="session")
def measured(front: Run) -> dict[str, Any]:
    """Launches, products and reads of each call."""
    done = front("launches")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="session")
def recorded() -> dict[str, Any]:
    """The same of the record, for the CuPy installed; read by the name of the wheel, for CuPy is not imported here."""
    from importlib.metadata import packages_distributions, version

    record = json.loads(RUN.with_name("launches.json").read_text(encoding="utf-8"))
    found = version(packages_distributions()["cupy"][0])
    assert found in record, f"CuPy {found}: not in launches.json, which has {', '.join(record)}"
    return record[found]


def test_every_test_for_a_gpu_passes(front: Run) -> None:
    """None fails, none is skipped, and no kernel is left without an answer."""
    done = front("suite", "--tb=short")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert outcomes.keys() == {"passed"}, done.stdout[-5000:]
    assert outcomes["passed"] >= 100


def test_verify_audits_every_part(front: Run) -> None:
    """All of what NumPy's audit covers, ``nn`` and the models too; what computed is named, and it is no GPU."""
    done = front("verify")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    report = json.loads(done.stdout)
    assert report["ok"]
    assert report["gpu"] == "null device"
    assert report["versions"]["cupy"]
    names = [one["name"] for one in report["properties"] if one["backend"] == "cupy" and one["ok"]]
    for part in ("spec:", "bases of our own:", "layer", "NoLA:", "nn:", "block:", "models:"):
        assert any(name.startswith(part) for name in names), part


def test_an_audit_that_is_stopped_fails(front: Run) -> None:
    """A device is there and CuPy raises: FAIL, with the error, and status 1."""
    done = front(
        "code",
        """
import cupy
from randlora_ref import cli
def broken(*_, **__):
    raise cupy.cuda.memory.OutOfMemoryError(1, 2, 3)
cupy.take = broken
print("status", cli.main(["verify", "--backend", "cupy"]))
""",
    )
    assert "status 1" in done.stdout
    assert re.search(r"FAIL +inf <= +0 .*stopped by OutOfMemoryError", done.stdout)


def test_no_call_launches_more_than_it_did(measured: dict[str, Any], recorded: dict[str, Any]) -> None:
    """Nor hands more products to cuBLAS, nor reads more from the device."""
    again = f"to record what is meant: {sys.executable} tests/cupy_front/run.py launches --write"
    assert measured.keys() == recorded.keys(), again
    risen = [
        f"{name}: {kind} {recorded[name][kind]} before, {number} now"
        for name, row in measured.items()
        for kind, number in row.items()
        if number > recorded[name][kind]
    ]
    assert not risen, "\n".join([*risen, again])


def test_reads_of_the_device(measured: dict[str, Any]) -> None:
    """A backward pass reads nothing, any other call at most one boolean; ``adapt`` one for each layer it makes."""
    for name, row in measured.items():
        most = 0 if "backward" in name else 1
        assert row["reads"] <= most or name.endswith(", adapt"), name


def test_every_public_call_is_measured(measured: dict[str, Any]) -> None:
    """Functions of ``nn``, adapters and models that are new must be added to ``calls``."""
    words = {name.split()[0].rstrip(",") for name in measured}
    functions = {f"nn.{name}" for name in nn.__all__ if inspect.isfunction(getattr(nn, name))}
    methods = {name for name in adapters.__all__ if hasattr(getattr(adapters, name), "LEARNED")}
    kinds = {name for name in models.__all__ if hasattr(getattr(models, name), "forward")} - {"Model"}
    assert functions | methods | kinds <= words


UNANSWERED = {
    "a kernel of its own": "cupy.ElementwiseKernel('float64 x', 'float64 y', 'y = 2 * x', 'twice')(x)",
    "a method that NumPy has not": "x.scatter_add(0, 1.0)",
    "a product by another name": "from cupy import cublas; cublas.gemm('N', 'N', x, x)",
}


@pytest.mark.parametrize("what", UNANSWERED)
def test_what_nothing_answers_for_is_an_error(front: Run, what: str) -> None:
    """Its memory holds no result, so the run fails and says where."""
    done = front("code", f"import cupy, numpy\nx = cupy.asarray(numpy.eye(3))\n{UNANSWERED[what]}")
    assert done.returncode == 1, done.stdout
    assert "nothing computes it: a " in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_a_test_that_leaves_a_kernel_unanswered_fails(front: Run, tmp_path: Path) -> None:
    """Whatever it asserts, and a test that is skipped is counted as such."""
    file = tmp_path / "test_own.py"
    file.write_text(
        "import cupy, pytest\npytestmark = pytest.mark.gpu\n"
        "def test_right(): assert (cupy.zeros(3) + 1).get().tolist() == [1, 1, 1]\n"
        "def test_wrong(): cupy.ElementwiseKernel('float64 x', 'float64 y', 'y = x', 'same')(cupy.ones(3))\n"
        "def test_none(): pytest.skip('no reason')\n"
    )
    done = front("suite", str(file))
    assert done.returncode == 1
    assert json.loads(done.stdout.splitlines()[-1]) == {"passed": 2, "failed": 1, "skipped": 1}


def test_a_result_that_is_not_numpys_in_kind_is_an_error(front: Run) -> None:
    """In dtype, in shape, or in being an array at all."""
    code = """
import cupy, numpy, stand_in
x = cupy.asarray(numpy.eye(3))
for answer in (lambda x, y: numpy.add(x, y).astype("f4"), lambda x, y: numpy.add(x, y)[None]):
    try:
        stand_in.answered("add", cupy.add, answer)(x, x)
    except stand_in.NotAnsweredError as error:
        print(error)
"""
    done = front("code", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "add: CuPy gives float64 of shape (3, 3), NumPy float32 of shape (3, 3)",
        "add: CuPy gives float64 of shape (3, 3), NumPy float64 of shape (1, 3, 3)",
    ]


def test_fused_functions_count_as_fused(front: Run) -> None:
    """One kernel for all steps, with the values of the function itself."""
    code = """
import cupy, numpy, stand_in
@cupy.fuse()
def f(x, y):
    return cupy.exp(x) * y + 1, x - y
x = cupy.asarray(numpy.arange(3.0))
before = stand_in.counts()
one, two = f(x, x)
print(stand_in.counts()["launches"] - before["launches"])
print(bool(numpy.all(one.get() == numpy.exp(x.get()) * x.get() + 1)), two.get().tolist())
"""
    done = front("code", code)
    assert done.stdout.splitlines() == ["1", "True [0.0, 0.0, 0.0]"], done.stderr
