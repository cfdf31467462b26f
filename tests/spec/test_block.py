"""The specification of the block, proven by nothing of ours: 50 digits, the complex step, and an example by hand."""

import doctest
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from spec import parts, proof

from randlora_ref import nn
from randlora_ref.spec import block

ANALYTIC = ("gelu_tanh", "quick_gelu", "silu")


def test_the_worked_example_is_right() -> None:
    """The block of width 2 in the docstring, worked out by hand."""
    outcome = doctest.testmod(block)
    assert outcome.attempted >= 12
    assert outcome.failed == 0


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("part", parts.ALL, ids=lambda part: part.__name__)
def test_every_part(part: Callable[..., parts.Ratios], seed: int) -> None:
    """Each function alone equals 50 digits, and its backward the derivative, at points chosen to be awkward."""
    found = list(part(block, seed))
    assert [(what, ratio) for what, ratio in found if not ratio <= 1] == []
    assert len(found) >= 8


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", proof.FIXED, ids=lambda case: f"{case.activation}-{case.seed}")
def test_the_block_in_fifty_digits(case: proof.Case, dtype: str) -> None:
    """y of seven kinds of block, which between them have every choice, in both precisions."""
    assert proof.value_gap(block, case, dtype) <= 1


@given(proof.cases())
def test_drawn_blocks_in_fifty_digits(case: proof.Case) -> None:
    """y of any block."""
    assert proof.value_gap(block, case) <= 1


@given(proof.cases(ANALYTIC))
def test_every_gradient_of_drawn_blocks_by_the_complex_step(case: proof.Case) -> None:
    """x, weights, biases, Λ, Γ, norms, and the cotangent of every role's output, one direction each."""
    assert proof.gradient_gap(block, case) <= 1


@given(proof.cases(("gelu",)))
def test_every_gradient_of_drawn_blocks_with_exact_gelu(case: proof.Case) -> None:
    """The same where no complex step can go: differences in 50 digits along one direction of all tensors."""
    assert proof.gradient_gap_by_differences(block, case) <= 1


@pytest.mark.parametrize("case", proof.FIXED, ids=lambda case: f"{case.activation}-{case.seed}")
def test_every_gradient_by_differences_in_fifty_digits(case: proof.Case) -> None:
    """Seven kinds of block, analytic ones among them: complex step and differences are of one mind."""
    assert proof.gradient_gap_by_differences(block, case) <= 1


@pytest.mark.parametrize("case", proof.FIXED, ids=lambda case: f"{case.activation}-{case.seed}")
def test_float32_stays_float32(case: proof.Case) -> None:
    """Every gradient is float32, and within the limit of that precision of what float64 gives from the same numbers."""
    built = proof.build(case, block, "float32")
    expected = proof.gradients(block, proof.widened(built))
    largest = max(float(np.max(np.abs(gradient))) for gradient in expected.values())
    for name, gradient in proof.gradients(block, built).items():
        assert gradient.dtype == np.float32, name
        assert np.max(np.abs(gradient - expected[name])) <= 4096 * proof.U["float32"] * largest, name


def test_visible_by_its_words() -> None:
    """Query t sees key s if s <= t, where causal, and if the mask is not zero at s, boolean or integer."""
    mask = np.array([[0, 1, 2], [1, 0, 1]])
    for causal in (False, True):
        for given_mask in (mask, mask != 0):
            expected = [[[(s <= t or not causal) and bool(row[s]) for s in range(3)] for t in range(3)] for row in mask]
            assert block.visible(3, causal, given_mask).tolist() == expected
        assert block.visible(3, causal).tolist() == [[[s <= t or not causal for s in range(3)] for t in range(3)]]


def test_llama3_scales_three_kinds_of_wavelength() -> None:
    """Kept, in part, divided by the factor: each of the three occurs in what the tests above turn by."""
    angles = [
        np.arctan2(sin[1], cos[1])
        for cos, sin in (block.rotary_tables(2, 6, 100.0, proof.SCALINGS[kind]) for kind in ("llama3", "default"))
    ]
    ratio = angles[0] / angles[1]
    assert ratio[0] == pytest.approx(1, abs=1e-15)
    assert 0.126 < ratio[1] < 0.999
    assert ratio[2] == pytest.approx(1 / 8, abs=1e-15)


def test_softmax_overflows_nowhere() -> None:
    """Scores of a thousand, hidden ones above all that is seen, and a shift of all of them."""
    scores, seen = np.array([1000.0, 1000 + math.log(3), 5000.0, -5000.0]), np.array([True, True, False, True])
    assert block.softmax(scores, seen) == pytest.approx([0.25, 0.75, 0, 0], rel=1e-13)
    assert block.softmax(scores - 1000, seen) == pytest.approx([0.25, 0.75, 0, 0], rel=1e-13)


def test_exact_gelu_refuses_complex_numbers() -> None:
    """No complex erf: an error, and no wrong derivative."""
    with pytest.raises(TypeError):
        block.activation(np.array([1 + 1e-30j]), "gelu")


def test_what_a_role_is_given_and_gives() -> None:
    """G is Σ dyᵀ(x∘m) of the role's own input and cotangent, ∂L/∂W without the m; no update, no Λ and no Γ."""
    case = replace(proof.FIXED[4], adapted=0.5)
    built = proof.build(case, block)
    _, inputs = block.block_forward(*(built[n] for n in ("x", "kind", "parameters", "updates", "seen", "tables")))
    _, gradients = proof.backward(block, built)
    assert set(gradients) == {"norm1", "norm2", *case.shapes()}
    assert 0 < len(built["updates"]) < len(case.shapes())
    for role in case.shapes():
        own, update = gradients[role], built["updates"].get(role)
        mask = update.dropout_mask if update else 1
        for found, x in ((own.weight, inputs[role]), (own.delta_weight, inputs[role] * mask)):
            assert proof.distance(found, np.einsum("bto,bti->oi", own.y, x)) <= 1
        assert (own.lambda_ is None) == (own.gamma is None) == (update is None)


def test_nn_block_spec_is_a_kind() -> None:
    """``nn.BlockSpec`` is taken as it is, with the same result bit for bit."""
    case = proof.FIXED[2]
    built = proof.build(case, block)
    sizes = (case.width, case.hidden, case.heads, case.key_heads, case.head_width, case.eps, case.activation)
    kind = nn.BlockSpec(*sizes, centred=case.centred, fused=case.fused, gated=case.gated)
    own = block.BlockKind(case.head_width, case.eps, case.activation, case.centred, case.fused, case.gated)
    ys = [proof.forward(block, {**built, "kind": one}) for one in (case, kind, own)]
    assert np.array_equal(ys[0], ys[1])
    assert np.array_equal(ys[0], ys[2])
