"""The commands ``randlora-ref …``: arguments in, one report out. This room and ``terminal`` alone print.

Exit status: 0 all well, 1 a check failed, 2 the arguments or files were bad (one line on stderr).
"""

import argparse
import contextlib
import importlib
import json
import os
import string
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import __version__, checks
from .terminal import EXAMPLES, WIDTH, Parser, Progress, plain, refuse, show, table

EXTRAS = {"safetensors": "peft", "matplotlib": "plot", "hypothesis": "test"}  # else crosscheck
REFUSALS = (ValueError, OSError, ImportError, MemoryError)  # of arguments, files, machine; all else is a fault of ours
DRAWN = {"shape": (64, 48), "rank": 8, "dialect": "paper", "kind": "dense", "seed": 0, "steps": 0}
DRAWN |= dict.fromkeys(("lambda_start", "gamma_start"))  # what ``rank`` takes where it draws an update, with defaults
Output = tuple[list[str], Any, bool]  # lines for a person, data for JSON, whether all is well


def entry() -> None:
    """The console script."""
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    arguments = parser().parse_args(argv)
    try:
        lines, data, ok = arguments.run(arguments)
        show(json.dumps(plain(data), indent=2) if arguments.json else checks.printable("\n".join(lines)))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(str(error.name), "crosscheck")
        return refuse(f"randlora-ref {arguments.name}", f"needs {error.name}: pip install 'randlora-ref[{extra}]'")
    except REFUSALS as error:
        return refuse(f"randlora-ref {arguments.name}", str(error) or type(error).__name__)
    return 0 if ok else 1


def parser() -> argparse.ArgumentParser:
    """Every command and its arguments."""
    top = Parser(prog="randlora-ref", description="The numeric reference of RandLoRA, and its checks.")
    top.epilog = "example: randlora-ref verify"
    top.add_argument("--version", action="version", version=f"randlora-ref {__version__}")
    commands = top.add_subparsers(dest="name", required=True, metavar="COMMAND")

    def add(run: Callable[[argparse.Namespace], Output], text: str) -> argparse.ArgumentParser:
        epilog = f"example: randlora-ref {run.__name__} {EXAMPLES[run.__name__]}"
        command = commands.add_parser(run.__name__, help=text, description=text, epilog=epilog)
        command.add_argument("--json", action="store_true", help="print JSON")
        command.set_defaults(run=run)
        return command

    command = add(verify, "audit this package on this machine: a figure and a limit for each property")
    backends = ("all", "numpy", "cupy")
    command.add_argument("--backend", choices=backends, default="all", help="array library (default: each found)")
    command.add_argument("--seed", type=int, default=0, help="seed of the random cases (default: 0)")

    command = add(check, "cross-check an implementation against the specification")
    targets = "peft (the installed one), module:function, or a results file (….json)"
    command.add_argument("target", nargs="?", metavar="TARGET", help=targets)
    command.add_argument("--exec", dest="command", metavar="COMMAND", help="a program that answers JSON lines, instead")
    command.add_argument("--kinds", nargs="+", metavar="KIND", help="some of layer, bases, start, count, rank, block")
    command.add_argument("--dtype", help="the precision it declares, such as bfloat16 (default: each case's own)")
    command.add_argument("--case", help="one case alone, by its id")
    command.add_argument("--random", type=int, default=0, metavar="N", help="N random layers instead of stored cases")
    command.add_argument("--seed", type=int, default=0, help="of the random layers (default: 0)")
    held = "hold it to the cases that this dialect's code computes (default: paper's and PEFT's together)"
    command.add_argument("--dialect", metavar="NAME", help=held)

    command = add(vectors, "write the test vectors, their manifest and schema for use elsewhere")
    command.add_argument("folder", metavar="DIR", help="made if need be")

    _add_reports(add)
    return top


def _add_reports(add: Callable[..., argparse.ArgumentParser]) -> None:
    """The commands that tell of updates, of counts, of the paper and of dialects."""
    command = add(rank, "the proven rank of an update, from a file or folder, or from a shape, rank and seed")
    command.add_argument("source", nargs="?", help="a .npz of factors, or the folder of an adapter that PEFT saved")
    command.add_argument("--base", metavar="CHECKPOINT", help="of the folder's adapter: its folder or config.json")
    command.add_argument("--draw-dtype", help="in which PEFT drew bases that are not saved (default: bfloat16)")
    command.add_argument("--shape", type=int, nargs=2, metavar=("OUT", "IN"), help="default: 64 48")
    command.add_argument("--rank", type=int, help="of the bases (default: 8)")
    command.add_argument("--dialect", help="paper or peft (default: paper)")
    command.add_argument("--kind", help="dense, sparse, very_sparse, or a sparsity s (default: dense)")
    command.add_argument("--seed", type=int, help="of the bases (default: 0)")
    command.add_argument("--steps", type=int, help="gradient steps on a quadratic loss first (default: 0)")
    command.add_argument("--lambda-start", type=float, help="constant that fills Λ (default: the dialect's)")
    command.add_argument("--gamma-start", type=float, help="constant that fills Γ (default: the dialect's)")
    command.add_argument("--proof", action="store_true", help="each proof whole: minor, primes, hash of the factors")
    command.add_argument("--spectrum", action="store_true", help="the singular values after each step, too")
    command.add_argument("--plot", metavar="FILE", help="write a plot of the spectrum there (plot extra)")

    command = add(count, "learned-parameter counts of named models and methods, beside the printed ones")
    command.add_argument("folder", nargs="?", help="of an adapter that PEFT saved: its own counts, instead")
    command.add_argument("--model", help="one model only")
    command.add_argument("--method", help="one method only")
    command.add_argument("--rank", type=int, help="with --model and --method: the count at this rank")

    command = add(claims, "the paper's statements, each with a verdict and the evidence computed for it")
    command.add_argument("--seed", type=int, default=0, help="of the random evidence (default: 0)")

    add(dialects, "what each implementation does, and where they part")


