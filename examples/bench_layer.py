"""The layer beside PEFT's, measured alternately in one run: medians, ratios, and how they scale.

    python examples/bench_layer.py [--quick] [--json]

Needs the ``crosscheck`` extra; exit status 1 if a target is missed. Times are wall-clock seconds of this machine with
whatever else it does; the ratios are what carries over.
"""

import argparse
import json
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TextIO

import numpy as np

from randlora_ref import RandLoRA, draw_bases
from randlora_ref.conformance.peft import peft_bases, peft_model

Array = Any
ROWS = ((2048, 0.5), (128, 0.6), (1, 0.1))  # rows of a 768×768 layer, and the part of PEFT's time that is aimed at
BASES_TARGET, MEMORY_TARGET = 2.0, 3.0
REST, CALLS = 0.25, 5


@dataclass(frozen=True)
class Row:
    """One measurement: medians in seconds, PEFT's None where not measured; ``figure`` is what ``target`` limits."""

    name: str
    seconds: float
    peft_seconds: float | None
    figure: float | None = None
    target: float | None = None

    @property
    def met(self) -> bool:
        """Whether the target, if there is one, is met."""
        return self.figure is None or self.target is None or self.figure <= self.target

    def line(self) -> str:
        """The row as text."""
        text = f"{self.name:<54} {1e3 * self.seconds:10.3f} ms"
        text += "" if self.peft_seconds is None else f"   PEFT {1e3 * self.peft_seconds:10.3f} ms"
        text += "" if self.figure is None else f"   ratio {self.figure:.3f}"
        aim = "" if self.target is None else f", aim <= {self.target:g}: {'met' if self.met else 'MISSED'}"
        return text + aim


def alternately(runs: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """The median seconds of each of ``runs``, in turns: each turn rests, warms up and then times ``CALLS`` calls.

    The rest lets the threads of the library before go to sleep; they spin for a while and would hold the cores.
    """
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, seen in zip(runs, times, strict=True):
            time.sleep(REST)
            run()
            for _ in range(CALLS):
                begin = time.perf_counter()
                run()
                seen.append(time.perf_counter() - begin)
    return [statistics.median(seen) for seen in times]


def layer_run(shape: tuple[int, int], rank: int, rows: int) -> Callable[[], Any]:
    """One forward and backward of the layer on ``rows`` random rows, float32; W0 + ΔW kept, as PEFT keeps its own."""
    rng = np.random.default_rng(0)
    layer = RandLoRA.start(*shape, rank=rank, dialect="peft")
    layer = layer.replace(lambda_=rng.standard_normal(layer.lambda_.shape).astype(np.float32))
    sizes = (rows, shape[1]), shape, (rows, shape[0])
    x, weight, dy = (rng.standard_normal(size).astype(np.float32) for size in sizes)

    def run() -> Any:
        y, cache = layer.forward(x, weight, keep_merged=True)
        return y, layer.backward(dy, cache)

    return run


def peft_run(shape: tuple[int, int], rank: int, rows: int) -> Callable[[], Any]:
    """The same of PEFT's layer."""
    import torch

    model = peft_model([shape], rank, bias=False)
    layer = model.base_model.model.lin0
    for parameter in (layer.weight, layer.randlora_lambda["default"]):
        torch.nn.init.normal_(parameter)
    x, dy = torch.randn(rows, shape[1], requires_grad=True), torch.randn(rows, shape[0])

    def run() -> Any:
        x.grad = None
        model.zero_grad()
        layer(x).backward(dy)

    return run


def bases_rows(size: int, rank: int) -> list[Row]:
    """Time and memory of drawing PEFT's bases for one size×size layer."""
    shapes = [(size, size)]

    def draw() -> Any:
        return draw_bases("peft", shapes=shapes, rank=rank)

    ours, peft = alternately((draw, lambda: peft_bases(0, shapes, rank)), 1)
    tracemalloc.start()
    try:
        bases = draw()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    name = f"PEFT's bases, {size}×{size} r={rank}"
    return [
        Row(f"{name}, drawn", ours, peft, ours / peft, BASES_TARGET),
        Row(f"{name}, peak memory over result", ours, None, peak / (bases.A.nbytes + bases.B.nbytes), MEMORY_TARGET),
    ]


def measure(quick: bool, out: TextIO) -> list[Row]:
    """The layer at the sizes of the targets, the bases, its scaling in T, d, n; rows to ``out`` as they come."""
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        print(row.line(), file=out, flush=True)

    size, rank = (96, 8) if quick else (768, 32)
    for count, target in ROWS:
        count = min(count, 128) if quick else count
        ours, theirs = alternately((layer_run((size, size), rank, count), peft_run((size, size), rank, count)), 5)
        add(Row(f"layer {size}×{size} r={rank}, {count} rows", ours, theirs, ours / theirs, None if quick else target))
    for row in bases_rows(256 if quick else 4096, rank):
        add(row)
    scaling = [(f"T = {T}", (size, size), rank, T) for T in (64, 256, 1024)]
    scaling += [(f"d = {d}", (size, d), rank, 256) for d in (size // 4, size // 2, size)]
    scaling += [(f"n = {size // r}", (size, size), r, 256) for r in (2 * rank, rank, rank // 2)]
    for name, shape, r, T in scaling:
        add(Row(f"scaling, {name}", alternately([layer_run(shape, r, T)], 2)[0], None))
    return rows


def main() -> int:
    """Measure, print the rows, and say whether every target that was measured is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, no targets")
    parser.add_argument("--json", action="store_true", help="print JSON, and the rows on stderr as they come")
    arguments = parser.parse_args()
    import peft
    import torch

    out = sys.stderr if arguments.json else sys.stdout
    versions = {"numpy": np.__version__, "torch": torch.__version__, "peft": peft.__version__}
    print(", ".join(f"{name} {version}" for name, version in versions.items()), file=out)
    rows = measure(arguments.quick, out)
    passed = all(row.met for row in rows)
    if arguments.json:
        print(json.dumps({"versions": versions, "passed": passed, "rows": [asdict(row) for row in rows]}, indent=2))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
