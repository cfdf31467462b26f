"""PEFT's bases from its seed, bit for bit: at least 50 seeds, shapes and kinds of basis."""

import numpy as np
import pytest

from randlora_ref import draw_bases
from randlora_ref.conformance import Case, check

pytestmark = pytest.mark.crosscheck
SHAPES = ([(48, 32)], [(32, 48), (40, 20)], [(33, 33)], [(64, 24), (24, 64)], [(20, 17), (9, 50), (50, 50)])
SEEDS = (0, 1, 7, 42, 2**31, 2**32 + 5)


@pytest.fixture(autouse=True)
def _frameworks() -> None:
    pytest.importorskip("peft")


@pytest.mark.parametrize(
    ("kind", "draw_dtype"),
    [("dense", "bfloat16"), ("dense", "float16"), ("sparse", "bfloat16"), ("very_sparse", "bfloat16")],
)
@pytest.mark.parametrize("rank", [1, 5, 16])
def test_bases_are_pefts_bit_for_bit(kind: str, draw_dtype: str, rank: int) -> None:
    from randlora_ref.conformance.peft import peft_bases

    for seed in SEEDS:
        for shapes in SHAPES:
            ours = draw_bases("peft", seed=seed, shapes=shapes, rank=rank, kind=kind, draw_dtype=draw_dtype)
            A, B = peft_bases(seed, shapes, rank, kind, draw_dtype)
            assert np.array_equal(ours.A.view(np.uint32), A.view(np.uint32)), (seed, shapes)
            assert np.array_equal(np.ascontiguousarray(ours.B).view(np.uint32), np.ascontiguousarray(B).view(np.uint32))


def test_float16_draws_are_not_bfloat16_draws() -> None:
    from randlora_ref.conformance.peft import peft_bases

    assert not np.array_equal(peft_bases(0, [(8, 6)], 2)[0], peft_bases(0, [(8, 6)], 2, draw_dtype="float16")[0])


def test_the_slow_bases_are_pefts_too() -> None:
    from randlora_ref.conformance.peft import run_peft

    cases = [
        Case(
            id=f"{kind}-{seed}-{i}",
            kind="bases",
            dialect="peft",
            seed=seed,
            shapes=tuple(shapes),
            rank=3,
            kind_of_basis=kind,
        )
        for kind in ("dense", "sparse", "very_sparse")
        for seed in (0, 9, 2**32 + 5)
        for i, shapes in enumerate(SHAPES)
    ]
    report = check(run_peft, cases=cases)
    assert report.passed, "\n".join(report.lines())
