"""Tables and figures of the experiments, from the rows that they saved.

    python examples/rank_or_parameters/report.py [--folder DIR] [--out examples/reports/rank_or_parameters]

Of every experiment whose rows are there: the rows themselves, a table (NAME.md) and a figure (NAME.png); of all of them
one strip of figures (strip.png). Cells that lack a seed are left out, and the table says how many there are.

Intervals are of 95 % by Student's t over the seeds. Differences are taken seed by seed, with the same batches on both
sides; those whose interval leaves out zero are marked. Nothing is corrected for how many are looked at.
"""

import argparse
import math
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plan import RESULT_SEEDS, Cell, missing_extras, rate_of, read

NAMES = ("matrices", "vision", "language", "vision_language")
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}  # 97.5 %
# By method: its name, and in figures its colour (Okabe and Ito's, told apart by the colour-blind), marker and dashes.
STYLES = {
    "lora": ("LoRA", "#0072B2", "o", "-"),
    "randlora": ("RandLoRA", "#D55E00", "s", "-"),
    "randlora_b": ("RandLoRA-b", "#E69F00", "D", "--"),
    "randlora_a": ("RandLoRA-a", "#CC79A7", "^", "--"),
    "vera": ("VeRA", "#009E73", "v", "-."),
    "nola": ("NoLA", "#56B4E9", "P", ":"),
    "full": ("fine-tuning", "#000000", "*", ":"),
}
TERM_STYLES = (("#56B4E9", "o", "-"), ("#009E73", "s", "--"), ("#D55E00", "^", "-."))
Group = tuple[str, int]  # a task, and its steps


@dataclass
class Result:
    """A cell whose seeds are all there: its rows by seed."""

    cell: Cell
    rows: Mapping[int, Mapping[str, Any]]

    def values(self, key: str) -> list[float]:
        """One figure of every seed; a run that diverged counts as infinite."""
        return [math.inf if row.get(key) is None else float(row[key]) for _, row in sorted(self.rows.items())]

    def mean(self, key: str) -> float:
        """Its mean."""
        return statistics.fmean(self.values(key))

    @property
    def one(self) -> Mapping[str, Any]:
        """The row of the first seed, for what is the same in all."""
        return self.rows[min(self.rows)]

    @property
    def terms(self) -> int:
        """n of RandLoRA: its rank over the rank of a term."""
        return round(self.one["proven"] / self.cell.rank) if self.cell.rank else 0


@dataclass
class Rows:
    """What an experiment saved, sorted."""

    setting: Mapping[str, Any]
    groups: dict[Group, list[Result]] = field(default_factory=dict)
    others: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    incomplete: int = 0

    def sizes(self) -> dict[tuple[Any, ...], Mapping[str, Any]]:
        """By (method, rank, count): the directions and the time of a step."""
        return {tuple(row["size"]): row for row in self.others.get("directions", ())}


def load(path: Path) -> Rows:
    """The rows of one experiment."""
    setting, rows = read(path)
    found, by_cell = Rows(setting), dict[str, dict[int, Any]]()
    for row in rows:
        if row["split"] == "test":
            by_cell.setdefault(row["cell"], {})[row["seed"]] = row
        elif row["split"] != "valid":
            found.others.setdefault(row["split"], []).append(row)
    for name, seeds in by_cell.items():
        task, steps, method, *size = name.rsplit("/", 4)
        rank, count = (None if one == "None" else int(one) for one in size)
        cell = Cell(task, int(steps), method, rank, count)
        if set(seeds) == set(RESULT_SEEDS):
            found.groups.setdefault((task, int(steps)), []).append(Result(cell, seeds))
        else:
            found.incomplete += 1
    for results in found.groups.values():
        order = list(STYLES)
        results.sort(key=lambda one: (order.index(one.cell.method), one.one["values"], one.one["proven"]))
    return found


