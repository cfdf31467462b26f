"""How much there is to read. A reference that is to be audited in one sitting has a limit to its length."""

import ast
from collections.abc import Iterator
from pathlib import Path

import randlora_ref

PACKAGE = Path(randlora_ref.__file__).parent
# To audit the method is to read these: what it says, what it leaves open, what is random, and what is held against it.
METHOD = (
    *sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.glob("spec/*.py")),
    *("dialects.py", "prng.py", "bases.py", "torch_bases.py"),
    *("verify/integers.py", "verify/complex_step.py", "verify/gauge.py"),
)


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def functions() -> Iterator[tuple[str, int]]:
    """Every function and method of the package as "path:name", and its lines, decorators and docstring too."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
                yield f"{path.relative_to(PACKAGE).as_posix()}:{node.name}", (node.end_lineno or 0) - first + 1


def test_the_method_can_be_audited_in_one_sitting() -> None:
    """All lines count, prose too: an hour at two seconds a line."""
    assert sum(lines(PACKAGE / name) for name in METHOD) <= 1650


def test_no_file_is_long() -> None:
    """A file holds one concept."""
    found = {path.relative_to(PACKAGE).as_posix(): lines(path) for path in PACKAGE.rglob("*.py")}
    assert not {name: length for name, length in found.items() if length > 350}


def test_no_function_is_long() -> None:
    """A function fits on a page."""
    assert not {name: length for name, length in functions() if length > 60}
