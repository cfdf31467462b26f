"""What every adapter must satisfy, checked exactly on small integers against a plain formula for ΔW.

A method that is new needs one entry in ``METHODS``.
"""

import importlib
import pickle
from collections.abc import Callable
from dataclasses import fields
from typing import Any, NamedTuple

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from randlora_ref import DIALECTS, Bases, RandLoRA, adapters, certify_rank, checks, spec
from randlora_ref.adapters import FullFineTuning, LoRA, NoLA, RandLoRAa, VeRA
from randlora_ref.arrays import Reshaped

SIDES = st.tuples(st.integers(1, 6), st.integers(1, 6))
BATCHES = st.sampled_from([(), (0,), (1,), (5,), (2, 0), (2, 3), (1, 2, 2)])


class Case(NamedTuple):
    """Sizes drawn by hypothesis; the numbers come from ``seed``, and are never constant."""

    shape: tuple[int, int]
    rank: int
    batch: tuple[int, ...]
    bias: bool
    dropout: bool
    weight_grad: bool
    dtype: str
    seed: int

    def integers(self, *shape: int, salt: int = 0, size: int = 3) -> Any:
        """Integers in ±size, other ones for each ``salt``."""
        return np.random.default_rng((self.seed, salt)).integers(-size, size + 1, shape)


CASES = st.builds(
    Case,
    shape=SIDES,
    rank=st.integers(1, 4),
    batch=BATCHES,
    bias=st.booleans(),
    dropout=st.booleans(),
    weight_grad=st.booleans(),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 2**32 - 1),
)


class Method(NamedTuple):
    """An adapter: its start, whether ΔW is zero there, ``arguments(case) -> (learned, frozen, numbers)``, plain ΔW."""

    cls: Any
    start: Callable[..., Any]
    arguments: Callable[[Case], tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]
    plain: Callable[..., Any]
    zero: bool = True

    def make(self, shape: tuple[int, int], **given: Any) -> Any:
        """The adapter from its arrays and numbers; A and B are RandLoRA's ``bases``."""
        if self.cls is RandLoRA:
            given["bases"] = Bases(given.pop("A"), given.pop("B"))
        return self.cls(**{"out_features": shape[0], "in_features": shape[1], **given})

    def build(self, library: Any, case: Case, dtype: str | None = None) -> Any:
        """A case's adapter."""
        learned, frozen, numbers = self.arguments(case)
        made = {name: library.array(x.astype(dtype or case.dtype)) for name, x in (learned | frozen).items()}
        return self.make(case.shape, **made, **numbers)


