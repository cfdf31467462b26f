"""``certify_rank``: the rank of an update, proven from its stored factors.

From below, one elimination modulo a prime. From above, what the factors show (rank/structure.py); and where the two do
not meet, as many primes as Hadamard's bound on the next larger minors asks for, within a limit on the work. Past it
the certificate says ``at_most_probable``, with a bound on the chance that it errs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import arrays, checks
from .exact import PRIME_BITS, Progress, minor_bits, primes, rank_modulo, silent
from .factors import Sum, read, sha256, shape, work
from .structure import Bound, bounds, candidates

WORK_LIMIT = 10**12  # multiply-adds spent on upper bounds: about half a minute on two cores
SMALL = 64  # up to this many rows and columns the limit does not hold: always decided
ENOUGH = 2.0**-40  # chance of error at which an undecided case stops asking for primes


@dataclass(frozen=True)
class RankCertificate:
    """A rank, how it is known, and what it takes to check it again.

    ``rank`` is always proven from below. ``exact``: from above too. ``full``: it is min(out, in). ``method`` is
    "full_modulo_prime", "structure", "hadamard" or "at_most_probable". ``primes``: all that were used.
    ``details``: shape; ``below``, the prime modulo which the minor on ``rows`` and ``columns`` is not zero (of
    the folded matrix, see ``rank_modulo``, if ``fold_seed`` is not None); ``above``, the least proven upper
    bound with its reason; ``bounds``, all that structure gave; ``error_bound``; ``sha256`` of the factors.
    """

    rank: int
    full: bool
    exact: bool
    method: str
    primes: tuple[int, ...]
    details: dict[str, Any]
    __repr__ = arrays.brief

    def to_json(self) -> dict[str, Any]:
        """The fields as plain Python values."""
        return {**self.__dict__, "primes": list(self.primes)}

    def proof(self) -> str:
        """How the rank is known, in a few words."""
        if self.full:
            return f"exact: a minor of that order is not zero modulo {self.details['below']['prime']}"
        known = "exact" if self.exact else f"at least; at most with an error of {self.details['error_bound']:.2g}"
        return f"{known}: {self.details['above']['reason']}"

    def lines(self) -> list[str]:
        """For a person."""
        below, above, error = self.details["below"], self.details["above"], self.details["error_bound"]
        known = "exact" if self.exact else f"at least; at most with an error of {error:.2g} or less"
        folded = "" if below["fold_seed"] is None else f" of the rows folded with seed {below['fold_seed']}"
        minor = f"a minor of order {self.rank}{folded} is not zero modulo {below['prime']}"
        return [
            f"rank {self.rank} of {min(self.details['shape'])} ({'full' if self.full else 'not full'}, {known})",
            f"from below: {minor if self.rank else 'nothing to show'}",
            f"from above: at most {above['value']}: {above['reason']}",
            f"method {self.method}, primes used: {len(self.primes)}, factors with SHA-256 {self.details['sha256']}",
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def certify_rank(
    source: Any, *, work_limit: float = WORK_LIMIT, seed: int = 0, progress: Progress | None = None
) -> RankCertificate:
    """The rank of an update, with its proof.

    ``source``: an object with ``factors()`` (an adapter; one whose ``scaling`` is 0 has rank 0), nested tuples
    as in rank/factors.py, or a 2-D array. ``work_limit``: multiply-adds to spend on upper bounds; up to 64×64
    there is no limit. ``seed`` picks the primes. ``progress(what, part)`` is called as work goes on.

    Raises ValueError for empty, mismatched or non-finite factors and for a negative ``work_limit``, TypeError
    for dtypes other than float16/32/64 and integers (hold bfloat16 in float32: the values are the same).
    """
    if not (isinstance(work_limit, float) and work_limit == math.inf):
        work_limit = checks.number("work_limit", work_limit, least=0.0)
    checks.instance("progress", progress, Callable | None)
    return _Search(read(source), work_limit, checks.seed(seed), progress or silent).certificate()


@lru_cache(maxsize=4)
def shuffled_primes(seed: int) -> NDArray[np.int64]:
    """All primes of ``primes()`` in the order in which ``seed`` draws them."""
    return np.random.default_rng(seed).permutation(primes())


class _Search:
    """The search for two equal bounds; its state is what the certificate tells."""

    def __init__(self, terms: Sum, work_limit: float, seed: int, progress: Progress) -> None:
        self.terms, self.seed, self.progress = terms, seed, progress
        self.budget = math.inf if max(shape(terms)) <= SMALL else work_limit  # multiply-adds left
        self.primes = shuffled_primes(seed)
        self.used: set[int] = set()
        self.lower = 0
        self.below: dict[str, Any] = {"prime": None, "rows": [], "columns": [], "fold_seed": None}
        self.bounds = bounds(terms)

    @property
    def upper(self) -> Bound:
        """The least bound, the first of equal ones."""
        return min(self.bounds, key=lambda bound: bound.value)

    def certificate(self) -> RankCertificate:
        """Raise the lower bound, lower the upper one, and say what came of it."""
        rows, columns = shape(self.terms)
        for fold_seed in (self.seed, None) if rows > columns else (None,):  # of a tall update the folded rows first
            if self.lower < self.upper.value:
                self._modulo(self.terms, 0, self.progress, fold_seed)
        structural = self.lower == self.upper.value
        if not structural:
            self._from_above()
        error = self._probable()
        full, decided = self.lower == min(rows, columns), "structure" if structural else "hadamard"
        details = {
            "shape": [rows, columns],
            "below": self.below,
            "above": self.upper._asdict(),
            "bounds": [bound._asdict() for bound in self.bounds],
            "error_bound": error,
            "seed": self.seed,
            "sha256": sha256(self.terms),
        }
        method = "full_modulo_prime" if full else "at_most_probable" if error else decided
        return RankCertificate(self.lower, full, error == 0, method, tuple(sorted(self.used)), details)

    def _modulo(self, terms: Sum, k: int, progress: Progress = silent, fold_seed: int | None = None) -> int:
        """Rank of a sum modulo the k-th prime; of the update itself, it may raise the lower bound."""
        p = int(self.primes[k])
        rank, rows, columns = rank_modulo(terms, p, progress, fold_seed)
        self.used.add(p)
        if terms is self.terms and rank > self.lower:
            self.lower = rank
            self.below = {"prime": p, "rows": rows.tolist(), "columns": columns.tolist(), "fold_seed": fold_seed}
        return rank

    def _from_above(self) -> None:
        """Take the first candidate that can meet the lower bound, and prove its ranks."""
        for reason, sums in candidates(self.terms):
            modular = [self.lower if s is self.terms else self._modulo(s, 0) for s in sums]
            if math.prod(modular) > self.lower:
                continue
            value = math.prod(self._at_most(s, rank, reason) for s, rank in zip(sums, modular, strict=True))
            if value < self.upper.value:
                self.bounds.append(Bound(int(value), f"{reason}, by Hadamard's bound"))
            if self.upper.value <= self.lower:
                return

    def _at_most(self, terms: Sum, rank: int, reason: str) -> float:
        """A proven upper bound on the rank of ``terms``, whose rank modulo the first prime is ``rank``; infinity if
        the proof would take too much work."""
        count = 1
        while rank < min(bounds(terms)).value:
            needed = int(minor_bits(terms, rank + 1) // PRIME_BITS) + 1  # each prime is above 2²¹
            cost = (needed - count) * work(terms)
            if cost > self.budget or needed > len(self.primes):
                return math.inf
            self.budget -= cost
            modular = rank
            while count < needed and modular <= rank:
                modular = self._modulo(terms, count)
                count += 1
                self.progress(f"{reason}: {count} of {needed} primes", count / needed)
            if modular <= rank:
                return rank
            rank = modular  # the earlier primes were unlucky: they divide a minor of this order
        return rank

    def _probable(self) -> float:
        """A bound on the chance that the rank exceeds the lower bound; 0 where the bounds meet.

        If it does, some minor of order rank + 1 is a nonzero integer, at most ``bits`` long, and every prime
        drawn divides it: one of at most bits/21 primes out of all, t times without replacement.
        """
        count, cost = 1, work(self.terms)
        while self.lower < self.upper.value:
            unlucky = minor_bits(self.terms, self.lower + 1) / PRIME_BITS / len(self.primes)
            error = min(1.0, unlucky) ** count
            if error <= ENOUGH or unlucky >= 1 or cost > self.budget:
                return error
            self.budget -= cost
            self._modulo(self.terms, count, self.progress)
            count += 1
        return 0.0
