"""The oracles themselves: what is right passes, what is wrong does not, NaN least of all."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from strategies import layer_case

from randlora_ref import nn, spec
from randlora_ref.verify import audit, complex_step, functions, gauge, integers, models, points
from randlora_ref.verify.configurations import HOST
from randlora_ref.verify.points import Point, Results


def test_limit_is_the_formula() -> None:
    """16·u·G up to 256 products, then the square root of their number."""
    assert gauge.limit(3.0, 10, 2.0**-24) == pytest.approx(48 * 2.0**-24)
    assert gauge.limit(1.0, 1024, 2.0**-53) == pytest.approx(32 * 2.0**-53)


def test_a_plain_running_sum_passes_where_sixteen_would_not() -> None:
    """10,000 random positive float32 numbers added one by one, twenty times: some over 16·u·G, all within."""
    terms = np.random.default_rng(0).random((20, 10**4)).astype(np.float32)
    naive = np.cumsum(terms, axis=1, dtype=np.float32)[:, -1].astype(np.float64)
    exact = terms.sum(axis=1, dtype=np.float64)
    assert gauge.ratio(naive, exact, 16 * 2.0**-24 * exact) > 1
    assert gauge.ratio(naive, exact, gauge.limit(exact, 10**4, 2.0**-24)) <= 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_fails_first(bad: float) -> None:
    """Infinity is over every limit, even where the expected value is as infinite."""
    x = np.array([1.0, bad])
    for other in (np.ones(2), x):
        assert gauge.ratio(x, other, np.full(2, np.inf)) == np.inf
        assert points.apart({"": x}, {"": other}, [""]) == np.inf
        assert points.differ({"": x[1:]}, {"": other}) > 0
    assert points.differ({"": np.array(np.nan)}, {"": np.array(np.nan)}) == 1
    assert not audit.Property("", float("nan"), 1, "").ok
    assert not audit.Property("", -1.0, 1, "").ok
    assert audit.Property("", 0.0, 0, "").ok


def test_other_shapes_fail() -> None:
    """Broadcasting would hide a missing axis."""
    assert gauge.ratio(np.ones((1, 3)), np.ones(3), 1.0) == np.inf
    assert points.differ({"": np.ones((1, 3))}, {"": np.ones(3)}) > 0


def test_true_zeros_compare_as_zero() -> None:
    """Where the result is zero by cancellation what cancels sets the scale, not the result."""
    for error, size, least, most in ((1e-17, 1.0, 1e-18, 1e-16), (1e-3, 1.0, 1e-4, 1e-2), (1e-17, 0.0, 1e12, np.inf)):
        assert least <= points.apart({"": np.array([error])}, {"": np.zeros(1)}, [""], size) <= most
    assert points.apart({"": np.zeros(3)}, {"": np.zeros(3)}, [""]) == 0


def test_adjoint_sees_each_wrong_gradient() -> None:
    """A right gradient has gap 0; one sign, one transposed, one scaled or one missing entry does not."""
    rng = np.random.default_rng(0)
    case = layer_case(rng, (5, 5), 2, 3)
    arguments = {name: x for name, x in case.items() if name != "dy"}
    right = gauge.expected(case)["gamma"]
    step = integers.small(rng, *right.shape) + 0.0

    def f(gamma: Any) -> Any:
        return spec.forward(**(arguments | {"gamma": gamma}))

    change = f(case["gamma"] + step) - f(case["gamma"])
    assert integers.adjoint_gap(case["dy"], change, right, step) == 0
    for wrong in (-right, 2 * right, right[::-1], np.zeros_like(right)):
        assert integers.adjoint_gap(case["dy"], change, wrong, step) != 0


def test_small_integers_are_small() -> None:
    """Every integer of [−3, 3] and no other: products stay exact."""
    drawn = integers.small(np.random.default_rng(0), 1000)
    assert drawn.dtype == np.float64
    assert set(drawn.tolist()) == {-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0}


def test_complex_step_has_no_step_error() -> None:
    """d/dx of exp(x)·sin(x)³, to the last bits, where a finite difference has half of them."""
    x, u = np.array([0.3, 1.7]), np.array([1.0, -2.0])
    derivative = np.exp(x) * np.sin(x) ** 2 * (np.sin(x) + 3 * np.cos(x)) * u
    found = complex_step.directional(lambda z: np.exp(z) * np.sin(z) ** 3, x, u)
    assert np.max(np.abs(found / derivative - 1)) < 1e-15


@pytest.mark.parametrize("name", ["numpy", "strict"])
def test_every_property_holds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit but its blocks and models, on NumPy and on array-api-strict with a device that is not the default.

    Those hold on every library in ``tests/nn`` and ``tests/models``. A third of what is audited is drawn.
    """
    parts = [part for part in audit.PARTS if part not in ("block", "models")]
    few = {part: names[:: 3 if len(names) > 8 else 1] for part, names in audit.DRAWN.items()}
    monkeypatch.setattr(audit, "DRAWN", few | {"nn": list(functions.FUNCTIONS)})
    found = list(audit.properties(strict() if name == "strict" else audit.Backend(np), parts=parts))
    assert [one for one in found if not one.ok] == []
    assert len(found) >= 26


