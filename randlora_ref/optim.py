"""SGD and AdamW as pure steps: values and state in, new values and state out, nothing changed in place.

``values`` and ``grads`` are dictionaries of arrays under any keys, the same on both sides, in float32 or float64.
Rates are finite numbers, negative ones refused. Raises TypeError or ValueError that names the argument and its key.
"""

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

from . import arrays, checks

Array = Any
Values = Mapping[Hashable, Array]


class State(NamedTuple):
    """Steps taken, and the running means of gradients and of their squares by key (SGD has the first alone)."""

    step: int
    first: dict[Hashable, Array]
    second: dict[Hashable, Array]


START = State(0, {}, {})


def sgd(
    values: Values, grads: Values, state: State = START, *, lr: float, momentum: float = 0.0, weight_decay: float = 0.0
) -> tuple[dict[Hashable, Array], State]:
    """One step of gradient descent: v ← momentum·v + g + decay·θ (v = g + decay·θ at first), θ ← θ − lr·v."""
    checks.instance("state", state, State)
    _check(values, grads, **{"state.first": state.first} if state.step else {})
    lr, momentum, decay = _rates(lr=lr, momentum=momentum, weight_decay=weight_decay)
    g = {key: grads[key] + decay * theta for key, theta in values.items()}
    v = {key: momentum * state.first[key] + g[key] for key in g} if state.step else g
    return {key: theta - lr * v[key] for key, theta in values.items()}, State(state.step + 1, v, {})


def adamw(
    values: Values, grads: Values, state: State = START, *, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8, weight_decay: float = 0.01
) -> tuple[dict[Hashable, Array], State]:  # fmt: skip
    """One step of AdamW (arXiv 1711.05101, Algorithm 2, as PyTorch has it: the decay is lr·weight_decay·θ).

    m ← β₁m + (1 − β₁)g,  v ← β₂v + (1 − β₂)g²,  θ ← θ − lr·decay·θ − lr·m̂/(√v̂ + ε),  m̂ = m/(1 − β₁ᵗ), v̂ = v/(1 − β₂ᵗ).
    """
    checks.instance("state", state, State)
    _check(values, grads, **{"state.first": state.first, "state.second": state.second} if state.step else {})
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"betas: {betas!r}; it must be two numbers")
    beta1, beta2 = (checks.number("betas", beta, least=0.0, below=1.0) for beta in betas)
    (lr, eps, decay), t = _rates(lr=lr, eps=eps, weight_decay=weight_decay), state.step + 1
    result, first, second = {}, {}, {}
    for key, theta in values.items():
        xp, g = arrays.namespace_of("values", theta), grads[key]
        m = first[key] = beta1 * state.first[key] + (1 - beta1) * g if state.step else (1 - beta1) * g
        v = second[key] = beta2 * state.second[key] + (1 - beta2) * g * g if state.step else (1 - beta2) * g * g
        step = lr / (1 - beta1**t) * m / (xp.sqrt(v / (1 - beta2**t)) + eps)
        result[key] = theta * (1 - lr * decay) - step
    return result, State(t, first, second)


def _rates(**rates: float) -> list[float]:
    return [checks.number(name, rate, least=0.0) for name, rate in rates.items()]


def _check(values: Values, grads: Values, **state: Values) -> None:
    """Keys, and by key library, device, precision and shape agree; ``state`` by name, nothing before the first step."""
    for name, mapping in {"values": values, "grads": grads, **state}.items():
        checks.instance(name, mapping, Mapping)
    for key, value in values.items():
        given = {f"values[{key!r}]": value}
        arrays.namespace_of(f"values[{key!r}]", value)
        for name, others in {"grads": grads, **state}.items():
            if key not in others:
                raise KeyError(f"{name}: nothing under {key!r}; values, grads and state must have the same keys")
            given[f"{name}[{key!r}]"] = others[key]
        checks.floats(**given)
        for name, x in given.items():
            checks.shape(name, x, tuple(value.shape))
