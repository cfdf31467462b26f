"""The authors' own code, as numbers that it gave (torch 2.13 on a CPU): layers, starts, counts.

``tests/authors`` holds them; sources: github.com/PaulAlbert31/RandLoRA at 4ac565e, github.com/PaulAlbert31/KRAdapter at
ea88a71. Exact cases are integers under 2²⁴, so every order of summation gives the same bits in float32; real ones were
computed in float32 and are compared to 1e-5 of an array's largest entry.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from randlora_ref import DIALECTS, Bases, Dialect, RandLoRA, draw_bases, spec

FOLDER = Path(__file__).parents[1] / "authors"
NAMES = ("official", "nlg", "vision", "kradapter")
FILES = {name: np.load(FOLDER / f"{name}.npz") for name in NAMES}


def cases(kind: str) -> list[Any]:
    """(dialect, case) of every case of one kind."""
    found = [(name, case) for name in NAMES for case in sorted({key.partition("/")[0] for key in FILES[name].files})]
    return [pytest.param(name, case, id=f"{name} {case}") for name, case in found if case.startswith(f"{kind}-")]


def read(name: str, case: str) -> dict[str, Any]:
    """A case's arrays by name."""
    return {key.partition("/")[2]: FILES[name][key] for key in FILES[name].files if key.startswith(f"{case}/")}


def dialect_of(name: str, case: str) -> Dialect:
    """NLG's fused c_attn is two square layers on views of B, vision's in_proj one tall layer: both take M itself."""
    return replace(DIALECTS[name], orientation="paper") if "c_attn" in case or "in_proj" in case else DIALECTS[name]


def layers() -> list[Any]:
    """(dialect, case, order) of every layer, in each order that its dialect has: a reshape has the merged alone."""
    found = []
    for name, case in (one.values for one in cases("layer")):
        orders = ("merged",) if dialect_of(name, case).orientation == "reshape" else ("merged", "thin", "termwise")
        found += [pytest.param(name, case, order, id=f"{name} {case} {order}") for order in orders]
    return found


@pytest.mark.parametrize(("name", "case", "order"), layers())
def test_layers(name: str, case: str, order: Any) -> None:
    """ΔW, y and every gradient, of stored bases that are larger than the layer."""
    own, dialect = read(name, case), dialect_of(name, case)
    out, in_ = (int(side) for side in own["shape"])
    layer = RandLoRA(
        out_features=out, in_features=in_, rank=int(own["rank"]), bases=Bases(own["A"], own["B"]), order=order,
        lambda_=own["lambda_"], gamma=own["gamma"], dialect=dialect, scaling=float(own["scaling"]),
    )  # fmt: skip
    found = {"delta_weight": layer.delta_weight()}
    if "y" in own:
        found["y"], cache = layer.forward(own["x"], own["weight"])
        found["dx"], grads = layer.backward(own["dy"], cache)
        found |= {"dlambda": grads.lambda_, "dgamma": grads.gamma}
    for tensor, ours in found.items():
        theirs, exact = own[tensor], bool(own["exact"])
        assert ours.shape == theirs.shape, tensor
        assert np.abs(ours - theirs).max() <= (0 if exact else 1e-5 * np.abs(theirs).max()), tensor


@pytest.mark.parametrize(("name", "case"), [one for one in cases("layer") if "merged" in read(*one.values)])
def test_merged_weights(name: str, case: str) -> None:
    """W0 plus what each code's own merge adds, and back; y and ∂L/∂x of vision's layers after it.

    Merge and forward part on vision's square layers alone: its forward takes Mᵀ there, its merge M.
    """
    own, dialect = read(name, case), dialect_of(name, case)
    out, in_ = (int(side) for side in own["shape"])
    layer = RandLoRA(
        out_features=out, in_features=in_, rank=int(own["rank"]), bases=Bases(own["A"], own["B"]), dialect=dialect,
        lambda_=own["lambda_"], gamma=own["gamma"], scaling=float(own["scaling"]),
    )  # fmt: skip
    weight = own["weight"] if "weight" in own else np.zeros((out, in_), np.float32)
    merged = layer.merge(weight)
    pairs = [(merged, own["merged"]), (layer.unmerge(merged), weight)]
    if "y_merged" in own:
        pairs += [(own["x"] @ merged.T, own["y_merged"]), (own["dy"] @ merged, own["dx_merged"])]
    for ours, theirs in pairs:
        size = max(np.abs(theirs).max(), np.abs(merged).max())
        assert np.abs(ours - theirs).max() <= (0 if own["exact"] else 1e-5 * size)
    square = out == in_ and dialect.orientation == "square_transposed"
    assert np.array_equal(merged, weight + layer.delta_weight()) != (square and bool(layer.delta_weight().any()))


