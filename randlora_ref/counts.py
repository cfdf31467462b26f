"""Learned-parameter counts of named models and methods, beside what the paper prints (Tables 4 and 15), or PEFT.

A model's adapted matrices are stated once, in ``MODELS``; every count is computed from those shapes. Printed figures
are in ``PRINTED``, as printed; nothing computed is stored. A percentage is learned/(base + learned). Llama-3.2-3B's
figures are PEFT's published results, all others the paper's. Phi3-mini's targets are stated nowhere: those here fit
its first two LoRA figures, and no targets fit all three (2.28 % is twice 1.14 %, which a base + learned forbids).

>>> count("Llama-3.2-3B", "randlora", 32)
9289728
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from . import checks
from .spec import CountRule, number_of_terms, sides

Shape = tuple[int, int]


class Model(NamedTuple):
    """A pre-trained model: which linear layers are adapted, as ((out, in), how many) pairs, and how large it is."""

    targets: str
    shapes: tuple[tuple[Shape, int], ...]
    base: int | None = None  # its own parameters, where a percentage is printed
    rule: CountRule = "ceil"  # of RandLoRA's n, in the code that trained it


def _transformer(layers: int, *shapes: Shape) -> tuple[tuple[Shape, int], ...]:
    return tuple((shape, layers) for shape in shapes)


def _fused(layers: int, d: int) -> tuple[tuple[Shape, int], ...]:
    """A block of width d with one matrix for q, k and v, and an MLP four times as wide."""
    return _transformer(layers, (3 * d, d), (4 * d, d), (d, 4 * d))


def _roberta(layers: int, d: int) -> tuple[tuple[Shape, int], ...]:
    return _transformer(layers, *[(d, d)] * 4, (4 * d, d), (d, 4 * d))


# fmt: off
_ROBERTA = "q, k, v and the three layers named dense"
_CLIP = "both towers: in_proj, c_fc, c_proj"
MODELS: dict[str, Model] = {
    "Llama-3.2-3B": Model("q, v", _transformer(28, (3072, 3072), (1024, 3072))),
    "RoBERTa-base": Model(_ROBERTA, _roberta(12, 768)),
    "RoBERTa-large": Model(_ROBERTA, _roberta(24, 1024)),
    "LLaMA3-8B": Model(
        "q, k, v, up, down",
        _transformer(32, (4096, 4096), (1024, 4096), (1024, 4096), (14336, 4096), (4096, 14336)), 8_030_261_248,
    ),
    "Qwen2-0.5B": Model(
        "q, k, v, up, down",
        _transformer(24, (896, 896), (128, 896), (128, 896), (4864, 896), (896, 4864)), 494_032_768,
    ),
    "Phi3-mini": Model(
        "qkv, gate_up, down (inferred)",
        _transformer(32, (9216, 3072), (16384, 3072), (3072, 8192)), 3_821_079_552,
    ),
    "CLIP ViT-B/32": Model(_CLIP, _fused(12, 768) + _fused(12, 512), rule="floor+1"),
    "CLIP ViT-L/14": Model(_CLIP, _fused(24, 1024) + _fused(12, 768), rule="floor+1"),
    "CLIP ViT-H/14": Model(_CLIP, _fused(32, 1280) + _fused(24, 1024), rule="floor+1"),
    "DinoV2 ViT-B/14": Model("qkv, fc1, fc2", _fused(12, 768), rule="floor+1"),
    "GPT-2 medium": Model(
        "q and v of c_attn, c_fc, c_proj of the MLP",
        _transformer(24, (1024, 1024), (1024, 1024), (4096, 1024), (1024, 4096)),
    ),
}

# model: method: rank: the figure as printed, None where none is. NoLA's rank is its r.
PRINTED: dict[str, dict[str, dict[int, str | None]]] = {
    "Llama-3.2-3B": {"randlora": {32: "9,289,728"}, "lora": {32: "9,175,040"}, "vera": {256: "129,024"}},
    "RoBERTa-base": {"lora": {4: "0.7M"}, "randlora": {64: "0.7M"}, "vera": {1024: "0.26M"}},
    "RoBERTa-large": {"lora": {4: "1.8M"}, "randlora": {100: "1.8M"}, "vera": {256: "0.26M"}},
    "LLaMA3-8B": {
        "lora": {16: "0.35%", 32: "0.7%", 64: "1.4%"}, "randlora": {60: "0.36%", 30: "0.7%", 15: "1.4%"},
    },
    "Qwen2-0.5B": {
        "lora": {16: "1.18%", 32: "2.33%"}, "randlora": {10: "1.18%", 5: "2.33%"},
        "vera": {1024: "0.06%"}, "nola": {1: "0.05%"},
    },
    "Phi3-mini": {
        "lora": {16: "0.57%", 32: "1.14%", 64: "2.28%"}, "randlora": {40: "0.58%", 20: "1.16%", 10: "2.29%"},
    },
    "CLIP ViT-B/32": {"lora": {32: None}, "randlora": {6: None}},
    "CLIP ViT-L/14": {"lora": {32: None}, "randlora": {8: None}},
    "CLIP ViT-H/14": {"lora": {32: None}, "randlora": {10: None}},
    "DinoV2 ViT-B/14": {"lora": {32: None}, "randlora": {6: None}},
    "GPT-2 medium": {"lora": {16: None}, "randlora": {20: None}},
}
# fmt: on


NOLA_BASES = 1024


def _randlora(shape: Shape, rank: int, rule: CountRule) -> int:
    return number_of_terms(shape, rank, rule) * (rank + sides(shape)[1])


# Learned values of one matrix (out, in): LoRA r(out + in), RandLoRA n(r + d), VeRA out + r, NoLA 2k, full out·in.
METHODS: dict[str, Callable[[Shape, int, CountRule], int]] = {
    "lora": lambda shape, rank, rule: rank * sum(shape),
    "randlora": _randlora,
    "vera": lambda shape, rank, rule: shape[0] + rank,
    "nola": lambda shape, rank, rule: 2 * NOLA_BASES,
    "full": lambda shape, rank, rule: shape[0] * shape[1],
}


class Row(NamedTuple):
    """One count beside its printed figure; ``percent`` is None where the base's size is not stated."""

    model: str
    targets: str
    method: str
    rank: int
    learned: int
    percent: float | None
    printed: str | None
    agrees: bool | None  # None where nothing is printed


