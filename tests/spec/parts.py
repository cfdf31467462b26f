"""The parts of ``spec.block`` one by one, as ``proof`` has it for whole blocks: (what, ratio of error to limit).

Values beside 50 digits; gradients by the complex step, those of the activations by differences in 50 digits.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from spec import many_digits, proof
from spec.many_digits import numbers
from spec.proof import normal

Array = Any
Ratios = Iterator[tuple[str, float]]
WRONG = float("inf")


def by_step(f: Callable[..., Array], dy: Array, gradients: dict[str, Array], seed: int, **values: Array) -> float:
    """The gradients of ⟨dy, f(**values)⟩, to the complex step along a random direction of each tensor."""
    rng, found = np.random.default_rng(seed), {}
    for name, gradient in gradients.items():
        if np.shape(gradient) != np.shape(values[name]):
            return WRONG
        u = rng.standard_normal(gradient.shape)
        exact = np.sum(dy * f(**(values | {name: values[name] + 1e-30j * u}))).imag / 1e-30
        found[name] = float(np.sum(gradient * u)), float(np.sum(np.abs(gradient * u))), float(exact)
    return proof.gap(found)


def norms(block: Any, seed: int) -> Ratios:
    """LayerNorm and RMSNorm, with a bias and without, over two leading axes."""
    rng = np.random.default_rng(seed)
    x, dy, weight, bias = (normal(rng, *shape) for shape in ((2, 3, 5), (2, 3, 5), (5,), (5,)))
    for name in ("layer_norm", "rms_norm"):
        for b in (bias, None):
            f, backward = getattr(block, name), getattr(block, f"{name}_backward")
            w_exact, b_exact, eps = numbers(weight), numbers(b), many_digits.mpf(1e-3)
            exact = [
                [many_digits.norm(row, w_exact, b_exact, eps, name == "layer_norm") for row in part]
                for part in numbers(x)
            ]
            yield name, proof.distance(f(x, weight, b, 1e-3), exact)
            found = dict(zip(("x", "weight", "bias"), backward(dy, x, weight, b, 1e-3), strict=True))
            if b is None:
                yield f"{name}: no gradient of no bias", 0.0 if found.pop("bias") is None else WRONG
            values = {"x": x, "weight": weight, "bias": b}
            yield f"{name}_backward", by_step(lambda f=f, **v: f(eps=1e-3, **v), dy, found, seed, **values)


def rotations(block: Any, seed: int) -> Ratios:
    """Heads of widths 2, 4 and 6 over 9 places, under every scaling."""
    rng = np.random.default_rng(seed)
    for width in (2, 4, 6):
        for kind, scaling in proof.SCALINGS.items():
            tables = block.rotary_tables(9, width, 100.0, scaling)
            x, dy = normal(rng, 2, 9, width), normal(rng, 2, 9, width)
            exact = [[many_digits.turn(row, t, 100, scaling) for t, row in enumerate(head)] for head in numbers(x)]
            yield kind, proof.distance(block.rotary(x, tables), exact)
            gradients = {"x": block.rotary_backward(dy, tables)}
            yield f"{kind}, backward", by_step(lambda x, t=tables: block.rotary(x, t), dy, gradients, seed, x=x)
    named, unnamed = (block.rotary_tables(9, 6, 100.0, scaling) for scaling in ({"rope_type": "default"}, None))
    yield "default by its name", 0.0 if np.array_equal(named, unnamed) else WRONG


def attentions(block: Any, seed: int) -> Ratios:
    """Grouped or not; all seen, causal, padded, both, a sequence of which nothing is seen; scores in the hundreds."""
    rng = np.random.default_rng(seed)
    left, blind = np.array([[0, 1, 1], [1, 1, 1]]), np.array([[0, 0, 0], [1, 0, 1]])
    for heads, causal, mask, size in (
        (4, False, None, 1),
        (2, True, None, 1),
        (4, True, left, 1),
        (6, False, blind, 1),
        (2, True, left, 20),
    ):
        q, dy = normal(rng, 2, heads, 3, 5, size=size), normal(rng, 2, heads, 3, 5)
        k, v = normal(rng, 2, 2, 3, 5, size=size), normal(rng, 2, 2, 3, 5)
        seen = None if mask is None and not causal else block.visible(3, causal, mask)
        exact = []
        for b, heads_of_one in enumerate(numbers(q)):

            def sees(t: int, s: int, b: int = b, causal: bool = causal, mask: Array = mask) -> bool:
                return (s <= t or not causal) and (mask is None or bool(mask[b, s]))

            key_heads, value_heads = numbers(k)[b], numbers(v)[b]
            shared = [i * 2 // heads for i in range(heads)]
            own = zip(heads_of_one, shared, strict=True)
            exact.append([many_digits.attention(head, key_heads[i], value_heads[i], sees) for head, i in own])
        what = f"{heads} heads, causal {causal}, padded {mask is not None}, scores of {size * size}"
        o = block.attention(q, k, v, seen)
        yield what, proof.distance(o, exact)
        gradients = dict(zip("qkv", block.attention_backward(dy, q, k, v, seen), strict=True))

        def run(q: Array, k: Array, v: Array, seen: Array = seen) -> Array:
            return block.attention(q, k, v, seen)

        yield f"{what}, backward", by_step(run, dy, gradients, seed, q=q, k=k, v=v)
        if mask is blind:
            exactly = [o[0], *(gradient[0] for gradient in gradients.values())]
            yield "exact zeros where nothing is seen", WRONG if any(map(np.any, exactly)) else 0.0


def activations(block: Any, seed: int) -> Ratios:
    """Value and derivative of each entry, to its own size: near zero, of a few units, and far out on either side."""
    x = np.concatenate([np.random.default_rng(seed).standard_normal(12) * 3, [0.0, 1e-9, -1e-9, 30.0, -30.0, 600.0]])
    for kind, f in many_digits.ACTIVATIONS.items():
        with many_digits.mp.workdps(1000):  # 1 + tanh(−987) has its first digit at place 857
            y = np.array([float(f(one)) for one in numbers(x)])
            slope = np.array([float(many_digits.derivative(f, one)) for one in numbers(x)])
        p = np.divide(y, x, out=np.full(len(x), 0.5), where=x != 0)
        limit = 4096 * proof.U["float64"]
        found, gradient = block.activation(x, kind), block.activation_backward(2 * np.ones(len(x)), x, kind)
        sizes = np.abs(p) + np.abs(slope - p)  # y′ is the sum of p and x·p′, which cancel somewhere
        for name, a, b, size in ((kind, found, y, np.abs(y)), (f"{kind}, backward", gradient, 2 * slope, 2 * sizes)):
            wrong = a.shape != b.shape or not np.all(np.isfinite(a))
            yield name, WRONG if wrong else float(np.max(np.abs(a - b) / (limit * size + 2.0**-1000)))
        if kind != "gelu":
            step = block.activation(x + 1e-30j, kind).imag / 1e-30
            yield f"{kind}, complex", float(np.max(np.abs(step - slope) / (limit * sizes + 2.0**-1000)))


def losses(block: Any, seed: int) -> Ratios:
    """Some labels ignored, none, all; logits of a few units and in the thousands."""
    rng = np.random.default_rng(seed)
    for labels, ignored, size in (
        ([3, -100, 0, 6], -100, 1),
        ([3, 2, 0, 6], -100, 1),
        ([2, 2, 5, 2], 2, 1),
        ([-100] * 4, -100, 1),
        ([3, 2, -100, 1], -100, 3000),
    ):
        logits, chosen = normal(rng, 4, 7, size=size), np.array(labels)
        loss = block.cross_entropy(logits, chosen, ignored)
        yield "loss", proof.distance(np.asarray(loss), many_digits.cross_entropy(numbers(logits), labels, ignored))
        gradient = block.cross_entropy_backward(3.0, logits, chosen, ignored)

        def run(logits: Array, chosen: Array = chosen, ignored: int = ignored) -> Array:
            return block.cross_entropy(logits, chosen, ignored)

        yield "loss, backward", by_step(run, 3.0, {"logits": gradient}, seed, logits=logits)
        zeros = not np.any(gradient[chosen == ignored])
        yield "exact zeros where the label is ignored", 0.0 if zeros else WRONG


def layers(block: Any, seed: int) -> Ratios:
    """A linear layer of each orientation, with and without bias, update and dropout; G of what dropout leaves."""
    rng = np.random.default_rng(seed)
    for out, inner, with_bias, updated, dropout in (
        (3, 5, True, True, True),
        (5, 3, False, True, False),
        (4, 4, True, True, False),
        (5, 3, True, False, False),
        (3, 5, False, False, False),
    ):
        x, dy, weight = (normal(rng, *shape) for shape in ((2, 3, inner), (2, 3, out), (out, inner)))
        bias, mask = normal(rng, out) if with_bias else None, 2 * (rng.random((2, 3, inner)) < 0.5)
        factors = [normal(rng, *shape) for shape in ((2, 3), (2, 5, 2), (2, 2), (2, 3))]
        factors = factors if out != inner else [normal(rng, *s) for s in ((2, 4), (2, 4, 2), (2, 2), (2, 4))]
        update = block.Update(*factors, 0.5, "crossed", mask if dropout else None) if updated else None
        own = {name: numbers(part) for name, part in update._asdict().items()} if update else None
        y = block.linear(x, weight, bias, update)
        yield "linear", proof.distance(y, many_digits.linear(numbers(x), numbers(weight), numbers(bias), own))
        found = block.linear_backward(dy, x, weight, bias, update)._asdict()
        G = np.einsum("bto,bti->oi", dy, x * mask if dropout else x)
        yield "G", proof.distance(found.pop("delta_weight"), G)
        yield "the dy it was given", 0.0 if np.array_equal(found.pop("y"), dy) else WRONG
        values = {"x": x, "weight": weight, "bias": bias}
        values |= {"lambda_": factors[2], "gamma": factors[3]} if updated else {"lambda_": None, "gamma": None}
        absent = {name for name, value in values.items() if value is None}
        yield "None where there is nothing", 0.0 if absent == {n for n, g in found.items() if g is None} else WRONG

        def run(x: Array, weight: Array, bias: Array, lambda_: Array, gamma: Array, update: Any = update) -> Array:
            moved = update and update._replace(lambda_=lambda_, gamma=gamma)
            return block.linear(x, weight, bias, moved)

        gradients = {name: gradient for name, gradient in found.items() if name not in absent}
        yield "linear, backward", by_step(run, dy, gradients, seed, **values)


ALL = (norms, rotations, attentions, activations, losses, layers)
