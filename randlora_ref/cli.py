"""The commands ``randlora-ref …``: arguments in, one report out. The only room that prints.

Exit status: 0 all well, 1 a check failed, 2 the arguments or files were bad (one line on stderr).
"""

import argparse
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import __version__, checks

EXTRAS = {"safetensors": "peft", "matplotlib": "plot", "hypothesis": "test"}  # else crosscheck
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
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(str(error.name), "crosscheck")
        needs = f"needs {error.name}: pip install 'randlora-ref[{extra}]'"
        print(f"randlora-ref {arguments.command}: {needs}", file=sys.stderr)
        return 2
    except (ValueError, TypeError, KeyError, IndexError, OSError, ImportError) as error:
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

    command = add("check", check, "cross-check an implementation against the specification")
    targets = "peft (the installed one), module:function, or a results file (….json)"
    command.add_argument("target", nargs="?", metavar="TARGET", help=targets)
    command.add_argument("--exec", dest="program", metavar="COMMAND", help="a program that answers JSON lines, instead")
    command.add_argument("--kinds", nargs="+", metavar="KIND", help="some of layer, bases, start, count, rank, block")
    command.add_argument("--dtype", help="the precision it declares, such as bfloat16 (default: each case's own)")
    command.add_argument("--case", help="one case alone, by its id")
    command.add_argument("--random", type=int, default=0, metavar="N", help="N random layers instead of stored cases")
    command.add_argument("--seed", type=int, default=0, help="of the random layers (default: 0)")
    dialect = ("peft", "paper")
    command.add_argument("--dialect", choices=dialect, default="peft", help="what to hold PEFT to (default: peft)")

    command = add("vectors", vectors, "write the test vectors, their manifest and schema for use elsewhere")
    command.add_argument("folder", metavar="DIR", help="made if need be")

    command = add("rank", rank, "the proven rank of an update, from a file or folder, or from a shape, rank and seed")
    command.add_argument("source", nargs="?", help="a .npz of factors, or the folder of an adapter that PEFT saved")
    command.add_argument("--shape", type=int, nargs=2, metavar=("OUT", "IN"), default=(64, 48), help="default: 64 48")
    command.add_argument("--rank", type=int, default=8, help="of the bases (default: 8)")
    command.add_argument("--dialect", default="paper", help="paper or peft (default: paper)")
    command.add_argument("--kind", default="dense", help="dense, sparse, very_sparse, or a sparsity s (default: dense)")
    command.add_argument("--seed", type=int, default=0, help="of the bases (default: 0)")
    command.add_argument("--steps", type=int, default=0, help="gradient steps on a quadratic loss first (default: 0)")
    command.add_argument("--lambda-start", type=float, help="constant that fills Λ (default: the dialect's)")
    command.add_argument("--gamma-start", type=float, help="constant that fills Γ (default: the dialect's)")
    command.add_argument("--plot", metavar="FILE", help="write a plot of the spectrum there (plot extra)")

    command = add("count", count, "learned-parameter counts of named models and methods, beside the printed ones")
    command.add_argument("--model", help="one model only")
    command.add_argument("--method", help="one method only")
    command.add_argument("--rank", type=int, help="with --model and --method: the count at this rank")

    command = add("claims", claims, "the paper's statements, each with a verdict and the evidence computed for it")
    command.add_argument("--seed", type=int, default=0, help="of the random evidence (default: 0)")

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

    checks.seed(arguments.seed)
    usable, left_out = audit.backends()
    if arguments.backend not in ("all", *usable):
        raise ValueError(f"--backend: {arguments.backend!r} is {left_out.get(arguments.backend, 'not installed')}")
    chosen = usable if arguments.backend == "all" else {arguments.backend: usable[arguments.backend]}
    progress, started, data, ok = Progress(), time.monotonic(), [], True
    machine = audit.machine(chosen)
    lines = [f"{name}: {reason}" for name, reason in left_out.items() if arguments.backend == "all"]
    for name, backend in chosen.items():
        lines.append(f"{name} {machine['versions'][name]} on {machine['gpu' if name == 'cupy' else 'processor']}")
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
    return lines, {"ok": ok, "version": __version__, **machine, "not_audited": left_out, "properties": data}, ok


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


def check(arguments: argparse.Namespace) -> Report:
    """``randlora-ref check``."""
    from .conformance import check_target

    if arguments.random < 0:
        raise ValueError(f"--random: {arguments.random}; it must be a number of layers")
    progress = Progress()
    report = check_target(
        arguments.target,
        command=arguments.program,
        kinds=arguments.kinds,
        dtype=arguments.dtype,
        case=arguments.case,
        dialect=arguments.dialect,
        random=arguments.random,
        seed=checks.seed(arguments.seed),
        progress=lambda what, part: progress(what),
    )
    progress("")
    return report.lines(), report.to_json(), report.passed


