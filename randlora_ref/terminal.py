"""What the commands share to speak to a person: whole output on any stream, one line for an error, progress, tables."""

import argparse
import contextlib
import itertools
import math
import sys
import textwrap
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from . import checks

SOON, INTERVAL, WIDTH = 2.0, 0.1, 100  # of the line of progress: seconds before the first, between two; characters
TOLD = 1000  # characters of a reason
CELL = 17  # characters of a column of the table of dialects
EXAMPLES = {
    "verify": "--backend numpy", "check": "mymodule:randlora --kinds rank", "vectors": "vectors/", "dialects": "--json",
    "rank": "--shape 64 48 --rank 8 --steps 2", "count": "--model Llama-3.2-3B --method randlora", "claims": "--seed 1",
}  # fmt: skip
# What a stdout that cannot show them gets for our symbols; for any other character its number.
ASCII = str.maketrans({
    "Λ": "Lambda", "Γ": "Gamma", "Δ": "Delta ", "∂": "d", "Σ": "sum ", "σ": "sigma", "√": "sqrt", "·": "*", "×": "x",
    "∘": "o", "−": "-", "–": "-", "…": "...", "≤": "<=", "≥": ">=", "α": "alpha", "ᵀ": "^T", "²": "^2", "¹": "^1",
    "⁰": "0", "’": "'", "±": "+-", "θ": "theta", "§": "sec. ", "ε": "eps", "₁": "_1",
})  # fmt: skip


def show(text: str, file: Any = None) -> None:
    """Prints the whole text, in characters that the stream has."""
    file = file or sys.stdout
    encoding = file.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(ASCII).encode(encoding, "backslashreplace").decode(encoding)
    print(text, file=file, flush=True)


def refuse(command: str, reason: str) -> int:
    """One line on stderr, and the exit status of bad arguments."""
    show(checks.printable(f"{command}: {' '.join(reason.split())[:TOLD]}"), sys.stderr)
    return 2


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose help every stream can show."""

    def error(self, message: str) -> NoReturn:
        """Ends the command."""
        sys.exit(refuse(self.prog, message))

    def print_help(self, file: Any = None) -> None:
        """Prints the help."""
        show(self.format_help().rstrip(), file)


def plain(data: Any) -> Any:
    """``data`` with NaN and infinities as words: JSON has no such numbers."""
    if isinstance(data, dict):
        return {str(name): plain(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain(value) for value in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data


class Progress(contextlib.AbstractContextManager["Progress"]):
    """A line on a terminal, of work that takes longer than ``SOON``: it overwrites itself and goes in the end."""

    def __init__(self) -> None:
        self.drawn = False
        self.shown, self.last = sys.stderr.isatty(), time.monotonic() + SOON - INTERVAL

    def __call__(self, what: str, part: float | None = None) -> None:
        """Shows what is being done, and the part of it that is done if that is known, now and then."""
        now = time.monotonic()
        if self.shown and now - self.last > INTERVAL:
            text = what if part is None else f"{what}, {100 * part:.0f} %"
            print(f"\r\x1b[K{text[:WIDTH]}", end="", file=sys.stderr, flush=True)
            self.last, self.drawn = now, True

    def __exit__(self, *_: object) -> None:
        if self.drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, each cell wrapped to ``CELL`` characters."""
    lines = []
    for row in rows:
        cells = [textwrap.wrap(cell, CELL) or [""] for cell in row]
        for part in itertools.zip_longest(*cells, fillvalue=""):
            lines.append(" ".join(f"{text:{CELL}}" for text in part).rstrip())
    return lines
