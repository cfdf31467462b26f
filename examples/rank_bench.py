"""Times of the exact rank, beside python-flint's nmod_mat.rank and NumPy's SVD, in one run.

    python examples/rank_bench.py [--quick]

Elimination modulo one prime of random n×n residues (``--quick``: n = 512; else 1536 and 4096), then the certificate of
a dense n×n RandLoRA update of rank 32 from its stored factors, with the memory the process took at most. Limits:
3 times FLINT's time at 1536, 1.5 times at 4096; 20 s and 2 GiB for the certificate of 4096×4096 on two cores.
FLINT's time is that of rank() alone, on a matrix that it already holds. Exit status 1 if a limit is broken.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from randlora_ref.rank import certify_rank, randlora_factors
from randlora_ref.rank.exact import eliminate

PRIME = 4194301
LIMITS = {1536: 3.0, 4096: 1.5}  # times FLINT's time
CERTIFICATE_SECONDS, CERTIFICATE_GIB = 20.0, 2.0


def timed(run: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """(least time in seconds, result)."""
    best, result = float("inf"), None
    for _ in range(repeats):
        start = time.perf_counter()
        result = run()
        best = min(best, time.perf_counter() - start)
    return best, result


def eliminations(n: int, with_svd: bool) -> bool:
    """One line: ours, FLINT's, the ratio, the SVD."""
    residues = np.random.default_rng(n).integers(0, PRIME, (n, n))
    matrix = residues.astype(np.float64)
    repeats = 3 if n < 2000 else 1
    ours, found = timed(lambda: eliminate(matrix, PRIME), repeats)
    line, ok = f"elimination {n:4d}×{n}: rank {found.rank}, {ours:6.2f} s", True
    try:
        import flint

        held = flint.nmod_mat(n, n, residues.ravel().tolist(), PRIME)
        theirs, rank = timed(held.rank, repeats)
        limit = LIMITS.get(n, float("inf"))
        ok = bool(ours <= limit * theirs and rank == found.rank)
        line += f"; FLINT rank {rank}, {theirs:6.2f} s: ratio {ours / theirs:.2f}" + (
            f", limit {limit:g}" if n in LIMITS else ""
        )
    except ImportError:
        line += "; python-flint is not installed"
    if with_svd:
        svd, _ = timed(lambda: np.linalg.svd(matrix, compute_uv=False), 1)
        line += f"; NumPy's SVD {svd:6.2f} s"
    print(line, "" if ok else "  FAILED", flush=True)
    return ok


def certificate(n: int, rank: int = 32) -> bool:
    """One line: the certificate of a dense update from its float32 factors."""
    rng = np.random.default_rng(0)
    terms = -(-n // rank)
    shapes = (rank, n), (terms, n, rank), (terms, rank), (terms, n)
    factors = randlora_factors(*(rng.standard_normal(shape, dtype=np.float32) for shape in shapes))
    seconds, found = timed(lambda: certify_rank(factors), 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    ok = bool(found.full and seconds <= CERTIFICATE_SECONDS and peak <= CERTIFICATE_GIB)
    print(
        f"certificate {n:4d}×{n}, r = {rank}: rank {found.rank}, {seconds:.2f} s (limit {CERTIFICATE_SECONDS:g} s),"
        f" at most {peak:.2f} GiB in the process (limit {CERTIFICATE_GIB:g} GiB)",
        "" if ok else "  FAILED",
        flush=True,
    )
    return ok


def main() -> int:
    """Prints the lines; 0 if all limits hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, a second or two")
    parser.add_argument("--no-svd", action="store_true", help="leave NumPy's SVD out: half a minute at 4096")
    arguments = parser.parse_args()
    sizes = (512,) if arguments.quick else (1536, 4096)
    results = [certificate(sizes[-1])]  # first, while nothing else has taken memory
    results += [eliminations(n, not arguments.no_svd) for n in sizes]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
