"""Whole configurations by hypothesis: the same drawing as the audit's, with hypothesis choosing."""

from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from randlora_ref.verify.configurations import Choose


def examples(few: int) -> settings:
    """``few`` examples by default, where each is a whole block or model; all that the profile ``thorough`` asks for."""
    asked = settings().max_examples
    return settings(max_examples=few if asked <= 50 else asked)


@st.composite
def drawn(draw: st.DrawFn, configuration: Callable[[Choose], Any]) -> Any:
    """What ``configuration`` draws, each choice by hypothesis, so that it shrinks to the first of each."""
    return configuration(lambda options: draw(st.sampled_from(options)))
