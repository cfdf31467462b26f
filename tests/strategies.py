"""Whole configurations by hypothesis: the same drawing as the audit's, with hypothesis choosing.

``holds`` keeps the worst figure of each property and how often it was taken; the profile ``thorough`` ends with them.
"""

from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

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
