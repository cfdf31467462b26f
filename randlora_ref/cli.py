"""The commands ``randlora-ref …``: arguments in, one report out. The only room that prints.

Exit status: 0 all well, 1 a check failed, 2 the arguments or files were bad (one line on stderr).
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from . import __version__

Report = tuple[list[str], Any, bool]  # lines for a person, data for JSON, whether all is well


def entry() -> None:
    """The console script."""
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    arguments = parser().parse_args(argv)
    try:
        lines, data, ok = arguments.run(arguments)
        text = json.dumps(plain(data), ensure_ascii=False, indent=2) if arguments.json else "\n".join(lines)
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"randlora-ref {arguments.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0 if ok else 1


def parser() -> argparse.ArgumentParser:
    """Every command and its arguments."""
    top = argparse.ArgumentParser(prog="randlora-ref", description="The numeric reference of RandLoRA, and its checks.")
    top.add_argument("--version", action="version", version=f"randlora-ref {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], Report], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--json", action="store_true", help="print JSON")
        command.set_defaults(run=run)
        return command

    command = add("verify", verify, "audit this package on this machine: a figure and a limit for each property")
    backends = ("all", "numpy", "cupy")
    command.add_argument("--backend", choices=backends, default="all", help="array library (default: each found)")
    command.add_argument("--seed", type=int, default=0, help="seed of the random cases (default: 0)")

    add("dialects", dialects, "what each implementation does, and where they part")
    return top


def plain(data: Any) -> Any:
    """``data`` with NaN and infinities as words: JSON has no such numbers."""
    if isinstance(data, dict):
        return {str(name): plain(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain(value) for value in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data


class Progress:
    """A line on a terminal that overwrites itself; nothing where stderr is no terminal."""

    def __init__(self) -> None:
        self.shown = sys.stderr.isatty()
        self.last = 0.0

    def __call__(self, text: str) -> None:
        """Shows ``text``, at most ten times a second."""
        now = time.monotonic()
        if self.shown and (now - self.last > 0.1 or not text):
            print(f"\r\x1b[K{text[:100]}", end="", file=sys.stderr, flush=True)
            self.last = now


def verify(arguments: argparse.Namespace) -> Report:
    """``randlora-ref verify``."""
    from .verify import audit

    if arguments.seed < 0:
        raise ValueError(f"--seed: {arguments.seed}; it must be an integer in [0, 2**64)")
    found = dict(audit.backends())
    if arguments.backend not in ("all", *found):
        raise ValueError(f"--backend: {arguments.backend!r} finds no GPU here; it must be one of {', '.join(found)}")
    chosen = found if arguments.backend == "all" else {arguments.backend: found[arguments.backend]}
    progress, started, lines, data, ok = Progress(), time.monotonic(), [], [], True
    for name, backend in chosen.items():
        lines.append(f"{name} {backend.xp.__version__}")
        lines.append(f"      {'figure':>9}    {'limit':>8}  property (the limit's formula)")
        for one in audit.properties(backend, arguments.seed):
            progress(f"{name}: {one.name}")
            ok &= one.ok
            lines.append(
                f"{'ok  ' if one.ok else 'FAIL'}  {one.figure:9.3g} <= {one.limit:8.3g}  {one.name} ({one.formula})"
            )
            data.append({"backend": name, **one._asdict(), "ok": one.ok})
    progress("")
    failed = sum(not one["ok"] for one in data)
    lines.append(f"{len(data) - failed} properties hold, {failed} fail, in {time.monotonic() - started:.1f} s")
    return lines, {"ok": ok, "version": __version__, "properties": data}, ok


def dialects(arguments: argparse.Namespace) -> Report:
    """``randlora-ref dialects``."""
    from dataclasses import asdict

    from .dialects import DIALECTS

    rows = {row.name: asdict(row) for row in DIALECTS.values()}
    choices = [key for key in rows["paper"] if key not in ("name", "runs", "source", "notes")]
    lines = []
    for row in rows.values():
        lines.append(f"{row['name']}{'' if row['runs'] else ' (documented, not run)'}: {row['source']}")
        lines += [f"    {key:15} {row[key]}" for key in (*choices, "notes") if row[key] != ""]
    apart = [key for key in choices if rows["paper"][key] != rows["peft"][key]]
    lines.append(f"paper and peft part in: {', '.join(apart)}")
    return lines, {"dialects": list(rows.values()), "paper_and_peft_part_in": apart}, True
