"""Learned-parameter counts of named models and methods, beside what the paper prints (Tables 4 and 15), or PEFT.

A model's adapted matrices are stated once, in ``MODELS``, with the figures printed for it; every count is computed from
those shapes, nothing computed is stored. A percentage is learned/(base + learned). Llama-3.2-3B's figures are PEFT's
published results, all others the paper's. Phi3-mini's targets are stated nowhere: those here fit its first two LoRA
figures, and no targets fit all three (2.28 % is twice 1.14 %, which a base + learned forbids).

>>> count("Llama-3.2-3B", "randlora", 32)
9289728
"""

from collections.abc import Mapping
from typing import NamedTuple

from .. import checks
from ..spec import CountRule, number_of_terms, sides

Shape = tuple[int, int]
METHODS = ("lora", "randlora", "vera", "nola", "full")
NOLA_BASES = 1024


class Model(NamedTuple):
    """A pre-trained model: which linear layers are adapted in how many blocks, and the figures printed for them."""

    targets: str
    shapes: tuple[tuple[Shape, int], ...]  # ((out, in), how many)
    printed: Mapping[str, Mapping[int, str | None]]  # method: rank: the figure, None where none is; NoLA's rank is r
    base: int | None = None  # its own parameters, where a percentage is printed
    rule: CountRule = "ceil"  # of RandLoRA's n, in the code that trained it


def _blocks(count: int, *shapes: Shape) -> tuple[tuple[Shape, int], ...]:
    return tuple((shape, count) for shape in shapes)


def _fused(count: int, d: int) -> tuple[tuple[Shape, int], ...]:
    """Blocks of width d with one matrix for q, k and v, and an MLP four times as wide."""
    return _blocks(count, (3 * d, d), (4 * d, d), (d, 4 * d))


def _roberta(count: int, d: int) -> tuple[tuple[Shape, int], ...]:
    return _blocks(count, *[(d, d)] * 4, (4 * d, d), (d, 4 * d))


def _vision(targets: str, shapes: tuple[tuple[Shape, int], ...], rank: int) -> Model:
    """A model of the authors' vision code: no figure is printed for LoRA of rank 32 or RandLoRA of ``rank``."""
    return Model(targets, shapes, {"lora": {32: None}, "randlora": {rank: None}}, rule="floor+1")


# fmt: off
ROBERTA, CLIP = "q, k, v and the three layers named dense", "both towers: in_proj, c_fc, c_proj"
MODELS: dict[str, Model] = {
    "Llama-3.2-3B": Model(
        "q, v", _blocks(28, (3072, 3072), (1024, 3072)),
        {"randlora": {32: "9,289,728"}, "lora": {32: "9,175,040"}, "vera": {256: "129,024"}},
    ),
    "RoBERTa-base": Model(
        ROBERTA, _roberta(12, 768), {"lora": {4: "0.7M"}, "randlora": {64: "0.7M"}, "vera": {1024: "0.26M"}},
    ),
    "RoBERTa-large": Model(
        ROBERTA, _roberta(24, 1024), {"lora": {4: "1.8M"}, "randlora": {100: "1.8M"}, "vera": {256: "0.26M"}},
    ),
    "LLaMA3-8B": Model(
        "q, k, v, up, down", _blocks(32, (4096, 4096), (1024, 4096), (1024, 4096), (14336, 4096), (4096, 14336)),
        {"lora": {16: "0.35%", 32: "0.7%", 64: "1.4%"}, "randlora": {60: "0.36%", 30: "0.7%", 15: "1.4%"}},
        8_030_261_248,
    ),
    "Qwen2-0.5B": Model(
        "q, k, v, up, down", _blocks(24, (896, 896), (128, 896), (128, 896), (4864, 896), (896, 4864)),
        {
            "lora": {16: "1.18%", 32: "2.33%"}, "randlora": {10: "1.18%", 5: "2.33%"}, "vera": {1024: "0.06%"},
            "nola": {1: "0.05%"},
        },
        494_032_768,
    ),
    "Phi3-mini": Model(
        "qkv, gate_up, down (inferred)", _blocks(32, (9216, 3072), (16384, 3072), (3072, 8192)),
        {"lora": {16: "0.57%", 32: "1.14%", 64: "2.28%"}, "randlora": {40: "0.58%", 20: "1.16%", 10: "2.29%"}},
        3_821_079_552,
    ),
    "CLIP ViT-B/32": _vision(CLIP, _fused(12, 768) + _fused(12, 512), 6),
    "CLIP ViT-L/14": _vision(CLIP, _fused(24, 1024) + _fused(12, 768), 8),
    "CLIP ViT-H/14": _vision(CLIP, _fused(32, 1280) + _fused(24, 1024), 10),
    "DinoV2 ViT-B/14": _vision("qkv, fc1, fc2", _fused(12, 768), 6),
    "GPT-2 medium": Model(
        "q and v of c_attn, c_fc, c_proj of the MLP",
        _blocks(24, (1024, 1024), (1024, 1024), (4096, 1024), (1024, 4096)),
        {"lora": {16: None}, "randlora": {20: None}},
    ),
}
# fmt: on


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


def learned(method: str, shape: Shape, rank: int, rule: CountRule = "ceil") -> int:
    """The learned values of one matrix (out, in), by method."""
    out_features, in_features = shape
    return {
        "lora": rank * (out_features + in_features),
        "randlora": number_of_terms(shape, rank, rule) * (rank + sides(shape)[1]),
        "vera": out_features + rank,
        "nola": 2 * NOLA_BASES,
        "full": out_features * in_features,
    }[method]


def count(model: str, method: str, rank: int, rule: CountRule | None = None) -> int:
    """The learned values of ``method`` with ``rank`` on ``model``; ``rule`` None is the model's for RandLoRA's n.

    Raises ValueError for an unknown model, method or rule, or a rank that is not a positive integer.
    """
    checks.choice("model", model, MODELS)
    checks.choice("method", method, METHODS)
    named, rank = MODELS[model], checks.integer("rank", rank)
    return sum(times * learned(method, shape, rank, rule or named.rule) for shape, times in named.shapes)


def row(model: str, method: str, rank: int) -> Row:
    """``count`` with its percentage, and whether the figure printed for it, if any, is it rounded to as many digits."""
    values, named = count(model, method, rank), MODELS[model]
    printed = named.printed.get(method, {}).get(rank)
    percent = None if named.base is None else 100 * values / (named.base + values)
    agrees = None if printed is None else _agrees(printed, values, percent)
    return Row(model, named.targets, method, rank, values, percent, printed, agrees)


def table(model: str | None = None, method: str | None = None) -> list[Row]:
    """The rows that are printed, of one model or method if given. Raises ValueError for an unknown one."""
    for name, value, known in (("model", model, MODELS), ("method", method, METHODS)):
        if value is not None:
            checks.choice(name, value, known)
    printed = ((name, kind, rank) for name in MODELS for kind, ranks in MODELS[name].printed.items() for rank in ranks)
    return [row(*line) for line in printed if model in (None, line[0]) and method in (None, line[1])]


def _agrees(printed: str, learned: int, percent: float | None) -> bool:
    """Whether a figure such as "9,289,728", "0.7M" or "0.35%" is the count, rounded to as many decimals."""
    figure = printed.rstrip("M%").replace(",", "")
    decimals = len(figure.partition(".")[2])
    if printed.endswith("%"):
        return percent is not None and f"{percent:.{decimals}f}" == figure
    return f"{learned / 1e6:.{decimals}f}" == figure if printed.endswith("M") else str(learned) == figure
