"""What is exact of each function: integers, zeros, limits, types; erf and attention beside plain loops; refusals.

Values and gradients beside the specification are drawn in ``test_properties``.
"""

import math
from dataclasses import replace
from itertools import product
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from randlora_ref import Bases, RandLoRA, checks, nn, spec
from randlora_ref.adapters.randlora import ORDERS

FORMULAS = {
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x / (1 + math.exp(-1.702 * x)),
    "silu": lambda x: x / (1 + math.exp(-x)),
}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def close(actual: Any, expected: Any, limit: float = 1e-14) -> bool:
    """Within ``limit`` of the largest entry; False for NaN."""
    return bool(np.all(np.abs(actual - np.asarray(expected)) <= limit * np.max(np.abs(expected), initial=1e-300)))


@given(st.data())
def test_linear_on_integers(library: Any, data: Any) -> None:
    """With an adapter, in every order, with and without ∂L/∂W, and without one: equal to the specification."""
    out, inner, rank = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    rows, pairing = data.draw(st.sampled_from([0, 1, 40])), data.draw(st.sampled_from(["literal", "crossed"]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    D, d = spec.sides((out, inner))
    n = spec.number_of_terms((out, inner), rank)
    case = {"x": (rows, inner), "weight": (out, inner), "bias": (out,), "dy": (rows, out)}
    case |= {"lambda_": (n, rank), "gamma": (n, d)}
    host = {name: rng.integers(-2, 3, shape).astype(np.float64) for name, shape in case.items()}
    host |= {"A": rng.integers(-1, 2, (rank, d)).astype(float), "B": rng.integers(-1, 2, (n, D, rank)).astype(float)}
    own = {name: library.array(x) for name, x in host.items()}
    adapter = RandLoRA(
        out_features=out, in_features=inner, rank=rank, bases=Bases(own["A"], own["B"]),
        lambda_=own["lambda_"], gamma=own["gamma"], scaling=2.0, dialect="paper" if pairing == "literal" else "peft",
    )  # fmt: skip
    factors = [host[name] for name in ("A", "B", "lambda_", "gamma")]
    y_expected = spec.forward(host["x"], host["weight"], host["bias"], *factors, 2, pairing)
    expected = spec.backward(host["dy"], host["x"], host["weight"], *factors, 2, pairing)
    for order, weight_grad in product((None, *ORDERS), (False, True)):
        y, cache = nn.linear(own["x"], own["weight"], own["bias"], replace(adapter, order=order))
        dx, grads = nn.linear_backward(own["dy"], cache, weight_grad=weight_grad)
        assert np.array_equal(library.host(y), y_expected)
        found = {"x": dx, **grads._asdict()}
        assert (found["weight"] is not None) == weight_grad
        for name, x in found.items():
            assert x is None or np.array_equal(library.host(x), getattr(expected, name)), name
    y, cache = nn.linear(own["x"], own["weight"])
    dx, grads = nn.linear_backward(own["dy"], cache, weight_grad=True)
    assert np.array_equal(library.host(y), host["x"] @ host["weight"].T)
    assert np.array_equal(library.host(dx), host["dy"] @ host["weight"])
    assert np.array_equal(library.host(grads.weight), host["dy"].T @ host["x"])
    assert grads.bias is None


def test_erf_beside_the_c_library(library: Any) -> None:
    """At most 2 units in the last place in float64, 4 in float32; odd, and 1 far out."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-7, 7, 4000), rng.uniform(-1.2, 1.2, 4000), 10.0 ** rng.uniform(-300, 300, 500)])
    x = np.concatenate([x, np.nextafter(1, [0, 2]), [0.0, -0.0, 1.0, -1.0, 6.0, 26.9, 27.0, 27.1, 1e300, -1e300]])
    for dtype, limit in ((np.float64, 2), (np.float32, 4)):
        own = x[(np.abs(x) < 1e38) & ((np.abs(x) > 1e-37) | (x == 0))].astype(dtype) if dtype == np.float32 else x
        value, decay = (library.host(found) for found in nn.erf(library.array(own)))
        expected = np.array([math.erf(float(entry)) for entry in own])
        assert value.dtype == dtype
        assert np.max(np.abs(value - expected) / np.spacing(np.abs(expected).astype(dtype))) <= limit
        with np.errstate(over="ignore", under="ignore"):
            assert close(decay, np.exp(-(own.astype(np.float64) ** 2)), 4 * np.finfo(dtype).eps)
        assert np.array_equal(library.host(nn.erf(library.array(-own))[0]), -value)
        assert np.array_equal(np.signbit(value), np.signbit(own))


@pytest.mark.parametrize("kind", FORMULAS)
def test_activations(library: Any, kind: str) -> None:
    """Each value within 8 ε·|x| of the plain formula by the C library, far out too, in the precision of x."""
    x = np.concatenate([normal(3, 50) * 4, np.array([[-700.0, 700.0, 0.0, 1e-300] + [0.0] * 46])])
    with np.errstate(over="ignore"):
        expected = np.array([FORMULAS[kind](max(entry, -400.0)) for entry in x.ravel()]).reshape(x.shape)
    for dtype in (np.float64, np.float32):
        y, _ = nn.activation(library.array(x.astype(dtype)), kind)
        assert library.host(y).dtype == dtype
        assert np.all(np.abs(library.host(y) - expected) <= 8 * np.finfo(dtype).eps * np.maximum(np.abs(x), 1e-3))


@pytest.mark.parametrize(("dtype", "far"), [(np.float64, 37.0), (np.float32, 12.5)])
def test_gelu_keeps_its_places_far_to_the_left(library: Any, dtype: Any, far: float) -> None:
    """x·Φ(x) and its slope beside 40 digits, each within u of *itself*, not of x, times 16 + 2.5·x², or twice that.

    The exponent x²/2 is right to five roundings, 2.5·x²·u in all; the slope is a difference of two such, at most half
    of their sum where x <= −1.5.
    """
    x = np.linspace(-far, -1.5, 500).astype(dtype)
    found = [library.host(one) for one in nn.activation(library.array(x), "gelu")]
    with mpmath.workdps(40):
        wide = [mpmath.mpf(float(one)) for one in x]
        right = [[t * mpmath.ncdf(t) for t in wide], [mpmath.ncdf(t) + t * mpmath.npdf(t) for t in wide]]
        for times, values, exact in zip((1, 2), found, right, strict=True):
            error = [abs(float(mpmath.mpf(float(y)) / one - 1)) for y, one in zip(values, exact, strict=True)]
            assert np.all(error <= times * (16 + 2.5 * x.astype(float) ** 2) * np.finfo(dtype).eps / 2)


@pytest.mark.parametrize("function", [nn.layer_norm, nn.rms_norm])
def test_norms(library: Any, function: Any) -> None:
    """Gradients of weight and bias that are not asked for are not there, and ∂L/∂x is the same to the bit."""
    x, w, b, dy = (library.array(part) for part in (normal(2, 3, 7), normal(7), normal(7, seed=1), normal(2, 3, 7)))
    _, cache = function(x, w, b, 0.5)
    (dx, none), (same, _) = nn.norm_backward(dy, cache), nn.norm_backward(dy, cache, weight_grad=True)
    assert none == (None, None)
    assert np.array_equal(library.host(dx), library.host(same))


def test_a_vector_of_no_length(library: Any) -> None:
    """It stays zero, and its length counts as one in backward; its neighbours are of length one."""
    x, dy = normal(3, 4), normal(3, 4, seed=1)
    x[1] = 0
    y, cache = nn.normalize(library.array(x))
    assert close(np.sum(library.host(y) ** 2, axis=-1), [1.0, 0.0, 1.0])
    assert np.array_equal(library.host(nn.normalize_backward(library.array(dy), cache))[1], dy[1])


def naive_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """One query at a time, over the keys it sees; zero where it sees none."""
    out = np.zeros_like(q)
    shared = q.shape[1] // k.shape[1]
    for b, h, t in np.ndindex(q.shape[:3]):
        keys = np.flatnonzero(seen[b, t])
        scores = np.array([q[b, h, t] @ k[b, h // shared, s] / math.sqrt(q.shape[-1]) for s in keys])
        weights = np.exp(scores - np.max(scores, initial=-math.inf)) if len(keys) else scores
        for weight, s in zip(weights, keys, strict=True):
            out[b, h, t] += weight / np.sum(weights) * v[b, h // shared, s]
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_attention(library: Any, causal: bool, padded: bool) -> None:
    """Grouped queries against plain loops, under masks of every type; what is hidden takes no gradient whatever.

    Nor do scores so far apart that P is one or zero.
    """
    q, k, v, do = normal(2, 6, 5, 4), normal(2, 3, 5, 4), normal(2, 3, 5, 4, seed=1), normal(2, 6, 5, 4, seed=2)
    k[0] *= 1e9  # scores far apart
    padding = np.array([[1, 1, 1, 0, 1], [0, 0, 1, 1, 0]])
    seen = np.broadcast_to(np.tril(np.ones((5, 5))) if causal else np.ones((5, 5)), (2, 5, 5)) > 0
    seen = seen & (padding[:, None, :] > 0) if padded else seen
    for mask in (padding, padding > 0, padding.astype(np.uint8)):
        own = library.array(mask) if padded else None
        bias = nn.additive_mask(library.array(q), 5, causal=causal, mask=own)
        out, cache = nn.attention(library.array(q), library.array(k), library.array(v), bias)
        assert close(library.host(out), naive_attention(q, k, v, seen))
    dq, dk, dv = (library.host(found) for found in nn.attention_backward(library.array(do), cache))
    assert not np.any(dq[0])
    assert not np.any(dk[0])
    if padded:
        assert not np.any(dk[:, :, padding[0] == 0][0])
        assert not np.any(dv[1][:, padding[1] == 0])
    if padded and causal:
        assert not np.any(library.host(out)[1, :, :2])
        assert not np.any(dq[1, :, :2])


@given(st.lists(st.integers(0, 6), max_size=40), st.integers(0, 99))
def test_embedding_on_integers(library: Any, ids: list[int], seed: int) -> None:
    """Rows looked up, and gradients summed row by row, exactly: repeated ids, absent ids, none at all."""
    rng, places = np.random.default_rng(seed), np.array(ids, dtype=np.int64).reshape(1, -1)
    table, dy = rng.integers(-9, 10, (7, 3)).astype(float), rng.integers(-9, 10, (1, len(ids), 3)).astype(float)
    y, cache = nn.embedding(library.array(places), library.array(table))
    expected = np.zeros((7, 3))
    for place, row in enumerate(ids):
        assert np.array_equal(library.host(y)[0, place], table[row])
        expected[row] += dy[0, place]
    assert np.array_equal(library.host(nn.embedding_backward(library.array(dy), cache)), expected)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "uint64"])
def test_narrow_ids(library: Any, dtype: str) -> None:
    """A table longer than the type of the ids reaches: each row its own sum, and each label its own logit."""
    host, size = np.array([[0, 127, 5, 127]], dtype=dtype), 300
    table, dy, expected = normal(size, 2), normal(1, 4, 2), np.zeros((size, 2))
    np.add.at(expected, host, dy)
    y, cache = nn.embedding(library.array(host), library.array(table))
    assert np.array_equal(library.host(y), table[host])
    assert np.array_equal(library.host(nn.embedding_backward(library.array(dy), cache)), expected)
    z = normal(4, size)
    narrow, wide = (nn.cross_entropy(library.array(z), library.array(labels[0])) for labels in (host, host.astype(int)))
    assert library.host(narrow[0]) == library.host(wide[0])
    gradients = [library.host(nn.cross_entropy_backward(cache)) for _, cache in (narrow, wide)]
    assert np.array_equal(*gradients)


def test_cross_entropy_of_logits_far_apart(library: Any) -> None:
    """Where all but the largest vanish, L is a mean of differences, and ∂L/∂z is (e_largest − e_label)/N to the bit."""
    z, labels = normal(5, 7), np.array([0, 6, -100, 3, 3])
    counts, chosen = labels >= 0, np.maximum(labels, 0)
    for scale in (1e4, 1e300):
        loss, cache = nn.cross_entropy(library.array(scale * z), library.array(labels))
        differences = np.max(scale * z, axis=1) - scale * z[np.arange(5), chosen]
        assert close(library.host(loss), np.mean(differences[counts]))
        right = (np.eye(7)[np.argmax(z, axis=1)] - np.eye(7)[chosen]) * counts[:, None] / 4
        assert np.array_equal(library.host(nn.cross_entropy_backward(cache)), right)


def test_cross_entropy_of_no_labels(library: Any) -> None:
    """Nothing counts: zero, and zero gradient, where PyTorch has NaN."""
    loss, cache = nn.cross_entropy(library.array(normal(5, 7)), library.array(np.full(5, -100)))
    assert library.host(loss) == 0
    assert not np.any(library.host(nn.cross_entropy_backward(cache)))


def test_bad_arguments(library: Any) -> None:
    """Each is refused by an error that names the argument."""
    table, x = library.array(normal(7, 4)), library.array(normal(2, 6, 5, 4))
    for ids, value in ((np.array([1, 7]), "7"), (np.array([-1, 3]), "-1")):
        with pytest.raises(IndexError, match=rf"ids: holds {value}; .* 0 … 6"):
            nn.embedding(library.array(ids), table)
        with pytest.raises(IndexError, match=rf"labels: holds {value}; .* or -100"):
            nn.cross_entropy(library.array(normal(2, 7)), library.array(ids))
    with pytest.raises(TypeError, match="ids: dtype float64"):
        nn.embedding(library.array(np.array([1.0])), table)
    with pytest.raises(ValueError, match="k: shape"):
        nn.attention(x, library.array(normal(2, 4, 5, 4)), library.array(normal(2, 4, 5, 4)))
    with pytest.raises(ValueError, match=r"mask: .* must be"):
        nn.additive_mask(x, 5, mask=library.array(np.ones((2, 4), dtype=np.int64)))
    with pytest.raises(ValueError, match="mask: for"):
        nn.attention(x, x, x, nn.additive_mask(x, 5, mask=library.array(np.ones((3, 5), dtype=np.int64))))
    with pytest.raises(ValueError, match="width: 5"):
        nn.rotary_tables(x, 4, 5, 100.0)
    with pytest.raises(ValueError, match="pixels: shape"):
        nn.patches(x, 3)
    with pytest.raises(ValueError, match="kind: 'relu'"):
        nn.activation(x, "relu")
    with pytest.raises(ValueError, match="labels: shape"):
        nn.cross_entropy(library.array(normal(2, 7)), library.array(np.array([1])))
    with pytest.raises(ValueError, match="x: shape"):
        nn.linear(table, library.array(normal(3, 5)))
    with pytest.raises(ValueError, match="key_heads: 4"):
        nn.BlockSpec(width=12, hidden=4, heads=6, key_heads=4, head_width=2, eps=0.1, activation="silu")


def test_one_transfer_checks_both_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids and labels are checked by one boolean read from the device."""
    import array_api_strict as xp

    kind, reads = type(xp.asarray(1)), []
    original = kind.__bool__
    monkeypatch.setattr(kind, "__bool__", lambda self: reads.append(1) or original(self))
    ids = xp.asarray([1, 2], device=xp.Device("device1"))
    nn.check_range(ids=(ids, 3, None), labels=(ids, 3, -100))
    assert len(reads) == 1
    assert checks.namespace(ids=ids) is xp
