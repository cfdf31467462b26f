"""Writes the stored vectors, byte for byte the same everywhere: ``python tests/conformance/make_vectors.py``.

Inputs are words of Philox, expected values ``spec``'s on exact fractions, a block's in 50 digits, rounded once; bases
and ranks are ``oracle``'s. Cases are only ever appended: an id keeps its meaning.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from conformance import block_cases
from conformance.negative_cases import negative_cases
from conformance.stream import Stream, to_float64

from randlora_ref import spec
from randlora_ref.conformance import answers, oracle, vectors
from randlora_ref.conformance.answers import expected
from randlora_ref.conformance.cases import Case, flags
from randlora_ref.dialects import DIALECTS

Array = Any
DIGITS = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}
# What to think when a case with this flag fails.
NOTES = {
    "crossed": "which column of B meets which row of A; a trained adapter read with the other pairing is noise",
    "wide": "out < in takes the transpose of the sum, not a reshape of it",
    "square": "a square layer takes the sum itself",
    "ragged": "r does not divide d: n is the ceiling, the floor loses the full rank",
    "rank one": "r = 1: both pairings agree",
    "one term": "n = 1: both pairings agree",
    "over-ranked": "r > d: one term",
    "sliced": "the stored bases are larger; the rest is filled with a rogue value and must not be read",
    "fan_in_fan_out": "who has such a mode holds the weight as (in, out); arguments and results stay (out, in)",
    "merged": "y and dx through W0 + ΔW",
    "leading axes": "x with none or several leading axes",
    "empty batch": "no rows: every gradient of a learned value is zero",
    "start": "Λ = 0: ΔW = 0 and the gradient of Γ is exactly zero",
    "zero cotangent": "dy = 0: every gradient is zero",
    "square transposed": "the authors' CLIP and GPT-2 code: a square layer takes the transpose of the sum",
    "reshaped": "the authors' GPT-2 code, out > in: ΔW[o, i] is number i·out + o of the sum M (D, d) in C order",
    "never transposed": "KRAdapter, out < in: the sum itself, Γ (n, in) on the longer side",
    "over root n": "alpha is s·r·√n, the authors' rule; s stands in scaling all the same",
    "no bias": "a layer without bias",
    "inflated": "layers of several shapes share bases of the largest sides; PEFT takes the maximum of (out, in) first",
    "unsorted sides": "A is wider than B_j is high; the official code draws such bases, then its layer raises",
    "context": "the network's context length c sets n = c // r + 1, and the bases' sides 4c and c",
    "deficient": "the rank is smaller than d, for a reason that the factors show",
    "dropout": "the mask is on the adapter's x alone, so on its part of dx and on G: not on x W0ᵀ, not on y",
    "causal": "token t sees tokens 1 … t",
    "padded": "a token that is masked is seen by none; it has an output and gradients, and sees a token itself",
    "grouped keys": "g = H/K query heads after each other read one key head: i·g … i·g + g − 1 read head i",
    "rotary": "coordinates i and i + h/2 of q and k turn by t·θ^(−2i/h), t from 0: halves, no neighbours",
    "fused": "qkv has rows of q, then k, then v; one Λ and one Γ for all three",
    "RMSNorm": "no mean is subtracted; eps stands inside the root",
    "gated": "down(act(gate)∘up): the activation is on gate",
}
ROGUE = 1009  # what fills the unread part of shared bases


def layer(
    id_: str,
    stream: int,
    shape: tuple[int, int],
    r: int,
    pairing: Any,
    *,
    lead: tuple[int, ...] = (3,),
    pad: tuple[int, int, int] = (0, 0, 0),
    scaling: float = 1,
    largest: int = 3,
    dtype: str = "float64",
    bases: str | None = None,
    terms: int | None = None,
    dropped: int = 0,
    orientation: spec.Orientation = "paper",
    context: int | None = None,
    **changes: Any,
) -> Case:
    """A layer case; exact unless ``bases`` names a dialect's kind of bases, such as "peft dense".

    ``dropped``: one entry of x in so many is dropped.
    """
    s, (D, d) = Stream(stream), spec.sides(shape, orientation)
    n = terms or -(-min(shape) // r)
    sizes = {"x": (*lead, shape[1]), "weight": shape, "bias": shape[:1], "lambda_": (n, r), "gamma": (n, d)}
    sizes |= {"dy": (*lead, shape[0])}
    if bases is None:
        given = {name: s.integers(-largest, largest, *size) for name, size in sizes.items()}
        A, B = np.full((r, d + pad[0]), ROGUE * 1.0), np.full((n + pad[1], D + pad[2], r), ROGUE * 1.0)
        A[:, :d], B[:n, :D] = s.integers(-1, 1, r, d), s.integers(-1, 1, n, D, r)
    else:
        given = {name: s.reals(dtype, *size) for name, size in sizes.items()}
        dialect, kind = bases.split()
        largest = (D + pad[2], d + pad[0]) if dialect != "official" else (d + pad[0], D + pad[2])
        A, B = oracle.bases(stream, [largest], r, kind, dialect, context=context)
        A, B = A.astype(dtype), B[: n + pad[1]].astype(dtype)
    tier: Any = "real" if bases else "exact"
    case = Case(
        id=id_, kind="layer", tier=tier, pairing=pairing, scaling=scaling, alpha=scaling * r, dtype=dtype,
        orientation=orientation, A=A, B=B, **given,
        clause="spec.delta_weight, spec.forward, spec.backward; §4.1, Eq. 4",
    )  # fmt: skip
    if dropped:
        kept = s.integers(0, dropped - 1, *case.x.shape) != 0
        case = replace(case, dropout_mask=(kept * (dropped / (dropped - 1))).astype(dtype))
    case = replace(case, **changes)
    if tier == "exact":
        c = case.with_arrays(np.abs)
        gauge = max(float(np.max(v, initial=0)) for v in answers.layer(replace(c, scaling=abs(scaling))).values())
        case = replace(case, exact_in=tuple(name for name, digits in DIGITS.items() if gauge <= 2**digits))
    return replace(case, notes=flags(case))


def exact_cases() -> Iterator[Case]:
    """The exact tier: the two worked examples of ``spec``, then shapes, then special cases, each in both pairings."""
    hand = {
        "A": np.array([[1.0, 2.0]]), "B": np.array([[[1.0], [0.0], [1.0]], [[0.0], [1.0], [1.0]]]),
        "lambda_": np.array([[2.0], [1.0]]), "gamma": np.array([[1.0, 3.0], [2.0, 1.0]]),
    }  # fmt: skip
    yield layer("exact-001-hand-3x2", 1, (3, 2), 1, "literal", lead=(2,), **hand)
    yield layer("exact-002-hand-2x3", 2, (2, 3), 1, "literal", lead=(2,), **hand)
    parts = {
        "A": np.arange(1.0, 9).reshape(2, 4), "B": np.eye(4).reshape(4, 2, 2).transpose(1, 0, 2),
        "lambda_": np.ones((2, 2)), "gamma": np.array([[1.0, 1, 1, 1], [1, 0, 1, 0]]),
    }  # fmt: skip
    yield layer("exact-003-parting-4x4", 3, (4, 4), 2, "literal", lead=(2,), **parts)
    yield layer("exact-004-parting-4x4", 3, (4, 4), 2, "crossed", lead=(2,), **parts)
    shapes: list[tuple[str, tuple[int, int], int, dict[str, Any]]] = [
        ("tall", (5, 4), 2, {}),
        ("wide", (4, 5), 2, {}),
        ("square", (6, 6), 2, {}),
        ("tall-ragged", (7, 5), 2, {}),
        ("wide-ragged", (5, 7), 3, {}),
        ("square-ragged", (5, 5), 2, {}),
        ("r-is-d", (6, 3), 3, {}),
        ("r-over-d", (2, 4), 5, {}),
        ("rank-one", (5, 3), 1, {}),
        ("square-r-is-n", (4, 4), 2, {"scaling": 2}),
        ("scaled-2", (7, 4), 2, {"scaling": 2}),
        ("scaled-4-wide", (4, 6), 3, {"scaling": 4}),
        ("sliced", (5, 4), 2, {"pad": (3, 2, 1)}),
        ("sliced-wide", (3, 5), 2, {"pad": (1, 1, 3), "scaling": 2}),
        ("fan-in-fan-out", (6, 4), 3, {"fan_in_fan_out": True, "scaling": 2}),
        ("fan-in-fan-out-square", (4, 4), 2, {"fan_in_fan_out": True}),
        ("merged", (5, 4), 3, {"merged": True, "scaling": 2}),
        ("merged-square", (6, 6), 3, {"merged": True}),
        ("no-leading-axis", (4, 3), 2, {"lead": ()}),
        ("three-leading-axes", (3, 4), 2, {"lead": (2, 1, 3)}),
        ("empty-batch", (4, 3), 2, {"lead": (0,)}),
        ("one-row", (3, 5), 2, {"lead": (1,), "scaling": 2}),
        ("no-bias", (4, 6), 3, {"bias": None}),
        ("zero-cotangent", (5, 4), 2, {"dy": np.zeros((3, 5))}),
        ("start", (5, 4), 2, {"lambda_": np.zeros((2, 2)), "scaling": 4}),
        ("start-wide", (4, 7), 3, {"lambda_": np.zeros((2, 3)), "gamma": np.ones((2, 4)), "scaling": 4}),
        ("ternary", (3, 2), 2, {"largest": 1, "lead": (2,)}),
        ("ternary-tall", (5, 4), 2, {"largest": 1, "lead": (2,)}),
        ("ternary-wide", (3, 4), 2, {"largest": 1, "lead": (2,), "scaling": 2}),
        ("ternary-square", (4, 4), 2, {"largest": 1, "lead": (2,)}),
        ("floor", (7, 5), 2, {"terms": 2}),
        ("one-term-more", (7, 4), 2, {"terms": 3}),
        ("larger", (9, 8), 3, {"pad": (1, 0, 2), "scaling": 2, "lead": (4,)}),
        ("larger-wide", (7, 11), 3, {"scaling": 2}),
    ]
    number = 4
    for name, shape, r, options in shapes:
        for pairing in ("literal", "crossed"):
            number += 1
            yield layer(f"exact-{number:03}-{name}-{pairing}", number, shape, r, pairing, **options)


def real_cases() -> Iterator[Case]:
    """The real tier: dense and ternary bases of both dialects, both dtypes."""
    rows: list[tuple[str, tuple[int, int], int, str, dict[str, Any]]] = [
        ("tall", (9, 5), 2, "peft dense", {"scaling": 20.0, "pairing": "crossed"}),
        ("wide", (5, 8), 3, "peft dense", {"scaling": 0.3, "pairing": "crossed", "pad": (2, 0, 3)}),
        ("square", (6, 6), 4, "peft sparse", {"scaling": 20.0, "pairing": "crossed", "merged": True}),
        ("very-sparse", (7, 6), 3, "peft very_sparse", {"scaling": 2.0, "pairing": "crossed", "fan_in_fan_out": True}),
        ("native", (8, 5), 2, "paper dense", {"scaling": 2 / 3**0.5}),
        ("native-wide", (4, 7), 3, "paper sparse", {"scaling": 2 / 2**0.5, "lead": (2, 2)}),
        ("native-square", (5, 5), 5, "paper very_sparse", {"scaling": 2.0, "bias": None}),
        ("native-rank-one", (5, 4), 1, "paper dense", {"scaling": 1.0, "lead": ()}),
    ]
    number = 0
    for name, shape, r, bases, options in rows:
        for dtype in ("float64", "float32"):
            number += 1
            given = {"pairing": "literal", **options}
            pairing = given.pop("pairing")
            yield layer(
                f"real-{number:03}-{name}-{dtype}", 200 + number, shape, r, pairing, dtype=dtype, bases=bases, **given
            )


def dropout_cases() -> Iterator[Case]:
    """Layers with a dropout mask: p = 1/2 in the exact tier, so that what is kept counts twice; 1/5 in the real one."""
    shapes: list[tuple[str, tuple[int, int], int, dict[str, Any]]] = [
        ("tall", (5, 4), 2, {}),
        ("wide", (3, 5), 2, {"scaling": 2}),
        ("square", (4, 4), 2, {"fan_in_fan_out": True}),
        ("ragged-sliced", (6, 5), 3, {"pad": (2, 1, 1), "lead": (2, 2), "bias": None}),
        ("start", (5, 3), 2, {"lambda_": np.zeros((2, 2)), "lead": ()}),
        ("everything-dropped", (4, 5), 2, {"dropout_mask": np.zeros((3, 5))}),
    ]
    rows = [(*row, pairing) for row in shapes for pairing in ("literal", "crossed")]
    for number, (name, shape, r, options, pairing) in enumerate(rows, 1):
        yield layer(f"dropout-{number:03}-{name}-{pairing}", 400 + number, shape, r, pairing, dropped=2, **options)
    real: list[tuple[str, tuple[int, int], str, Any, str]] = [
        ("tall", (7, 5), "peft dense", "crossed", "float64"),
        ("wide", (5, 6), "peft dense", "crossed", "float32"),
        ("native-tall", (6, 4), "paper dense", "literal", "float32"),
        ("native-wide", (4, 7), "paper sparse", "literal", "float64"),
    ]
    for number, (name, shape, bases, pairing, dtype) in enumerate(real, len(rows) + 1):
        id_ = f"dropout-{number:03}-{name}-{dtype}"
        yield layer(id_, 400 + number, shape, 3, pairing, dropped=5, scaling=0.5, bases=bases, dtype=dtype)


def telling_cases() -> Iterator[Case]:
    """What tells faults apart: bases larger in one part alone, merged ones too; a network of sides beyond 1024."""
    for number, dialect in enumerate(("paper", "peft"), 31):
        yield Case(
            id=f"count-{number:03}-{dialect}-wide-network", kind="count", dialect=dialect, rank=32,
            shapes=((4096, 4096), (1024, 4096), (11008, 4096)), clause="spec.number_of_terms; §4.1",
        )  # fmt: skip
    rows: list[tuple[str, tuple[int, int], int, tuple[int, int, int], dict[str, Any]]] = [
        ("A-alone-tall", (5, 4), 2, (2, 0, 0), {}),
        ("A-alone-wide", (3, 5), 2, (1, 0, 0), {"scaling": 2}),
        ("A-alone-square", (4, 4), 2, (3, 0, 0), {"fan_in_fan_out": True}),
        ("terms-alone-tall", (5, 3), 2, (0, 2, 0), {"scaling": 2}),
        ("terms-alone-wide", (4, 5), 2, (0, 1, 0), {"fan_in_fan_out": True}),
        ("terms-alone-square", (4, 4), 3, (0, 1, 0), {}),
        ("rows-alone-tall", (5, 4), 2, (0, 0, 2), {"fan_in_fan_out": True}),
        ("rows-alone-wide", (3, 5), 2, (0, 0, 1), {}),
        ("rows-alone-square", (4, 4), 2, (0, 0, 3), {"scaling": 4}),
        ("rows-after-d-tall", (4, 3), 2, (0, 0, 3), {}),
        ("rows-after-d-wide", (2, 4), 2, (0, 0, 2), {"scaling": 2}),
        ("rows-after-d-square", (3, 3), 2, (0, 0, 3), {}),
        ("rows-after-d-ragged", (5, 5), 2, (0, 0, 5), {"scaling": 2}),
        ("merged-tall", (5, 4), 2, (2, 1, 3), {"merged": True}),
        ("merged-wide", (3, 4), 2, (1, 2, 2), {"merged": True, "scaling": 2}),
        ("merged-square", (4, 4), 2, (2, 1, 1), {"merged": True, "fan_in_fan_out": True}),
    ]
    number = 0
    for name, shape, r, pad, options in rows:
        for pairing in ("literal", "crossed"):
            number += 1
            id_ = f"sliced-{number:03}-{name}-{pairing}"
            yield layer(id_, 800 + number, shape, r, pairing, pad=pad, lead=(2,), **options)


def other_cases() -> Iterator[Case]:
    """Bases, starts and counts of both dialects."""
    number = 0
    sets = [((5, 3),), ((3, 6),), ((4, 4),), ((6, 3), (3, 6)), ((9, 4), (6, 8))]
    for dialect in ("paper", "peft"):
        for kind in ("dense", "sparse", "very_sparse", *((2, 10.5) if dialect == "paper" else ())):
            for seed, shapes, r in zip((0, 42, 2**32 + 7, 2**63, 3), sets, (2, 3, 2, 4, 1), strict=True):
                number += 1
                notes = ("inflated",) if len(shapes) > 1 else ()
                case = Case(
                    id=f"bases-{number:03}-{dialect}-{kind}", kind="bases", dialect=dialect, seed=seed, shapes=shapes,
                    rank=r, kind_of_basis=kind, clause="bases; §6.4, §C.5.1", notes=notes, dtype="float32",
                )  # fmt: skip
                yield replace(case, seed=next(s for s in range(seed, seed + 99) if has_deviation(case, s)))
    for number, (dialect, shape, r) in enumerate(
        ((dialect, shape, r) for dialect in ("paper", "peft") for shape, r in (((5, 3), 2), ((3, 8), 1), ((4, 4), 6))),
        1,
    ):
        id_ = f"start-{number:03}-{dialect}"
        yield Case(id=id_, kind="start", dialect=dialect, shape=shape, rank=r, clause="dialects; Λ = 0")
    networks = [
        ((768, 768),),
        ((3072, 768), (768, 3072)),
        ((896, 896), (128, 896)) * 24,
        ((1024, 3584), (256, 1024)),
        ((7, 5),),
    ]
    for number, (dialect, shapes, r) in enumerate(
        ((dialect, shapes, r) for dialect in ("paper", "peft") for shapes in networks for r in (1, 32, 60)), 1
    ):
        yield Case(
            id=f"count-{number:03}-{dialect}", kind="count", dialect=dialect, shapes=shapes, rank=r,
            clause="spec.number_of_terms; §4.1", notes=("ragged",) if any(min(s) % r for s in shapes) else (),
        )  # fmt: skip


def dialect_cases() -> Iterator[Case]:
    """What only one of the authors' code bases has: layers, bases, starts and counts."""
    yield from dialect_layers()
    sets: list[tuple[str, int, tuple[tuple[int, int], ...], int, int | None]] = [
        ("official", 8539, ((3, 5),), 2, None),
        ("official", 63098, ((4, 4), (3, 9)), 3, None),
        ("official", 2**32 + 7, ((6, 4), (3, 5)), 2, None),
        ("nlg", 69196, ((5, 5),), 2, 5),
        ("nlg", 8, ((24, 6), (6, 24)), 3, 6),
        ("nlg", 2**63, ((3, 3),), 5, 4),
        ("vision", 1, ((3, 2),), 1, None),
        ("vision", 7, ((2, 3), (4, 2)), 1, None),
        ("kradapter", 42, ((5, 4),), 2, None),
        ("kradapter", 3, ((3, 7),), 2, None),
        ("kradapter", 2**40, ((4, 4),), 3, None),
    ]
    rows = [(kind, *row) for row in sets for kind in ("dense", "sparse", "very_sparse")]
    rows = [row for row in rows if row[0] == "dense" or row[1] == "official"]
    for number, (kind, name, seed, shapes, r, context) in enumerate(rows, 1):
        A, B = oracle.bases(seed, shapes, r, "dense", name, context=context)
        holds = {"context": context, "inflated": len(shapes) > 1, "unsorted sides": A.shape[1] > B.shape[1]}
        case = Case(
            id=f"dialects-bases-{number:03}-{name}-{kind}", kind="bases", dialect=name, seed=seed, shapes=shapes,
            rank=r, kind_of_basis=kind, context=context, clause="bases; §C.5.1", dtype="float32",
            notes=tuple(flag for flag, value in holds.items() if value),
        )  # fmt: skip
        yield replace(case, seed=next(s for s in range(seed, seed + 99) if has_deviation(case, s)))
    starts: dict[str, list[tuple[tuple[int, int], int, int | None]]] = {
        "official": [((3, 8), 1, None), ((4, 4), 6, None), ((3, 5), 2, None)],
        "nlg": [((5, 5), 2, 7), ((3, 12), 1, 5), ((12, 4), 3, 4)],
        "vision": [((5, 3), 2, None), ((4, 4), 6, None), ((8, 3), 1, None)],
        "kradapter": [((5, 3), 2, None), ((3, 7), 2, None), ((4, 4), 6, None)],
    }
    rows_of_starts = [(name, *row) for name, some in starts.items() for row in some]
    for number, (name, shape, r, context) in enumerate(rows_of_starts, 1):
        yield Case(
            id=f"dialects-start-{number:03}-{name}", kind="start", dialect=name, shape=shape, rank=r, context=context,
            clause="dialects; ΔW = 0", notes=("context",) if context else (),
        )  # fmt: skip
    networks = [((768, 768),), ((3072, 768), (768, 3072)), ((1024, 3584), (256, 1024)), ((7, 5),)]
    counts = [(name, shapes, r) for name in starts for shapes in networks for r in (1, 32, 60)]
    for number, (name, shapes, r) in enumerate(counts, 1):
        yield Case(
            id=f"dialects-count-{number:03}-{name}", kind="count", dialect=name, shapes=shapes, rank=r,
            context=1024 if name == "nlg" else None, clause="spec.number_of_terms; §4.1",
            notes=("context",) if name == "nlg" else ("ragged",) if any(min(s) % r for s in shapes) else (),
        )  # fmt: skip


