"""RandLoRA-a and -b: their ranks and counts, their starts, what they refuse."""

from typing import Any

import numpy as np
import pytest

from randlora_ref import RandLoRA
from randlora_ref.adapters import RandLoRAa, randlora_b
from randlora_ref.rank import certify_rank


def test_a_starts_at_zero() -> None:
    adapter = RandLoRAa.start(9, 7, 2, dtype="float64")
    assert adapter.n == 4
    assert adapter.scaling == 0.5
    assert np.all(adapter.gamma == 1 / 7)


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (16, 16)])
def test_a_has_the_count_of_randlora_and_rank_r(shape: tuple[int, int]) -> None:
    adapter = RandLoRAa.start(*shape, 3, dtype="float64")
    assert adapter.num_parameters() == RandLoRA.start(*shape, 3).num_parameters()
    rng = np.random.default_rng(0)
    trained = adapter.replace(lambda_=rng.normal(size=(6, 3)), gamma=rng.normal(size=(6, 16)))
    assert np.linalg.matrix_rank(trained.delta_weight()) == 3
    certificate = certify_rank(trained)
    assert (certificate.rank, certificate.exact) == (3, True)


def test_b_starts_on_every_array_library(library: Any) -> None:
    here, host = (randlora_b(8, 6, 4, **where) for where in ({"xp": library.xp, "device": library.device}, {}))
    for name in ("lambda_", "gamma"):
        assert np.array_equal(library.host(getattr(here, name)), getattr(host, name))
    assert np.array_equal(library.host(here.bases.B), host.bases.B)


@pytest.mark.parametrize("dialect", ["paper", "peft"])
@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (16, 16)])
def test_b_has_half_the_rank_at_the_same_count(shape: tuple[int, int], dialect: str) -> None:
    whole = RandLoRA.start(*shape, 4, dialect=dialect, dtype="float64")
    half = randlora_b(*shape, 4, dialect=dialect, dtype="float64")
    assert (half.n, half.rank) == (whole.n, 2)
    fewer = whole.num_parameters() - half.num_parameters()
    assert fewer == half.n * half.rank
    assert 2 * (half.n + 1) * fewer <= whole.num_parameters()
    rng = np.random.default_rng(0)
    for adapter, rank in ((whole, 16), (half, 8)):
        trained = adapter.replace(
            lambda_=rng.normal(size=adapter.lambda_.shape), gamma=rng.normal(size=adapter.gamma.shape)
        )
        assert np.linalg.matrix_rank(trained.delta_weight()) == rank
        assert certify_rank(trained).rank == rank


def test_b_of_the_papers_example() -> None:
    """CLIP ViT-B/32's width 768 and rank 6: 384 in Table 2, at 0.4 % fewer learned values."""
    assert 6 * 128 == 768
    half = randlora_b(768, 768, 6)
    assert half.n * half.rank == 384
    assert (half.num_parameters(), 128 * (6 + 768)) == (98_688, 99_072)


def test_bad_input() -> None:
    good = {
        "out_features": 5,
        "in_features": 3,
        "rank": 2,
        "A": np.ones((4, 2, 3)),
        "B": np.ones((4, 5, 2)),
        "lambda_": np.ones((4, 2)),
        "gamma": np.ones((4, 3)),
    }
    with pytest.raises(ValueError, match=r"scale: inf"):
        RandLoRAa(**good, scale=float("inf"))
    for wrong in (0, 1):
        with pytest.raises(ValueError, match=rf"rank: {wrong}; it must be"):
            randlora_b(5, 3, wrong)
