"""Every door computes rightly or refuses by name: precision, layout, kind of array, numbers, ids.

A *call* runs a function forward and backward on named arrays and numbers and gives back every result.
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import randlora_ref as rl
from randlora_ref import nn, optim
from randlora_ref.adapters import LoRA, NoLA, RandLoRAa, VeRA


class Call(NamedTuple):
    """``run(**arrays, **numbers)``; ``half``: float16 is taken; ``bases``: arrays that may be narrower than the rest.

    ``arrays``: shapes; ``numbers``: a good value, and the least.
    """

    run: Callable[..., Any]
    arrays: dict[str, tuple[int, ...]]
    numbers: Mapping[str, tuple[float, float]] = MappingProxyType({})
    half: bool = False
    bases: tuple[str, ...] = ()


def pair(forward: Callable[..., Any], backward: Callable[..., Any], cotangent: str = "dy") -> Callable[..., Any]:
    """Forward on all but the cotangent, and backward."""

    def run(**given: Any) -> Any:
        dy = given.pop(cotangent)
        y, cache = forward(**given)
        return y, backward(dy, cache)

    return run


def adapter(kind: Any, learned: tuple[str, ...], **fixed: Any) -> Callable[..., Any]:
    """An adapter made of the call's arrays, forward with everything, backward, and what stands beside them."""

    def run(x: Any, weight: Any, bias: Any, mask: Any, dy: Any, **own: Any) -> Any:
        numbers = {name: own.pop(name) for name in ("alpha", "scale", "scaling") if name in own}
        if "bases" in learned:
            own = {"bases": rl.Bases(own.pop("A"), own.pop("B")), **own}
        layer = kind(out_features=4, in_features=3, **fixed, **numbers, **own)
        y, cache = layer.forward(x, weight, bias, dropout_mask=mask)
        return y, layer.backward(dy, cache, weight_grad=True), layer.merge(weight), layer.unmerge(weight)

    return run


def block(x: Any, dy: Any, eps: float, **weights: Any) -> Any:
    spec = nn.BlockSpec(4, 5, 2, 1, 2, eps, "silu", centred=False, gated=True)
    parameters = {role: (weights[role], None) for role in weights}
    y, cache = nn.block(x, spec, parameters, {})
    return y, nn.block_backward(dy, cache, weight_grad=True)


def attention(q: Any, k: Any, v: Any, do: Any) -> Any:
    out, cache = nn.attention(q, k, v, nn.additive_mask(q, 5, causal=True))
    return out, nn.attention_backward(do, cache)


def cross_entropy(logits: Any, dloss: float) -> Any:
    loss, cache = nn.cross_entropy(logits, np.array([0, 6, -100, 3]))
    return loss, nn.cross_entropy_backward(cache, dloss), nn.cross_entropy_backward(cache, dloss, through=logits.T)


def contrastive(texts: Any, images: Any, log_scale: Any, dloss: float) -> Any:
    loss, cache = nn.contrastive(texts, images, log_scale)
    return loss, nn.contrastive_backward(cache, dloss)


def steps(step: Any) -> Callable[..., Any]:
    """Two steps, so that the state is one of the results' sources too."""

    def run(values: Any, grads: Any, later: Any, **rates: float) -> Any:
        if "beta1" in rates:
            rates["betas"] = (rates.pop("beta1"), rates.pop("beta2"))
        first, state = step({"w": values}, {"w": grads}, **rates)
        return step(first, {"w": later}, state, **rates)

    return run