def dialect_layers() -> Iterator[Case]:
    """Layers whose ΔW is no M nor Mᵀ by the paper's rule, and of official with α/(r√n), n a square or s given."""
    rows: list[tuple[str, str, tuple[int, int], int, int, dict[str, Any]]] = [
        ("vision", "square", (4, 4), 2, 3, {}),
        ("vision", "square-ragged", (5, 5), 2, 3, {"scaling": 2, "pad": (1, 2, 1)}),
        ("vision", "square-merged", (6, 6), 4, 2, {"merged": True}),
        ("vision", "square-dropped", (4, 4), 3, 2, {"dropped": 2, "fan_in_fan_out": True}),
        ("nlg", "square", (4, 4), 2, 3, {"scaling": 2}),
        ("nlg", "square-few-terms", (6, 6), 2, 2, {"bias": None}),
        ("nlg", "tall", (6, 3), 2, 3, {"fan_in_fan_out": True}),
        ("nlg", "tall-ragged", (7, 4), 3, 2, {"scaling": 2, "pad": (1, 1, 2)}),
        ("nlg", "tall-blocks", (8, 2), 2, 4, {"lead": (2, 2)}),
        ("nlg", "tall-dropped", (5, 4), 2, 3, {"dropped": 2}),
        ("nlg", "tall-merged", (5, 3), 2, 2, {"merged": True, "fan_in_fan_out": True}),
        ("kradapter", "wide", (3, 5), 2, 3, {}),
        ("kradapter", "wide-divided", (4, 7), 2, 3, {"lead": (2, 2), "pad": (2, 1, 1)}),
        ("kradapter", "wide-over-ranked", (2, 6), 3, 2, {"bias": None}),
        ("kradapter", "wide-dropped", (3, 4), 2, 3, {"dropped": 2}),
        ("official", "tall-four-terms", (9, 8), 2, 4, {"scaling": 2}),
        ("official", "wide-four-terms", (4, 6), 1, 4, {"scaling": 4, "lead": ()}),
        ("official", "square-given", (5, 5), 2, 3, {"scaling": 2, "alpha": None}),
        ("vision", "square", (5, 5), 2, 3, {"scaling": 0.5, "bases": "vision dense"}),
        ("nlg", "square", (4, 4), 3, 2, {"alpha": 128, "bases": "nlg dense", "context": 4}),
        ("nlg", "tall", (6, 4), 2, 3, {"alpha": 4, "bases": "nlg dense", "context": 4, "dtype": "float32"}),
        ("nlg", "tall-of-wider-bases", (8, 3), 2, 3, {"alpha": 4, "bases": "nlg dense", "context": 4}),
        ("kradapter", "wide", (3, 6), 2, 3, {"bases": "kradapter dense"}),
        ("kradapter", "wide", (4, 5), 2, 3, {"bases": "kradapter dense", "dtype": "float32"}),
        ("official", "tall", (7, 5), 2, 3, {"alpha": 64, "bases": "official dense"}),
        ("official", "wide", (4, 6), 3, 2, {"alpha": 64, "bases": "official sparse"}),
    ]
    for number, (name, what, shape, r, n, options) in enumerate(rows, 1):
        rules = DIALECTS[name]
        scaling = rules.scaling(r, n, options["alpha"]) if options.get("alpha") else options.get("scaling", 1)
        alpha = next((a for a in range(1, 65) if rules.scaling(r, n, a) == scaling and name != "kradapter"), None)
        given = {"alpha": alpha, "terms": n, **options, "scaling": scaling}
        tier = "real" if "bases" in options else "exact"
        yield layer(
            f"dialects-layer-{number:03}-{name}-{what}-{tier}", 600 + number, shape, r, rules.pairing, dialect=name,
            orientation=rules.orientation, **given,
        )  # fmt: skip


