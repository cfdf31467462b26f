"""The cheapest configuration of a layer that gives all results of all cases, right ones too.

A configuration is a choice of options (``stages``) and a law of scaling (``laws``); then, for each result, whether it
follows them as y does, ignores some or all of them, or has a fault of its own; and, maybe, a condition under which it
holds. Errors where the implementation raises are part of it. ΔW is explained first, by three options at most; what is
left is asked of the survivors alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product, takewhile
from typing import Any, NamedTuple

import numpy as np

from .laws import ONE, ZERO, Law, laws
from .stages import AS_ASKED, GRADIENTS, OF_UPDATE, PLACES, RARE, SHOWN, STAGES, UPDATE, Choice, Layer, choices

Array = Any
MOST = {"delta_weight": 3, "y": 2, "dx": 2, "dlambda": 1, "dgamma": 1}  # options that part a result from its base
TIES, WORSE = 8, 1.0  # configurations that are kept from result to result, and how much more they may cost


class Cell(NamedTuple):
    """A result of a layer, None where the implementation raised, and how far it may be from what is predicted."""

    result: str
    layer: Layer
    actual: Array
    limit: Array


class Way(NamedTuple):
    """How one result of all cases is computed, what that costs, and in words what parts it from y (or ΔW)."""

    choice: Choice = AS_ASKED
    law: Law = ONE
    as_read: bool = False  # a gradient of Λ or Γ as read
    cost: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """What is done otherwise than asked."""
        return " and ".join([*sorted(self.choice, key=PLACES.index), *([self.law.words] * (self.law != ONE))])


class Solution(NamedTuple):
    """A way to each result."""

    cost: float
    ways: Mapping[str, Way]

    @property
    def forward(self) -> Way:
        """What the other results are held to: y's way, or the first there is."""
        return self.ways.get("y") or next(iter(self.ways.values()), Way())

    @property
    def words(self) -> str:
        """What y has, or ΔW, then what parts the other results from it."""
        forward, apart = self.forward, dict[str, list[str]]()
        for result, way in self.ways.items():
            notes = way.notes
            if result == "delta_weight":  # found before y, told after it
                follows = (way.choice, way.law) == (forward.choice & OF_UPDATE, forward.law)
                notes = () if follows else (way.words or "ignored",)
            for note in filter(None, notes if way is not forward else ()):
                apart.setdefault(note, []).append(result)
        named = {note: " and ".join(filter(None, [", ".join(of[:-1]), of[-1]])) for note, of in apart.items()}
        return ", ".join(filter(None, [forward.words, *(f"{note} in {of}" for note, of in named.items())]))


def cheapest(found: Sequence[Any]) -> list[Any]:
    """Those of the least cost."""
    return [one for one in found if one.cost == min(one.cost for one in found)]


def ratio(cell: Cell, way: Way, more: Choice) -> tuple[float, float] | None:
    """By how much ΔW's part of a result is larger than a way has it, NaN where any would do, and the tolerance.

    None where no factor makes it the result.
    """
    result, layer, actual, limit = cell
    both = layer(result, way.choice | more, np.shape(actual) if way.as_read else ())
    if both is None or actual is None:
        return (np.nan, 0.0) if both is actual else None
    rest, part = actual - both[0], way.law(layer.sizes) * both[1]
    if part.shape != actual.shape:
        return None
    square = float(np.vdot(part, part)) or 1.0
    factor = float(np.vdot(part, rest)) / square
    if not np.all(np.abs(rest - factor * part) <= limit):
        return None
    tolerance = float(np.sum(limit * np.abs(part))) / square
    if abs(factor) <= tolerance:
        return (0.0 if np.any(part) else np.nan), tolerance
    return factor, tolerance / abs(factor)