def vectors(arguments: argparse.Namespace) -> Report:
    """``randlora-ref vectors``."""
    from .conformance import write_vectors

    written = [str(path) for path in write_vectors(arguments.folder)]
    return written, {"written": written}, True


def rank(arguments: argparse.Namespace) -> Report:
    """``randlora-ref rank``."""
    from .rank import certify_rank, plot_spectra, spectrum

    progress = Progress()

    def show(what: str, part: float) -> None:
        progress(f"{what} {100 * part:.0f} %")

    sources = _from_file(arguments.source) if arguments.source else None
    if sources is None:
        certificates, sources = _after_steps(arguments, show)
    else:
        certificates = {name: certify_rank(source, progress=show) for name, source in sources.items()}
    spectra, untold = {}, {}
    for name, source in sources.items():
        try:
            spectra[name] = spectrum(source)
        except ValueError as error:  # a product beyond float64: the certificate stands without it
            untold[name] = f"no spectrum: {error}"
    progress("")
    lines = []
    for name, certificate in certificates.items():
        numerical = spectra[name].lines() if name in spectra else [untold[name]]
        lines += [f"{name}: {line}" for line in (*certificate.lines(), *numerical)]
    if arguments.steps and not arguments.source:
        lines.append("steps are taken in float64: a certificate is of what is stored, whose rounding can fill a rank")
    if arguments.plot:
        plot_spectra(spectra, arguments.plot)
        lines.append(f"spectrum drawn in {arguments.plot}")
    data = {
        "certificates": {name: certificate.to_json() for name, certificate in certificates.items()},
        "spectra": {name: one.to_json() for name, one in spectra.items()} | untold,
    }
    return lines, data, True


def _from_file(source: str) -> dict[str, Any]:
    """What there is to certify in a ``.npz`` of factors or in an adapter's folder, by name."""
    from .rank import load_factors

    if not os.path.isdir(source):
        return {"update": load_factors(source)}
    from .interop.peft import load_peft

    adapter = load_peft(source)
    return {name: adapter.layer(name).factors() for name in adapter.lambda_}


def _after_steps(
    arguments: argparse.Namespace, progress: Callable[[str, float], None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The certificate of a drawn layer, and its factors, after each gradient step."""
    from .bases import draw_bases
    from .dialects import get_dialect
    from .rank import rank_after_steps

    dialect, shape = get_dialect(arguments.dialect), (arguments.shape[0], arguments.shape[1])
    checks.sizes(*shape, arguments.rank)
    kind: Any = arguments.kind
    with contextlib.suppress(ValueError):  # a word is a kind, and draw_bases knows which
        kind = float(kind)
    bases = draw_bases(dialect, seed=arguments.seed, shapes=[shape], rank=arguments.rank, kind=kind)
    n = dialect.terms(shape, arguments.rank)
    starts = dialect.start(shape, arguments.rank, n)
    asked = (arguments.lambda_start, arguments.gamma_start)
    start = [own if value is None else value for value, own in zip(asked, starts, strict=True)]
    lambda_, gamma = np.full((n, arguments.rank), start[0]), np.full((n, min(shape)), start[1])
    descent = rank_after_steps(
        bases.A, bases.B, lambda_, gamma, shape, arguments.steps, pairing=dialect.pairing, seed=arguments.seed,
        scaling=dialect.scaling(arguments.rank, n), progress=progress,
    )  # fmt: skip
    names = [f"step {step}" for step in range(arguments.steps + 1)]
    return dict(zip(names, descent.certificates, strict=True)), dict(zip(names, descent.factors, strict=True))


def count(arguments: argparse.Namespace) -> Report:
    """``randlora-ref count``."""
    from .counts import row, table

    if arguments.rank is None:
        rows = table(arguments.model, arguments.method)
    elif arguments.model is None or arguments.method is None:
        raise ValueError(f"--rank: {arguments.rank} needs --model and --method beside it")
    else:
        rows = [row(arguments.model, arguments.method, arguments.rank)]
    lines = [f"{'model':32} {'method':>8} {'rank':>5} {'learned':>12} {'percent':>8}  printed"]
    for one in rows:
        percent = "" if one.percent is None else f"{one.percent:.3f}"
        printed = "" if one.printed is None else f"{one.printed}{'' if one.agrees else ' (does not agree)'}"
        lines.append(f"{one.model:32} {one.method:>8} {one.rank:5} {one.learned:12,} {percent:>8}  {printed}".rstrip())
    return lines, [one._asdict() for one in rows], True


def claims(arguments: argparse.Namespace) -> Report:
    """``randlora-ref claims``."""
    from .claims import CHECKS

    progress, found = Progress(), []
    for index, one in enumerate(CHECKS):
        progress(f"claim {index + 1} of {len(CHECKS)}")
        found.append(one(checks.seed(arguments.seed)))
    progress("")
    lines = [line for one in found for line in (*one.lines(), "")]
    verdicts = [one.verdict for one in found]
    lines.append(", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts)))
    return lines, [one.to_json() for one in found], True