def has_deviation(case: Case, seed: int) -> bool:
    """Whether PEFT can divide by the deviation: a small ternary A may be all zero."""
    try:
        return bool(expected(replace(case, seed=seed)))
    except ZeroDivisionError:
        return False


def rank_cases() -> Iterator[Case]:
    """Factors whose rank is certain, and why it is what it is."""
    rows: list[tuple[str, tuple[int, int], int, int, dict[str, Any]]] = [
        ("full", (6, 5), 2, 5, {}),
        ("full-wide", (4, 7), 3, 4, {}),
        ("zero-column", (6, 5), 2, 4, {"zero": 2}),
        ("equal-gammas", (6, 5), 2, 2, {"equal": True}),
        ("too-few-terms", (6, 5), 2, 4, {"terms": 2}),
        ("zero-lambda", (5, 4), 2, 0, {"lambda_": np.zeros((2, 2))}),
        ("square", (6, 6), 2, 6, {"scaling": 2}),
    ]
    number = 0
    for name, shape, r, rank, options in rows:
        for pairing in ("literal", "crossed"):
            number += 1
            for stream in range(300 + number, 9999, 100):  # the first that has the rank it should
                case = rank_case(f"rank-{number:03}-{name}-{pairing}", stream, shape, r, pairing, **options)
                if oracle.exact_rank(case) == rank:
                    break
            yield case
    B = np.array([[[1.0], [0]], [[0], [1]], [[1], [0]]])
    gamma = np.array([[1.0, 0], [0, 1], [-1, 0]])
    factors = {"A": np.ones((1, 2)), "B": B, "lambda_": np.ones((3, 1)), "gamma": gamma}
    yield rank_case("rank-015-cancelling", 0, (2, 2), 1, "literal", terms=3, **factors)