def interval(values: Sequence[float]) -> float:
    """Half the 95 % interval of the mean."""
    if not all(map(math.isfinite, values)):
        return math.inf
    return STUDENT[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def difference(one: Result, other: Result, key: str = "loss") -> str:
    """The mean difference, seed by seed, and its interval; marked if that leaves out zero."""
    pairs = [a - b for a, b in zip(one.values(key), other.values(key), strict=True)]
    mean, half = statistics.fmean(pairs), interval(pairs)
    return f"{mean:+.3f} ± {half:.3f}{' *' if abs(mean) > half else ''}"


# ---------------------------------------------------------------------------------------------------------
# Which results are compared
# ---------------------------------------------------------------------------------------------------------


def title(one: Result) -> str:
    """A method and what settles its size."""
    name = STYLES[one.cell.method][0]
    return f"{name}, n = {one.terms}, r = {one.cell.rank}" if one.cell.method == "randlora" else name


def whole(results: Sequence[Result]) -> list[Result]:
    """RandLoRA at full rank, one for each n."""
    own = [one for one in results if one.cell.method == "randlora"]
    return [one for one in own if one.one["proven"] == max(other.one["proven"] for other in own)]


def curves(results: Sequence[Result]) -> dict[str, list[Result]]:
    """By method, its results at each count: of RandLoRA those at full rank."""
    methods = dict.fromkeys(one.cell.method for one in results)
    return {
        method: whole(results) if method == "randlora" else [one for one in results if one.cell.method == method]
        for method in methods
    }


def grid(results: Sequence[Result]) -> dict[int, list[Result]]:
    """The two-way evidence: RandLoRA by its number of terms, ranks rising."""
    found: dict[int, list[Result]] = {}
    for one in results:
        if one.cell.method == "randlora":
            found.setdefault(one.terms, []).append(one)
    return {n: sorted(own, key=lambda one: float(one.one["proven"])) for n, own in sorted(found.items())}


def comparisons(results: Sequence[Result]) -> Iterator[tuple[str, Result, Result]]:
    """Pairs whose difference is tested: methods at one count, ranks at one n, and numbers of terms at one rank."""
    for method, own in curves(results).items():
        if method not in ("randlora", "full"):
            for one, other in zip(whole(results), own, strict=False):
                yield f"RandLoRA − {STYLES[method][0]}, {one.one['values']:,} values", one, other
    by_terms = grid(results)
    for n, own in by_terms.items():
        for one, other in zip(own[1:], own, strict=False):
            ranks = f"{other.one['proven']:g} → {one.one['proven']:g}"
            yield f"rank {ranks} at n = {n} ({other.one['values']:,} → {one.one['values']:,} values)", one, other
    every = [one for own in by_terms.values() for one in own]
    for one in every:
        fewer = [other for other in every if other.one["proven"] == one.one["proven"] and other.terms < one.terms]
        if fewer:
            other = max(fewer, key=lambda found: found.terms)
            counts = f"{other.one['values']:,} → {one.one['values']:,}"
            yield f"{counts} values at rank {one.one['proven']:g} (n = {other.terms} → {one.terms})", one, other


# ---------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table in Markdown."""
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for line in lines:
        yield "| " + " | ".join(line) + " |"
    yield ""


def results_table(rows: Rows, results: Sequence[Result]) -> Iterator[str]:
    """All results of one task."""
    sizes, lines = rows.sizes(), []
    for one in results:
        size = sizes.get((one.cell.method, one.cell.rank, one.cell.count), {})
        directions = f"{size['directions']:,} of {size['values']:,}" if size else ""
        lines.append(
            (
                title(one), f"{one.one['values']:,}", f"{one.mean('proven'):g}",
                f"{one.mean('effective'):.1f}", f"{one.mean('stable'):.1f}", directions,
                f"{rate_of(one.one['rung']):.2g}", f"{one.mean('loss'):.3f} ± {interval(one.values('loss')):.3f}",
                f"{one.mean('train'):.3f}", f"{one.mean('accuracy'):.3f}" if "accuracy" in one.one else "",
                f"{size['ms']:.1f}" if size else f"{min(one.values('ms')):.1f}",
            )
        )  # fmt: skip
    heads = "method|values|proven rank|effective|stable|directions|rate|test loss|train loss|accuracy|ms a step"
    return table(heads.split("|"), lines)


def tables(name: str, rows: Rows) -> str:
    """The whole report of one experiment."""
    lines = [f"# Rank or parameters: {name.replace('_', ' and ')}", ""]
    lines += [f"![{name}]({name}.png)", ""]
    for (task, steps), results in rows.groups.items():
        lines += [f"## {task}, {steps} steps", "", *results_table(rows, results)]
        pairs = [(words, difference(one, other)) for words, one, other in comparisons(results)]
        lines += table(("difference of test losses, seed by seed", "mean and 95 % interval"), pairs) if pairs else []
        cuts = [one for one in results if "cut" in one.one]
        if cuts:
            ranks = list(cuts[0].one["cut"])
            losses = [[row["cut"][rank] for row in cuts[0].rows.values()] for rank in ranks]
            heads = ("fine-tuning's update cut to rank", *ranks, "whole")
            means = [f"{statistics.fmean(own):.3f}" for own in (*losses, cuts[0].values("loss"))]
            lines += table(heads, [("test loss", *means)])
    for row in rows.others.get("bound", ()):
        shown = ", ".join(f"{k}: {row['errors'][k]:.3f}" for k in (1, 2, 4, 8, 16, 32) if k < len(row["errors"]))
        lines += [f"Least error of any matrix of rank k, {row['task']}: {shown}", ""]
    for row in rows.others.get("before", ())[:1]:
        scores = "; ".join(
            f"{task} " + ", ".join(f"{key} {x:.3f}" for key, x in found.items())
            for task, found in row["scores"].items()
        )
        lines += [f"Before any training of adapters, on the test split: {scores}.", ""]
    lines += [
        "Proven, effective and stable rank are of the trained updates, from their factors (means over"
        " layers and seeds; of the proven ones the median over layers). Directions: the rank of ΔW's Jacobian in the"
        " learned values of one square layer. A step's time is the least of eight, one thread.",
        "",
        f"Seeds {', '.join(map(str, RESULT_SEEDS))}; rates, rungs of half a decade, by two other seeds on the"
        f" validation split. Cells without all seeds, left out: {rows.incomplete}.",
        "",
    ]
    spent = [f"{row['seconds'] / 60:.0f} min ({row['processes']} process(es))" for row in rows.others.get("time", ())]
    lines += [f"Time: {', '.join(spent)}. Setting: `{dict(rows.setting)}`", ""] if spent else []
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------


def draw_methods(axes: Any, results: Sequence[Result], bound: Sequence[float] = ()) -> None:
    """Loss against the number of learned values, by method; ``bound``: the least error of rank 0, 1, …"""
    for method, own in curves(results).items():
        name, colour, marker, dashes = STYLES[method]
        losses, halves = [one.mean("loss") for one in own], [interval(one.values("loss")) for one in own]
        if method == "full":
            axes.axhline(losses[0], color=colour, linestyle=dashes, label=name)
            continue
        counts = [one.one["values"] for one in own]
        axes.errorbar(counts, losses, halves, color=colour, marker=marker, linestyle=dashes, capsize=2, label=name)
    if bound:
        width = len(bound)
        ranks = range(1, 1 + round(max(one.one["values"] for one in results) / (2 * width)))
        axes.plot([2 * width * k for k in ranks], [bound[k] for k in ranks], color="#888888", label="SVD, rank k")
    axes.set(xscale="log", xlabel="learned values")


def draw_grid(axes: Any, results: Sequence[Result]) -> None:
    """Loss against the update's rank, a line for each number of terms; fine-tuning's as a line across."""
    for (n, own), (colour, marker, dashes) in zip(grid(results).items(), TERM_STYLES, strict=False):
        losses, halves = [one.mean("loss") for one in own], [interval(one.values("loss")) for one in own]
        counts = sorted({one.one["values"] for one in own})
        label = f"n = {n}: {counts[0] / 1e3:.1f}–{counts[-1] / 1e3:.1f}k values"
        ranks = [one.one["proven"] for one in own]
        axes.errorbar(ranks, losses, halves, color=colour, marker=marker, linestyle=dashes, capsize=2, label=label)
    for one in results:
        if one.cell.method == "full":
            axes.axhline(one.mean("loss"), color="#000000", linestyle=":", label="fine-tuning")
    axes.set(xscale="log", xlabel="rank of RandLoRA's update")
    axes.set_xticks(sorted({int(one.one["proven"]) for own in grid(results).values() for one in own}))
    axes.get_xaxis().set_major_formatter(lambda x, _: f"{x:g}")
    axes.minorticks_off()


def figure_of(name: str, rows: Rows) -> Any:
    """Of matrices a panel for each target; else two panels for each task, methods above and ranks below."""
    from matplotlib.figure import Figure

    groups = list(rows.groups.items())
    if name == "matrices":
        columns = min(4, len(groups))
        figure = Figure(figsize=(9, 2.6 * math.ceil(len(groups) / columns) + 0.4), layout="constrained")
        panels = figure.subplots(math.ceil(len(groups) / columns), columns, squeeze=False).ravel()
        bounds = {row["task"]: row["errors"] for row in rows.others.get("bound", ())}
        for axes, ((task, _), results) in zip(panels, groups, strict=False):
            draw_methods(axes, results, bounds.get(task, ()))
            axes.set_title(task, fontsize=10)
        panels[0].set_ylabel("relative error")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=7, fontsize=8)
        return figure
    figure = Figure(figsize=(max(4.5, 3 * len(groups)), 6.2), layout="constrained")
    panels = figure.subplots(2, len(groups), squeeze=False)
    for i, ((task, steps), results) in enumerate(groups):
        draw_methods(panels[0][i], results)
        draw_grid(panels[1][i], results)
        panels[0][i].set_title(f"{task}, {steps} steps", fontsize=10)
        panels[1][i].legend(fontsize=7)
        panels[1][i].sharey(panels[0][i])
    for row in panels:
        row[0].set_ylabel("test loss")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=7, fontsize=8)
    return figure


