"""``certify_rank``: the rank of an update, proven from its stored factors.

From below, one elimination modulo a prime. From above, what the factors show (rank/structure.py); and where the two do
not meet, as many primes as Hadamard's bound on the next larger minors asks for, within a limit on the work. Past it
the certificate says ``at_most_probable``, with a bound on the chance that it errs.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .exact import PRIME_BITS, Progress, minor_bits, primes, rank_modulo
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

    def to_json(self) -> dict[str, Any]:
        """The fields as plain Python values."""
        return {**self.__dict__, "primes": list(self.primes)}

    def lines(self) -> list[str]:
        """For a person."""
        rows, columns = self.details["shape"]
        below, above, error = self.details["below"], self.details["above"], self.details["error_bound"]
        known = "exact" if self.exact else f"at least; at most with an error of {error:.2g} or less"
        first = f"rank {self.rank} of {min(rows, columns)} ({'full' if self.full else 'not full'}, {known})"
        folded = "" if below["fold_seed"] is None else f" of the rows folded with seed {below['fold_seed']}"
        text = f"a minor of order {self.rank}{folded} is not zero modulo {below['prime']}"
        return [
            first,
            f"from below: {text if self.rank else 'nothing to show'}",
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
    if not work_limit >= 0:
        raise ValueError(f"work_limit: {work_limit}; it must be at least 0")
    terms = read(source)
    return _Search(terms, work_limit, seed, progress).certificate()


@lru_cache(maxsize=4)
def shuffled_primes(seed: int) -> NDArray[np.int64]:
    """All primes of ``primes()`` in the order in which ``seed`` draws them."""
    return np.random.default_rng(seed).permutation(primes())


class _Search:
    """The search for two equal bounds; its state is what the certificate tells."""

    def __init__(self, terms: Sum, work_limit: float, seed: int, progress: Progress | None) -> None:
        self.terms, self.seed, self.progress = terms, seed, progress
        self.small = max(shape(terms)) <= SMALL
        self.budget = float(work_limit)
        self.primes = shuffled_primes(seed)
        self.used: set[int] = set()
        self.lower = 0
        self.below: dict[str, Any] = {"prime": None, "rows": [], "columns": [], "fold_seed": None}
        self.bounds = bounds(terms)
        self.upper = min(self.bounds, key=lambda bound: bound.value)

    def certificate(self) -> RankCertificate:
        """Raise the lower bound, lower the upper one, and say what came of it."""
        method, error = "structure", 0.0
        if self.upper.value:
            self._from_below()
        if self.lower < self.upper.value:
            self._from_above()
            method = "hadamard"
        if self.lower < self.upper.value:
            error = self._probable()
            method = "hadamard" if error == 0 else "at_most_probable"
        full = self.lower == min(shape(self.terms))
        details = {
            "shape": list(shape(self.terms)),
            "below": self.below,
            "above": self.upper._asdict(),
            "bounds": [bound._asdict() for bound in self.bounds],
            "error_bound": error,
            "seed": self.seed,
            "sha256": sha256(self.terms),
        }
        method = "full_modulo_prime" if full else method
        return RankCertificate(self.lower, full, error == 0, method, tuple(sorted(self.used)), details)

    def _modulo(self, terms: Sum, p: int, progress: Progress | None = None, fold_seed: int | None = None) -> int:
        """Rank of a sum modulo p; of the update itself, it may raise the lower bound."""
        found = rank_modulo(terms, p, progress, fold_seed)
        self.used.add(p)
        if terms is self.terms and found.rank > self.lower:
            self.lower = found.rank
            self.below = {
                "prime": p,
                "rows": found.rows.tolist(),
                "columns": found.columns.tolist(),
                "fold_seed": fold_seed,
            }
        return found.rank

    def _from_below(self) -> None:
        rows, columns = shape(self.terms)
        if rows > columns:
            self._modulo(self.terms, int(self.primes[0]), self.progress, self.seed)
        if self.lower < self.upper.value:
            self._modulo(self.terms, int(self.primes[0]), self.progress)

    def _from_above(self) -> None:
        """Take the first candidate that can meet the lower bound, and prove its ranks."""
        for reason, sums in candidates(self.terms):
            modular = [self.lower if s is self.terms else self._modulo(s, int(self.primes[0])) for s in sums]
            if math.prod(modular) > self.lower:
                continue
            proven = [self._at_most(s, k, reason) for s, k in zip(sums, modular, strict=True)]
            if None in proven:
                continue
            value = math.prod(k for k in proven if k is not None)
            if value < self.upper.value:
                self.upper = Bound(value, f"{reason}, by Hadamard's bound")
                self.bounds.append(self.upper)
            if self.upper.value <= self.lower:
                return

    def _at_most(self, terms: Sum, rank: int, reason: str) -> int | None:
        """A proven upper bound on the rank of ``terms``, whose rank modulo the first prime is ``rank``; None if
        the proof would take too much work."""
        count = 1
        while rank < min(bounds(terms)).value:
            bits = minor_bits(terms, rank + 1)
            needed = int(bits // PRIME_BITS) + 1  # each prime is above 2²¹
            if not self._pay((needed - count) * work(terms)) or needed > len(self.primes):
                return None
            while count < needed:
                found = self._modulo(terms, int(self.primes[count]))
                count += 1
                if self.progress is not None:
                    self.progress(f"{reason}: {count} of {needed} primes", count / needed)
                if found > rank:  # the earlier primes were unlucky: they divide a minor of this order
                    rank = found
                    break
            else:
                return rank
        return rank

    def _pay(self, cost: float) -> bool:
        """Whether the limit allows this much more work; if so it is spent."""
        if self.small:
            return True
        if cost <= self.budget:
            self.budget -= cost
            return True
        return False

    def _probable(self) -> float:
        """A bound on the chance that the rank exceeds the lower bound; 0 where primes made the bounds meet.

        If it does, some minor of order rank + 1 is a nonzero integer, at most ``bits`` long, and every prime
        drawn divides it: one of at most bits/21 primes out of all, t times without replacement.
        """
        count = 1
        while True:
            unlucky = minor_bits(self.terms, self.lower + 1) / PRIME_BITS / len(self.primes)
            error = min(1.0, unlucky) ** count
            if error <= ENOUGH or unlucky >= 1 or not self._pay(work(self.terms)):
                return error
            self._modulo(self.terms, int(self.primes[count]), self.progress)
            count += 1
            if self.lower >= self.upper.value:
                return 0.0