def rank_case(
    id_: str,
    stream: int,
    shape: Any,
    r: int,
    pairing: Any,
    zero: int | None = None,
    equal: bool = False,
    **options: Any,
) -> Case:
    """The factors of a layer case; column ``zero`` of A zero, all rows of Γ ``equal``."""
    made = layer("", stream, shape, r, pairing, **options)
    A, gamma = made.A.copy(), made.gamma.copy()
    if zero is not None:
        A[:, zero] = 0
    if equal:
        gamma[:] = gamma[0] + 4 * (gamma[0] == 0)
    case = Case(
        id=id_, kind="rank", shape=shape, pairing=pairing, A=A, B=made.B, lambda_=made.lambda_, gamma=gamma,
        scaling=made.scaling, clause="rank; §4.1, Lemma D.1",
    )  # fmt: skip
    return replace(case, notes=("deficient",) if oracle.exact_rank(case) < min(shape) else ())


def full_json(case: Case) -> dict[str, Any]:
    """A case with its expected results, and what helps to find a fault."""
    out = {**vectors.case_to_json(case)}
    if case.kind == "layer":
        results = answers.layer(case, Fraction)
        dtype = "int" if case.tier == "exact" else "float64"
        out["expected"] = {name: vectors.encode(to_float64(results[name]), dtype) for name in case.wanted}
        if case.tier == "real":
            absolute = case.with_arrays(np.abs)
            gauge = answers.layer(replace(absolute, scaling=abs(case.scaling)), Fraction)
            out["gauge"] = {name: vectors.encode(to_float64(gauge[name]), dtype) for name in case.wanted}
        else:
            n = len(case.lambda_)
            A, B = spec.layer_bases(case.A, case.B, n, case.weight.shape, case.orientation)
            paired = np.stack([spec.term_basis(B, j, case.pairing) for j in range(n)])
            scaled = case.lambda_[:, :, None] * spec.khatri_rao(A, case.gamma)
            out["intermediate"] = {"B_paired": vectors.encode(paired), "lambda_A_gamma": vectors.encode(scaled)}
    elif case.kind == "block":
        digits = block_cases.in_fifty_digits(case)
        out["expected"] = {name: vectors.encode(to_float64(digits[name]), "float64") for name in case.wanted}
    elif case.kind == "bases":
        out["expected"] = {name: vectors.encode(x.astype(np.float32), "float32") for name, x in expected(case).items()}
        if case.dialect == "paper":
            words = {f"stream {t}": [oracle.philox_word(case.seed, t, e) for e in range(8)] for t in (0, 1)}
        else:
            stream = oracle.mt19937(case.seed)
            words = {"MT19937": [next(stream) for _ in range(8)]}
        out["intermediate"] = {name: [f"{word:08x}" for word in some] for name, some in words.items()}
    else:
        dtype = "float64" if case.kind == "start" else "int"
        out["expected"] = {name: vectors.encode(x, dtype) for name, x in expected(case).items()}
    return out


