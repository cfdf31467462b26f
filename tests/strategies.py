"""Whole configurations by hypothesis: the same drawing as the audit's, with hypothesis choosing.

``holds`` keeps the worst figure of each property and how often it was taken; the profile ``thorough`` ends with them.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from randlora_ref.spec import Orientation, sides
from randlora_ref.verify import integers
from randlora_ref.verify.configurations import HOST, Backend, Choose
from randlora_ref.verify.points import Property

WORST: dict[str, tuple[int, float, float]] = {}  # how many configurations, the worst figure, its limit


def holds(of: str, one: Property, subject: Any, backend: Backend = HOST) -> None:
    """A property of ``of`` has a figure from 0 to its limit, which NaN has not."""
    found, name = one.of(subject, backend), f"{of}: {one.name}"
    count, worst, _ = WORST.get(name, (0, 0.0, 0.0))
    WORST[name] = count + 1, max(worst, found.figure), one.limit
    assert found.ok, f"{name}: {found.figure} <= {one.limit} ({one.formula})"


def examples(few: int, most: int = 2000) -> settings:
    """``few`` examples by default, where each is a whole block or model; ``most`` in the profile ``thorough``."""
    asked = settings().max_examples
    return settings(max_examples=few if asked <= 50 else min(asked, most))


@st.composite
def drawn(draw: st.DrawFn, configuration: Callable[[Choose], Any]) -> Any:
    """What ``configuration`` draws, each choice by hypothesis, so that it shrinks to the first of each."""
    return configuration(lambda options: draw(st.sampled_from(options)))


def layer_case(
    rng: np.random.Generator,
    shape: tuple[int, int],
    rank: int,
    n: int,
    leading: tuple[int, ...] = (5,),
    mask: bool = False,
    **rules: str,
) -> dict[str, Any]:
    """Arguments of ``spec.backward``, and ``bias``, by name, all integers; the bases are one larger than the layer.

    ``rules``: ``pairing`` and ``orientation``; the paper's unless given.
    """
    rules = {"pairing": "literal", "orientation": "paper"} | rules
    (out, in_), (D, d) = shape, sides(shape, cast(Orientation, rules["orientation"]))
    sizes = {"x": (*leading, in_), "dy": (*leading, out), "weight": shape, "bias": (out,)}
    sizes |= {"A": (rank, d + 1), "B": (n + 1, D + 1, rank), "lambda_": (n, rank), "gamma": (n, d)}
    case: dict[str, Any] = {
        name: integers.small(rng, *size, size=1 if name in "AB" else 3) for name, size in sizes.items()
    }
    kept = 2.0 * rng.integers(0, 2, case["x"].shape) if mask else None  # p = 1/2: kept values count twice
    return case | rules | {"scaling": 0.5, "dropout_mask": kept}