def verify(arguments: argparse.Namespace) -> Output:
    """``randlora-ref verify``."""
    from .verify import audit

    checks.seed(arguments.seed)
    usable, left_out = audit.backends()
    asked = tuple(usable) if arguments.backend == "all" else (arguments.backend,)
    if not usable.keys() >= {*asked}:
        raise ValueError(f"--backend: {asked[0]!r} is {left_out.get(asked[0], 'not installed')}")
    machine, started = audit.machine({name: usable[name] for name in asked}), time.monotonic()
    lines = [f"{name}: {reason}" for name, reason in left_out.items() if arguments.backend == "all"]
    data, legend, group = [], dict[str, str](), ""
    with Progress() as progress:
        for name in asked:
            lines.append(f"{name} {machine['versions'][name]} on {machine['gpu' if name == 'cupy' else 'processor']}")
            lines.append(f"      {'figure':>9}    {'limit':>8}")
            for one in audit.properties(usable[name], arguments.seed):
                progress(f"{name}: {one.name}")
                data.append({"backend": name, **one._asdict(), "ok": one.ok})
                part, _, what = one.name.partition(": ")
                lines += [part] * (part != group)
                group, mark = part, legend.setdefault(one.formula, string.ascii_letters[len(legend) % 52])
                figures = f"{one.figure:9.3g} <= {one.limit:8.3g}  [{mark}]"
                lines.append(f"ok    {figures} {what}" if one.ok else f"FAIL  {figures} {one.name}")
    lines += ["limits:", *(f"  [{mark}] {formula}" for formula, mark in legend.items())]
    failed = sum(not one["ok"] for one in data)
    lines.append(f"{len(data) - failed} properties hold, {failed} fail, in {time.monotonic() - started:.1f} s")
    facts = {"ok": not failed, "version": __version__, **machine, "not_audited": left_out, "properties": data}
    return lines, facts, not failed


def dialects(arguments: argparse.Namespace) -> Output:
    """``randlora-ref dialects``."""
    from dataclasses import asdict

    from .dialects import DIALECTS

    rows = {row.name: asdict(row) for row in DIALECTS.values()}
    choices = [key for key in rows["paper"] if key not in ("name", "runs", "source", "notes")]
    lines = table([["", *rows], *([key, *(str(row[key]) for row in rows.values())] for key in choices)])
    for row in rows.values():
        told = f"{row['name']}: {row['source']}. {row['notes']}".rstrip(". ")
        lines += textwrap.wrap(told, WIDTH, subsequent_indent="    ")
    apart = [key for key in choices if rows["paper"][key] != rows["peft"][key]]
    lines.append(f"paper and peft part in: {', '.join(apart)}")
    return lines, {"dialects": list(rows.values()), "paper_and_peft_part_in": apart}, True


def check(arguments: argparse.Namespace) -> Output:
    """``randlora-ref check``."""
    from .conformance import check_target

    if arguments.random < 0:
        raise ValueError(f"--random: {arguments.random}; it must be a number of layers")
    names = ("target", "command", "kinds", "dtype", "case", "dialect", "random", "seed")
    checks.seed(arguments.seed)
    with Progress() as progress:
        report = check_target(**{name: getattr(arguments, name) for name in names}, progress=progress)
    return report.lines(), report.to_json(), report.passed


def vectors(arguments: argparse.Namespace) -> Output:
    """``randlora-ref vectors``."""
    from .conformance import write_vectors

    written = [str(path) for path in write_vectors(arguments.folder)]
    return written, {"written": written}, True


