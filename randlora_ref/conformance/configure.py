"""The cheapest configuration of a layer that gives all results of all cases, right ones too.

A configuration is a choice of options (``stages``) and a law of scaling (``laws``); then, for each result, whether it
follows them as y does, ignores some or all of them, or has a fault of its own; and, maybe, a condition under which it
holds. Errors where the implementation raises are part of it. ΔW is explained first, by three options at most; what is
left is asked of the survivors alone.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, combinations, product
from typing import Any, NamedTuple

import numpy as np

from .cases import Case
from .laws import ONE, ZERO, Law, laws
from .stages import AS_ASKED, OF_UPDATE, PLACES, RARE, SHOWN, STAGES, Choice, Layer, choices

Array = Any
Cells = Sequence[tuple[Layer, Array]]  # one result of each layer; None where the implementation raised
MOST = {"delta_weight": 3, "y": 2, "dx": 2, "dlambda": 1, "dgamma": 1}  # options that part a result from its base
TIES, WORSE = 8, 1.0  # configurations that are kept from result to result, and how much more they may cost
CONDITIONS: dict[str, Callable[[Case], bool]] = {
    "merged": lambda c: c.merged,
    "wide": lambda c: c.weight.shape[0] < c.weight.shape[1],
    "tall": lambda c: c.weight.shape[0] > c.weight.shape[1],
    "square": lambda c: c.weight.shape[0] == c.weight.shape[1],
    "fan_in_fan_out": lambda c: c.fan_in_fan_out,
}


class Way(NamedTuple):
    """How one result is computed."""

    choice: Choice = AS_ASKED
    law: Law = ONE
    as_read: bool = False  # a gradient of Λ or Γ as read

    @property
    def words(self) -> str:
        """What is done otherwise than asked."""
        return " and ".join([*sorted(self.choice, key=PLACES.index), *([self.law.words] * (self.law != ONE))])


class Found(NamedTuple):
    """A way to one result of all cases: what it starts from in words, and what is its own."""

    cost: float
    way: Way
    note: str = ""
    own: Way = Way()


class Solution(NamedTuple):
    """A way to each result."""

    cost: float
    ways: Mapping[str, Found]

    @property
    def words(self) -> str:
        """What y has, or ΔW, then what parts the other results from it."""
        main = "y" if "y" in self.ways else next(iter(self.ways), "")
        if not main:
            return ""
        forward = self.ways[main].way
        apart: dict[str, list[str]] = {}
        for result, found in self.ways.items():
            notes = [found.note, found.own.words and f"{found.own.words} in {{}}"]
            if result == "delta_weight":
                same = found.way == forward._replace(choice=forward.choice & OF_UPDATE)
                notes = [""] if same else [f"{found.way.words} in {{}}" if found.way != Way() else "ignored in {}"]
            elif result in ("dlambda", "dgamma"):
                notes = [note.replace(ZERO.words, "zero") for note in notes]
            for note in filter(None, notes if result != main else ()):
                apart.setdefault(note, []).append(result)
        named = {note: " and ".join(filter(None, [", ".join(of[:-1]), of[-1]])) for note, of in apart.items()}
        return ", ".join(filter(None, [forward.words, *(note.format(of) for note, of in named.items())]))


def ratio(layer: Layer, result: str, way: Way, more: Choice, actual: Array) -> tuple[float, float] | None:
    """By how much ΔW's part of a result is larger than a way has it, NaN where any would do, and the tolerance.

    None where no factor makes it the result.
    """
    both = layer(result, way.choice | more, np.shape(actual) if way.as_read else ())
    if both is None or actual is None:
        return (np.nan, 0.0) if both is None and actual is None else None
    rest, part, limit = actual - both[0], way.law(layer.sizes) * both[1], layer.limit(result, actual)
    if part.shape != actual.shape:
        return None
    square = float(np.vdot(part, part))
    factor = float(np.vdot(part, rest)) / square if square else 0.0
    if not np.all(np.abs(rest - factor * part) <= limit):
        return None
    tolerance = float(np.sum(limit * np.abs(part))) / square if square else 0.0
    if abs(factor) <= tolerance:
        return (0.0 if square else np.nan), tolerance
    return factor, tolerance / abs(factor)


def explain(result: str, cells: Cells, bases: Sequence[Found], most: int) -> list[Found]:
    """The cheapest ways to one result of all cases, of as few options more than the bases as fit at all."""
    found: list[Found] = []
    for size, base in product(range(min(most, MOST[result]) + 1), bases):
        if found and size > len(found[0].own.choice):
            break
        free = [STAGES[name] for name in SHOWN[result] if base.way.choice.isdisjoint(STAGES[name])]
        for more in choices(free, size):
            seen: list[tuple[float, float]] = []
            for layer, actual in cells:
                if (one := ratio(layer, result, base.way, more, actual)) is None:
                    break
                seen.append(one)
            for law in laws([row[0].sizes for row in cells], seen) if len(seen) == len(cells) else ():
                way = base.way._replace(choice=base.way.choice | more, law=base.way.law.times(law))
                cost = base.cost + size + 0.25 * len(more & RARE) + (law != ONE)
                found.append(Found(cost, way, base.note, Way(more, law)))
    return [one for one in found if one.cost == min(one.cost for one in found)]


def bases_of(result: str, ways: Mapping[str, Way]) -> list[Found]:
    """What a result may start from, given those before it: it follows y (or ΔW), or ignores some or all of that."""
    forward = ways.get("y") or next(iter(ways.values()), Way())
    items = [*forward.choice, *([forward.law] * (forward.law != ONE))]
    found = [Found(0.0, forward)]
    for less in chain.from_iterable(combinations(items, size) for size in range(1, len(items) + 1)):
        law, left = (ONE, forward.law) if forward.law in less else (forward.law, ONE)
        note = Way(forward.choice & set(less), left).words + " " if len(less) < len(items) else ""
        cost = 0.5 if note or result == "y" else 0.25
        found.append(Found(cost, Way(forward.choice - set(less), law), f"{note}ignored in {{}}"))
    for one in found[:] if result in ("dlambda", "dgamma") else ():
        note = f"as read and {one.note}" if one.note else "as read in {}"
        found.append(Found(one.cost + 0.3, one.way._replace(as_read=True), note))
    return found


def solve(cells: Mapping[str, Cells], most: int = 3) -> tuple[list[Solution], str]:
    """The cheapest solutions; or those of the results before the first that none gives, and its name."""
    answered = [name for name in SHOWN if any(cell[1] is not None for cell in cells.get(name, ()))]
    kept = [Solution(float(not answered and any(cells.values())), {})]  # an error counts as an option
    for result in answered:
        after = []
        for cost, ways in kept:  # where ΔW raises, there is no other result
            known = {name: found.way for name, found in ways.items()}
            own = [cell for cell in cells[result] if cell[1] is not None or not ways]
            for found in explain(result, own, bases_of(result, known), most):
                after.append(Solution(cost + found.cost, {**ways, result: found}))
        if not after:
            return kept, result
        least = min(solution.cost for solution in after)
        kept = [solution for solution in after if solution.cost <= least + WORSE][:TIES]
    return [solution for solution in kept if solution.cost == min(one.cost for one in kept)], ""


def configurations(cells: Mapping[str, Cells]) -> tuple[list[str], str]:
    """The cheapest configurations in words; or what there is of one, and the first result that none gives."""
    found, failed = solve(cells)
    costs = {} if failed else {solution.words: solution.cost for solution in found}
    if costs and (not found[0].ways or found[0].cost <= 2):
        return list(costs), "every result" * (not found[0].ways)
    for name, holds in CONDITIONS.items():
        parts = [
            {k: [row for row in v if holds(row[0].case) == side] for k, v in cells.items()} for side in (True, False)
        ]
        (inside, lost), (outside, lost_too) = (solve(part, most=2) for part in parts)
        for one, other in product(inside, outside) if not (lost or lost_too) else ():
            both = (
                one.words and f"{name} layers: {one.words}",
                other.words and f"all but {name} layers: {other.words}",
            )
            costs["; ".join(filter(None, both))] = one.cost + other.cost + 1.1  # what is plain comes first
    least = min(costs.values(), default=0.0)
    return ([text for text, cost in costs.items() if cost == least], "") if costs else ([found[0].words], failed)
