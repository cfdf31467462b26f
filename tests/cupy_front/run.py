"""The real CuPy, without a GPU: ``python tests/cupy_front/run.py suite | verify | launches [--write] | code TEXT``.

    suite     the tests marked gpu; what follows goes to pytest
    verify    ``randlora-ref verify --backend cupy --json``
    launches  kernels, products and reads of each call of ``calls``, as JSON; --write puts them into launches.json
    code      TEXT, run as Python

This is no GPU: memory is the host's, kernels are counted and do nothing, and NumPy stands in for what they compute
(``null_device``, ``stand_in``). CuPy's front end is its own: what it refuses, promotes, allocates, copies and launches.
Needs CuPy, the wheel of NVRTC (of which CuPy asks the version), gcc and nm.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
INSIDE = "RANDLORA_CUPY_FRONT"


def main(arguments: list[str]) -> int:
    """Builds the libraries that CuPy must find when Python starts, then runs ``arguments`` where they are found."""
    with tempfile.TemporaryDirectory() as folder:
        build_cublas(Path(folder))
        environment = os.environ | {
            INSIDE: "yes",
            "LD_LIBRARY_PATH": ":".join([folder, *(f"{place}/lib" for place in places("nvidia.cuda_nvrtc"))]),
            "CUPY_CACHE_DIR": f"{folder}/cache",
            "CUPY_ACCELERATORS": "",  # CUB starts its kernels by a way of its own, uncounted
            "PYTHONPATH": str(ROOT),
        }
        return subprocess.run([sys.executable, __file__, *arguments], env=environment, cwd=ROOT, check=False).returncode


def places(package: str) -> list[str]:
    """The folders of an installed package."""
    found = importlib.util.find_spec(package)
    return list(found.submodule_search_locations or ()) if found else []


def build_cublas(folder: Path) -> None:
    """cuBLAS in name alone: each function that CuPy asks for returns 0, and those that compute are counted."""
    binary = next(path for place in places("cupy_backends") for path in Path(place).glob("cuda/libs/cublas.*.so"))
    wanted = subprocess.run(["nm", "-D", "--undefined-only", binary], capture_output=True, text=True, check=True).stdout
    source = ["static int count; int calls(void) { return count; }"]
    for name in sorted(set(re.findall(r"\bcublas\w+", wanted))):
        computes = not re.match("cublas(Create|Destroy|Set|Get)", name)
        source.append(f"int {name}(void) {{ {'count++; ' * computes}return 0; }}")
    (folder / "cublas.c").write_text("\n".join(source))
    for library in ("libcublas", "libcublasLt"):
        (folder / library).write_text(f"{library}.so.12 {{ global: *; }};")  # the version under which CuPy links them
        command = f"gcc -shared -fPIC -o {library}.so.12 cublas.c -Wl,-soname,{library}.so.12"
        subprocess.run([*command.split(), f"-Wl,--version-script={library}"], cwd=folder, check=True)


class Watch:
    """A plugin of pytest that counts outcomes; a test fails after which anything is left unanswered."""

    def __init__(self, unanswered: Any) -> None:
        self.unanswered, self.outcomes = unanswered, Counter[str]()

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self) -> None:
        """After each test and its fixtures."""
        if found := self.unanswered():
            raise AssertionError("\n".join(["started, and nothing computes it:", *found]))

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A test's one outcome; an error before or after it is one more."""
        if report.when == "call" or not report.passed:
            self.outcomes[report.outcome] += 1


def inside(mode: str, rest: list[str]) -> int:
    """One mode, in a process whose CuPy finds the null device. Its last line of output is JSON."""
    import stand_in

    stand_in.install()
    status = 0
    if mode == "suite":
        watch = Watch(stand_in.unanswered)
        status = int(pytest.main(["-m", "gpu", "-q", "-p", "no:cacheprovider", *rest], [watch]))
        print(json.dumps(watch.outcomes))
    elif mode == "verify":
        from randlora_ref import cli

        status = cli.main(["verify", "--backend", "cupy", "--json"])
    elif mode == "launches":
        import calls

        calls.report(stand_in, "--write" in rest)
    elif mode == "code":
        exec(rest[0], {})
    else:
        raise ValueError(f"{mode!r}; it must be suite, verify, launches or code")
    left = stand_in.unanswered()
    for line in left:
        print(f"started, and nothing computes it: {line}", file=sys.stderr)
    return status or bool(left)


if __name__ == "__main__":
    if INSIDE not in os.environ:
        sys.exit(main(sys.argv[1:]))
    try:
        status = inside(sys.argv[1], sys.argv[2:])
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # CuPy would end by freeing memory of a device that is not there