def rank(arguments: argparse.Namespace) -> Output:
    """``randlora-ref rank``."""
    from .interop.ranks import folder_ranks
    from .rank import certify_rank, load_factors, plot_spectra, spectrum

    if arguments.plot is not None:
        importlib.import_module("matplotlib")  # said before the work if it is not there
    settle(arguments)
    spectra, lines, summary, stored = {}, [], [], arguments.source is not None
    data: dict[str, dict[str, Any]] = {"certificates": {}, "spectra": {}}
    with Progress() as progress:
        if stored and os.path.isdir(arguments.source):
            certificates, sources, data["modules"], summary = folder_ranks(
                arguments.source, arguments.base, arguments.draw_dtype or "bfloat16", progress
            )
        elif stored:
            sources = {"update": load_factors(arguments.source)}
            certificates = {name: certify_rank(source, progress=progress) for name, source in sources.items()}
        else:
            certificates, sources = steps(arguments, progress)
            lines.append(f"{'':9} {'rank':>6} {'of':>6}  proof")
        for name, certificate in certificates.items():
            data["certificates"][name] = certificate.to_json()
            numerical = [data["modules"][name]] if "modules" in data else []
            if stored or arguments.proof:
                lines += [f"{name}: {line}" for line in certificate.lines()]
            else:
                least = min(certificate.details["shape"])
                lines.append(f"{name:9} {certificate.rank:6} {least:6}  {certificate.proof()}")
            try:
                if name in sources and (stored or arguments.spectrum or arguments.plot):
                    spectra[name] = spectrum(sources[name])
                    numerical += spectra[name].lines()
                    data["spectra"][name] = spectra[name].to_json()
            except ValueError as error:  # a product beyond float64: the certificate stands without it
                data["spectra"][name] = f"no spectrum: {error}"
                numerical.append(data["spectra"][name])
            lines += [f"{name}: {line}" for line in numerical]
    lines += summary
    if arguments.steps and not stored:
        lines.append("steps are taken in float64: a certificate is of what is stored, whose rounding can fill a rank")
    if arguments.plot is not None:
        plot_spectra(spectra, arguments.plot)
        lines.append(f"spectrum drawn in {arguments.plot}")
    return lines, data, True


def settle(arguments: argparse.Namespace) -> None:
    """Fills in the defaults of a drawn update. ValueError for options of one source beside another."""
    if arguments.source == "":
        raise ValueError("source: ''; it must be the path of a .npz or of a folder")
    folder = arguments.source is not None and os.path.isdir(arguments.source)
    odd = [name for name in DRAWN if arguments.source is not None and getattr(arguments, name) is not None]
    odd += [name for name in ("base", "draw_dtype") if not folder and getattr(arguments, name) is not None]
    if odd:
        beside = "no folder" if arguments.source is None else repr(arguments.source)
        raise ValueError(f"--{odd[0].replace('_', '-')}: says nothing about {beside}; it must be left out")
    for name, default in DRAWN.items():
        setattr(arguments, name, default if getattr(arguments, name) is None else getattr(arguments, name))


def steps(arguments: argparse.Namespace, progress: Progress) -> tuple[dict[str, Any], dict[str, Any]]:
    """The certificate of a drawn layer, and its factors, after each gradient step."""
    from .adapters.randlora import RandLoRA
    from .rank import rank_after_steps

    kind: Any = arguments.kind
    with contextlib.suppress(ValueError):  # a word is a kind, and draw_bases knows which
        kind = float(kind)
    out_features, in_features = arguments.shape
    layer = RandLoRA.start(out_features, in_features, arguments.rank, arguments.dialect, arguments.seed, kind=kind)
    starts = layer.dialect.start(layer.shape, layer.rank, layer.n)
    asked = (arguments.lambda_start, arguments.gamma_start)
    start = [own if value is None else value for value, own in zip(asked, starts, strict=True)]
    for name, value in zip(("--lambda-start", "--gamma-start"), start, strict=True):
        checks.number(name, value)
    lambda_, gamma = np.full((layer.n, layer.rank), start[0]), np.full((layer.n, layer.d), start[1])
    descent = rank_after_steps(
        layer.bases.A, layer.bases.B, lambda_, gamma, layer.shape, arguments.steps, pairing=layer.dialect.pairing,
        orientation=layer.dialect.orientation, seed=arguments.seed, scaling=layer.scaling, progress=progress,
    )  # fmt: skip
    names = [f"step {step}" for step in range(arguments.steps + 1)]
    return dict(zip(names, descent.certificates, strict=True)), dict(zip(names, descent.factors, strict=True))


def count(arguments: argparse.Namespace) -> Output:
    """``randlora-ref count``."""
    from .interop.peft import read_peft
    from .paper.counts import row, table

    if arguments.folder:
        for name in ("model", "method", "rank"):
            if getattr(arguments, name) is not None:
                raise ValueError(f"--{name}: says nothing about {arguments.folder!r}; it must be left out")
        counts = read_peft(arguments.folder, draw_dtype=None).num_parameters()
        total = sum(counts.values())
        lines = [f"{learned:12,}  {name}" for name, learned in (*counts.items(), ("all", total))]
        return lines, {"learned": counts, "all": total}, True
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


def claims(arguments: argparse.Namespace) -> Output:
    """``randlora-ref claims``."""
    from .paper.claims import CHECKS

    seed, found = checks.seed(arguments.seed), []
    with Progress() as progress:
        for index, one in enumerate(CHECKS):
            progress(f"claim {index + 1} of {len(CHECKS)}", index / len(CHECKS))
            found.append(one(seed))
    lines = [line for one in found for line in (*one.lines(), "")]
    verdicts = [one.verdict for one in found]
    lines.append(", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts)))
    return lines, [one.to_json() for one in found], True
