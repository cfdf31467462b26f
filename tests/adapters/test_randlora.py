"""The fast layer against the specification, on every array library, in every order of contraction."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from strategies import layer_case

import randlora_ref as rl
from randlora_ref import nn, spec
from randlora_ref.adapters.randlora import ORDERS, contraction_costs
from randlora_ref.verify import gauge

LEADING = st.sampled_from([(), (0,), (1,), (4,), (2, 3), (3, 0, 1)])


@st.composite
def layer_cases(draw: st.DrawFn, elements: Any = None) -> dict[str, Any]:
    """Layers of every shape; integers, or real entries drawn one by one from ``elements``, of smaller shapes then."""
    side = st.integers(1, 7 if elements is None else 4)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pairing, shape, mask = draw(st.sampled_from(["literal", "crossed"])), (draw(side), draw(side)), draw(st.booleans())
    case = layer_case(rng, shape, draw(side), draw(side), draw(LEADING), mask, pairing=pairing)
    if elements is None:
        return case
    sizes = {name: x.shape for name, x in case.items() if isinstance(x, np.ndarray)}
    return case | {
        name: draw(hnp.arrays(np.float64, size, elements=elements, fill=st.nothing())) for name, size in sizes.items()
    }


def adapter(case: dict[str, Any], order: Any = None) -> Any:
    """The fast layer of a case, of whatever its arrays are; the pairing by its dialect."""
    (out_features, in_features), dialect = (
        case["weight"].shape,
        {"literal": "paper", "crossed": "peft"}[case["pairing"]],
    )
    own = {name: case[name] for name in ("lambda_", "gamma", "scaling")} | {"rank": case["lambda_"].shape[1]}
    sides = {"out_features": out_features, "in_features": in_features}
    return rl.RandLoRA(**sides, **own, bases=rl.Bases(case["A"], case["B"]), dialect=dialect, order=order)


def run(library: Any, case: dict[str, Any], dtype: str, order: Any = None) -> dict[str, Any]:
    """Every result of the fast layer on the host, in float64."""
    bring = {name: library.array(np.asarray(x, dtype)) if isinstance(x, np.ndarray) else x for name, x in case.items()}
    layer = adapter(bring, order)
    x, weight, bias, mask = (bring[name] for name in ("x", "weight", "bias", "dropout_mask"))
    y, cache = layer.forward(x, weight, bias, dropout_mask=mask)
    dx, grads = layer.backward(bring["dy"], cache, weight_grad=True)
    results = {"y": y, "delta_weight": layer.delta_weight(), "x": dx, **grads._asdict()}
    return {name: library.host(result).astype(np.float64) for name, result in results.items()}


@pytest.mark.parametrize("order", [None, *ORDERS])
@given(case=layer_cases())
def test_integers_exactly(library: Any, order: Any, case: dict[str, Any]) -> None:
    """Every result equals the specification's, bit for bit, in float64 and float32."""
    expected = gauge.expected(case)
    for dtype in ("float64", "float32"):
        for name, result in run(library, case, dtype, order).items():
            assert np.array_equal(result, expected[name]), name


@given(case=layer_cases(st.floats(-4, 4, width=32)))
def test_reals_within_the_gauge(library: Any, case: dict[str, Any]) -> None:
    """Float32 within 16·max(1, √(m/256))·u·G of the specification in float64, zeros and tiny values included."""
    expected, gauges, m = gauge.expected(case), gauge.layer_gauges(case), gauge.contraction(case)
    tiny = m * 4.0**12 * 2.0**-149  # an underflow is multiplied by at most 4 per factor on its way
    for name, result in run(library, case, "float32").items():
        assert gauge.ratio(result, expected[name], gauge.limit(gauges[name], m, 2.0**-24) + tiny) <= 1, name


def test_half_precision_on_ternary_integers(library: Any) -> None:
    """With every array in {−1, 0, 1} the results fit eleven bits, so float16 is exact too."""
    if library.name == "strict":
        pytest.skip("array-api-strict has no float16")
    case = layer_case(np.random.default_rng(0), (6, 9), 2, 3)
    ternary = {k: np.clip(v, -1, 1) for k, v in case.items() if isinstance(v, np.ndarray)}
    case = case | ternary
    expected = gauge.expected(case)
    assert max(g.max() for g in gauge.layer_gauges(case).values()) < 2**11
    for name, result in run(library, case, "float16").items():
        assert np.array_equal(result, expected[name]), name


