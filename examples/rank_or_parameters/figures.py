"""The figures of the report: loss against learned values by method, and against rank by number of terms."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from results import STYLES, Result, Rows, curves, grid, interval, whole

TERM_STYLES = (("#56B4E9", "o", "-"), ("#009E73", "s", "--"), ("#D55E00", "^", "-."))


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
    axes.set_xticks(sorted({one.one["values"] for one in whole(results)}))
    axes.get_xaxis().set_major_formatter(lambda x, _: f"{x / 1e3:.1f}k")
    axes.minorticks_off()


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
    figure = Figure(figsize=(max(6, 3 * len(groups)), 6.2), layout="constrained")
    panels = figure.subplots(2, len(groups), squeeze=False)
    for i, ((task, steps), results) in enumerate(groups):
        panels[1][i].sharey(panels[0][i])  # before anything is drawn, so that both have room for all of it
        draw_methods(panels[0][i], results)
        draw_grid(panels[1][i], results)
        panels[0][i].set_title(f"{task}, {steps} steps", fontsize=10)
        panels[1][i].legend(fontsize=7)
    for row in panels:
        row[0].set_ylabel("test loss")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=7, fontsize=8)
    return figure


def strip_of(found: Mapping[str, Rows]) -> Any:
    """One panel of each experiment: an orthogonal matrix by methods; else the hardest task by ranks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(4.5, 2.75 * len(found)), 3.4), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (name, rows) in zip(panels, found.items(), strict=True):
        (task, steps), results = list(rows.groups.items())[0 if name in ("matrices", "language") else -1]
        if name == "matrices":
            bounds = {row["task"]: row["errors"] for row in rows.others.get("bound", ())}
            draw_methods(axes, results, bounds.get(task, ()))
        else:
            draw_grid(axes, results)
        axes.set_title(f"{name.replace('_', '-')}\n{task}, {steps} steps", fontsize=9)
        axes.set_ylabel("relative error" if name == "matrices" else "test loss", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=6.5)
    return figure
