"""What implementations choose at each stage of a layer: named options, and what a layer case gives under them.

A *choice* is a set of options, at most one of each stage; where it has none of a stage, that stage is as the case asks.
ΔW is linear in Λ and in Γ as read under any choice, so that the gradients which follow a choice, as automatic
differentiation makes them, come of ΔW of unit arrays, each entry's then going back to the place that it was read from:
no option has a gradient of its own.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import combinations, product
from typing import Any

import numpy as np

from .. import spec
from ..arrays import unit_roundoff
from ..verify import gauge
from .cases import Case
from .compare import limits

Array = Any
Choice = frozenset[str]
AS_ASKED: Choice = frozenset()
UNIT = -1  # the place of a one, after all entries that are given

READINGS = {  # which entries are read, by their places, of Λ (n, r) or Γ (n, d)
    "{} read as ({}, n)": lambda places: places.reshape(places.shape[::-1]).T,
    "{} rolled by one term": lambda places: np.roll(places, 1, 0),
    "one {} for all terms": lambda places: places[:1],
    "{} ignored": lambda places: np.full_like(places, UNIT),
}
SLICES = {"sliced from the wrong end": lambda x, most, d: x[-most:], "not sliced": lambda x, most, d: x}
STAGES: dict[str, dict[str, Any]] = {
    # whether the rows of ΛAΓ lie rank by rank, not term by term; None: not as the case has it
    "pairing": {"literal pairing": False, "crossed pairing": True, "the other pairing": None},
    "order": {"the product S·B, factors in the other order": lambda B, S: S @ B},
    "terms": {  # kept, of n, d, r
        "last term dropped": lambda n, d, r: max(1, n - 1),
        "n = floor(d/r)": lambda n, d, r: min(n, max(1, d // r)),
    },
    "lambda": {text.format("lambda", "r"): rule for text, rule in READINGS.items()}
    | {"one scalar for each base": lambda places: places[:, :1]},
    "gamma": {text.format("gamma", "d"): rule for text, rule in READINGS.items()}  # the last two not on A's columns
    | {"gamma of length r": lambda places: places, "gamma on B's rows": lambda places: places},
    # A's columns, B's terms and B's rows, along their first axis; not the first d, n and D
    "A": {f"A {how}": rule for how, rule in SLICES.items()},
    "B": {f"B's terms {how}": rule for how, rule in SLICES.items()}
    | {"B_1 for all terms": lambda B, n, d: np.repeat(B[:1], n, 0)},
    "B's rows": {f"B's rows {how}": rule for how, rule in SLICES.items()}
    | {"B's rows d … d + D": lambda B, D, d: B[d : d + D]},
    "orientation": {  # places of the entries of M in ΔW, of M's own as an array (D, d)
        "wide layers alone transposed": lambda M, shape: spec.oriented(M, shape, "paper"),
        "square layers transposed": lambda M, shape: spec.oriented(M, shape, "square_transposed"),
        "tall layers reshaped": lambda M, shape: M if M.shape[0] == M.shape[1] else spec.oriented(M, shape, "reshape"),
        "tall layers reshaped, square ones transposed": lambda M, shape: spec.oriented(M, shape, "reshape"),
        "no layer transposed": lambda M, shape: M,
        "wide layers reshaped, not transposed": lambda M, shape: M.reshape(shape),
        "orientation test inverted": lambda M, shape: M.T if shape[0] > shape[1] else M,
    },
    "mask": {  # of the adapter's x, and of W0's
        "dropout mask ignored": lambda m: (1, 1),
        "dropout mask without its 1/(1 - p)": lambda m: (np.sign(m), 1),
        "dropout mask on the base path too": lambda m: (m, m),
    },
    "base": {"base path left out": 0},
    "bias": {"bias left out": 0, "bias added twice": 2},
    "rows": {"the last leading index alone": lambda x: x[-1:] if x.ndim > 1 else x},
}
PLACES = [option for stage in STAGES.values() for option in stage]
RARE = {"the other pairing", *list(STAGES["orientation"])[2:]}  # others, where they fit, come first
UPDATE = tuple(STAGES)[:9]
OF_UPDATE = frozenset(option for name in UPDATE for option in STAGES[name])
GRADIENTS = ("dlambda", "dgamma")
SHOWN = {"delta_weight": (), "y": ("mask", "base", "bias"), "dx": ("mask", "base")}  # the other stages, by result
SHOWN |= dict.fromkeys(GRADIENTS, ("mask", "rows"))


def choices(stages: Iterable[Mapping[str, Any]], size: int) -> Iterator[Choice]:
    """All choices of ``size`` options, at most one of each stage."""
    for some in combinations(stages, size):
        yield from map(frozenset, product(*some))


class Layer:
    """A layer case in float64, what it gives under choices, and the limits of its results."""

    def __init__(self, case: Case, dtype: str | None) -> None:
        self.case = c = case.with_arrays(lambda x: np.asarray(x, np.float64))
        self.mask, self.bias = 1.0 if c.dropout_mask is None else c.dropout_mask, 0.0 if c.bias is None else c.bias
        self.learned = [np.append(x, 1.0) for x in (c.lambda_, c.gamma)]  # Λ and Γ, and the UNIT
        self.places = [np.arange(x.size).reshape(x.shape) for x in (c.lambda_, c.gamma)]
        (self.n, self.r), (self.D, self.d) = c.lambda_.shape, spec.sides(c.weight.shape, c.orientation)
        sizes = self.n, self.r, self.d, self.D, abs(c.scaling) or 1.0, max(1, np.prod(c.x.shape[:-1]))
        self.sizes = np.log(sizes)  # what a law of scaling may be of
        self.u, self.limits = unit_roundoff(dtype or case.dtype), limits(replace(case, tier="real"), dtype)
        out, in_ = c.shape
        self.conditions = {"merged": c.merged, "wide": out < in_, "tall": out > in_, "square": out == in_}
        self.conditions["fan_in_fan_out"] = c.fan_in_fan_out
        self.known: dict[Any, tuple[Array, Array] | None] = {}

    def __call__(self, result: str, choice: Choice, own: tuple[int, ...] = ()) -> tuple[Array, Array] | None:
        """A result as (what is there without ΔW, what ΔW adds with s as asked); None where it cannot be computed.

        ``own`` is the shape of a gradient of Λ or Γ as read, not taken back to the array that was given.
        """
        if (key := (result, choice, own)) not in self.known:
            try:
                self.known[key] = self._result(result, choice, own)
            except (ValueError, IndexError):
                self.known[key] = None
        return self.known[key]

    def _result(self, result: str, choice: Choice, own: tuple[int, ...]) -> tuple[Array, Array] | None:
        c = self.case
        if result == "delta_weight":
            return 0.0, self._update(choice, *map(np.take, self.learned, self._places(choice)))
        if (both := self("delta_weight", choice & OF_UPDATE)) is None:
            return None
        _, update = both
        mask, base_mask = picked(STAGES["mask"], choice, lambda m: (m, 1))(self.mask)
        weight, bias = picked(STAGES["base"], choice, 1) * c.weight, picked(STAGES["bias"], choice, 1) * self.bias
        if result == "y":
            return (c.x * base_mask) @ weight.T + bias, (c.x * mask) @ update.T
        if result == "dx":
            return base_mask * (c.dy @ weight), mask * (c.dy @ update)
        dy, x = (picked(STAGES["rows"], choice, lambda x: x)(x) for x in (c.dy, c.x * mask))
        G = dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])
        return 0.0, self._gradient(result == "dgamma", choice, G, own)

    def _terms(self, choice: Choice) -> Any:
        """How many terms are kept."""
        return picked(STAGES["terms"], choice, lambda n, d, r: n)(self.n, self.d, self.r)

    def _places(self, choice: Choice) -> list[Array]:
        """Where the entries of Λ and Γ as read are among those that are given."""
        n, k = self._terms(choice), self.r if "gamma of length r" in choice else None
        rules = (picked(STAGES[name], choice, lambda places: places) for name in ("lambda", "gamma"))
        return [rule(places[:n, :k]) for rule, places in zip(rules, self.places, strict=True)]

    def _update(self, choice: Choice, lambda_: Array, gamma: Array) -> Array:
        """ΔW (…, out, in) of Λ and Γ as read; one of them may have a leading axis."""
        c, n, on_rows = self.case, self._terms(choice), "gamma on B's rows" in choice
        A = picked(STAGES["A"], choice, lambda A, d, _: A[:d])(c.A.T, self.d, self.d).T
        B = picked(STAGES["B"], choice, lambda B, n, _: B[:n])(c.B, n, self.d)
        B = picked(STAGES["B's rows"], choice, lambda B, D, _: B[:D])(B.swapaxes(0, 1), self.D, self.d)
        crossed = c.pairing == "crossed"
        by_rank = picked(STAGES["pairing"], choice, crossed)
        by_rank = not crossed if by_rank is None else by_rank

        def rows(terms: Array) -> Array:
            """(…, n·r, k) of (…, n, r, k)."""
            terms = np.broadcast_to(terms, (*terms.shape[:-3], n, self.r, terms.shape[-1]))
            return (terms.swapaxes(-2, -3) if by_rank else terms).reshape(*terms.shape[:-3], -1, terms.shape[-1])

        of = gamma[..., None] if "gamma of length r" in choice else gamma[..., None, :]
        S = rows(lambda_[..., None] * A * (1 if on_rows else of))
        columns = B.reshape(len(B), -1) * (rows(of).swapaxes(-1, -2) if on_rows else 1)
        M = c.scaling * picked(STAGES["order"], choice, np.matmul)(columns, S)
        turned = picked(STAGES["orientation"], choice, lambda M, shape: spec.oriented(M, shape, c.orientation))
        places = turned(np.arange(M.shape[-2] * M.shape[-1]).reshape(M.shape[-2:]), c.weight.shape)
        if places.shape != c.weight.shape:
            raise ValueError("ΔW of another shape than W0")
        return M.reshape(*M.shape[:-2], -1)[..., places]

    def _gradient(self, of_gamma: bool, choice: Choice, G: Array, own: tuple[int, ...]) -> Array:
        """⟨G, ΔW of each unit array⟩."""
        places = self._places(choice)
        at = places[of_gamma] = np.broadcast_to(places[of_gamma], own or places[of_gamma].shape)
        read = [*map(np.take, self.learned, places)]
        read[of_gamma] = np.eye(at.size).reshape(-1, *at.shape)
        slopes = np.tensordot(self._update(choice, *read), G, 2)
        if own:
            return slopes.reshape(own)
        back = np.zeros_like(self.learned[of_gamma])
        np.add.at(back, at.ravel(), slopes)
        return back[:-1].reshape(self.n, -1)  # what is read as UNIT goes nowhere

    def limit(self, result: str, actual: Array) -> Array:
        """How far a result may be from a prediction: by the gauge, which knows the asked s alone, and by its size."""
        own, by_gauge = gauge.limit(np.max(np.abs(actual), initial=0.0), 1, self.u), self.limits[result]
        return own + by_gauge if by_gauge.shape == actual.shape else own


def picked(stage: Mapping[str, Any], choice: Choice, default: Any) -> Any:
    """What a choice has of a stage."""
    return next((stage[option] for option in choice & stage.keys()), default)


@lru_cache(maxsize=512)
def layer_of(case: Case, dtype: str | None) -> Layer:
    """The layer of a case; stored cases are asked again and again, in every precision for the same numbers."""
    layer = Layer(case, dtype)
    layer.known = layer.known if dtype is None else layer_of(case, None).known
    return layer
