"""Ways in: a function, ``module:function``, a program that speaks JSON lines, a results file, pytest, a random search.

A program reads one request a line, {"version": 1, "case": {…}}, and answers each with one line, {"id": …, "results":
{name: array}} or {"id": …, "unsupported": "reason"}, until its input ends. A results file is {"format":
"randlora-results", "version": 1, "results": {case id: {name: array}}}.
"""

import importlib
import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Self

import numpy as np

from .. import nn
from ..adapters.randlora import RandLoRA
from ..bases import Bases, draw_bases
from ..dialects import DIALECTS, get_dialect
from ..spec import SPEC_VERSION
from .cases import KINDS, Case, block_results, layer_case, random_case, with_mask
from .diagnose import LAYER, spoils
from .report import Failure, Implementation, Progress, Report, check, judge, name_of, run_case
from .vectors import MOST_BYTES, VERSION, case_to_json, parse, results_file, results_from_json, stored_cases

SECONDS, TOTAL_SECONDS, LIVES = 10.0, 300.0, 3  # of a program: for one case, for all, and how often it is started
CHUNK = 1 << 16


def reference(case: Case) -> Mapping[str, Any]:
    """This package as an implementation under test: the fast layer, the bases as drawn, the certified rank."""
    if case.kind == "block":
        return _block(case)
    if case.kind == "rank":
        from ..rank import certify_rank

        return {"rank": certify_rank(_layer(case, case.shape, case.A, case.B, case.lambda_, case.gamma)).rank}
    if case.kind == "layer":
        layer = _layer(case, case.weight.shape, case.A, case.B, case.lambda_, case.gamma)
        y, cache = layer.forward(case.x, case.weight, case.bias, dropout_mask=case.dropout_mask)
        dx, grads = layer.backward(case.dy, cache)
        results = {"delta_weight": layer.delta_weight(), "y": y, "dx": dx}
        return {**results, "dlambda": grads.lambda_, "dgamma": grads.gamma}
    if case.kind == "bases":
        bases = draw_bases(case.dialect, seed=case.seed, shapes=case.shapes, rank=case.rank, kind=case.kind_of_basis)
        return {"A": bases.A, "B": bases.B}
    if case.kind == "start":
        layer = RandLoRA.start(*case.shape, rank=case.rank, dialect=case.dialect)
        return {"lambda_": layer.lambda_, "gamma": layer.gamma, "delta_weight": layer.delta_weight()}
    dialect = get_dialect(case.dialect)
    return {"num_parameters": sum(dialect.num_parameters(shape, case.rank) for shape in case.shapes)}


def _layer(case: Case, shape: tuple[int, int], A: Any, B: Any, lambda_: Any, gamma: Any) -> RandLoRA:
    return RandLoRA(
        out_features=shape[0], in_features=shape[1], rank=lambda_.shape[1], bases=Bases(A, B), lambda_=lambda_,
        gamma=gamma, scaling=case.scaling, dialect=replace(DIALECTS["paper"], pairing=case.pairing),
    )  # fmt: skip


def _block(case: Case) -> Mapping[str, Any]:
    """The fast block."""
    shapes, size = case.block.shapes(), case.x.shape[1]
    adapters = {role: _layer(case, shapes[role], *own) for role, own in case.factors.items()}
    mask = nn.additive_mask(case.x, size, causal=case.causal, mask=np.array(case.attention_mask))
    tables: Any = case.rope_theta and nn.rotary_tables(case.x, size, case.block.head_width, case.rope_theta)
    parameters = {role: (weight, case.bias.get(role)) for role, weight in case.weight.items()}
    y, cache = nn.block(case.x, case.block, parameters, adapters, mask, tables)
    return block_results(y, *nn.block_backward(case.dy, cache), case)


def load_function(target: str) -> Implementation:
    """The function of "module:function", looked for in the current folder too. ValueError if it is not there."""
    module, _, name = target.partition(":")
    if not re.fullmatch(r"[\w.]+:[\w.]+", target):
        raise ValueError(f"target: {target!r}; it must be 'module:function'")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"target: {target!r}: {error}; it must name a function that can be imported") from None
    finally:
        sys.path.remove(os.getcwd())
    if not callable(found):
        raise ValueError(f"target: {target!r} is {type(found).__name__}; it must be a function")
    return found  # type: ignore[no-any-return]


