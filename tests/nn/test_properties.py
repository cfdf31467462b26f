"""``nn`` and the block over drawn configurations: every property of ``verify``, on every array library."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import example, given, settings
from strategies import drawn, examples, holds

from randlora_ref import nn
from randlora_ref.verify import block, functions, points
from randlora_ref.verify.block import BlockCase, draw_block
from randlora_ref.verify.configurations import Backend, Chosen
from randlora_ref.verify.functions import draw_function
from randlora_ref.verify.networks import INVARIANCES


@pytest.mark.parametrize("name", functions.FUNCTIONS)
def test_functions(name: str) -> None:
    """Each function of ``nn`` equals its specification, in value and gradient; the rest of its properties."""

    @given(drawn(partial(draw_function, name)))
    def check(point: points.Point) -> None:
        for one in (*points.PROPERTIES, points.STEP):
            holds(f"nn.{name}", one, point)

    check()


NEARLY_CONSTANT = BlockCase(  # rows that both norms magnify: 1e-11 is what an ulp moves the specification by
    nn.BlockSpec(3, 7, 2, 2, 3, 1e-5, "gelu_tanh", gated=True), 2, 5, False, None, None,
    {
        "q": Chosen("lora", 1, True, 0, {}), "k": Chosen("lora", 1, False, 49869, {}),
        "o": Chosen("lora", 1, False, 0, {}),
    }, 9947,
)  # fmt: skip


@examples(20)
@example(NEARLY_CONSTANT)
@given(drawn(draw_block))
def test_blocks(case: Any) -> None:
    """A block of any kind, any subset of its layers adapted by any method, equals ``spec.block``."""
    made = case.build()
    for one in (*points.PROPERTIES, points.DRAWN_STEP):
        holds("block", one, made)


@examples(20)
@given(drawn(draw_block))
def test_what_changes_nothing_in_a_block(case: Any) -> None:
    """Batch, order, padding, later tokens, merging, one more adapter at its start, laws of ΔW."""
    made = case.build()
    for one in (*INVARIANCES, *block.LAWS):
        holds("block", one, made)


@pytest.mark.parametrize("name", [*functions.FUNCTIONS, "block"])
def test_every_array_library(library: Any, name: str) -> None:
    """The same values and gradients on every library and device, in float64 and float32, on read-only arrays."""
    backend = Backend(library.xp, library.device)
    draw = (lambda choose: draw_block(choose).build()) if name == "block" else partial(draw_function, name)

    @settings(max_examples=5)
    @given(drawn(draw))
    def check(point: points.Point) -> None:
        read_only = {key: x.copy() for key, x in point.values.items()}
        for x in read_only.values():
            x.setflags(write=False)
        for one in points.PROPERTIES:
            holds(f"{library!r}, {name}", one, replace(point, values=read_only), backend)

    check()