def fitting(result: str, cells: Sequence[Cell], base: Way, size: int) -> Iterator[tuple[Choice, Law]]:
    """The options, ``size`` of them, and the law beside a base that give one result of all cases."""
    free = [STAGES[name] for name in (*SHOWN[result], *UPDATE) if base.choice.isdisjoint(STAGES[name])]
    for more in choices(free, size):
        tried = (ratio(cell, base, more) for cell in cells)
        ratios = [one for one in takewhile(bool, tried) if one]
        if len(ratios) == len(cells):
            yield from ((more, law) for law in laws([cell.layer.sizes for cell in cells], ratios))


def explain(result: str, cells: Sequence[Cell], bases: Sequence[Way], most: int) -> list[Way]:
    """The cheapest ways to one result of all cases, of as few options more than the bases as fit at all."""
    for size in range(min(most, MOST[result]) + 1):
        found = []
        for base in bases:
            for more, law in fitting(result, cells, base, size):
                own = Way(more, law).words
                own = own.replace(ZERO.words, "zero") if result in GRADIENTS else own
                cost = base.cost + size + 0.25 * len(more & RARE) + (law != ONE)
                found.append(Way(base.choice | more, base.law.times(law), base.as_read, cost, (*base.notes, own)))
        if found:
            return cheapest(found)
    return []


def bases_of(result: str, forward: Way) -> list[Way]:
    """What a result may start from, given y's way (or ΔW's): it follows that, or ignores some or all of it."""
    items, found = [*forward.choice, *[forward.law] * (forward.law != ONE)], []
    subsets = [some for size in range(len(items) + 1) for some in combinations(items, size)]
    for as_read, less in product((False, True) if result in GRADIENTS else (False,), subsets):
        law, left = (forward.law, ONE) if forward.law in less else (ONE, forward.law)
        part = f"{Way(forward.choice.intersection(less), law).words} " if len(less) < len(items) else ""
        cost = bool(less) * (0.5 if part or result == "y" else 0.25) + 0.3 * as_read
        note = " and ".join(["as read"] * as_read + [f"{part}ignored"] * bool(less))
        found.append(Way(forward.choice.difference(less), left, as_read, cost, (note,)))
    return found


def solve(cells: Sequence[Cell], most: int = 3) -> tuple[list[Solution], str]:
    """The cheapest solutions; or those of the results before the first that none gives, and its name."""
    answered = {cell.result for cell in cells if cell.actual is not None}
    kept = [Solution(float(not answered and bool(cells)), {})]  # an error counts as an option
    for result in [name for name in SHOWN if name in answered]:
        after = []
        for one in kept:  # where ΔW raises, there is no other result
            own = [cell for cell in cells if cell.result == result and (cell.actual is not None or not one.ways)]
            for way in explain(result, own, bases_of(result, one.forward), most):
                after.append(Solution(one.cost + way.cost, {**one.ways, result: way}))
        if not after:
            return kept, result
        least = min(solution.cost for solution in after)
        kept = [solution for solution in after if solution.cost <= least + WORSE][:TIES]
    return cheapest(kept), ""


def configurations(cells: Sequence[Cell]) -> tuple[list[str], str]:
    """The cheapest configurations in words; or what there is of one, and the first result that none gives."""
    found, failed = solve(cells)
    costs = {} if failed else {solution.words: solution.cost for solution in found}
    if costs and (not found[0].ways or found[0].cost <= 2):
        return list(costs), "every result" * (not found[0].ways)
    for name in cells[0].layer.conditions:
        parts = [[cell for cell in cells if cell.layer.conditions[name] == side] for side in (True, False)]
        (inside, lost), (outside, lost_too) = (solve(part, most=2) for part in parts)
        for one, other in product(inside, outside) if not (lost or lost_too) else ():
            both = one.words and f"{name} layers: {one.words}", other.words and f"all but {name} layers: {other.words}"
            costs["; ".join(filter(None, both))] = one.cost + other.cost + 1.1  # what is plain comes first
    least = min(costs.values(), default=0.0)
    return ([text for text, cost in costs.items() if cost == least], "") if costs else ([found[0].words], failed)
