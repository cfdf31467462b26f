"""Counts: the known exact figures, the adapters' own counts, the verdicts on what is printed, what is refused."""

from typing import Any

import numpy as np
import pytest

from randlora_ref.adapters import FullFineTuning, LoRA, NoLA, RandLoRA, VeRA
from randlora_ref.paper import counts

EXACT = {
    ("Llama-3.2-3B", "randlora"): {32: 9_289_728},
    ("Llama-3.2-3B", "lora"): {32: 9_175_040},
    ("Llama-3.2-3B", "vera"): {256: 129_024},
    ("RoBERTa-base", "lora"): {4: 663_552},
    ("RoBERTa-base", "randlora"): {64: 718_848},
    ("RoBERTa-base", "vera"): {1024: 156_672},
    ("RoBERTa-large", "lora"): {4: 1_769_472},
    ("RoBERTa-large", "randlora"): {100: 1_780_416},
    ("RoBERTa-large", "vera"): {256: 258_048},
    ("LLaMA3-8B", "lora"): {16: 28_311_552, 32: 56_623_104, 64: 113_246_208},
    ("LLaMA3-8B", "randlora"): {60: 28_778_112, 30: 56_626_112, 15: 112_723_968},
    ("Qwen2-0.5B", "lora"): {16: 5_898_240, 32: 11_796_480},
    ("Qwen2-0.5B", "randlora"): {10: 5_956_992, 5: 11_842_944},
    ("Qwen2-0.5B", "vera"): {1024: 288_768},
    ("Qwen2-0.5B", "nola"): {1: 245_760},
    ("Phi3-mini", "lora"): {16: 22_020_096, 32: 44_040_192, 64: 88_080_384},
    ("Phi3-mini", "randlora"): {40: 23_003_904, 20: 45_712_128, 10: 91_128_576},
    ("CLIP ViT-B/32", "lora"): {32: 6_881_280},
    ("CLIP ViT-B/32", "randlora"): {6: 5_198_184},
    ("CLIP ViT-L/14", "lora"): {32: 15_138_816},
    ("CLIP ViT-L/14", "randlora"): {8: 12_295_008},
    ("CLIP ViT-H/14", "lora"): {32: 29_360_128},
    ("CLIP ViT-H/14", "randlora"): {10: 23_643_504},
    ("DinoV2 ViT-B/14", "lora"): {32: 4_128_768},
    ("DinoV2 ViT-B/14", "randlora"): {6: 3_594_456},
    ("GPT-2 medium", "lora"): {16: 5_505_024},
    ("GPT-2 medium", "randlora"): {20: 5_211_648},
}
# Printed figures that do not follow from the shapes, to the digits they have.
DIFFER = {
    ("RoBERTa-base", "vera", 1024),
    ("Qwen2-0.5B", "randlora", 10),
    ("Qwen2-0.5B", "randlora", 5),
    ("Phi3-mini", "lora", 64),
    ("Phi3-mini", "randlora", 40),
    ("Phi3-mini", "randlora", 20),
    ("Phi3-mini", "randlora", 10),
}


def test_every_row_has_its_known_count() -> None:
    found: dict[tuple[str, str], dict[int, int]] = {}
    for row in counts.table():
        found.setdefault((row.model, row.method), {})[row.rank] = row.learned
    assert found == EXACT


def test_verdicts() -> None:
    rows = counts.table()
    assert {(row.model, row.method, row.rank) for row in rows if row.agrees is False} == DIFFER
    assert all((row.agrees is None) == (row.printed is None) for row in rows)
    assert sum(row.agrees is True for row in rows) == 20


@pytest.mark.parametrize(
    ("printed", "learned", "percent", "agrees"),
    [
        ("1,234", 1234, None, True),
        ("1,234", 1235, None, False),
        ("0.7M", 651_000, None, True),
        ("0.7M", 649_000, None, False),
        ("0.70M", 651_000, None, False),
        ("0.35%", 1, 0.3549, True),
        ("0.35%", 1, 0.3551, False),
        ("0.35%", 1, None, False),
    ],
)
def test_a_verdict_is_the_count_rounded_to_the_printed_digits(
    printed: str, learned: int, percent: float | None, agrees: bool
) -> None:
    assert counts._agrees(printed, learned, percent) is agrees


@pytest.mark.parametrize("shape", [(7, 5), (4, 12), (6, 6)])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_a_method_counts_what_its_adapter_learns(shape: tuple[int, int], rank: int) -> None:
    adapters: dict[str, Any] = {
        "lora": LoRA.start(*shape, rank),
        "randlora": RandLoRA.start(*shape, rank),
        "vera": VeRA.start(*shape, rank),
        "nola": NoLA.start(*shape, rank),
        "full": FullFineTuning.start(*shape),
    }
    assert set(adapters) == set(counts.METHODS)
    for method, adapter in adapters.items():
        assert counts.learned(method, shape, rank) == adapter.num_parameters(), method


def test_shapes_and_rule() -> None:
    assert counts.count("GPT-2 medium", "full", 1) == 24 * (2 * 1024**2 + 2 * 4 * 1024**2)
    assert counts.count("DinoV2 ViT-B/14", "randlora", 5) == 12 * 3 * 154 * (5 + 768)
    assert counts.count("DinoV2 ViT-B/14", "randlora", 6, "floor") == 12 * 3 * 128 * (6 + 768)
    row = counts.row("LLaMA3-8B", "full", 1)
    np.testing.assert_allclose(row.percent or 0, 100 * row.learned / (8_030_261_248 + row.learned))
    assert (row.printed, row.agrees) == (None, None)


def test_table_can_be_narrowed() -> None:
    assert {row.model for row in counts.table("Phi3-mini")} == {"Phi3-mini"}
    assert {row.method for row in counts.table(method="vera")} == {"vera"}
    assert [row.rank for row in counts.table("Qwen2-0.5B", "nola")] == [1]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"model: 'GPT-5'; it must be one of Llama-3.2-3B, "):
        counts.count("GPT-5", "lora", 4)
    with pytest.raises(ValueError, match=r"method: 'dora'; it must be one of lora, "):
        counts.table(method="dora")
    for rank in (0, 1.5, True):
        with pytest.raises(ValueError, match=rf"rank: {rank}; it must be a positive integer"):
            counts.count("Phi3-mini", "lora", rank)
    with pytest.raises(ValueError, match=r"rule: 'round'"):
        counts.count("Phi3-mini", "randlora", 4, "round")  # type: ignore[arg-type]
