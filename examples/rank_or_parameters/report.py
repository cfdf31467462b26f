"""Tables and figures of the experiments, from the rows that they saved.

    python examples/rank_or_parameters/report.py [--folder DIR] [--out examples/reports/rank_or_parameters]

Of every experiment whose rows are there: the rows themselves, a table (NAME.md) and a figure (NAME.png); of all of them
one strip of figures (strip.png). Cells that lack a seed are left out, and the table says how many there are.
"""

import argparse
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from figures import figure_of, strip_of
from plan import missing_extras, rate_of
from results import Result, Rows, comparisons, difference, interval, load, title

NAMES = ("matrices", "vision", "language", "vision_language")


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
                f"{min([*one.values('ms'), *([size['ms']] if size else [])]):.1f}",
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
    seeds = ", ".join(map(str, rows.setting["seeds"]["results"]))
    lines += [
        "Proven, effective and stable rank are of the trained updates, from their factors (means over"
        " layers and seeds; of the proven ones the median over layers). Directions: the rank of ΔW's Jacobian in the"
        " learned values of one square layer. A step's time is the least seen, one thread.",
        "",
        f"Seeds {seeds}; rates, rungs of half a decade, by two other seeds on the"
        f" validation split. Cells without all seeds, left out: {rows.incomplete}.",
        "",
    ]
    spent = [f"{row['seconds'] / 60:.0f} min ({row['processes']} process(es))" for row in rows.others.get("time", ())]
    lines += [f"Time: {', '.join(spent)}. Setting: `{dict(rows.setting)}`", ""] if spent else []
    return "\n".join(lines)


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
