"""The stored block cases, and what ``spec.block`` makes of them in 50 digits."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import mpmath
import numpy as np
from conformance.stream import Stream

from randlora_ref import nn, spec
from randlora_ref.conformance import answers, oracle
from randlora_ref.conformance.cases import Case

Array = Any
MP = mpmath.MPContext()
MP.dps = 50
ALL = frozenset(("norm1", "norm2", "qkv", "q", "k", "v", "o", "gate", "up", "down"))
FULL, RIGHT, LEFT = ((1, 1, 1), (1, 1, 1)), ((1, 1, 1), (1, 1, 0)), ((0, 1, 1), (1, 1, 1))


def block(id_: str, stream: int, kind: nn.BlockSpec, rank: int, bases: str, roles: str = "", **more: Any) -> Case:
    """A block of two sequences of three tokens; ``roles`` are those adapted, by default every one.

    Entries are uniform on ±2 (x, dy, Λ, Γ), ±1 (weights, biases), 1 ± 1/2 (a norm's weights), so that each part counts.
    """
    s, shapes = Stream(stream), kind.shapes()
    every: dict[str, tuple[int, ...]] = {"norm1": (kind.width,), **shapes, "norm2": (kind.width,)}
    weight = {role: s.reals("float64", *shape) / 2 for role, shape in every.items()}
    weight |= {role: 1 + weight[role] / 2 for role in ("norm1", "norm2")}
    bias = {role: s.reals("float64", *shape[:1]) / 2 for role, shape in every.items() if role in kind.biases}
    adapted = {role: shapes[role] for role in roles.split() or shapes}
    dialect, basis = bases.split()
    A, B = oracle.bases(stream, list(adapted.values()), rank, basis, dialect)
    terms = {role: spec.number_of_terms(shape, rank) for role, shape in adapted.items()}
    own = {role: spec.layer_bases(A, B, terms[role], shape) for role, shape in adapted.items()}
    case = Case(
        id=id_, kind="block", tier="real", clause="spec.block_forward, spec.block_backward; §4.1, Eq. 4", block=kind,
        pairing="crossed" if dialect == "peft" else "literal", scaling=0.25, weight=weight, bias=bias,
        x=s.reals("float64", 2, 3, kind.width), dy=s.reals("float64", 2, 3, kind.width),
        A={role: pair[0] for role, pair in own.items()}, B={role: pair[1] for role, pair in own.items()},
        lambda_={role: s.reals("float64", n, rank) for role, n in terms.items()},
        gamma={role: s.reals("float64", n, min(shapes[role])) for role, n in terms.items()},
    )  # fmt: skip
    case = replace(case, **more)
    holds = {
        "crossed": case.pairing == "crossed",
        "start": not any(np.any(x) for x in case.lambda_.values()),
        "causal": case.causal,
        "padded": any(0 in row for row in case.attention_mask),
        "grouped keys": kind.key_heads < kind.heads,
        "rotary": case.rope_theta is not None,
        "fused": kind.fused,
        "RMSNorm": not kind.centred,
        "gated": kind.gated,
    }
    return replace(case, notes=tuple(name for name, value in holds.items() if value))


def block_cases() -> Iterator[Case]:
    """The blocks of the four models, and what lies between them; every token sees one, as conventions part there."""
    kind = nn.BlockSpec
    gpt2 = kind(4, 6, 2, 2, 2, 1e-5, "gelu_tanh", fused=True, biases=ALL - {"q", "k", "v", "gate"})
    yield block("block-001-gpt2", 501, gpt2, 2, "peft dense", causal=True, attention_mask=FULL)
    llama = kind(6, 5, 4, 2, 4, 0.01, "silu", centred=False, gated=True)
    options: dict[str, Any] = {"causal": True, "attention_mask": RIGHT, "rope_theta": 10000.0}
    yield block("block-002-llama", 502, llama, 2, "paper dense", **options)
    vit = kind(4, 7, 2, 2, 2, 1e-12, "gelu", biases=ALL - {"qkv", "gate"})
    yield block("block-003-vit", 503, vit, 1, "paper very_sparse", "q v", attention_mask=FULL)
    clip = kind(6, 4, 1, 1, 3, 0.1, "quick_gelu", biases=ALL - {"qkv", "gate"})
    yield block("block-004-clip", 504, clip, 3, "peft dense", "q k v o", causal=True, attention_mask=RIGHT)
    plain = kind(5, 3, 1, 1, 4, 0.25, "gelu", centred=False, fused=True, biases=frozenset(("norm1", "o", "up")))
    options = {"attention_mask": LEFT, "rope_theta": 7.5}
    yield block("block-005-rms-plain-fused", 505, plain, 3, "paper dense", **options)
    gated = kind(5, 3, 4, 1, 1, 0.05, "gelu_tanh", gated=True)
    yield block("block-006-layernorm-gated", 506, gated, 2, "peft dense", "k o gate down", attention_mask=LEFT)
    start = kind(5, 3, 2, 1, 4, 1e-6, "silu", centred=False, gated=True)
    zero = {"q": np.zeros((3, 2)), "down": np.zeros((2, 2))}
    gamma = {"q": np.full((3, 5), 1 / 5), "down": np.full((2, 3), 1 / 3)}
    options = {"lambda_": zero, "gamma": gamma, "causal": True, "attention_mask": FULL, "rope_theta": 100.0}
    yield block("block-007-start", 507, start, 2, "peft dense", "q down", **options)


def in_fifty_digits(case: Case) -> dict[str, Array]:
    """``spec.block``'s results on numbers of 50 digits: its own lines, with functions that take such numbers."""

    def each(function: Callable[[Any], Any]) -> Callable[[Array], Array]:
        return np.frompyfunc(function, 1, 1)

    functions = {name: each(getattr(MP, name)) for name in ("exp", "sqrt", "cos", "sin")}
    wide = case.with_arrays(each(MP.mpf))
    wide = replace(wide, rope_theta=None if case.rope_theta is None else MP.mpf(case.rope_theta))
    numpy = SimpleNamespace(**{**vars(np), **functions})
    numbers = SimpleNamespace(sqrt=MP.sqrt, erfc=MP.erfc, pi=MP.pi)
    with mock.patch.object(spec.block, "np", numpy), mock.patch.object(spec.block, "math", numbers):
        return answers.block(wide)