@given(case=layer_cases())
def test_padding_is_never_read(case: dict[str, Any]) -> None:
    """NaN in the part of the bases that the layer does not use changes nothing."""
    D, d = spec.sides(case["weight"].shape)
    A, B = case["A"].copy(), case["B"].copy()
    A[:, d:], B[:, D:], B[len(case["lambda_"]) :] = np.nan, np.nan, np.nan
    host = type("Host", (), {"array": staticmethod(lambda x: x), "host": staticmethod(lambda x: x)})
    expected = gauge.expected(case)
    for name, result in run(host, case | {"A": A, "B": B}, "float64").items():
        assert np.array_equal(result, expected[name]), name


STARTS: dict[str, Any] = {  # n, s, Λ, Γ of a smaller side d and r = 3; nlg in a network of context 17
    "paper": lambda d: (-(-d // 3), 2 / (-(-d // 3)) ** 0.5, 0, 1 / d),
    "peft": lambda d: (-(-d // 3), 640 / 3, 0, 1 / d),
    "official": lambda d: (-(-d // 3), 64 / 3 / (-(-d // 3)) ** 0.5, 0, 1 / d),
    "nlg": lambda d: (6, 128 / 3 / 6**0.5, 0, 1 / d),
    "vision": lambda d: (d // 3 + 1, 1 / 3, 1 / 3, 0),
    "kradapter": lambda d: (-(-d // 3) + 1, 1, 1 / (-(-d // 3) + 1), 0),
}


@pytest.mark.parametrize("dialect", STARTS)
@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (8, 8)])
def test_start(library: Any, dialect: str, shape: tuple[int, int]) -> None:
    """ΔW = 0, the dialect's constants, its n and n·(r + d) learned values; KRAdapter's Γ has the width ``in``."""
    rules, there = replace(rl.DIALECTS[dialect], context=17), {"xp": library.xp, "device": library.device}
    both = rl.draw_bases(rules, seed=4, shapes=[shape, shape[::-1]], rank=3, dtype="float64", **there)
    layer = rl.RandLoRA.start(*shape, 3, dialect=rules, bases=both, dtype="float64")
    n, scaling, lambda_, gamma = STARTS[dialect](min(shape))
    width = shape[1] if dialect == "kradapter" else min(shape)
    assert np.array_equal(library.host(layer.delta_weight()), np.zeros(shape))
    assert np.array_equal(library.host(layer.lambda_), np.full((n, 3), lambda_))
    assert np.array_equal(library.host(layer.gamma), np.full((n, width), gamma))
    assert layer.num_parameters() == n * (3 + width)
    assert layer.scaling == pytest.approx(scaling, rel=1e-15)


def test_scalings() -> None:
    """Table 9's 2/√n, Table 8's α/r, PEFT's α/r with α = 640, the official fork's by replacing the rule."""

    def scaling(**options: Any) -> float:
        return rl.RandLoRA.start(9, 9, 3, **options).scaling

    assert scaling(dialect="paper") == 2 / 3**0.5
    assert scaling(dialect="paper", alpha=10) == 10 / 3
    assert scaling() == 640 / 3
    assert scaling(dialect="peft") == 640 / 3
    assert scaling(scaling=0.25) == 0.25
    official = replace(rl.DIALECTS["peft"], scaling_rule="alpha/(r*sqrt(n))", default_alpha=64)
    assert scaling(dialect=official) == 64 / (3 * 3**0.5)
    vision = replace(rl.DIALECTS["peft"], count_rule="floor+1", lambda_start="1/max(n, r)", gamma_start="0")
    layer = rl.RandLoRA.start(9, 9, 3, dialect=vision)
    assert (layer.n, layer.lambda_[0, 0], layer.gamma[0, 0]) == (4, np.float32(1 / 4), 0)


@given(case=layer_cases())
def test_keeping_the_merged_weight_changes_no_result(case: dict[str, Any]) -> None:
    """``keep_merged`` trades memory for time alone: every result is exact with it, as it is without."""
    layer, expected = replace(adapter(case), order="merged"), gauge.expected(case)
    x, weight, bias, mask, dy = (case[name] for name in ("x", "weight", "bias", "dropout_mask", "dy"))
    for keep in (False, True):
        y, cache = layer.forward(x, weight, bias, dropout_mask=mask, keep_merged=keep)
        assert (cache.inner[1] is not None) == keep
        dx, grads = layer.backward(dy, cache, weight_grad=True)
        for name, result in {"y": y, "x": dx, **grads._asdict()}.items():
            assert np.array_equal(result, expected[name]), name


def test_replace_widens_the_bases_and_never_narrows_them(library: Any) -> None:
    """Both learned arrays may change their precision at once; A and B, in any layout, are held in theirs or refused."""
    case = layer_case(np.random.default_rng(0), (6, 9), 2, 3)
    bring = {name: library.array(np.asarray(x, "float32")) for name, x in case.items() if isinstance(x, np.ndarray)}
    layer = adapter(case | bring)
    for dtype in ("float64", "complex64", "complex128"):
        learned = {name: library.array(case[name].astype(dtype)) for name in ("lambda_", "gamma")}
        other, made = layer.replace(**learned), adapter(case | bring | learned)
        assert np.array_equal(library.host(other.delta_weight()), library.host(made.delta_weight()))
        assert library.host(other.delta_weight()).dtype == dtype
        assert (other._B is layer._B) == (dtype == "complex64")
        back = other.replace(lambda_=layer.lambda_, gamma=layer.gamma)
        assert library.host(back.delta_weight()).dtype == np.float32
    wide = {name: library.array(case[name]) for name in ("lambda_", "gamma", "A", "B")}
    with pytest.raises(TypeError, match=r"gamma: dtype float32; it must be float64, as lambda_ is"):
        layer.replace(lambda_=wide["lambda_"])
    with pytest.raises(TypeError, match=r"gamma: dtype float64; it must be float32, as lambda_ is"):
        layer.replace(gamma=wide["gamma"])
    with pytest.raises(TypeError, match=r"A: dtype float64; it must be float32 or narrower, as lambda_ is"):
        adapter(case | wide).replace(lambda_=layer.lambda_, gamma=layer.gamma)


def test_replace_takes_another_number_of_terms() -> None:
    """As many as the bases hold; those that were not read before are read."""
    bases = rl.Bases(np.ones((2, 5)), np.ones((3, 6, 2)))
    bases.B[2] = np.nan
    sizes: dict[str, Any] = {"out_features": 6, "in_features": 5, "rank": 2, "dialect": "paper", "bases": bases}
    layer = rl.RandLoRA(**sizes, lambda_=np.ones((1, 2)), gamma=np.ones((1, 5)))
    assert (
        layer.replace(lambda_=np.ones((2, 2)), gamma=np.ones((2, 5))).delta_weight()[0, 0]
        == 2 * layer.delta_weight()[0, 0]
    )
    with pytest.raises(ValueError, match="B: holds NaN"):
        layer.replace(lambda_=np.ones((3, 2)), gamma=np.ones((3, 5)))
    with pytest.raises(ValueError, match="needs 4 in B"):
        layer.replace(lambda_=np.ones((4, 2)), gamma=np.ones((4, 5)))


def test_the_cheapest_order_is_taken() -> None:
    """At 768×768, r = 32: term by term for one row, thin for 256, merged for 2048 and more."""
    cheapest = {}
    for rows in (1, 256, 2048, 10**6):
        costs = contraction_costs(rows, 768, 768, 24, 32)
        cheapest[rows] = min(costs, key=costs.__getitem__)
    assert cheapest == {1: "termwise", 256: "thin", 2048: "merged", 10**6: "merged"}
    layer = rl.RandLoRA.start(6, 5, 2)
    _, cache = layer.forward(np.ones((1, 5), np.float32), np.ones((6, 5), np.float32))
    assert cache.inner[0] == "termwise"


def test_counted_flops_at_large_batches() -> None:
    """Per row and at nr = d, merged tends to 6Dd and thin to 8Dd + 6d² (``facts`` §9)."""
    costs = contraction_costs(10**9, 3072, 768, 24, 32)
    assert costs["merged"] / 1e9 == pytest.approx(6 * 3072 * 768, rel=1e-3)
    assert costs["thin"] / 1e9 == pytest.approx(8 * 3072 * 768 + 6 * 768**2, rel=1e-3)


def test_at_most_one_boolean_leaves_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A public call reads one boolean of an array at most, and no number: nothing else waits for a GPU."""
    import array_api_strict

    read: list[str] = []
    kind = type(array_api_strict.asarray(0.0))
    for method in ("__bool__", "__float__", "__int__", "__complex__", "__index__"):
        original = getattr(kind, method)

        def counted(self: Any, method: str = method, original: Any = original) -> Any:
            read.append(method)
            return original(self)

        monkeypatch.setattr(kind, method, counted)
    device = array_api_strict.Device("device1")
    layer = rl.RandLoRA.start(6, 5, 2, xp=array_api_strict, device=device)
    assert len(read) <= 1
    options = {"dtype": array_api_strict.float32, "device": device}
    ones = {size: array_api_strict.ones(size, **options) for size in ((3, 5), (6, 5), (3, 6))}
    for call in (
        lambda: layer.replace(gamma=layer.gamma),
        layer.delta_weight,
        lambda: layer.merge(ones[6, 5]),
        lambda: layer.backward(ones[3, 6], layer.forward(ones[3, 5], ones[6, 5])[1]),
    ):
        read.clear()
        call()
        assert len(read) <= 1


GOOD: dict[str, Any] = {
    "dialect": "paper",
    "out_features": 4,
    "in_features": 3,
    "rank": 2,
    "bases": rl.Bases(np.ones((2, 3)), np.ones((2, 4, 2))),
    "lambda_": np.ones((2, 2)),
    "gamma": np.ones((2, 3)),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "rank: 0; it must be a positive integer"),
        ({"out_features": -4}, r"shape: \(-4, 3\); it must be .out, in., two positive integers"),
        ({"lambda_": np.ones((2, 3))}, r"lambda_: shape \(2, 3\); it must be \(n, 2\) with n >= 1"),
        ({"lambda_": np.ones((0, 2))}, r"lambda_: shape \(0, 2\)"),
        ({"lambda_": np.ones((3, 2)), "gamma": np.ones((3, 3))}, "needs 3 in B"),
        ({"gamma": np.ones((2, 4))}, r"gamma: shape \(2, 4\); it must be \(2, 3\)"),
        ({"gamma": np.ones((2, 3), np.float32)}, "gamma: dtype float32; it must be float64"),
        ({"lambda_": np.ones((2, 2), int)}, "lambda_: dtype int64; it must be float16, float32, float64"),
        ({"lambda_": [[1.0, 1.0]]}, "lambda_: list; it must be an array"),
        ({"lambda_": np.array([[1.0, np.nan], [1, 1]])}, "lambda_: holds NaN or infinity; it must be finite"),
        ({"gamma": np.full((2, 3), np.inf)}, "gamma: holds NaN or infinity"),
        ({"bases": rl.Bases(np.full((2, 3), np.nan), np.ones((2, 4, 2)))}, "A: holds NaN or infinity"),
        ({"bases": rl.Bases(np.ones((2, 2)), np.ones((2, 4, 2)))}, "needs 3 in A"),
        ({"bases": rl.Bases(np.ones((3, 3)), np.ones((2, 4, 3)))}, "bases: rank 3; it must be 2"),
        ({"dialect": "vera"}, "dialect: 'vera'; it must be one of paper, peft"),
        ({"alpha": float("inf")}, "alpha: inf; it must be a finite number"),
        ({"order": "fast"}, "order: 'fast'; it must be one of None, merged, thin, termwise"),
    ],
)
def test_bad_adapters_are_named(change: dict[str, Any], message: str) -> None:
    """The argument, what it was and what it must be."""
    with pytest.raises((TypeError, ValueError), match=message):
        rl.RandLoRA(**{**GOOD, **change})


def test_mixed_libraries_and_devices_are_refused() -> None:
    """Nothing is moved unasked: not from NumPy, not from another device."""
    import array_api_strict

    layer = rl.RandLoRA(**GOOD)
    with pytest.raises(
        TypeError, match=r"weight: an array of array_api_strict on .*; .* with adapter, which is of numpy on"
    ):
        layer.forward(np.ones((5, 3)), array_api_strict.ones((4, 3)))
    moved = array_api_strict.ones((4, 3), device=array_api_strict.Device("device1"))
    with pytest.raises(TypeError, match=r"weight: an array of array_api_strict on .*device1"):
        nn.linear(array_api_strict.ones((5, 3)), moved)