def strict() -> audit.Backend:
    """A backend that is not NumPy."""
    import array_api_strict

    return audit.Backend(array_api_strict, array_api_strict.Device("device1"))


@pytest.mark.parametrize(
    ("name", "off", "part", "drawn"),
    [
        ("linear", 1e-11, "nn", "linear"),
        ("embedding", 1e-11, "nn", "embedding"),
        ("activation", 1e-11, "nn", "gelu_tanh"),
        ("attention", float("nan"), "nn", "attention"),
        ("block", 1e-11, "block", ""),
    ],
)
def test_the_audit_sees_what_another_library_alone_computes_wrongly(
    name: str, off: float, part: str, drawn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NumPy's results are right, the other's off by a factor, or NaN: its outputs are no longer the specification's."""
    right = getattr(nn, name)

    def wrong(*args: Any, **kwargs: Any) -> Any:
        y, cache = right(*args, **kwargs)
        return (y if isinstance(y, np.ndarray) else y * (1 + off)), cache

    monkeypatch.setattr(nn, name, wrong)
    monkeypatch.setitem(audit.DRAWN, part, 4 * [drawn])
    failed = [one.name for one in audit.properties(strict(), parts=[part]) if not one.ok]
    assert any(one.startswith(f"{part}: outputs are the specification's") for one in failed), failed


@pytest.mark.parametrize("factor", [0.0, 1 + 1e-9, np.nan])
@pytest.mark.parametrize("name", functions.FUNCTIONS)
def test_a_wrong_gradient_of_a_function_is_seen(name: str, factor: float) -> None:
    """One tensor's gradient zero, wrong in the ninth digit or NaN: by the complex step, and by the specification."""
    point = functions.draw_function(name, lambda options: options[0])
    for key in point.values:
        wrong = Broken(point.values, point.dy, point, key, factor, size=point.size)
        assert not points.step(wrong, HOST) <= 1e-12, key
        assert not points.specified(wrong, HOST, gradients=True) <= 1e-12, key
    assert points.step(point, HOST) <= 1e-12


@dataclass(frozen=True, eq=False)
class Broken(Point):
    """A point with the gradient of ``key`` off by a factor."""

    right: Point
    key: str
    factor: float

    def run(self, values: Results, dy: Any = None) -> Results:
        found = self.right.run(values, dy)
        return found | ({} if dy is None else {self.key: self.factor * found[self.key]})

    def expected(self, values: Results, dy: Any) -> Results:
        return self.right.expected(values, dy)


@pytest.mark.parametrize("name", models.KINDS)
def test_a_wrong_gradient_of_a_model_is_seen(name: str) -> None:
    """In the seventh digit, of any tensor that is not small beside the largest."""
    point = models.draw_model(name, lambda options: options[0]).build()
    found = {key: np.max(np.abs(x)) for key, x in point.results().items() if key in point.values}
    large = [key for key, size in found.items() if size > 1e-2 * max(found.values())]
    assert len(large) > 5
    for key in large[:: len(large) // 5]:
        assert points.drawn_step(point, HOST, [key]) <= 1e-8
        wrong = Broken(point.values, point.dy, point, key, 1 + 1e-6, size=point.size)
        assert not points.drawn_step(wrong, HOST, [key]) <= 1e-8, key


@pytest.mark.gpu
def test_every_property_holds_on_a_gpu(cupy: Any) -> None:
    """The same on CuPy: bases and exact tier bit for bit, the rest within its limits."""
    failed = [one for one in audit.properties(audit.Backend(cupy.xp, cupy.device)) if not one.ok]
    assert failed == []


def faults() -> dict[str, tuple[str, Any, str, Any]]:
    """What is broken by hand: the property that must see it, then owner, name and replacement."""
    from randlora_ref.adapters.randlora import RandLoRA

    pull_back, K, words = RandLoRA._pull_back_delta, RandLoRA._K, audit.prng.philox_words
    basis, pullback = spec.term_basis, spec.pullback

    def unscaled(self: Any, xp: Any, dy: Any, x: Any) -> Any:
        return tuple(gradient / self.scaling for gradient in pull_back(self, xp, dy, x))

    def gamma_without_lambda(self: Any, xp: Any, dy: Any, x: Any) -> Any:
        ones = self.replace(lambda_=0 * self.lambda_ + 1)
        return pull_back(self, xp, dy, x)[0], pull_back(ones, xp, dy, x)[1]

    def lambda_without_gamma(G: Any, A: Any, B: Any, lambda_: Any, gamma: Any, *rest: Any) -> Any:
        return pullback(G, A, B, lambda_, 0 * gamma + 1, *rest)[0], pullback(G, A, B, lambda_, gamma, *rest)[1]

    def one_late(seed: int, term: int, start: int, stop: int, *rest: Any) -> Any:
        return words(seed, term, start + 1, stop + 1, *rest)

    exact, real = "layer: results beside", "layer on reals: outputs"
    return {
        "scaling left out of the gradients": (exact, RandLoRA, "_pull_back_delta", unscaled),
        "dΓ without Λ": (exact, RandLoRA, "_pull_back_delta", gamma_without_lambda),
        "K off in the tenth digit": (real, RandLoRA, "_K", lambda self, xp: K(self, xp) * (1 + 1e-10)),
        "K not finite": (exact, RandLoRA, "_K", lambda self, xp: K(self, xp) + float("nan")),
        "Philox one word late": ("known answers: Philox", audit.prng, "philox_words", one_late),
        "literal pairing crossed": (exact, spec.update, "term_basis", lambda B, j, pairing: basis(B, j, "crossed")),
        "the spec's dΛ without Γ": ("spec: every gradient", spec.update, "pullback", lambda_without_gamma),
        "a layer that raises": ("layer: stopped by", RandLoRA, "_order", None),
    }


@pytest.mark.parametrize("fault", list(faults()))
def test_the_audit_sees_code_broken_by_hand(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No property is there that cannot fail, and each fault is seen where it is."""
    expected, owner, name, broken = faults()[fault]
    monkeypatch.setattr(owner, name, broken)
    failed = [one.name for one in audit.properties(parts=[expected.partition(":")[0]]) if not one.ok]
    assert any(one.startswith(expected) for one in failed), failed


@pytest.mark.filterwarnings("ignore")  # as an error the warning hides the fault
def test_gauges_of_one_entry_keep_their_axes() -> None:
    """NumPy 2.0 makes a number of such an array where it is asked for a float64, and warns."""
    case = layer_case(np.random.default_rng(0), (1, 1), 1, 1, (1,))
    assert {name: np.shape(x) for name, x in gauge.layer_gauges(case).items() if name in case} == {
        name: np.shape(x) for name, x in case.items() if name in ("x", "weight", "bias", "lambda_", "gamma")
    }
