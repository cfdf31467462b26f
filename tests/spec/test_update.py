"""The specification: its worked examples, index loops written out from the paper, and the exact adjoint."""

import doctest
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import layer_case

from randlora_ref import spec
from randlora_ref.verify import integers

DIMENSION = st.integers(1, 6)
LEADING = st.sampled_from([(), (0,), (1,), (3,), (2, 2), (2, 0, 2)])


@st.composite
def layer_cases(draw: st.DrawFn) -> dict[str, Any]:
    """Integer layers of every shape: wide, tall, square, r∤d, r = d, r > d, n = 1, r = 1, any leading axes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(DIMENSION), draw(DIMENSION))
    pairing, mask = draw(st.sampled_from(["literal", "crossed"])), draw(st.booleans())
    return layer_case(rng, shape, draw(DIMENSION), draw(DIMENSION), draw(LEADING), mask, pairing=pairing)


def update_by_index(case: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Eq. 4 entry by entry, with the crossing of ``facts``: B_crossed[j, :, k] = B[f // r, :, f % r], f = k·n + j."""
    out, in_ = case["weight"].shape
    n, r = case["lambda_"].shape
    update = np.full((out, in_), Fraction(0), dtype=object)
    for o in range(max(out, in_)):
        for i in range(min(out, in_)):
            for j in range(n):
                for k in range(r):
                    f = j * r + k if case["pairing"] == "literal" else k * n + j
                    product = Fraction(case["B"][f // r, o, f % r]) * Fraction(case["lambda_"][j, k])
                    product *= Fraction(case["A"][k, i]) * Fraction(case["gamma"][j, i]) * Fraction(case["scaling"])
                    update[(o, i) if out >= in_ else (i, o)] += product
    return update


def test_the_worked_examples_are_right() -> None:
    """Both examples of the docstring, which were worked out by hand."""
    outcome = doctest.testmod(spec.update)
    assert outcome.attempted >= 10
    assert outcome.failed == 0


def test_the_package_has_every_name_of_its_modules() -> None:
    """What was one module once, and what was added, is found under ``spec`` itself."""
    names = "Array CountRule Gradients Orientation Pairing SPEC_VERSION backward delta_weight delta_weight_khatri_rao "
    names += "forward is_transposed khatri_rao layer_bases number_of_terms oriented pullback rows sides term_basis "
    names += "weight_cotangent"
    for name in names.split():
        assert getattr(spec, name) is getattr(spec.update, name), name
    for name in (name for name in vars(spec.block) if not name.startswith("_")):
        assert getattr(spec, name) is getattr(spec.block, name), name
    assert spec.forward is not spec.block_forward


def test_first_example_by_hand() -> None:
    """[1 0 1]ᵀ·2·[1 2]·diag(1, 3) + [0 1 1]ᵀ·1·[1 2]·diag(2, 1), multiplied out on paper."""
    A, B = np.array([[1, 2]]), np.array([[[1], [0], [1]], [[0], [1], [1]]])
    update = spec.delta_weight(A, B, np.array([[2], [1]]), np.array([[1, 3], [2, 1]]), (3, 2))
    assert update.tolist() == [[2, 12], [2, 2], [4, 14]]


@given(layer_cases())
def test_update_is_the_sum_of_the_paper(case: dict[str, Any]) -> None:
    """Both forms equal the index loops, in rationals and in float64."""
    arguments = {name: case[name] for name in ("A", "B", "lambda_", "gamma", "scaling", "pairing")}
    expected = update_by_index(case)
    for function in (spec.delta_weight, spec.delta_weight_khatri_rao):
        assert np.array_equal(function(shape=case["weight"].shape, **arguments), expected.astype(np.float64))


@given(layer_cases())
def test_layer_is_the_product_with_the_updated_weight(case: dict[str, Any]) -> None:
    """y[t, o] = Σ_i x[t, i] (W0[o, i] + m[t, i] ΔW[o, i]) + b[o]."""
    update = update_by_index(case).astype(np.float64)
    x, mask = case["x"], np.ones_like(case["x"]) if case["dropout_mask"] is None else case["dropout_mask"]
    y = np.einsum("...i,oi->...o", x, case["weight"]) + np.einsum("...i,...i,oi->...o", x, mask, update) + case["bias"]
    arguments = {name: value for name, value in case.items() if name != "dy"}
    assert np.array_equal(spec.forward(**arguments), y)


@given(layer_cases(), st.integers(0, 2**32 - 1))
def test_every_gradient_by_the_exact_adjoint(case: dict[str, Any], seed: int) -> None:
    """⟨dy, f(p + u) − f(p)⟩ = ⟨∂L/∂p, u⟩ exactly, for each argument that f is affine in."""
    gradients = spec.backward(**{name: value for name, value in case.items() if name != "bias"})._asdict()
    arguments = {name: value for name, value in case.items() if name != "dy"}
    for name, gradient in gradients.items():
        step = integers.small(np.random.default_rng(seed), *case[name].shape)
        assert gradient.shape == case[name].shape

        def f(p: Any, name: str = name) -> Any:
            return spec.forward(**(arguments | {name: p}))

        change = f(case[name] + step) - f(case[name])
        assert integers.adjoint_gap(case["dy"], change, gradient, step) == 0


ORIENTED = {  # ΔW (out, in) of M (D, d), as NumPy has it
    "paper": lambda M, out, in_: M if out >= in_ else M.T,
    "square_transposed": lambda M, out, in_: M if out > in_ else M.T,
    "never": lambda M, out, in_: M,
    "reshape": lambda M, out, in_: M.reshape(in_, out).T,
}


@given(st.sampled_from(sorted(ORIENTED)), DIMENSION, DIMENSION, DIMENSION, st.booleans(), st.integers(0, 2**32 - 1))
def test_every_orientation(orientation: Any, out: int, in_: int, r: int, crossed: bool, seed: int) -> None:
    """ΔW in both forms from Σ_j B_j Λ_j A Γ_j by NumPy, and ∂L/∂Λ, ∂L/∂Γ by the exact adjoint."""
    rng, n = np.random.default_rng(seed), 3
    D, d = (out, in_) if orientation == "never" else spec.sides((out, in_))
    sizes = {"A": (r, d + 1), "B": (n + 1, D + 2, r), "lambda_": (n, r), "gamma": (n, d)}
    own: dict[str, Any] = {name: integers.small(rng, *size) for name, size in sizes.items()}
    own |= {"scaling": 2, "pairing": "crossed" if crossed else "literal", "orientation": orientation}
    columns = own["B"][:n, :D].transpose(1, 0, 2).reshape(D, n * r)  # column f of [B_1 … B_n]
    rows = own["lambda_"][:, :, None] * own["A"][:, :d] * own["gamma"][:, None, :]  # (n, r, d)
    rows = (rows.swapaxes(0, 1) if crossed else rows).reshape(n * r, d)
    right = ORIENTED[orientation](2 * columns @ rows, out, in_)
    assert right.shape == (out, in_)
    for function in (spec.delta_weight, spec.delta_weight_khatri_rao):
        assert np.array_equal(function(shape=(out, in_), **own), right)
    G = integers.small(rng, out, in_)
    gradients = dict(zip(("lambda_", "gamma"), spec.pullback(G, **own), strict=True))
    for name, gradient in gradients.items():
        step = integers.small(rng, *own[name].shape)
        moved = spec.delta_weight(shape=(out, in_), **(own | {name: own[name] + step}))
        assert np.sum(G * (moved - right)) == np.sum(gradient * step)


@given(layer_cases())
def test_rationals_and_integers_give_the_same(case: dict[str, Any]) -> None:
    """Fractions, int64 and float64 through the same lines (the scaling ½ taken out, to stay whole)."""
    arguments = {name: value for name, value in case.items() if name not in ("bias", "scaling", "dropout_mask")}
    floats = spec.backward(**arguments)
    for convert in (lambda x: x.astype(np.int64), lambda x: x.astype(np.int64).astype(object) * Fraction(1)):
        exact = spec.backward(**{k: convert(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()})
        for ours, theirs in zip(exact, floats, strict=True):
            assert np.array_equal(np.asarray(ours, dtype=np.float64), theirs)


def test_on_every_array_library(library: Any) -> None:
    """Operators and indexing are all it takes."""
    case = layer_case(np.random.default_rng(3), (4, 6), 2, 3, (2, 3), pairing="crossed")
    arguments = {k: library.array(v) if isinstance(v, np.ndarray) else v for k, v in case.items() if k != "bias"}
    expected = spec.backward(**{k: v for k, v in case.items() if k != "bias"})
    for ours, theirs in zip(spec.backward(**arguments), expected, strict=True):
        assert np.array_equal(library.host(ours), theirs)
    y = spec.forward(bias=library.array(case["bias"]), **{k: v for k, v in arguments.items() if k != "dy"})
    assert np.array_equal(library.host(y), spec.forward(**{k: v for k, v in case.items() if k != "dy"}))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("ceil", [1, 3, 4, 24]), ("floor", [1, 3, 3, 24]), ("floor+1", [1, 4, 4, 25]), ("ceil+1", [2, 4, 5, 25])],
)
def test_number_of_terms(rule: Any, expected: list[int]) -> None:
    """d = 3, 6, 7, 768 at r = 4, 2, 2, 32."""
    shapes = [((3, 9), 4), ((6, 6), 2), ((8, 7), 2), ((768, 3072), 32)]
    assert [spec.number_of_terms(shape, rank, rule) for shape, rank in shapes] == expected


def test_unknown_rules_are_named() -> None:
    """A wrong rule or pairing is an error that lists the right ones."""
    with pytest.raises(ValueError, match="'round'; it must be one of ceil, floor"):
        spec.number_of_terms((3, 3), 2, "round")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'mixed'; it must be 'literal'"):
        spec.term_basis(np.zeros((1, 2, 1)), 0, "mixed")  # type: ignore[arg-type]