LAYER = {"x": (6, 3), "weight": (4, 3), "bias": (4,), "mask": (6, 3), "dy": (6, 4)}
RATES = {"lr": (0.1, 0.0), "weight_decay": (0.01, 0.0)}
ADAMW = {**RATES, "beta1": (0.9, 0.0), "beta2": (0.99, 0.0), "eps": (1e-8, 0.0)}
FREE = -np.inf
CALLS = {
    "linear": Call(pair(nn.linear, nn.linear_backward), {name: LAYER[name] for name in ("x", "weight", "bias", "dy")}),
    "layer_norm": Call(
        pair(nn.layer_norm, nn.norm_backward),
        {"x": (2, 3, 7), "weight": (7,), "bias": (7,), "dy": (2, 3, 7)}, {"eps": (1e-5, 0.0)},
    ),
    "rms_norm": Call(
        pair(lambda x, weight, eps: nn.rms_norm(x, weight, None, eps), nn.norm_backward),
        {"x": (5, 7), "weight": (7,), "dy": (5, 7)}, {"eps": (1e-5, 0.0)},
    ),
    "normalize": Call(pair(nn.normalize, nn.normalize_backward), {"x": (5, 7), "dy": (5, 7)}),
    **{
        kind: Call(pair(lambda x, k=kind: nn.activation(x, k), nn.activation_backward), {"x": (5, 7), "dy": (5, 7)})
        for kind in ("gelu", "gelu_tanh", "quick_gelu", "silu")
    },
    "erf": Call(nn.erf, {"x": (5, 7)}),
    "gated": Call(pair(nn.gated, nn.gated_backward), {"gate": (5, 7), "up": (5, 7), "dy": (5, 7)}),
    "attention": Call(attention, {"q": (2, 6, 5, 4), "k": (2, 3, 5, 4), "v": (2, 3, 5, 4), "do": (2, 6, 5, 4)}),
    "embedding": Call(
        pair(lambda table: nn.embedding(np.array([[3, 0, 3]]), table), nn.embedding_backward),
        {"table": (5, 4), "dy": (1, 3, 4)},
    ),
    "patches": Call(
        pair(lambda pixels: nn.patches(pixels, 2), nn.patches_backward), {"pixels": (2, 3, 4, 6), "dy": (2, 6, 12)}
    ),
    "rotary": Call(
        pair(lambda x: nn.rotary(x, nn.rotary_tables(x, 5, 6, 100.0)), nn.rotary_backward),
        {"x": (2, 5, 6), "dy": (2, 5, 6)},
    ),
    "cross_entropy": Call(cross_entropy, {"logits": (4, 7)}, {"dloss": (0.5, FREE)}),
    "contrastive": Call(
        contrastive, {"texts": (4, 3), "images": (4, 3), "log_scale": ()}, {"dloss": (0.5, FREE)}
    ),
    "block": Call(
        block,
        {
            "x": (2, 3, 4), "dy": (2, 3, 4), "norm1": (4,), "norm2": (4,), "q": (4, 4), "k": (2, 4), "v": (2, 4),
            "o": (4, 4), "gate": (5, 4), "up": (5, 4), "down": (4, 5),
        },
        {"eps": (1e-5, 0.0)},
    ),
    "sgd": Call(
        steps(optim.sgd), dict.fromkeys(("values", "grads", "later"), (3, 2)), {**RATES, "momentum": (0.9, 0.0)}
    ),
    "adamw": Call(steps(optim.adamw), dict.fromkeys(("values", "grads", "later"), (3, 2)), ADAMW),
    **{
        f"RandLoRA, {order}": Call(
            adapter(rl.RandLoRA, ("bases",), rank=2, dialect="paper", order=order),
            {**LAYER, "A": (2, 3), "B": (2, 4, 2), "lambda_": (2, 2), "gamma": (2, 3)},
            {"scaling": (0.5, FREE)}, half=True, bases=("A", "B"),
        )
        for order in ("merged", "thin", "termwise")
    },
    "LoRA": Call(
        adapter(LoRA, (), rank=2), {**LAYER, "A": (2, 3), "B": (4, 2)}, {"alpha": (4.0, FREE)}, half=True
    ),
    "VeRA": Call(
        adapter(VeRA, (), rank=2), {**LAYER, "A": (2, 3), "B": (4, 2), "lambda_b": (4,), "lambda_d": (2,)}, half=True
    ),
    "NoLA": Call(
        adapter(NoLA, (), rank=2), {**LAYER, "A": (5, 2, 3), "B": (5, 4, 2), "c0": (5,), "c1": (5,)},
        {"alpha": (4.0, FREE)}, half=True,
    ),
    "RandLoRAa": Call(
        adapter(RandLoRAa, (), rank=2), {**LAYER, "A": (2, 2, 3), "B": (2, 4, 2), "lambda_": (2, 2), "gamma": (2, 3)},
        {"scale": (0.5, FREE)}, half=True,
    ),
    "full": Call(adapter(rl.FullFineTuning, ()), {**LAYER, "delta": (4, 3)}, half=True),
}  # fmt: skip
every_call = pytest.mark.parametrize("name", CALLS)


def arrays(call: Call, dtype: Any = np.float64) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: np.array(rng.standard_normal(shape), dtype) for name, shape in call.arrays.items()}


def numbers(call: Call) -> dict[str, float]:
    return {name: good for name, (good, _) in call.numbers.items()}


def leaves(found: Any) -> Iterator[np.ndarray]:
    """Every array of a result, whatever it is nested in; a cache's arguments among them."""
    if isinstance(found, dict):
        found = tuple(found.values())
    if isinstance(found, tuple):
        for part in found:
            yield from leaves(part)
    elif hasattr(found, "dtype"):
        yield np.asarray(found)


