"""What every adapter must satisfy, checked exactly on small integers against a plain formula for ΔW."""

from collections.abc import Callable
from typing import Any, NamedTuple

import array_api_strict
import numpy as np
import pytest
from hypothesis import strategies as st

from randlora_ref import certify_rank

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


def build(method: Any, library: Any, case: Case, dtype: str | None = None) -> Any:
    """A case's adapter; ``method`` has ``cls``, ``plain`` and ``arguments(case) -> (learned, frozen, numbers)``."""
    learned, frozen, numbers = method.arguments(case)
    made = {name: library.array(x.astype(dtype or case.dtype)) for name, x in (learned | frozen).items()}
    return method.cls(out_features=case.shape[0], in_features=case.shape[1], **made, **numbers)


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
    total = 0
    for product in terms:
        matrices = [
            sum_of_products(factor) if isinstance(factor, tuple) else np.asarray(factor, dtype=np.float64)
            for factor in product
        ]
        result = np.eye(matrices[0].shape[0])
        for matrix in matrices:
            result = result @ (np.diag(matrix) if matrix.ndim == 1 else matrix)
        total = total + result
    return total


class Properties:
    """The checks, each for any method, library and case."""

    cases = CASES

    @staticmethod
    def forward_and_gradients(method: Any, library: Any, case: Case) -> None:
        """y is the formula's, and each gradient dp has ⟨dy, f(p + u) − f(p)⟩ = ⟨dp, u⟩, for p = 0 cotangents too."""
        learned, frozen, numbers = method.arguments(case)
        given, adapter = layer(case), build(method, library, case)

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

    @staticmethod
    def update(method: Any, library: Any, case: Case) -> None:
        """ΔW, its factors, merging, counting and replacing."""
        learned, frozen, numbers = method.arguments(case)
        adapter, expected = build(method, library, case), method.plain(case.shape, **learned, **frozen, **numbers)
        np.testing.assert_array_equal(library.host(adapter.delta_weight()), expected)
        scaling = getattr(adapter, "scaling", 1.0)
        host = _hosted(library, adapter.factors())
        np.testing.assert_array_equal(scaling * sum_of_products(host), expected)
        weight = layer(case)["weight"]
        merged = adapter.merge(library.array(weight.astype(case.dtype)))
        np.testing.assert_array_equal(library.host(merged), weight + expected)
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

    @staticmethod
    def complex_values(method: Any, library: Any, case: Case) -> None:
        """Complex integers pass through both ways, and nothing is conjugated."""
        case = case._replace(dtype="float64")
        learned, frozen, numbers = method.arguments(case)
        given = layer(case)
        mask, imaginary = given.pop("dropout_mask"), {"x": 1j * case.integers(*given["x"].shape, salt=301)}
        adapter = build(method, library, case, dtype="complex128")
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

    @staticmethod
    def refusals(make: Callable[[], Any], good: dict[str, Any]) -> None:
        """What every adapter refuses; ``make`` gives one of shape (5, 3), ``good`` its constructor's arguments."""
        adapter = make()
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
                    type(adapter)(**{**good, name: wrong})
        for name in {"out_features", "in_features", "rank"} & set(good):
            for wrong in (0, -1, 1.5, "3"):
                with pytest.raises(ValueError, match=r"rank: |shape: "):
                    type(adapter)(**{**good, name: wrong})

    @staticmethod
    def starts(start: Callable[..., Any], library: Any, *, zero: bool = True) -> Any:
        """A started adapter: the same numbers on every library, deterministic, another for another seed, ΔW = 0."""
        adapter = start(dtype="float64", xp=library.xp, device=library.device)
        again = start(dtype="float64")
        for name in {"A", "B", *type(adapter).LEARNED} & set(vars(again)):
            np.testing.assert_array_equal(library.host(getattr(adapter, name)), getattr(again, name))
        single = start(dtype="float32")
        assert single.delta_weight().dtype == np.float32
        assert np.any(again.delta_weight()) != zero
        with pytest.raises(ValueError, match=r"dtype: 'int8'; it must be"):
            start(dtype="int8")
        return again


def _of(changed: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    return {name: x for name, x in changed.items() if name in names}


def _hosted(library: Any, terms: Any) -> Any:
    if isinstance(terms, tuple):
        return tuple(_hosted(library, part) for part in terms)
    return library.host(terms)


@pytest.fixture(scope="session")
def properties() -> Properties:
    """The checks that all adapters share."""
    return Properties()
