"""What implementations choose at each stage of a layer: named options, and what a layer case gives under them.

A *choice* is a set of options, at most one of each stage; where it has none of a stage, that stage is as the case asks.
Arrays may have leading axes more. ΔW is affine in Λ and in Γ under any choice, so that the gradients which follow a
choice, as automatic differentiation makes them, come of ΔW of unit arrays: no option has a gradient of its own.
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


STAGES: dict[str, dict[str, Any]] = {
    # whether the columns of B, and the rows of ΛAΓ, lie rank by rank, not term by term; None: not as the case has it
    "pairing": {"literal pairing": (False, False), "crossed pairing": (False, True), "the other pairing": None},
    "order": {"the product S·B, factors in the other order": lambda B, S: S @ B},
    "terms": {  # kept, of n, d, r
        "last term dropped": lambda n, d, r: max(1, n - 1),
        "n = floor(d/r)": lambda n, d, r: max(1, d // r),
    },
    "lambda": {  # places of entries, where those of Λ are an array (n, r); None: ones
        "lambda read as (r, n)": lambda places: places.reshape(places.shape[::-1]).T,
        "lambda rolled by one term": lambda places: np.roll(places, 1, 0),
        "one lambda for all terms": lambda places: places[:1],
        "one scalar for each base": lambda places: places[:, :1],
        "lambda ignored": None,
    },
    "gamma": {  # the same of Γ; the last two are not on A's columns, but on Λ and on B's rows
        "gamma read as (d, n)": lambda places: places.reshape(places.shape[::-1]).T,
        "gamma rolled by one term": lambda places: np.roll(places, 1, 0),
        "one gamma for all terms": lambda places: places[:1],
        "gamma ignored": None,
        "gamma of length r": lambda places: places,
        "gamma on B's rows": lambda places: places,
    },
    "A": {"A sliced from the wrong end": lambda A, d: A[:, -d:], "A not sliced": lambda A, d: A},
    "B": {  # of n
        "B's terms sliced from the wrong end": lambda B, n: B[-n:],
        "B_1 for all terms": lambda B, n: np.repeat(B[:1], n, 0),
        "B's terms not sliced": lambda B, n: B,
    },
    "B's rows": {  # of D, d
        "B's rows sliced from the wrong end": lambda B, D, d: B[:, -D:],
        "B's rows d … d + D": lambda B, D, d: B[:, d : d + D],
        "B's rows not sliced": lambda B, D, d: B,
    },
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
SHOWN = {  # the stages that show on each result of a layer
    "delta_weight": UPDATE,
    "y": ("mask", "base", "bias", *UPDATE),
    "dx": ("mask", "base", *UPDATE),
    **dict.fromkeys(("dlambda", "dgamma"), ("mask", "rows", *UPDATE)),
}


def choices(stages: Iterable[Mapping[str, Any]], size: int) -> Iterator[Choice]:
    """All choices of ``size`` options, at most one of each stage."""
    for some in combinations(stages, size):
        yield from map(frozenset, product(*some))


class Layer:
    """A layer case in float64, what it gives under choices, and the limits of its results."""

    def __init__(self, case: Case, dtype: str | None) -> None:
        self.case = c = case.with_arrays(lambda x: np.asarray(x, np.float64))
        self.mask = 1.0 if c.dropout_mask is None else c.dropout_mask
        (self.n, self.r), (self.D, self.d) = c.lambda_.shape, spec.sides(c.weight.shape, c.orientation)
        sizes = self.n, self.r, self.d, self.D, abs(c.scaling) or 1.0, max(1, np.prod(c.x.shape[:-1]))
        self.sizes = np.log(sizes)  # what a law of scaling may be of
        self.u, self.limits = unit_roundoff(dtype or case.dtype), limits(replace(case, tier="real"), dtype)
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

    def update(self, choice: Choice) -> Array:
        """ΔW, or None."""
        both = self("delta_weight", choice & OF_UPDATE)
        return both and both[1]

    def _result(self, result: str, choice: Choice, own: tuple[int, ...]) -> tuple[Array, Array]:
        c = self.case
        if result == "delta_weight":
            return 0.0, self._update(choice, *self._read(choice, c.lambda_, c.gamma))
        if (update := self.update(choice)) is None:
            raise ValueError("no update")
        mask, base_mask = picked("mask", choice, lambda m: (m, 1))(self.mask)
        weight, bias = (
            picked("base", choice, 1) * c.weight,
            picked("bias", choice, 1) * (0 if c.bias is None else c.bias),
        )
        if result == "y":
            return (c.x * base_mask) @ weight.T + bias, (c.x * mask) @ update.T
        if result == "dx":
            return base_mask * (c.dy @ weight), mask * (c.dy @ update)
        dy, x = (picked("rows", choice, lambda x: x)(x) for x in (c.dy, c.x * mask))
        G = dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])
        return 0.0, self._gradient(result == "dgamma", choice, G, own)

    def _read(self, choice: Choice, lambda_: Array, gamma: Array) -> tuple[Array, Array]:
        """Λ and Γ as read."""
        n, k = self.terms(choice), self.r if "gamma of length r" in choice else self.d
        read = []
        for name, given in (("lambda", lambda_[..., :n, :]), ("gamma", gamma[..., :n, :k])):
            places = np.arange(given.shape[-2] * given.shape[-1]).reshape(given.shape[-2:])
            chosen = picked(name, choice, lambda places: places)
            flat = given.reshape(*given.shape[:-2], -1)
            read.append(np.ones_like(given) if chosen is None else flat[..., chosen(places)])
        return read[0], read[1]

    def terms(self, choice: Choice) -> int:
        """n, as many as there are at most."""
        return min(int(self.n), int(picked("terms", choice, lambda n, d, r: n)(self.n, self.d, self.r)))

    def _update(self, choice: Choice, lambda_: Array, gamma: Array) -> Array:
        """ΔW (…, out, in) of Λ and Γ as read."""
        c, n = self.case, self.terms(choice)
        A = picked("A", choice, lambda A, d: A[:, :d])(c.A, self.d)
        B = picked("B", choice, lambda B, n: B[:n])(c.B, n)
        B = picked("B's rows", choice, lambda B, D, d: B[:, :D])(B, self.D, self.d).swapaxes(-1, -2)
        crossed = c.pairing == "crossed"
        columns_by_rank, rows_by_rank = picked("pairing", choice, (False, crossed)) or (False, not crossed)

        def flat(terms: Array, by_rank: bool) -> Array:
            """(…, n·r, k) of (…, n, r, k)."""
            terms = np.broadcast_to(terms, (*terms.shape[:-3], n, self.r, terms.shape[-1]))
            return (terms.swapaxes(-2, -3) if by_rank else terms).reshape(*terms.shape[:-3], -1, terms.shape[-1])

        on_rows, on_lambda = "gamma on B's rows" in choice, "gamma of length r" in choice
        of_columns = 1 if on_rows else gamma[..., None] if on_lambda else gamma[..., None, :]
        S, B = flat(lambda_[..., None] * A * of_columns, rows_by_rank), flat(B, columns_by_rank)
        B = (B * flat(gamma[..., None, :], rows_by_rank) if on_rows else B).swapaxes(-1, -2)
        M = c.scaling * picked("order", choice, np.matmul)(B, S)
        turned = picked("orientation", choice, lambda M, shape: spec.oriented(M, shape, c.orientation))
        places = turned(np.arange(M.shape[-2] * M.shape[-1]).reshape(M.shape[-2:]), c.weight.shape)
        if places.shape != c.weight.shape:
            raise ValueError("ΔW of another shape than W0")
        return M.reshape(*M.shape[:-2], -1)[..., places]

    def _gradient(self, of_gamma: bool, choice: Choice, G: Array, own: tuple[int, ...]) -> Array:
        """⟨G, ΔW of each unit array − ΔW of zero⟩."""
        given = [self.case.lambda_, self.case.gamma]
        if own:
            given = list(self._read(choice, *given))
            given[of_gamma] = given[of_gamma] if given[of_gamma].shape == own else np.broadcast_to(given[of_gamma], own)

        def update(value: Array) -> Array:
            pair = (given[0], value) if of_gamma else (value, given[1])
            return self._update(choice, *(pair if own else self._read(choice, *pair)))

        shape = given[of_gamma].shape
        units = np.eye(given[of_gamma].size).reshape(-1, *shape)
        return np.tensordot(update(units) - update(np.zeros(shape)), G, 2).reshape(shape)

    def limit(self, result: str, actual: Array) -> Array:
        """How far a result may be from a prediction: by the gauge, which knows the asked s alone, and by its size."""
        own, by_gauge = gauge.limit(np.max(np.abs(actual), initial=0.0), 1, self.u), self.limits[result]
        return own + by_gauge if by_gauge.shape == actual.shape else own


def picked(stage: str, choice: Choice, default: Any) -> Any:
    """What a choice has of a stage."""
    return next((STAGES[stage][option] for option in choice if option in STAGES[stage]), default)


@lru_cache(maxsize=512)
def layer_of(case: Case, dtype: str | None) -> Layer:
    """The layer of a case; stored cases are asked again and again."""
    return Layer(case, dtype)
