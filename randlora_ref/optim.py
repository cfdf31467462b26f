"""SGD and AdamW as pure steps: values and state in, new values and state out, nothing changed in place.

``values`` and ``grads`` are dictionaries of arrays under any keys, the same on both sides.
"""

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

from . import checks

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
    _check(values, grads, state)
    first = {}
    for key, value in values.items():
        g = grads[key] + weight_decay * value
        first[key] = momentum * state.first[key] + g if state.step else g
    return {key: value - lr * first[key] for key, value in values.items()}, State(state.step + 1, first, {})


def adamw(
    values: Values, grads: Values, state: State = START, *, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8, weight_decay: float = 0.01
) -> tuple[dict[Hashable, Array], State]:  # fmt: skip
    """One step of AdamW (arXiv 1711.05101, Algorithm 2, as PyTorch has it: the decay is lr·weight_decay·θ).

    m ← β₁m + (1 − β₁)g,  v ← β₂v + (1 − β₂)g²,  θ ← θ − lr·decay·θ − lr·m̂/(√v̂ + ε),  m̂ = m/(1 − β₁ᵗ), v̂ = v/(1 − β₂ᵗ).
    """
    _check(values, grads, state)
    step, (beta1, beta2) = state.step + 1, betas
    result, first, second = {}, {}, {}
    for key, value in values.items():
        g = grads[key]
        m = first[key] = beta1 * state.first[key] + (1 - beta1) * g if state.step else (1 - beta1) * g
        v = second[key] = beta2 * state.second[key] + (1 - beta2) * g * g if state.step else (1 - beta2) * g * g
        xp = checks.namespace(value=value, gradient=g)
        size = xp.sqrt(v / (1 - beta2**step)) + eps
        result[key] = value * (1 - lr * weight_decay) - lr / (1 - beta1**step) * m / size
    return result, State(step, first, second)


def _check(values: Values, grads: Values, state: State) -> None:
    for key, value in values.items():
        if key not in grads or (state.step and key not in state.first):
            raise KeyError(f"{key!r}: no gradient or no state; values, grads and state must have the same keys")
        if tuple(grads[key].shape) != tuple(value.shape):
            raise ValueError(f"grads[{key!r}]: shape {tuple(grads[key].shape)}; it must be {tuple(value.shape)}")