def strip_of(found: Mapping[str, Rows]) -> Any:
    """One panel of each experiment: an orthogonal matrix by methods; else the hardest task by ranks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (name, rows) in zip(panels, found.items(), strict=True):
        (task, steps), results = list(rows.groups.items())[0 if name in ("matrices", "language") else -1]
        if name == "matrices":
            bounds = {row["task"]: row["errors"] for row in rows.others.get("bound", ())}
            draw_methods(axes, results, bounds.get(task, ()))
        else:
            draw_grid(axes, results)
        axes.set_title(f"{name.replace('_', '-')}: {task}, {steps} steps", fontsize=9)
        axes.set_ylabel("relative error" if name == "matrices" else "test loss", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=6.5)
    return figure


def write(folder: Path, out: Path, say: Callable[[str], None] = print) -> None:
    """All reports. A ValueError if there are no rows."""
    found = {name: load(folder / f"{name}.jsonl") for name in NAMES if (folder / f"{name}.jsonl").exists()}
    found = {name: rows for name, rows in found.items() if rows.groups}
    if not found:
        raise ValueError(f"{folder}: no finished cell of any experiment; run one of them first")
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in found.items():
        (out / f"{name}.md").write_text(tables(name, rows), encoding="utf-8")
        figure_of(name, rows).savefig(out / f"{name}.png", dpi=110)
        for suffix in ("jsonl", "npz") if name == "vision" else ("jsonl",):
            source, kept = folder / f"{name}.{suffix}", out / f"{name}.{suffix}"
            if source.exists() and source.resolve() != kept.resolve():
                shutil.copyfile(source, kept)
        say(f"{out / name}.md, .png: {sum(map(len, rows.groups.values()))} cells, {rows.incomplete} incomplete")
    strip_of(found).savefig(out / "strip.png", dpi=110)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("rank_or_parameters.out"), help="where the rows are")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "reports" / "rank_or_parameters")
    given = parser.parse_args(arguments)
    if (missing := missing_extras(("matplotlib",))) is not None:
        print(f"report.py: {missing}", file=sys.stderr)
        return 2
    try:
        write(given.folder, given.out)
    except (ValueError, OSError) as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