def randlora(case: Case) -> Any:
    """Shared bases two columns, a row and a term larger than the layer, in any order of contraction and dialect."""
    dialect = tuple(DIALECTS.values())[case.seed // 16 % 6]
    (D, d), r, n = spec.sides(case.shape, dialect.orientation), case.rank, 1 + case.seed % 4
    learned = {"lambda_": case.integers(n, r, salt=1), "gamma": case.integers(n, d, salt=2)}
    A, B = case.integers(r, d + 2, salt=3, size=1), case.integers(n + 1, D + 1, r, salt=4, size=1)
    order = (None, "merged", "thin", "termwise")[case.seed // 4 % 4]
    order = None if dialect.orientation == "reshape" else order
    return learned, {"A": A, "B": B}, {"rank": r, "scaling": 2, "dialect": dialect, "order": order}


def plain_randlora(shape: Any, lambda_: Any, gamma: Any, A: Any, B: Any, scaling: Any, dialect: Any, **_: Any) -> Any:
    return spec.delta_weight(A, B, lambda_, gamma, shape, scaling, dialect.pairing, dialect.orientation)


def as_merged(dialect: Any, delta: Any) -> Any:
    """What ``merge`` adds: ΔW; in vision's dialect the transpose of a square layer's, as that code has it."""
    turned = dialect is not None and dialect.name == "vision" and delta.shape[0] == delta.shape[1]
    return delta.T if turned else delta


def lora(case: Case) -> Any:
    (out, in_), r = case.shape, case.rank
    return {"A": case.integers(r, in_, salt=1), "B": case.integers(out, r, salt=2)}, {}, {"rank": r, "alpha": 2 * r}


def plain_lora(shape: Any, A: Any, B: Any, rank: int, alpha: float) -> Any:
    return alpha // rank * np.einsum("or,ri->oi", B, A)


def vera(case: Case) -> Any:
    """Shared bases two columns and one row larger than the layer: what the layer does not use is a rogue value."""
    (out, in_), r = case.shape, case.rank
    A, B = np.full((r, in_ + 2), 7777), np.full((out + 1, r), 7777)
    A[:, :in_], B[:out] = case.integers(r, in_, salt=3), case.integers(out, r, salt=4)
    learned = {"lambda_b": case.integers(out, salt=1), "lambda_d": case.integers(r, salt=2)}
    return learned, {"A": A, "B": B}, {"rank": r}


def plain_vera(shape: Any, lambda_b: Any, lambda_d: Any, A: Any, B: Any, rank: int) -> Any:
    return np.einsum("o,or,r,ri->oi", lambda_b, B[: shape[0]], lambda_d, A[:, : shape[1]])


def nola(case: Case) -> Any:
    (out, in_), r, k = case.shape, case.rank, 1 + case.seed % 5
    A, B = case.integers(k, r, in_, salt=3, size=1), case.integers(k, out, r, salt=4, size=1)
    learned = {"c0": case.integers(k, salt=1), "c1": case.integers(k, salt=2)}
    return learned, {"A": A, "B": B}, {"rank": r, "alpha": 2 * r}


def plain_nola(shape: Any, c0: Any, c1: Any, A: Any, B: Any, rank: int, alpha: float) -> Any:
    return alpha // rank * np.einsum("b,bor,c,cri->oi", c0, B, c1, A)


def randlora_a(case: Case) -> Any:
    (D, d), r, n = spec.sides(case.shape), case.rank, 1 + case.seed % 4
    learned = {"lambda_": case.integers(n, r, salt=1), "gamma": case.integers(n, d, salt=2)}
    A, B = case.integers(n, r, d, salt=3, size=1), case.integers(n, D, r, salt=4, size=1)
    return learned, {"A": A, "B": B}, {"rank": r, "scale": 2}


def plain_randlora_a(shape: Any, lambda_: Any, gamma: Any, A: Any, B: Any, rank: int, scale: int) -> Any:
    M = scale * np.einsum("aok,ak,bki,bi->oi", B, lambda_, A, gamma)
    return M if shape[0] >= shape[1] else M.T


METHODS = {
    "RandLoRA": Method(RandLoRA, lambda **other: RandLoRA.start(9, 7, 2, **other), randlora, plain_randlora),
    "LoRA": Method(LoRA, lambda **other: LoRA.start(50, 400, 16, **other), lora, plain_lora),
    "VeRA": Method(VeRA, lambda **other: VeRA.start(90, 54, 24, **other), vera, plain_vera),
    "NoLA": Method(NoLA, lambda **other: NoLA.start(9, 7, 2, num_bases=50, **other), nola, plain_nola, zero=False),
    "FullFineTuning": Method(
        FullFineTuning,
        lambda **other: FullFineTuning.start(6, 5, **other),
        lambda case: ({"delta": case.integers(*case.shape, salt=1)}, {}, {}),
        lambda shape, delta: delta,
    ),
    "RandLoRAa": Method(RandLoRAa, lambda **other: RandLoRAa.start(9, 7, 2, **other), randlora_a, plain_randlora_a),
}


@pytest.fixture(params=METHODS, scope="session")
def method(request: pytest.FixtureRequest) -> Method:
    """Each adapter."""
    return METHODS[request.param]


def layer(case: Case) -> dict[str, Any]:
    """x, weight, bias and dropout mask of a case, as integers."""
    out_features, in_features = case.shape
    return {
        "x": case.integers(*case.batch, in_features, salt=101),
        "weight": case.integers(out_features, in_features, salt=102),
        "bias": case.integers(out_features, salt=103) if case.bias else None,
        "dropout_mask": 2 * (case.integers(*case.batch, in_features, salt=104) > 0) if case.dropout else None,
    }


def plain_forward(update: Any, x: Any, weight: Any, bias: Any, dropout_mask: Any) -> Any:
    masked = x if dropout_mask is None else x * dropout_mask
    y = np.einsum("oi,...i->...o", weight, x) + np.einsum("oi,...i->...o", update, masked)
    return y if bias is None else y + bias


def sum_of_products(terms: Any) -> Any:
    """The matrix of ``factors()``: diagonals and nested sums written out, in float64."""
    if isinstance(terms, Reshaped):
        return sum_of_products(terms.terms).reshape(terms.shape[::-1]).T
    total = 0
    for product in terms:
        matrices = [
            sum_of_products(factor) if isinstance(factor, (tuple, Reshaped)) else np.asarray(factor, dtype=np.float64)
            for factor in product
        ]
        result = np.eye(matrices[0].shape[0])
        for matrix in matrices:
            result = result @ (np.diag(matrix) if matrix.ndim == 1 else matrix)
        total = total + result
    return total


@examples(30)
@given(case=CASES)
def test_forward_and_gradients(method: Method, library: Any, case: Case) -> None:
    """y is the formula's, and each gradient dp has ⟨dy, f(p + u) − f(p)⟩ = ⟨dp, u⟩, for p = 0 cotangents too."""
    learned, frozen, numbers = method.arguments(case)
    given, adapter = layer(case), method.build(library, case)

    def f(**changed: Any) -> Any:
        update = method.plain(case.shape, **{**learned, **frozen, **numbers, **_of(changed, learned)})
        return plain_forward(update, **{**given, **_of(changed, given)})

    brought = {name: None if x is None else library.array(x.astype(case.dtype)) for name, x in given.items()}
    mask = brought.pop("dropout_mask")
    y, cache = adapter.forward(**brought, dropout_mask=mask)
    y_host = library.host(y)
    assert y_host.dtype == case.dtype
    assert y_host.shape == (*case.batch, case.shape[0])
    np.testing.assert_array_equal(y_host, f())

    dy = case.integers(*case.batch, case.shape[0], salt=105)
    dx, grads = adapter.backward(library.array(dy.astype(case.dtype)), cache, weight_grad=case.weight_grad)
    assert grads._fields == (*learned, "weight", "bias")
    assert (grads.weight is not None) == case.weight_grad
    assert (grads.bias is not None) == case.bias
    found = {"x": dx} | {name: g for name, g in grads._asdict().items() if g is not None}
    for salt, (name, gradient) in enumerate(found.items()):
        p = learned[name] if name in learned else given[name]
        gradient = library.host(gradient)
        assert gradient.shape == p.shape
        assert gradient.dtype == case.dtype
        u = case.integers(*p.shape, salt=200 + salt)
        assert np.sum(dy * (f(**{name: p + u}) - f())) == np.sum(gradient * u), name
    dx, grads = adapter.backward(library.array(0 * dy.astype(case.dtype)), cache, weight_grad=True)
    assert not any(np.any(library.host(g)) for g in (dx, *grads) if g is not None)


@examples(30)
@given(case=CASES)
def test_update_factors_merge_count_replace(method: Method, library: Any, case: Case) -> None:
    """ΔW, its factors, merging, counting and replacing."""
    learned, frozen, numbers = method.arguments(case)
    adapter, expected = method.build(library, case), method.plain(case.shape, **learned, **frozen, **numbers)
    np.testing.assert_array_equal(library.host(adapter.delta_weight()), expected)
    scaling = getattr(adapter, "scaling", 1.0)
    host = _hosted(library, adapter.factors())
    np.testing.assert_array_equal(scaling * sum_of_products(host), expected)
    weight = layer(case)["weight"]
    merged = adapter.merge(library.array(weight.astype(case.dtype)))
    np.testing.assert_array_equal(library.host(merged), weight + as_merged(numbers.get("dialect"), expected))
    np.testing.assert_array_equal(library.host(adapter.unmerge(merged)), weight)
    assert certify_rank(adapter).rank == certify_rank(expected).rank
    assert adapter.shape == case.shape
    assert adapter.num_parameters() == sum(x.size for x in learned.values())
    for name, x in learned.items():
        other = adapter.replace(**{name: library.array((x + 1).astype(case.dtype))})
        changed = method.plain(case.shape, **{**learned, name: x + 1}, **frozen, **numbers)
        np.testing.assert_array_equal(library.host(other.delta_weight()), changed)
    np.testing.assert_array_equal(library.host(adapter.delta_weight()), expected)  # the first is as it was
    with pytest.raises(TypeError, match=r"rank: not learned"):
        adapter.replace(rank=2)


@examples(30)
@given(case=CASES)
def test_complex_values_pass_through(method: Method, library: Any, case: Case) -> None:
    """Complex integers pass through both ways, and nothing is conjugated."""
    case = case._replace(dtype="float64")
    learned, frozen, numbers = method.arguments(case)
    given = layer(case)
    mask, imaginary = given.pop("dropout_mask"), {"x": 1j * case.integers(*given["x"].shape, salt=301)}
    adapter = method.build(library, case, dtype="complex128")
    rotated = {name: (1 + 1j) * x for name, x in learned.items()}
    adapter = adapter.replace(**{name: library.array(x) for name, x in rotated.items()})
    given["x"] = given["x"] + imaginary["x"]
    update = method.plain(case.shape, **rotated, **frozen, **numbers)
    brought = {name: None if x is None else library.array(x.astype("complex128")) for name, x in given.items()}
    masked = None if mask is None else library.array(mask.astype("float64"))
    y, cache = adapter.forward(**brought, dropout_mask=masked)
    np.testing.assert_array_equal(library.host(y), plain_forward(update, **given, dropout_mask=mask))
    dy = case.integers(*case.batch, case.shape[0], salt=302) * (1 - 2j)
    dx, grads = adapter.backward(library.array(dy), cache)
    back = np.einsum("...o,oi->...i", dy, update)
    back = back if mask is None else back * mask
    np.testing.assert_array_equal(library.host(dx), np.einsum("...o,oi->...i", dy, given["weight"]) + back)
    for name, u in {name: case.integers(*x.shape, salt=303) for name, x in learned.items()}.items():
        other = method.plain(case.shape, **{**rotated, name: rotated[name] + u}, **frozen, **numbers)
        step = plain_forward(other, **given, dropout_mask=mask) - plain_forward(update, **given, dropout_mask=mask)
        assert np.sum(dy * step) == np.sum(library.host(getattr(grads, name)) * u), name


def test_what_every_adapter_refuses(method: Method) -> None:
    """By the argument's name, what it was and what it must be."""
    case = Case((5, 3), 2, (2,), False, False, False, "float64", seed=3)
    learned, frozen, numbers = method.arguments(case)
    good = numbers | {name: x.astype("float64") + 0.5 for name, x in (learned | frozen).items()}
    adapter = method.make(case.shape, **good)
    x, weight, dy = np.ones((2, 3)), np.ones((5, 3)), np.ones((2, 5))
    calls = {
        r"x: shape \(2, 4\); it must be \(…, 3\)": lambda: adapter.forward(np.ones((2, 4)), weight),
        r"x: shape \(\)": lambda: adapter.forward(np.array(1.0), weight),
        r"weight: shape \(3, 5\); it must be \(5, 3\)": lambda: adapter.forward(x, weight.T),
        r"bias: shape \(3,\); it must be \(5,\)": lambda: adapter.forward(x, weight, np.ones(3)),
        r"dropout_mask: shape": lambda: adapter.forward(x, weight, dropout_mask=np.ones(3)),
        r"x: dtype int64; it must be": lambda: adapter.forward(x.astype("int64"), weight),
        r"weight: dtype float32; it must be float64": lambda: adapter.forward(x, weight.astype("float32")),
        r"x: list; it must be an array": lambda: adapter.forward([1.0], weight),
        r"dy: shape \(2, 3\); it must be \(2, 5\)": lambda: adapter.backward(x, adapter.forward(x, weight)[1]),
        r"dy: shape \(3, 5\)": lambda: adapter.backward(np.ones((3, 5)), adapter.forward(x, weight)[1]),
        r"weight: an array of array_api_strict": lambda: adapter.forward(x, array_api_strict.asarray(weight)),
        r"x: an array of array_api_strict": lambda: adapter.forward(*map(array_api_strict.asarray, (x, weight))),
        r"dy: shape \(10,\)": lambda: adapter.backward(dy.reshape(-1), adapter.forward(x, weight)[1]),
        r"dy: dtype float32": lambda: adapter.backward(dy.astype("float32"), adapter.forward(x, weight)[1]),
        r"weight: shape \(2, 3\)": lambda: adapter.merge(x),
        r"weight: holds NaN": lambda: adapter.unmerge(weight * np.nan),
    }
    for message, call in calls.items():
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    for name, value in good.items():
        if not isinstance(value, np.ndarray):
            continue
        for wrong, message in (
            (value * np.inf, f"{name}: holds NaN or infinity"),
            (value.astype("int64"), f"{name}: dtype int64; it must be"),
            (value.tolist(), f"{name}: list; it must be an array"),
            (value[None], f"{name}: shape"),
            (value[:0], f"{name}: shape"),
        ):
            with pytest.raises((TypeError, ValueError), match=message), np.errstate(invalid="ignore"):
                method.make(case.shape, **{**good, name: wrong})
    for name in ("out_features", "in_features", *{"rank"} & set(good)):
        for wrong in (0, -1, 1.5, "3"):
            with pytest.raises(ValueError, match=r"rank: |shape: "):
                method.make(case.shape, **{**good, name: wrong})


def test_starts(method: Method, library: Any) -> None:
    """A started adapter: the same numbers on every library, deterministic, another for another seed, ΔW = 0."""
    start = method.start
    adapter = start(dtype="float64", xp=library.xp, device=library.device)
    again = start(dtype="float64")
    for name in type(adapter).LEARNED:
        np.testing.assert_array_equal(library.host(getattr(adapter, name)), getattr(again, name))
    for name in "AB" * (method.cls is not FullFineTuning):
        here, there = (getattr(getattr(one, "bases", one), name) for one in (adapter, again))
        np.testing.assert_array_equal(library.host(here), there)
    single = start(dtype="float32")
    assert single.delta_weight().dtype == np.float32
    assert np.any(again.delta_weight()) != method.zero
    with pytest.raises(ValueError, match=r"dtype: 'int8'; it must be"):
        start(dtype="int8")
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'dtpye'"):
        start(dtpye="float32")


def test_replace_shares_and_reads_nothing_that_did_not_change(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other array, given or derived, is the same object, and the new ones alone are looked at."""
    adapter = method.build(Host, Case((6, 4), 2, (), False, False, False, "float64", seed=3))
    read: list[str] = []
    finite = checks.finite

    def recorded(xp: Any, *, why: Any = None, **named: Any) -> None:
        read.extend(named)
        finite(xp, why=why or {}, **named)

    monkeypatch.setattr(checks, "finite", recorded)
    for name in adapter.LEARNED:
        read.clear()
        other = adapter.replace(**{name: getattr(adapter, name) + 1})
        assert read == [name]
        assert [one.name for one in fields(adapter) if getattr(other, one.name) is not getattr(adapter, one.name)] == [
            name
        ]
        for wrong, message in (
            (np.nan, f"{name}: holds NaN"),
            (np.ones(7), r"(lambda_|gamma|lambda_.|c.|A|B|delta): shape \("),
        ):
            with pytest.raises(ValueError, match=message):
                adapter.replace(**{name: getattr(adapter, name) + wrong if np.ndim(wrong) == 0 else wrong})


def test_gradients_can_be_sent_to_another_process(method: Method) -> None:
    """Their named tuple stands in its module under its name, and so is pickled."""
    case = Case((5, 3), 2, (2,), True, False, True, "float64", seed=3)
    adapter, given = method.build(Host, case), {name: x for name, x in layer(case).items() if x is not None}
    _, cache = adapter.forward(**{name: x.astype("float64") for name, x in given.items()})
    _, grads = adapter.backward(np.ones((2, 5)), cache, weight_grad=True)
    again = pickle.loads(pickle.dumps(grads))
    assert type(again) is type(grads)
    assert all(map(np.array_equal, again, grads))


def test_every_public_name_is_there() -> None:
    """``from randlora_ref.adapters import *`` gives what is listed, every adapter among it."""
    names: dict[str, Any] = {}
    exec("from randlora_ref.adapters import *", names)
    assert set(adapters.__all__) <= set(names)
    assert {"Adapter", "Cache", "Grads", "contraction_costs", *METHODS} <= set(names)
    old = importlib.import_module("randlora_ref.adapters.randlora")
    assert all(hasattr(old, name) for name in ("Grads", "ORDERS", "Order", "contraction_costs"))


class Host:
    """NumPy as it is."""

    array = staticmethod(lambda x: x)


def _of(changed: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    return {name: x for name, x in changed.items() if name in names}


def _hosted(library: Any, terms: Any) -> Any:
    if isinstance(terms, tuple):
        return tuple(_hosted(library, part) for part in terms)
    if isinstance(terms, Reshaped):
        return Reshaped(_hosted(library, terms.terms), terms.shape)
    return library.host(terms)