@every_call
def test_float16(name: str) -> None:
    """Refused by name in ``nn`` and the optimisers, where it overflows; adapters stay in it."""
    call = CALLS[name]
    if call.half:
        found = list(leaves(call.run(**arrays(call, np.float16), **numbers(call))))
        assert {x.dtype for x in found} == {np.dtype(np.float16)}
    else:
        with pytest.raises(TypeError, match=r"^\S+: dtype float16; it must be float32, float64 or complex"):
            call.run(**arrays(call, np.float16), **numbers(call))


@every_call
def test_mixed_precision_is_refused_by_name(name: str) -> None:
    """One array in another precision than the rest: the message names an argument, its dtype and what it must be."""
    call = CALLS[name]
    if len(call.arrays) == 1:
        return
    for one in call.arrays:
        for rest, other in ((np.float64, np.float32), (np.float32, np.float64)):
            given = arrays(call, rest)
            given[one] = given[one].astype(other)
            if one in call.bases and other is np.float32:  # narrower bases are widened
                found = list(leaves(call.run(**given, **numbers(call))))
                assert {x.dtype for x in found} == {np.dtype(rest)}
                continue
            with pytest.raises(TypeError, match=r"^\S+: dtype float(32|64); it must be float(32|64)") as caught:
                call.run(**given, **numbers(call))
            assert "None" not in str(caught.value)


@every_call
def test_complex_counts_as_its_parts(name: str) -> None:
    """complex128 is taken wherever float64 is, and real inputs give the real results; beside float32 it is refused."""
    call = CALLS[name]
    first = next(iter(call.arrays))
    found = leaves(call.run(**arrays(call, complex), **numbers(call)))
    for ours, right in zip(found, leaves(call.run(**arrays(call), **numbers(call))), strict=True):
        np.testing.assert_allclose(ours, right, rtol=1e-12, atol=1e-13)
    if len(call.arrays) > 1:
        given = arrays(call, np.float32)
        with pytest.raises(TypeError, match="it must be float"):
            call.run(**{**given, first: given[first].astype(complex)}, **numbers(call))


LAYOUTS: dict[str, Callable[[np.ndarray, Path], np.ndarray]] = {
    "fortran": lambda x, _: np.asfortranarray(x) if x.ndim else x,
    "strided": lambda x, _: np.repeat(x, 2, axis=-1)[..., ::2] if x.ndim else x,
    "reversed": lambda x, _: np.ascontiguousarray(x[::-1])[::-1] if x.ndim else x,
    "read-only": lambda x, _: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "unaligned": lambda x, _: np.frombuffer(b"." + x.tobytes(), x.dtype, offset=1).reshape(x.shape),
    "memmap": lambda x, folder: mapped(x, folder),
}


def mapped(x: np.ndarray, folder: Path) -> np.ndarray:
    if not x.ndim:
        return x
    place = np.memmap(folder / f"{len(list(folder.iterdir()))}", x.dtype, "w+", shape=x.shape)
    place[...] = x
    return place


@every_call
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_computed_rightly(name: str, layout: str, tmp_path: Path) -> None:
    """However an array lies in memory, the results are those of a plain copy, and nothing given is written to."""
    call = CALLS[name]
    given, plain = arrays(call), arrays(call)
    laid = {key: LAYOUTS[layout](x, tmp_path) for key, x in given.items()}
    expected = leaves(call.run(**plain, **numbers(call)))
    for found, right in zip(leaves(call.run(**laid, **numbers(call))), expected, strict=True):
        assert found.dtype == right.dtype
        np.testing.assert_allclose(found, right, rtol=1e-12, atol=1e-13)
    for key, x in laid.items():
        assert np.array_equal(x, given[key])


@every_call
def test_other_kinds_of_array_are_refused_by_name(name: str) -> None:
    """Matrices, masked arrays, foreign byte order, integers, objects, text, lists, None in place of an array."""
    call = CALLS[name]
    kinds: dict[str, Callable[[np.ndarray], Any]] = {
        "matrix": lambda x: x.view(np.matrix) if x.ndim == 2 else np.ma.masked_array(x),
        "MaskedArray": np.ma.masked_array,
        "dtype >f8": lambda x: x.astype(">f8"),
        "dtype int64": lambda x: x.astype(int),
        "dtype object": lambda x: x.astype(object),
        "list": lambda x: [x],
    }
    for one in call.arrays:
        for word, kind in kinds.items():
            given = arrays(call)
            given[one] = kind(given[one])
            with pytest.raises(TypeError, match=rf"^\S+: ({word}|MaskedArray)"):
                call.run(**given, **numbers(call))