def files() -> dict[str, str]:
    """Every generated file's text by name."""
    exact, real, other = list(exact_cases()), list(real_cases()), list(other_cases())
    dropout, block = list(dropout_cases()), list(block_cases.block_cases())
    cases = {"layer-exact.json": exact, "layer-real.json": real, "rank.json": list(rank_cases())}
    cases |= {"layer-dropout.json": dropout, "block.json": block, "dialects.json": list(dialect_cases())}
    cases |= {"telling.json": list(telling_cases())}
    cases |= {f"{kind}.json": [c for c in other if c.kind == kind] for kind in ("bases", "start", "count")}
    texts = {name: as_text("cases", [full_json(case) for case in some]) for name, some in cases.items()}
    negatives = negative_cases(exact[0], real[0], full_json(exact[0]))
    texts["negative.json"] = as_text("cases", negatives)
    summed = exact + [case for case in dropout if case.tier == "exact"]
    results = ((c.id, {k: v for k, v in answers.layer(c).items() if k in c.wanted}) for c in summed)
    manifest = {
        "format": vectors.FORMAT, "version": vectors.VERSION, "spec_version": spec.SPEC_VERSION, "license": "CC0-1.0",
        "exact_sha256": vectors.exact_digest(results),
        "files": {
            name: {"sha256": hashlib.sha256(text.encode()).hexdigest(), "cases": len(cases.get(name, negatives))}
            for name, text in sorted(texts.items())
        },
        "notes": NOTES,
    }  # fmt: skip
    return {**texts, "MANIFEST.json": json.dumps(manifest, ensure_ascii=False, indent=2) + "\n"}


def as_text(key: str, rows: list[Any]) -> str:
    lines = ",\n".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows)
    return f'{{"format":"{vectors.FORMAT}","version":{vectors.VERSION},"{key}":[\n{lines}\n]}}\n'


if __name__ == "__main__":
    vectors.STORED.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (vectors.STORED / name).write_text(text, encoding="utf-8")