@pytest.mark.parametrize(("name", "case"), cases("layer"))
def test_the_specification(name: str, case: str) -> None:
    """ΔW, and ∂L/∂Λ, ∂L/∂Γ from G = dyᵀx, by ``spec`` in float64; on exact cases no entry differs."""
    own, rules = read(name, case), dialect_of(name, case)
    A, B, lambda_, gamma = (own[part].astype(np.float64) for part in ("A", "B", "lambda_", "gamma"))
    given: dict[str, Any] = {
        "scaling": float(own["scaling"]),
        "pairing": rules.pairing,
        "orientation": rules.orientation,
    }
    shape = (int(own["shape"][0]), int(own["shape"][1]))
    found = {"delta_weight": spec.delta_weight(A, B, lambda_, gamma, shape, **given)}
    if "dy" in own:
        G = own["dy"].astype(np.float64).T @ own["x"].astype(np.float64)
        found["dlambda"], found["dgamma"] = spec.pullback(G, A, B, lambda_, gamma, **given)
    for tensor, ours in found.items():
        worst = np.abs(ours - own[tensor]).max()
        assert worst <= (0 if own["exact"] else 1e-5 * np.abs(own[tensor]).max()), tensor


@pytest.mark.parametrize(("name", "case"), cases("start"))
def test_starts_and_counts(name: str, case: str) -> None:
    """n, the two constants, Γ's width, the number of learned values and the scaling.

    NLG's c_attn learns q and v in one: Γ is (n, 2d), begins at 1/max(n, 2d), and there are twice as many values.
    """
    own, dialect = read(name, case), dialect_of(name, case)
    shape, rank = (int(own["shape"][0]), int(own["shape"][1])), int(own["rank"])
    context = int(own["context"]) if "context" in own else None
    n = dialect.terms(shape, rank, context=context)
    lambda_, gamma = dialect.start(shape, rank, n)
    learned, width = dialect.num_parameters(shape, rank, context=context), spec.sides(shape, dialect.orientation)[1]
    if "c_attn" in case:
        gamma, learned, width = 1 / max(n, 2 * width), 2 * learned, 2 * width
    assert (n, learned, width) == (own["terms"], own["num_parameters"], own["gamma_width"])
    assert np.float32(lambda_) == own["lambda_start"]
    assert np.float32(gamma) == own["gamma_start"]
    assert dialect.scaling(rank, n, float(own["alpha"]) if "alpha" in own else None) == pytest.approx(
        float(own["scaling"]), rel=2**-52
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_starts_as_its_code_starts_it(name: str) -> None:
    """From the seed: bases, n, starts and scaling are the record's, and ΔW is zero."""
    dialect = replace(DIALECTS[name], context=16) if name == "nlg" else DIALECTS[name]
    shape = (12, 8) if name == "vision" else (8, 12)
    layer = RandLoRA.start(*shape, rank=3, dialect=dialect)
    assert layer.n == dialect.terms(shape, 3)
    assert layer.num_parameters() == dialect.num_parameters(shape, 3)
    assert layer.scaling == dialect.scaling(3, layer.n)
    assert not layer.delta_weight().any()
    y, cache = layer.forward(np.ones((2, shape[1]), np.float32), np.ones(shape, np.float32))
    _, grads = layer.backward(y, cache)
    assert grads.lambda_.any() or grads.gamma.any()


def test_what_their_code_cannot_do_is_refused() -> None:
    """Sides are not sorted, so B has too few rows for a tall layer alone, in vision for a wide one; and so on."""
    why = r"; 'official' draws bases of max\(in\), max\(out\), too small for this layer alone: give bases"
    with pytest.raises(ValueError, match=f"a layer of n = 2, D = 9, d = 4 needs 9 in B{why}"):
        RandLoRA.start(9, 4, rank=2, dialect="official")
    shared = draw_bases("official", shapes=[(9, 4), (4, 9)], rank=2)
    assert RandLoRA.start(9, 4, rank=2, dialect="official", bases=shared).bases is shared
    with pytest.raises(ValueError, match="'thin'; it must be one of None, merged; what is reshaped has no other"):
        replace(RandLoRA.start(4, 4, rank=2, dialect=replace(DIALECTS["nlg"], context=4)), order="thin")
    with pytest.raises(ValueError, match="a layer of n = 3, D = 9, d = 4 needs 9 in B; 'vision' draws"):
        RandLoRA.start(4, 9, rank=2, dialect="vision")
    with pytest.raises(ValueError, match=r"n = 2, D = 9, d = 4 needs 4 in A; 'nlg' draws bases of 4\*context, context"):
        RandLoRA.start(9, 4, rank=2, dialect=replace(DIALECTS["nlg"], context=3))
    with pytest.raises(ValueError, match="context: None"):
        RandLoRA.start(4, 4, rank=2, dialect="nlg")
