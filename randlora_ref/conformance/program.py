"""A program under test, of any language: JSON lines over its standard input and output. POSIX alone.

It reads one request a line, {"version": 1, "case": {…}}, and answers each with one line, {"id": …, "results":
{name: array}} or {"id": …, "unsupported": "reason"}, until its input ends.
"""

import json
import os
import select
import shlex
import signal
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from subprocess import PIPE, Popen, TimeoutExpired
from typing import Any

from .cases import Case
from .compare import Instead
from .vectors import MOST_BYTES, SHOWN, TOLD, VERSION, case_to_json, parse, results_from_json

SECONDS, TOTAL_SECONDS, LIVES = 10.0, 300.0, 3  # for one case, for all, and how often it is started
CHUNK = 1 << 16


class Program(AbstractContextManager["Program"]):
    """A program under test: called with a case, it asks the program. As a context it ends the program. POSIX alone."""

    def __init__(self, command: str, seconds: float = SECONDS, total_seconds: float = TOTAL_SECONDS) -> None:
        try:
            self.words = shlex.split(command)
        except ValueError as error:
            raise ValueError(f"command: {command!r}: {error}; it must be what a shell takes") from None
        self.seconds, self.lives, self.last = seconds, LIVES, ""
        self.until = time.monotonic() + total_seconds
        self.process: Any = None  # a Popen while it runs
        if not self.words:
            raise ValueError(f"command: {command!r}; it must name a program")
        self._start()

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _start(self) -> None:
        try:
            self.process = Popen(self.words, stdin=PIPE, stdout=PIPE, stderr=PIPE, bufsize=0, start_new_session=True)
        except OSError as error:
            raise ValueError(f"command: {self.words[0]!r}: {error.strerror}; it must be a program") from None
        self.lives, self.told = self.lives - 1, b""

    def _stop(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            with process, suppress(ProcessLookupError):  # waits at the end, and closes the pipes
                os.killpg(process.pid, signal.SIGKILL)

    def _exchange(self, request: bytes, seconds: float) -> bytes:
        """What the program writes up to the end of a line, of its output or of what is read at most."""
        into, out, said = (pipe.fileno() for pipe in (self.process.stdin, self.process.stdout, self.process.stderr))
        os.set_blocking(into, False)
        end, answer, open_ = time.monotonic() + seconds, bytearray(), [out, said]
        while out in open_ and b"\n" not in answer[-CHUNK:] and len(answer) <= MOST_BYTES:
            left = end - time.monotonic()
            readable, writable, _ = select.select(open_, [into] if request else [], [], max(0.0, left))
            if left <= 0 or not (readable or writable):
                raise TimeoutError
            if writable:
                try:
                    request = request[os.write(into, request[:CHUNK]) :]
                except OSError:
                    request = b""  # it reads no more; what it has written is still judged
            for pipe in readable:
                if not (chunk := os.read(pipe, CHUNK)):
                    open_.remove(pipe)
                elif pipe == out:
                    answer += chunk
                else:
                    self.told = (self.told + chunk)[-TOLD:]
        return bytes(answer)

    def _last_words(self) -> str:
        """The exit status of a program that has ended, and the end of what it wrote to stderr."""
        with suppress(TimeoutExpired):
            self.process.wait(0.2)
        status, said = self.process.returncode, " ".join(self.told.decode(errors="replace").split())
        return f"; exit status {status}" * (status is not None) + f"; stderr: {said!r}" * bool(said)

    def __call__(self, case: Case) -> Mapping[str, Any]:
        """The program's results of a case; what goes wrong with it is a text, and so a failure."""
        if self.process is None:
            if self.lives == 0:
                return dict.fromkeys(case.wanted, Instead(f"not asked: the program failed {LIVES} times: {self.last}"))
            self._start()
        request = json.dumps({"version": VERSION, "case": case_to_json(case)}) + "\n"
        seconds = min(self.seconds, self.until - time.monotonic())
        try:
            answer = self._exchange(request.encode(), seconds)
            if not answer:
                raise ValueError("the program has ended")
            if answer.find(b"\n") != len(answer) - 1:
                raise ValueError(f"a line of over {MOST_BYTES} bytes, more than one, or an unfinished one")
            return results_from_json(parse(answer, "answer"), case)
        except TimeoutError:
            text = f"no answer in {seconds:.1f} s"
        except ValueError as error:
            text = f"bad answer: {str(error)[:TOLD]}"
            text += f"; the line {answer[:SHOWN].decode(errors='replace')!r}" * bool(answer)
        text = self.last = text + self._last_words()
        self._stop()  # what it would still say belongs to this case
        return dict.fromkeys(case.wanted, Instead(text))
