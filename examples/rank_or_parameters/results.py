"""The results of an experiment, read from its rows; their intervals; which of them are compared.

Intervals are of 95 % by Student's t over the seeds. Differences are taken seed by seed, with the same batches on both
sides; those whose interval leaves out zero are marked. Nothing is corrected for how many are looked at.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiment import Cell
from plan import read

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
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}  # 97.5 %
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
        if set(seeds) == set(setting["seeds"]["results"]):
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
        for one in whole(results) if method not in ("randlora", "full") else ():
            values = one.one["values"]
            other = min(own, key=lambda found: abs(found.one["values"] - values))
            if abs(other.one["values"] - values) <= values / 5:  # -b has up to a sixth less, and a cell may be missing
                yield f"RandLoRA − {STYLES[method][0]}, {values:,} values", one, other
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