class Program:
    """A program under test: called with a case, it asks the program. As a context it ends the program. POSIX alone."""

    def __init__(self, command: str, seconds: float = SECONDS, total_seconds: float = TOTAL_SECONDS) -> None:
        self.words, self.seconds, self.lives = shlex.split(command), seconds, LIVES
        self.until = time.monotonic() + total_seconds
        self.process: subprocess.Popen[bytes] | None = None
        if not self.words:
            raise ValueError(f"command: {command!r}; it must name a program")
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _start(self) -> None:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        try:
            self.process = subprocess.Popen(self.words, bufsize=0, start_new_session=True, **pipes)
        except OSError as error:
            raise ValueError(f"command: {self.words[0]!r}: {error.strerror}; it must be a program") from None
        self.lives -= 1

    def _stop(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with process:  # waits, and closes the pipes
            pass

    def _exchange(self, request: bytes, seconds: float) -> bytes:
        """What the program writes up to the end of a line, of its output or of what is read at most."""
        into, out = self.process.stdin.fileno(), self.process.stdout.fileno()  # type: ignore[union-attr]
        os.set_blocking(into, False)
        end, answer = time.monotonic() + seconds, bytearray()
        while b"\n" not in answer[-CHUNK:] and len(answer) <= MOST_BYTES:
            left = end - time.monotonic()
            readable, writable, _ = select.select([out], [into] if request else [], [], max(0.0, left))
            if left <= 0 or not (readable or writable):
                raise TimeoutError
            if writable:
                try:
                    request = request[os.write(into, request[:CHUNK]) :]
                except OSError:
                    request = b""  # it reads no more; what it has written is still judged
            if readable:
                chunk = os.read(out, CHUNK)
                if not chunk:
                    break
                answer += chunk
        return bytes(answer)

    def __call__(self, case: Case) -> Mapping[str, Any]:
        """The program's results of a case; what goes wrong with it is a text, and so a failure."""
        if self.process is None:
            if self.lives == 0:
                return dict.fromkeys(case.wanted, f"not asked: the program failed {LIVES} times")
            self._start()
        request = json.dumps({"version": VERSION, "case": case_to_json(case)}) + "\n"
        seconds = min(self.seconds, self.until - time.monotonic())
        try:
            answer = self._exchange(request.encode(), seconds)
            if answer.find(b"\n") != len(answer) - 1 or not answer:
                flood = f"a line of over {MOST_BYTES} bytes, more than one, or an unfinished one"
                raise ValueError(flood if answer else "the program has ended")
            return results_from_json(parse(answer, "answer"), case)
        except TimeoutError:
            text = f"no answer in {seconds:.1f} s"
        except ValueError as error:
            text = f"bad answer: {str(error)[:120]}"
        self._stop()  # what it would still say belongs to this case
        return dict.fromkeys(case.wanted, text)


def find_case(id_: str) -> Case:
    """A stored case by its id, or one of the random ones. ValueError for an id that is neither."""
    if match := re.fullmatch(r"random-(paper|peft)-(\d{1,20})-(\d{1,9})", id_):
        return random_case(int(match[3]), int(match[2]), match[1])
    for case in stored_cases():
        if case.id == id_:
            return case
    raise ValueError(f"case: {id_!r}; it must be an id of the vectors, or random-DIALECT-SEED-INDEX")


def check_target(
    target: str | None = None,
    *,
    command: str | None = None,
    kinds: Iterable[str] | None = None,
    dtype: str | None = None,
    case: str | None = None,
    dialect: str = "peft",
    random: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Check "peft", "module:function", a results file (….json), or the program of ``command``.

    ``case`` checks that one alone; ``random`` searches that many random layers instead of the stored vectors.
    """
    if (target is None) == (command is None):
        raise ValueError("target: give one of peft, module:function, a results file, or a command")
    cases = None if case is None else [find_case(case)]
    options: dict[str, Any] = {"kinds": kinds, "cases": cases, "dtype": dtype, "progress": progress}
    if command is not None:
        with Program(command) as program:
            name = f"--exec {shlex.quote(command)}"
            return search(program, random, seed, name) if random else check(program, target=name, **options)
    name = target or ""
    if name == "peft" and cases is None:
        return check_peft(dialect, random or 240, seed, progress, kinds=kinds, dtype=dtype)
    if name == "peft":
        from ..interop.peft import installed
        from ..interop.peft import run_peft as implementation

        installed()
    else:
        implementation = results_file(name) if name.endswith(".json") else load_function(name)  # type: ignore[assignment]
    return search(implementation, random, seed, name) if random else check(implementation, target=name, **options)


def check_peft(
    dialect: str = "peft", count: int = 240, seed: int = 0, progress: Progress | None = None, **options: Any
) -> Report:
    """The installed PEFT on ``count`` random layers in float32 and float64, read as ``dialect`` has them.

    Under dialect "peft" on the stored vectors as well; what it fails there for a known reason is listed in
    ``details["known"]``, and a known failure that passes is one in ``details["unexpected"]``. ``options`` are
    ``check``'s.
    """
    from ..interop.peft import installed, run_peft

    versions = installed()
    cases = [random_case(index, seed, get_dialect(dialect).name) for index in range(count)]
    others = ("paper", "bases"), ("paper", "start")
    ours = [c for c in stored_cases() if dialect == "peft" and (c.dialect, c.kind) not in others]
    target = "peft" if dialect == "peft" else f"peft --dialect {dialect}"
    report = check(run_peft, cases=[*cases, *ours], target=target, progress=progress, **options)
    asked = [c for c in ours if c.kind in (options.get("kinds") or KINDS) and not options.get("dtype")]
    known = {c.id: reason for c in asked if (reason := known_of_peft(c)) is not None}
    return _without_known(report, known, versions)


def _without_known(report: Report, known: Mapping[str, str], versions: Mapping[str, str]) -> Report:
    failures = tuple(failure for failure in report.failures if failure.case.id not in known)
    failed = {failure.case.id for failure in report.failures}
    unexpected = sorted(set(known) - failed)
    found = {id_: reason for id_, reason in known.items() if id_ in failed}
    details = {"known": found, "unexpected": unexpected, "versions": dict(versions)}
    return replace(report, failures=failures, diagnosis=report.diagnosis if failures else "", details=details)


def known_of_peft(case: Case) -> str | None:
    """Why PEFT must fail a stored case: it pairs crosswise, and here that shows."""
    crossed = case.kind != "layer" or case.pairing == "crossed"
    if crossed or len(case.lambda_) != -(-case.gamma.shape[1] // case.lambda_.shape[1]):
        return None
    shows = any(spoils(case, LAYER[:1], case.wanted))
    return "PEFT pairs columns and rows crosswise, the case is literal" if shows else None


def pytest_cases(implementation: Implementation, kinds: Iterable[str] | None = None, dtype: str | None = None) -> Any:
    """A parametrised pytest test, one for each stored case: ``test_randlora = pytest_cases(my_function)``."""
    import pytest

    cases = [case for case in stored_cases() if kinds is None or case.kind in tuple(kinds)]

    @pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])
    def test(case: Case) -> None:
        report = check(implementation, cases=[case], dtype=dtype)
        if report.absent and not report.failures:
            pytest.skip(f"{report.absent[0][1]}: {report.absent[0][2]}")
        if not report.passed:
            pytest.fail("\n".join(report.lines()), pytrace=False)

    return test


def search(implementation: Implementation, count: int = 200, seed: int = 0, target: str | None = None) -> Report:
    """Random exact layers by hypothesis, shrunk to a smallest one that fails; the report names ``seed``."""
    import hypothesis
    from hypothesis import strategies as st

    begin, found = time.monotonic(), list[Case]()
    passed = [0]

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, database=None, deadline=None, phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        suppress_health_check=list(hypothesis.HealthCheck), report_multiple_bugs=False, print_blob=False,
    )  # fmt: skip
    @hypothesis.given(st.data())
    def one(data: Any) -> None:
        case = _drawn_case(partial(data.draw), st, seed)
        wrong, absent = judge(case, run_case(implementation, case))
        if wrong:
            found[:] = [case]
            raise _FoundError
        if not absent:
            passed[0] += 1

    with suppress(_FoundError):
        one()
    target = target or name_of(implementation)
    report = check(implementation, cases=found, target=target) if found else Report(target, passed[0])
    again = f"randlora-ref check {target} --random {count} --seed {seed}"
    failures: tuple[Failure, ...] = tuple(replace(failure, reproduce=again) for failure in report.failures)
    details = {"seed": seed, "count": count, "spec": SPEC_VERSION}
    return replace(report, failures=failures, details=details, seconds=time.monotonic() - begin)


class _FoundError(Exception):
    """A failing case was found."""


def _drawn_case(draw: Callable[[Any], Any], st: Any, seed: int) -> Case:
    """A small exact layer; everything shrinks: sizes to 1, each array to zeros, then ones."""
    out_features, in_features, r, data = (draw(st.integers(1, most)) for most in (6, 6, 3, 6))

    def array(most: int, size: tuple[int, ...]) -> Any:
        fill = draw(st.integers(0, 9))
        rng = np.random.default_rng([data, fill, *size])
        return (rng.integers(-most, most + 1, size) if fill > 1 else np.full(size, fill)).astype(np.float64)

    scaling, form = float(draw(st.sampled_from([1, 2, 4]))), draw(st.sampled_from(["plain", "masked", "merged"]))
    case = layer_case(
        f"search-{seed}", (out_features, in_features), r, draw(st.sampled_from([(1,), (2,), (), (0,), (2, 2)])),
        (draw(st.integers(0, 2)), draw(st.integers(0, 2)), draw(st.integers(0, 2))), array,
        pairing=draw(st.sampled_from(["literal", "crossed"])), scaling=scaling, alpha=scaling * r,
        merged=form == "merged", fan_in_fan_out=draw(st.booleans()), exact_in=("float64", "float32"),
        **draw(st.sampled_from([{"bias": None}, {}])),
    )  # fmt: skip
    return with_mask(case, 2 * np.abs(array(1, case.x.shape))) if form == "masked" else case
