"""Ways in: a function, ``module:function``, a program, a results file, the installed PEFT, pytest."""

import contextlib
import os
import pkgutil
import re
import shlex
import sys
from collections.abc import Iterable
from typing import Any

from .. import checks
from ..rank.exact import Progress
from .cases import Case, random_case
from .peft import RANDOM_LAYERS, check_peft, installed, run_peft
from .program import Program
from .random_search import search
from .report import Implementation, Report, check, choose
from .vectors import results_file, stored_cases


def find_case(id_: str) -> Case:
    """A stored case by its id, or one of the random ones. ValueError for an id that is neither."""
    checks.instance("case", id_, str)
    if match := re.fullmatch(r"random-(\w+)-(\d{1,20})-(\d{1,9})", id_):
        return random_case(int(match[3]), int(match[2]), match[1])
    stored = {case.id: case for case in stored_cases()}
    if id_ in stored:
        return stored[id_]
    raise ValueError(f"case: {id_!r}; it must be an id of the vectors, or random-DIALECT-SEED-INDEX")


def check_target(
    target: str | None = None,
    *,
    command: str | None = None,
    kinds: Iterable[str] | None = None,
    dtype: str | None = None,
    case: str | None = None,
    dialect: str | None = None,
    random: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Check "peft", "module:function", a results file (….json), or the program of ``command``.

    ``dialect`` keeps the cases that its own code computes, and gives random layers its rules. ``case`` checks that one
    alone; ``random`` searches that many random layers instead of the stored vectors; PEFT is checked on both.
    ValueError for a target that is not there, an unknown dialect, and for ``case`` and ``random`` together.
    """
    if (target is None) == (command is None):
        raise ValueError("target: give one of peft, module:function, a results file, or a command")
    if case is not None and random:
        raise ValueError(f"case: {case!r} with {random} random layers; it must be one of the two")
    checks.instance("target", target, str | None)
    cases = None if case is None else [find_case(case)]
    options: dict[str, Any] = {"kinds": kinds, "dtype": dtype, "dialect": dialect, "progress": progress}
    if target == "peft" and cases is None:
        return check_peft(count=random or RANDOM_LAYERS, seed=seed, **options)
    name = target or f"--exec {shlex.quote(command or '')}"
    with contextlib.nullcontext(implementation(target)) if target is not None else Program(command or "") as run:
        if random:
            return search(run, random, seed, name, **options)
        return check(run, cases=cases, target=name, **options)


def implementation(target: str) -> Implementation:
    """The installed PEFT, a results file or a function, as it is under test."""
    if target == "peft":
        installed()
        return run_peft
    return results_file(target) if target.endswith(".json") else load_function(target)


def load_function(target: str) -> Implementation:
    """The function of "module:function", looked for in the current folder too. ValueError if it is not there."""
    if not re.fullmatch(r"[\w.]+:[\w.]+", target):
        raise ValueError(f"target: {target!r}; it must be 'module:function'")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = pkgutil.resolve_name(target)
    except Exception as error:  # whatever a module under test raises is its failure, not ours
        known = isinstance(error, (ImportError, AttributeError))
        text = f"{error}" if known else f"{type(error).__name__}: {error}"
        raise ValueError(f"target: {target!r}: {text}; it must name a function that can be imported") from None
    finally:
        sys.path.remove(os.getcwd())
    if not callable(found):
        raise ValueError(f"target: {target!r} is {type(found).__name__}; it must be a function")
    return found  # type: ignore[no-any-return]


def pytest_cases(
    implementation: Implementation,
    kinds: Iterable[str] | None = None,
    dtype: str | None = None,
    dialect: str | None = None,
) -> Any:
    """A parametrised pytest test, one for each of ``check``'s cases: ``test_randlora = pytest_cases(my_function)``."""
    import pytest

    cases = choose(kinds, None, dtype, dialect)

    @pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])
    def test(case: Case) -> None:
        report = check(implementation, cases=[case], dtype=dtype, dialect=dialect)
        if report.at_fault:
            pytest.fail("\n".join(report.lines()), pytrace=False)
        if report.absent:
            pytest.skip(f"{report.absent[0][1]}: {report.absent[0][2]}")

    return test
