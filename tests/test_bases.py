"""Bases: their definition entry by entry, slices and tiles, moments, PEFT's recorded draws, bad arguments."""

import math
import zlib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from randlora_ref import DIALECTS, Bases, bases, draw_bases, prng, torch_bases

KINDS = ("dense", "sparse", "very_sparse", 2, 2.5, 100)


def entry(seed: int, term: int, e: int, kind: Any, D: int, dtype: Any) -> Any:
    """One entry from one word, by the definition in rationals and one rounding at the end of each step."""
    word = int(prng.philox_words(seed, term, e, e + 1)[0])
    if kind == "dense":
        unit, size = Fraction(2 * (word >> 8) + 1 - 2**24, 2**24), math.sqrt(3)
    else:
        s = {"sparse": 6, "very_sparse": math.sqrt(D)}.get(kind, kind)
        threshold = math.floor(Fraction(2**32) / Fraction(s))
        unit = Fraction((word >= 2**32 - threshold) - (word < threshold))
        size = math.sqrt(s / 2)
    return dtype(float(unit)) * dtype(size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_native_entries_by_definition(kind: Any, dtype: Any) -> None:
    """A[k, i] from word i·r + k of stream 0, B_j[o, k] from word o·r + k of stream j."""
    r, seed = 3, 2**40 + 9
    drawn = draw_bases("paper", seed=seed, shapes=[(16, 8)], rank=r, kind=kind, dtype=dtype)
    assert drawn.A.dtype == drawn.B.dtype == dtype
    assert drawn.A.shape == (3, 8)
    assert drawn.B.shape == (3, 16, 3)
    real = getattr(np, dtype)
    for k in range(3):
        assert all(drawn.A[k, i] == entry(seed, 0, i * r + k, kind, 16, real) for i in range(8))
        for j in range(3):
            assert all(drawn.B[j, o, k] == entry(seed, j + 1, o * r + k, kind, 16, real) for o in range(16))


@given(st.integers(0, 2**64 - 1), st.sampled_from(KINDS), st.data())
def test_smaller_bases_and_tiles_are_parts_of_larger_ones(seed: int, kind: Any, data: st.DataObject) -> None:
    """A layer's bases do not depend on the layers beside it (very_sparse: of one D_max), and any tile is made alone."""
    rank, D, d = data.draw(st.integers(1, 5)), data.draw(st.integers(20, 40)), data.draw(st.integers(1, 12))
    larger = draw_bases(seed=seed, shapes=[(D, d), (15, D)], rank=rank, kind=kind)
    own = draw_bases(seed=seed, shapes=[(d, D)], rank=rank, kind=kind)
    part = larger.slice(-(-d // rank), D, d)
    assert np.array_equal(part.A, own.A)
    assert np.array_equal(part.B, own.B)
    first = data.draw(st.integers(0, D - 1))
    last, term = data.draw(st.integers(first + 1, D)), data.draw(st.integers(1, larger.B.shape[0]))
    block = bases.tile(term, first, last, seed=seed, rank=rank, kind=kind, D_max=D)
    assert np.array_equal(block, larger.B[term - 1, first:last])


@pytest.mark.parametrize("kind", KINDS)
def test_native_bases_on_every_array_library(library: Any, kind: Any) -> None:
    """The same bits from each library and device."""
    host = draw_bases(seed=5, shapes=[(20, 9)], rank=2, kind=kind)
    here = draw_bases(seed=5, shapes=[(20, 9)], rank=2, kind=kind, xp=library.xp, device=library.device)
    assert np.array_equal(library.host(here.A), host.A)
    assert np.array_equal(library.host(here.B), host.B)


@pytest.mark.parametrize("words", [1, 50, 10**9])
def test_how_many_words_are_drawn_at_a_time_changes_nothing(
    library: Any, words: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row by row, by some rows, in one call."""
    expected = draw_bases(seed=5, shapes=[(20, 9)], rank=2).B
    for name in ("WORDS_AT_A_TIME", "WORDS_AT_A_CALL"):
        monkeypatch.setattr(bases, name, words)
    B = draw_bases(seed=5, shapes=[(20, 9)], rank=2, xp=library.xp, device=library.device).B
    assert np.array_equal(library.host(B), expected)


def test_bases_of_peft_on_every_array_library(library: Any) -> None:
    """Drawn on the host, then brought to the library and device."""
    host = draw_bases("peft", seed=5, shapes=[(20, 9)], rank=2)
    here = draw_bases("peft", seed=5, shapes=[(20, 9)], rank=2, xp=library.xp, device=library.device)
    assert np.array_equal(library.host(here.A), host.A)
    assert np.array_equal(library.host(here.B), host.B)


@pytest.mark.parametrize("kind", ["dense", "sparse", "very_sparse", 50])
def test_native_moments(kind: Any) -> None:
    """Mean 0, variance 1, the ternary law's probabilities: within five standard errors of N = 2²⁰ draws."""
    B = draw_bases(seed=1, shapes=[(4096, 256)], rank=256, kind=kind, dtype="float64").B
    N, s = B.size, {"sparse": 6.0, "very_sparse": 64.0}.get(kind, kind)
    fourth = 9 / 5 if kind == "dense" else s / 2
    assert abs(B.mean()) < 5 / math.sqrt(N)
    assert abs((B**2).mean() - 1) < 5 * math.sqrt((fourth - 1) / N)
    if kind == "dense":
        assert np.abs(B).max() < math.sqrt(3)
        assert np.abs(B).min() > 0
    else:
        share = 1 / s
        for sign in (-1, 1):
            assert abs((np.sign(B) == sign).mean() - share) < 5 * math.sqrt(share * (1 - share) / N)


# Drawn by PEFT 0.21.2 on torch 2.13.0: layers (5, 3) and (4, 7), r = 2, projection_prng_key 11.
PEFT_DRAWS = {
    "dense": ([-1.1484375, -0.0439453125, 1.5859375], [-0.859375, 1.0546875]),
    "sparse": ([-1.5, 0.0, 1.5], [0.0, 0.0]),
    "very_sparse": ([-1.3552618026733398, 0.0, 1.3552618026733398], [0.0, 1.6055666208267212]),
}


@pytest.mark.parametrize("kind", PEFT_DRAWS)
def test_peft_bases_as_recorded(kind: Any) -> None:
    """The first entries of A and of B_1; the whole draw is compared by hash in the audit, by PEFT in crosscheck."""
    drawn = draw_bases("peft", seed=11, shapes=[(5, 3), (4, 7)], rank=2, kind=kind)
    assert drawn.A.shape == (2, 5)
    assert drawn.B.shape == (3, 7, 2)
    assert (drawn.A[0, :3].tolist(), drawn.B[0, 0].tolist()) == PEFT_DRAWS[kind]


def test_torch_draws_in_sixteen_bits() -> None:
    """torch.empty(6).uniform_(-0.5, 0.5) in bfloat16 and float16 under seed 7, torch 2.13.0, from its raw words."""
    words = prng.mt19937_words(prng.mt19937(7), 6) & 0xFFFFFF
    uniform = (words * 2.0**-24 - 0.5).astype(np.float32)
    bfloat16 = [0.034912109375, -0.30078125, 0.1591796875, 0.1572265625, -0.267578125, -0.07470703125]
    float16 = [0.034912109375, -0.30126953125, 0.1591796875, 0.1568603515625, -0.267333984375, -0.074951171875]
    assert torch_bases._rounded(uniform, "bfloat16").tolist() == bfloat16
    assert torch_bases._rounded(uniform, "float16").tolist() == float16


def test_bfloat16_rounds_to_nearest_even() -> None:
    """Ties go to the even neighbour: 1 + 2⁻⁸ down to 1, 1 + 3·2⁻⁸ up to 1 + 2⁻⁶; just above a tie goes up."""
    x = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8], dtype=np.float32)
    assert torch_bases._rounded(x, "bfloat16").tolist() == [1.0, 1 + 2**-6, 1 + 2**-7, -1.0]


AUTHORS = Path(__file__).with_name("authors")
DRAWS = [
    pytest.param(name, case, id=f"{name} {case}")
    for name in ("official", "nlg", "vision", "kradapter")
    for case in sorted({key.partition("/")[0] for key in np.load(AUTHORS / f"{name}_bases.npz").files})
]


@pytest.mark.parametrize(("name", "case"), DRAWS)
def test_the_authors_own_bases(name: str, case: str) -> None:
    """What their code drew, run with torch 2.13: A, the first terms, and all terms by a checksum; no bit differs.

    Normal ones are to 1e-6 of the largest entry: torch's logarithm and cosine are its own.
    """
    with np.load(AUTHORS / f"{name}_bases.npz") as drawn:
        own = {key.partition("/")[2]: drawn[key] for key in drawn.files if key.startswith(f"{case}/")}
    kind = case.split("-")[1]
    shapes = [(int(out), int(in_)) for out, in_ in own.get("shapes", ())]
    context = int(own["context"]) if "context" in own else None
    seed, rank = int(own["seed"]), int(own["rank"])
    found = draw_bases(name, seed=seed, shapes=shapes, rank=rank, kind=kind, context=context)  # type: ignore[arg-type]
    pairs = ((found.A, own["A"]), (found.B[: len(own["B"])], own["B"]))
    assert len(found.B) == own["B_terms"]
    if kind == "normal":
        for ours, theirs in pairs:
            assert ours.shape == theirs.shape
            assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(theirs).max()
    else:
        assert all(np.array_equal(ours, theirs) for ours, theirs in pairs)
        assert zlib.crc32(np.ascontiguousarray(found.B, "<f4").tobytes()) == own["B_crc32"]


def test_the_context_of_the_record() -> None:
    """nlg's own, where the argument is left out."""
    dialect = replace(DIALECTS["nlg"], context=12)
    ours, given = draw_bases(dialect, seed=8, rank=4), draw_bases("nlg", seed=8, rank=4, context=12)
    assert np.array_equal(ours.A, given.A)
    assert np.array_equal(ours.B, given.B)
    assert dialect.terms((5, 5), 4) == 4


def test_shared_shapes() -> None:
    """LLaMA3-8B's q, k, v, up and down: PEFT's element-wise maximum against what would do."""
    shapes = [(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)]
    assert bases.largest_shape(shapes, DIALECTS["peft"]) == (14336, 14336)
    assert bases.largest_shape(shapes, DIALECTS["paper"]) == (14336, 4096)


def test_concatenated_bases_are_a_view() -> None:
    """[B_1 … B_n] (D, n·r) costs no copy: B is laid out as (D, n, r) in memory."""
    for dialect in DIALECTS.values():
        B = draw_bases(replace(dialect, context=6), seed=0, shapes=[(9, 6)], rank=2).B
        assert np.shares_memory(B.transpose(1, 0, 2).reshape(B.shape[1], -1), B)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dialect": "lora"}, "dialect: 'lora'; it must be one of paper, peft"),
        ({"dialect": "nlg"}, "context: None; it must be a positive integer"),
        ({"dialect": "nlg", "context": 0}, "context: 0; it must be a positive integer"),
        ({"dialect": "nlg", "context": 8, "kind": "sparse"}, "kind: 'sparse'; .*from no seed"),
        ({"dialect": "vision", "kind": "very_sparse"}, "kind: 'very_sparse'; .*from no seed"),
        ({"dialect": "vision", "kind": "normal"}, r"kind: 'normal' with D·r = 8; it must be 16 or more"),
        ({"dialect": "kradapter", "kind": "sparse"}, r"kind: 'sparse'; .*it must be one of \('dense',\)$"),
        ({"dialect": "official", "kind": "normal"}, "kind: 'normal'; of generator 'torch_float32' it must be one of"),
        ({"kind": "normal"}, "kind: 'normal'; it must be 'dense', 'sparse'"),
        ({"dialect": "official", "shapes": []}, r"shapes: \[\]"),
        ({"seed": -1}, "seed: -1; it must be an integer"),
        ({"seed": 0.5}, "seed: 0.5; it must be an integer"),
        ({"rank": 0}, "rank: 0; it must be a positive integer"),
        ({"rank": 2.0}, "rank: 2.0; it must be a positive integer"),
        ({"shapes": []}, r"shapes: \[\]"),
        ({"shapes": [(3, 0)]}, r"shape: \(3, 0\); it must be"),
        ({"shapes": [(3, 4, 5)]}, "it must be .out, in., two positive integers"),
        ({"kind": "thin"}, "kind: 'thin'; it must be 'dense'"),
        ({"kind": 1.5}, "kind: 1.5; it must be"),
        ({"kind": math.nan}, "kind: nan; it must be"),
        ({"kind": 6, "dialect": "peft"}, "kind: 6; of generator 'torch' it must be one of"),
        ({"draw_dtype": "float32", "dialect": "peft"}, "draw_dtype: 'float32'; it must be"),
        ({"draw_dtype": "bfloat16"}, "draw_dtype: 'bfloat16'; it must be one of None; these are drawn in dtype"),
        ({"dtype": "bfloat16"}, "dtype: 'bfloat16'; it must be"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    """What it was and what it must be."""
    with pytest.raises((TypeError, ValueError), match=message):
        draw_bases(**{"dialect": "paper", "seed": 0, "shapes": [(4, 3)], "rank": 2, **arguments})


def test_bad_pairs_are_named() -> None:
    """Arrays that are no pair of bases, and slices that are not there."""
    with pytest.raises(ValueError, match=r"B: rank 3 .last axis.; it must be A's, 2"):
        Bases(np.zeros((2, 4)), np.zeros((2, 5, 3)))
    with pytest.raises(ValueError, match=r"A: shape \(4,\)"):
        Bases(np.zeros(4), np.zeros((2, 5, 3)))
    with pytest.raises(TypeError, match="A: list; it must be an array"):
        Bases([[1.0]], np.zeros((2, 5, 3)))
    with pytest.raises(ValueError, match="a layer of n = 2, D = 6, d = 4 needs 6 in B"):
        Bases(np.zeros((2, 4)), np.zeros((2, 5, 2))).slice(2, 6, 4)
    for dtype in (">f8", int, bool, object):
        with pytest.raises(TypeError, match=r"^B: dtype .*; it must be float16"):
            Bases(np.zeros((2, 4)), np.zeros((2, 5, 2), dtype))
