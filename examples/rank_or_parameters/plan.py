"""How the cells of an experiment are run: rates found, rows on disk, going on, the command line.

A *cell* is one method of one size on one task with one budget of steps. Its rate is found first, on the validation
split with seeds that no result uses, on a ladder of half decades that is widened until the best rung is inside; then
come the results, on the test split, one for each seed. Every run is one line of JSON, written when it ends. A second
start reads them and makes those that are missing; Ctrl-C loses no more than the runs under way.

A run is one thread, and depends on its cell, rate and seed alone: bit for bit the same on one machine.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from experiment import Cell, Experiment

TUNING_SEEDS = (101, 102)  # never those of results
RUNGS = 3.7  # rates that a cell is tried with, on the average: three, and some more where the best is at an end
MOST_RUNGS = 9
# The middle of the first three rungs, in half decades: -4 is 0.01, -3 is 0.03.
MIDDLE = {"full": -5, "lora": -4, "randlora": -4, "randlora_a": -4, "randlora_b": -4, "vera": -2, "nola": -6}
EXTRAS = {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


# ---------------------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------------------


def append(path: Path, *rows: Mapping[str, Any]) -> None:
    """Write rows in one call: those of two processes do not mix, and several are there all or none."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, "".join(json.dumps(row) + "\n" for row in rows).encode())
    finally:
        os.close(file)


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The setting and the rows of a file; ({}, []) if there is none. A last line that was cut off is left out."""
    if not path.exists():
        return {}, []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    try:
        first, *rows = [json.loads(line) for line in whole.splitlines()]
        return first["setting"], rows
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: it must be the rows of an experiment, the setting first") from None


def open_rows(path: Path, setting: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows there are, of this very setting; a new file begins with it. A ValueError names what differs."""
    setting = json.loads(json.dumps(setting))
    found, rows = read(path)
    for key in sorted(setting.keys() | found.keys()) if found else ():
        if found.get(key) != setting.get(key):
            raise ValueError(
                f"{path}: rows with {key} {found.get(key)!r}; it must be {setting.get(key)!r}: take another --folder"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in ({"setting": setting}, *rows)), encoding="utf-8")
    os.replace(partial, path)  # without a line that was cut off
    return rows