@every_call
def test_numpy_scalars_are_numbers(name: str) -> None:
    """A rate or an epsilon of NumPy's, of any precision, changes no result's dtype, and no bit where it is the same."""
    call = CALLS[name]
    given = arrays(call, np.float32)
    right = list(leaves(call.run(**given, **numbers(call))))
    for one, (good, _) in call.numbers.items():
        for scalar in (np.float64(good), np.float32(good), np.float16(0.25), np.int64(0), np.uint8(0)):
            found = list(leaves(call.run(**{**given, **numbers(call), one: scalar})))
            assert [x.dtype for x in found] == [x.dtype for x in right], (one, type(scalar))
            if float(scalar) == good:
                assert all(map(np.array_equal, found, right))


@every_call
def test_numbers_that_are_none_are_refused_by_name(name: str) -> None:
    """NaN, infinity, text, a bool, nothing, complex numbers, and what is below the least."""
    call = CALLS[name]
    for one, (_, least) in call.numbers.items():
        wrong = [np.nan, np.inf, -np.inf, "1e-05", "false", True, np.bool_(True), [0.1], 1j, 10**400]
        wrong += [-1e-3, np.float32(-1)] if least == 0 else []
        wrong += [1.0, 1.5] if one.startswith("beta") else []
        for value in wrong:
            argument = "betas" if one.startswith("beta") else one
            with pytest.raises((ValueError, TypeError), match=rf"^{argument}: .*; it must be a finite number"):
                call.run(**{**arrays(call), **numbers(call), one: value})


@pytest.mark.parametrize("start", [rl.RandLoRA.start, LoRA.start, VeRA.start, NoLA.start, RandLoRAa.start])
def test_sizes_of_numpys_narrow_integers(start: Any) -> None:
    """A size or a rank held in a byte counts beyond it all the same."""
    right, found = start(200, 130, 3), start(np.uint8(200), np.int16(130), np.uint8(3))
    assert found.num_parameters() == right.num_parameters()
    for name in right.LEARNED:
        assert np.array_equal(getattr(found, name), getattr(right, name))
    drawn = rl.draw_bases("peft", shapes=[(np.uint8(200), np.int16(130))], rank=np.uint8(3))
    assert drawn.B.shape == (44, 200, 3)


INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


@given(st.data())
def test_ids_of_every_integer_type(library: Any, data: Any) -> None:
    """Rows looked up and gradients summed for ids of any width, beside a table longer than the type counts."""
    dtype = data.draw(st.sampled_from(INTEGERS))
    size = data.draw(st.integers(1, 300))
    top = min(size - 1, int(np.iinfo(dtype).max))
    ids = np.array(data.draw(st.lists(st.integers(0, top), max_size=9)), dtype=dtype)
    table = np.arange(2.0 * size).reshape(size, 2)
    y, cache = nn.embedding(library.array(ids), library.array(table))
    assert np.array_equal(library.host(y), table[ids.astype(int)])
    right = np.zeros((size, 2))
    np.add.at(right, ids.astype(int), 1.0)
    ones = library.array(np.ones((len(ids), 2)))
    assert np.array_equal(library.host(nn.embedding_backward(ones, cache)), right)


@given(st.data())
def test_labels_of_every_integer_type(library: Any, data: Any) -> None:
    """A label that is left out may be any number its type holds; an unsigned type wraps into none."""
    dtype = data.draw(st.sampled_from(INTEGERS))
    ignored = data.draw(st.sampled_from([-100, -1, 0, 2, 100, 255]))
    z = np.random.default_rng(0).standard_normal((4, 3))
    fits = np.iinfo(dtype).min <= ignored <= np.iinfo(dtype).max
    labels = np.array([0, ignored if fits else 1, 2, 1], dtype=dtype)
    loss, cache = nn.cross_entropy(library.array(z), library.array(labels), ignored=ignored)
    rows = [t for t in range(4) if labels[t] != ignored]
    losses = np.log(np.sum(np.exp(z), axis=1)) - z[np.arange(4), np.where(labels != ignored, labels, 0).astype(int)]
    assert abs(library.host(loss) - np.mean(losses[rows])) <= 1e-14
    gradient = library.host(nn.cross_entropy_backward(cache))
    assert all(np.any(gradient[t]) == (t in rows) for t in range(4))
    for wrong in {-1, 3, -100, 2**64 - 100} - {ignored}:
        if np.iinfo(dtype).min <= wrong <= np.iinfo(dtype).max:
            with pytest.raises(IndexError, match=rf"labels: holds {wrong}; it must be in 0 … 2 or {ignored}"):
                nn.cross_entropy(library.array(z), library.array(np.array([wrong] * 4, dtype)), ignored=ignored)