def count(model: str, method: str, rank: int, rule: CountRule | None = None) -> int:
    """The learned values of ``method`` with ``rank`` on ``model``; ``rule`` None is the model's for RandLoRA's n.

    Raises ValueError for an unknown model, method or rule, or a rank that is not a positive integer.
    """
    named = MODELS[_known("model", model, MODELS)]
    learned = METHODS[_known("method", method, METHODS)]
    checks.integer("rank", rank)
    return sum(times * learned(shape, rank, rule or named.rule) for shape, times in named.shapes)


def row(model: str, method: str, rank: int) -> Row:
    """``count`` with its percentage, and whether the figure printed for it, if any, is it rounded to as many digits."""
    learned, base = count(model, method, rank), MODELS[model].base
    printed = PRINTED[model].get(method, {}).get(rank)
    percent = None if base is None else 100 * learned / (base + learned)
    agrees = None if printed is None else _agrees(printed, learned, percent)
    return Row(model, MODELS[model].targets, method, rank, learned, percent, printed, agrees)


def table(model: str | None = None, method: str | None = None) -> list[Row]:
    """The rows of ``PRINTED``, of one model or method if given. Raises ValueError for an unknown one."""
    models = MODELS if model is None else [_known("model", model, MODELS)]
    methods = METHODS if method is None else [_known("method", method, METHODS)]
    lines = ((name, kind, rank) for name in models for kind, ranks in PRINTED[name].items() for rank in ranks)
    return [row(*line) for line in lines if line[1] in methods]


def _agrees(printed: str, learned: int, percent: float | None) -> bool:
    """Whether a figure such as "9,289,728", "0.7M" or "0.35%" is the count, rounded to as many decimals."""
    figure = printed.rstrip("M%").replace(",", "")
    decimals = len(figure.partition(".")[2])
    if printed.endswith("%"):
        return percent is not None and f"{percent:.{decimals}f}" == figure
    return f"{learned / 1e6:.{decimals}f}" == figure if printed.endswith("M") else str(learned) == figure


def _known(name: str, value: Any, known: dict[str, Any]) -> str:
    if value not in known:
        raise ValueError(f"{name}: {value!r}; it must be one of {', '.join(known)}")
    return str(value)