def run_cell(experiment: Experiment, cell: Cell, rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Find the cell's rate, then make its results; ``rows`` are those of the cell that are there already."""
    losses = {(row["rung"], row["seed"]): row["loss"] for row in rows if row["split"] == "valid"}
    done = {row["seed"] for row in rows if row["split"] == "test"}
    middle = MIDDLE[cell.method]
    ladder = [middle - 1, middle, middle + 1]
    while True:
        for rung, seed in ((rung, seed) for rung in ladder for seed in TUNING_SEEDS):
            if (rung, seed) not in losses:
                found = experiment.fit(cell, rate_of(rung), seed, "valid")
                losses[rung, seed] = found["loss"]
                append(path, {"cell": cell.name, "split": "valid", "rung": rung, "seed": seed, **found})
        means = {rung: statistics.fmean(as_float(losses[rung, seed]) for seed in TUNING_SEEDS) for rung in ladder}
        best = min(ladder, key=lambda rung: means[rung])
        if ladder[0] < best < ladder[-1] or len(ladder) == MOST_RUNGS:
            break
        ladder = [ladder[0] - 1, *ladder] if best == ladder[0] else [*ladder, ladder[-1] + 1]
    for seed in experiment.seeds:
        if seed not in done:
            found = experiment.fit(cell, rate_of(best), seed, "test")
            append(path, {"cell": cell.name, "split": "test", "rung": best, "seed": seed, **found})


def rate_of(rung: int) -> float:
    """Half decades: 0.1 is rung −2, 0.0316 is −3, 0.01 is −4."""
    return float(10.0 ** (rung / 2))


def as_float(loss: float | None) -> float:
    """The loss of a run; of one that diverged, infinity."""
    return math.inf if loss is None else loss


# ---------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------

WORKER: list[Experiment] = []  # of a worker's process: the one experiment that it works on


def begin_worker(kind: type[Experiment], quick: bool, folder: Path) -> None:
    """The parent alone answers Ctrl-C: it ends the workers, each in or between two runs, and never within a row."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    WORKER.append(kind(quick, folder))


def work(task: str, *arguments: Any) -> Any:
    """What workers do."""
    (experiment,) = WORKER
    if task == "cell":
        run_cell(experiment, *arguments)
        return arguments[0]
    if task == "beside":
        return append(arguments[0], *experiment.beside(), {"split": "beside"})
    return getattr(experiment, task)(*arguments)


def common_setting(experiment: Experiment) -> dict[str, Any]:
    """What the rows of every experiment depend on."""
    versions = {"python": platform.python_version(), "numpy": np.__version__, "randlora_ref": version("randlora-ref")}
    seeds = {"tuning": TUNING_SEEDS, "results": experiment.seeds}
    return {
        "experiment": experiment.NAME,
        "quick": experiment.quick,
        "seeds": seeds,
        **versions,
        **experiment.setting(),
    }


def version(package: str) -> str:
    """The installed version of a distribution."""
    return importlib.metadata.version(package)


def print_plan(experiment: Experiment, cells: Sequence[Cell], minutes: Mapping[Cell, float], processes: int) -> None:
    """What is run, by task, and how long it will take."""
    runs = f"{len(experiment.seeds)} seeds, {len(TUNING_SEEDS)} more for each rate that is tried, about {RUNGS} rates"
    print(f"{experiment.NAME}: {len(cells)} cells of {runs}; predicted minutes, {processes} process(es) of one thread:")
    for task, steps in dict.fromkeys((cell.task, cell.steps) for cell in cells):
        own = [cell for cell in cells if (cell.task, cell.steps) == (task, steps)]
        methods = {}
        for cell in own:
            methods[cell.method] = methods.get(cell.method, 0) + 1
        sizes = ", ".join(f"{method}{f' ×{times}' if times > 1 else ''}" for method, times in methods.items())
        print(f"  {task}, {steps} steps: {sum(minutes[cell] for cell in own) / processes:.1f} min: {sizes}")
    print(f"  in all {sum(minutes.values()) / processes:.1f} min, and the pre-training", flush=True)


def run(kind: type[Experiment], quick: bool, folder: Path, processes: int) -> None:
    """Plan, pre-train, and make all rows that are not there. A ValueError for rows of another setting."""
    experiment, path = kind(quick, folder), folder / f"{kind.NAME}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    rows, begin = open_rows(path, common_setting(experiment)), time.perf_counter()
    os.environ.update(dict.fromkeys(THREADS, "1"))  # read by the workers when they import NumPy
    try:
        with multiprocessing.get_context("spawn").Pool(processes, begin_worker, (kind, quick, folder)) as pool:
            run_cells(experiment, rows, path, pool, processes)
    finally:
        append(path, {"split": "time", "seconds": round(time.perf_counter() - begin, 1), "processes": processes})
    print(f"rows: {path}; tables and figures: python examples/rank_or_parameters/report.py --folder {folder}")


def run_cells(experiment: Experiment, rows: Sequence[Mapping[str, Any]], path: Path, pool: Any, processes: int) -> None:
    """The cells that lack results, by the workers of ``pool``; beside them what belongs to no cell."""
    cells, by_cell = experiment.cells(), dict[str, list[Any]]()
    for row in rows:
        by_cell.setdefault(row.get("cell", ""), []).append(row)
    results = {cell: sum(row["split"] == "test" for row in by_cell.get(cell.name, ())) for cell in cells}
    left = [cell for cell in cells if results[cell] < len(experiment.seeds)]
    sizes = {cell: cell._replace(task=cells[0].task, steps=0) for cell in left}  # what a step's time depends on
    once = list(dict.fromkeys(sizes.values()))
    seconds = dict(zip(once, pool.starmap(work, [("seconds", size) for size in once], 1), strict=True))
    runs = RUNGS * len(TUNING_SEEDS) + len(experiment.seeds)
    minutes = {cell: runs * cell.steps * seconds[size] / 60 for cell, size in sizes.items()}
    print_plan(experiment, left, minutes, processes)
    if len(left) < len(cells):
        print(f"  {len(cells) - len(left)} of {len(cells)} cells are there already, in {path}")
    pool.apply(work, ("prepare",))
    if not any(row["split"] == "beside" for row in rows):
        pool.apply(work, ("beside", path))
    done, started = 0.0, time.perf_counter()
    jobs = [("cell", cell, by_cell.get(cell.name, []), path) for cell in left]
    for i, cell in enumerate(pool.imap_unordered(star, jobs), 1):
        done += minutes[cell]
        spent = (time.perf_counter() - started) / 60
        remaining = spent * (sum(minutes.values()) - done) / done
        print(f"{i}/{len(left)} {cell.name}: {spent:.1f} min, about {remaining:.1f} left", flush=True)


def star(job: tuple[Any, ...]) -> Any:
    """``work`` of one argument."""
    return work(*job)


def missing_extras(needs: Sequence[str]) -> str | None:
    """One line that names what is not installed."""
    absent = [EXTRAS[name] for name in needs if importlib.util.find_spec(name) is None]
    return f"needs {' and '.join(absent)}: pip install 'randlora-ref[examples]'" if absent else None


def main(kind: type[Experiment], arguments: Sequence[str] | None = None) -> int:
    """The command of one experiment; the exit status."""
    parser = argparse.ArgumentParser(description=sys.modules[kind.__module__].__doc__.partition("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few steps of a few cells, under a minute: no evidence")
    parser.add_argument("--folder", type=Path, default=Path("rank_or_parameters.out"), help="where rows are kept")
    parser.add_argument(
        "--processes", type=int, default=2, choices=range(1, 65), metavar="N", help="of one thread each"
    )
    given = parser.parse_args(arguments)
    if (missing := missing_extras(kind.NEEDS)) is not None:
        print(f"{kind.NAME}.py: {missing}", file=sys.stderr)
        return 2
    try:
        run(kind, given.quick, given.folder / "quick" if given.quick else given.folder, given.processes)
    except ValueError as error:
        print(f"{kind.NAME}.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped; the rows in {given.folder} are kept: start again to go on", file=sys.stderr)
        return 130
    return 0