@pytest.mark.parametrize("dtype", [">i8", "<M8[s]", "bool", "float64", "object"])
def test_ids_that_are_no_integers(dtype: str) -> None:
    """The message says the dtype and what it must be, in the caller's word for the argument."""
    ids = np.zeros(3, dtype)
    with pytest.raises(TypeError, match=r"^ids: dtype .*; it must be an integer type in this machine's byte order"):
        nn.embedding(ids, np.ones((4, 2)))
    with pytest.raises(TypeError, match=r"^labels: dtype .*; it must be an integer type"):
        nn.cross_entropy(np.ones((3, 2)), ids)
    if dtype != "bool":
        with pytest.raises(TypeError, match=r"^mask: dtype .*; it must be an integer type"):
            nn.additive_mask(np.ones(1), 3, mask=ids[None])


def test_a_cache_of_another_precision_is_blamed_itself() -> None:
    """The adapter is float64, the forward pass was float32's: it is the cache that does not fit, not x or dy."""
    layer = rl.LoRA.start(4, 3, 2, dtype="float32")
    _, cache = layer.forward(np.ones((5, 3), np.float32), np.ones((4, 3), np.float32))
    wide = layer.replace(A=layer.A.astype(float), B=layer.B.astype(float))
    with pytest.raises(TypeError, match=r"^cache: dtype float32; it must be float64, as adapter is"):
        wide.backward(np.ones((5, 4)), cache)
    with pytest.raises(TypeError, match=r"^dy: dtype float64; it must be float32, as adapter is"):
        layer.backward(np.ones((5, 4)), cache)
    _, cache = nn.linear(np.ones((5, 3)), np.ones((4, 3)))
    with pytest.raises(TypeError, match=r"^dy: dtype float32; it must be float64, as cache is"):
        nn.linear_backward(np.ones((5, 4), np.float32), cache)


def test_bases_are_widened_and_never_narrowed_unasked() -> None:
    """float32 bases serve a float64 layer; float64 ones no float32 layer, but where float16 is asked for by name."""
    drawn = rl.draw_bases("paper", shapes=[(4, 3)], rank=2, seed=1, dtype="float64")
    with pytest.raises(TypeError, match=r"^A: dtype float64; it must be float32 or narrower, as lambda_ is"):
        rl.RandLoRA.start(4, 3, 2, dialect="paper", bases=drawn)
    single = rl.draw_bases("paper", shapes=[(4, 3)], rank=2, seed=1)
    assert rl.RandLoRA.start(4, 3, 2, dialect="paper", bases=single, dtype="float64").delta_weight().dtype == float
    half = rl.RandLoRA.start(4, 3, 2, dialect="paper", bases=single, dtype="float16")
    assert half.bases.A.dtype == half.delta_weight().dtype == np.float16
    with pytest.raises(TypeError, match=r"^A: dtype float32; it must be float16"):
        replace(half, bases=single)


def test_bases_of_no_deviation_are_drawn_and_not_adapted() -> None:
    """PEFT divides sparse bases by a deviation that may be zero: the draw is PEFT's NaN, and a layer refuses it."""
    seed = next(
        seed for seed in range(40)
        if not np.isfinite(rl.draw_bases("peft", shapes=[(9, 3)], rank=1, kind="sparse", seed=seed).A).all()
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"^A: holds NaN or infinity; .* deviation is zero"):
        rl.RandLoRA.start(9, 3, 1, dialect="peft", kind="sparse", seed=seed)


@pytest.mark.parametrize("change", [
    {"eps": -1e-5}, {"eps": np.nan}, {"eps": "1e-5"}, {"heads": 0}, {"head_width": -2}, {"head_width": 2.0},
    {"hidden": True}, {"activation": "relu"}, {"biases": frozenset({"qkv"})}, {"biases": "up"},
])  # fmt: skip
def test_block_specs_are_checked_where_they_are_made(change: dict[str, Any]) -> None:
    """Each number and choice of a block by its name."""
    good = {"width": 4, "hidden": 5, "heads": 2, "key_heads": 1, "head_width": 2, "eps": 1e-5, "activation": "silu"}
    (name,) = change
    with pytest.raises(ValueError, match=f"^{name}: "):
        nn.BlockSpec(**{**good, **change})
    assert operator.attrgetter("width")(nn.BlockSpec(**good)) == 4
