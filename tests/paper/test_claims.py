"""The paper's statements: each verdict, the figures it rests on, and that a verdict follows from what is computed."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from randlora_ref import DIALECTS
from randlora_ref.paper import claims, first_steps

VERDICTS = {
    "Theorem 4.1": "holds",
    "Eq. 2, indices": "holds corrected",
    "Eq. 8, lower bound for LoRA": "holds corrected",
    "Lemma D.1": "holds corrected",
    "Lemma D.2": "holds",
    "n = d/r, rounded down": "holds corrected",
    "full rank in training, Λ = 0 at the start": "holds corrected",
    "full rank in training, Γ = 0 at the start": "holds",
    "Appendix C.6, sparse bases": "fails",
    "RandLoRA-a": "holds",
    "RandLoRA-b": "holds",
    "learned numbers fall with r": "holds",
}


@pytest.fixture(scope="module")
def checked() -> dict[str, claims.Claim]:
    """Every claim by its name."""
    return {claim.name: claim for claim in claims.check_claims()}


def test_every_verdict(checked: dict[str, claims.Claim]) -> None:
    assert {name: claim.verdict for name, claim in checked.items()} == VERDICTS


def test_each_says_where_and_why_and_json_carries_it(checked: dict[str, claims.Claim]) -> None:
    for claim in checked.values():
        assert claim.where
        assert claim.evidence
        assert json.loads(json.dumps(claim.to_json())) == claim.to_json()
        assert claim.lines()[0].startswith(claim.verdict.upper())


def test_what_is_claimed_and_where_is_read_from_the_docstring(checked: dict[str, claims.Claim]) -> None:
    one = checked["Theorem 4.1"]
    statement = "‖U_jΣ_jV_jᵀ − B_jΛ_jA_jΓ_j‖ <= ε for every j gives ‖W − Σ_j B_jΛ_jA_jΓ_j‖ <= nε (A_j not shared)"
    assert (one.where, one.claim) == ("§4.2", statement)
    one = checked["Lemma D.2"]
    assert one.claim.startswith("k <= 24 random vectors of R^24 with a continuous distribution")
    assert "draws of 24 vectors" in one.evidence[0]


def test_figures_of_the_evidence(checked: dict[str, claims.Claim]) -> None:
    text = {name: "\n".join(claim.evidence) for name, claim in checked.items()}
    start = text["full rank in training, Λ = 0 at the start"]
    assert start.count("[0, 8, 64, 64]") == 6  # paper, peft, official, proven and numerical
    assert start.count("nlg: [0, 32, 64, 64]") == 1  # 96×64: every row of the sum is in four columns
    assert "11 from 3 tokens, 12 from 4 tokens; d = 768 needs 2 at r = 32, 37 at r = 6" in start
    assert text["full rank in training, Γ = 0 at the start"].count("[0, 64, 64, 64]") == 4  # vision, kradapter
    assert "2.19e-49 a pair" in text["Appendix C.6, sparse bases"]
    assert "rank 96 of 100" in text["n = d/r, rounded down"]
    assert "2.828" in text["Eq. 8, lower bound for LoRA"]


@pytest.mark.parametrize("seed", [0, 1])
def test_sparse_ranks_lie_within_three_deviations_of_what_is_expected(seed: int) -> None:
    expected = [(2 / 3, 701, 8), (0.93, 278, 13), (0.98, 88, 9), (0.99, 45, 7)]  # zeros, d(1 − P0^6), its deviation
    for (zeros, rank, mean, deviation), (share, center, width) in zip(claims.sparse_ranks(seed), expected, strict=True):
        assert zeros == pytest.approx(share, abs=0.005)
        assert abs(rank - center) <= 3 * width
        assert mean == pytest.approx(768 * (1 - zeros**6))
        assert deviation == pytest.approx(math.sqrt(768 * zeros**6 * (1 - zeros**6)))
        assert rank < 768


@pytest.mark.parametrize(
    "check", [claims.lemma_d_1, claims.lemma_d_2, claims.start_at_gamma_zero, claims.ablation_a, claims.ablation_b]
)
def test_a_wrong_rank_changes_the_verdict(
    check: Callable[[int], claims.Claim], monkeypatch: pytest.MonkeyPatch
) -> None:
    certify = claims.certify_rank

    def one_short(source: Any) -> Any:
        certificate = certify(source)
        return replace(certificate, rank=certificate.rank - 1, full=False)

    descend = first_steps.rank_after_steps

    def short_descent(*args: Any, **kwargs: Any) -> Any:
        descent = descend(*args, **kwargs)
        return descent._replace(certificates=tuple(replace(c, rank=c.rank - 1) for c in descent.certificates))

    monkeypatch.setattr(claims, "certify_rank", one_short)
    monkeypatch.setattr(first_steps, "rank_after_steps", short_descent)
    assert VERDICTS[(wrong := check(0)).name] != "fails"
    assert wrong.verdict == "fails"


def test_another_law_of_tokens_changes_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were it t·r², three tokens would be enough for 12 and one more would not be asked for."""
    monkeypatch.setattr(first_steps, "rows_reached", lambda t, r, n, constant: constant * r + t * r * r)
    assert claims.start_at_lambda_zero(0).verdict == "fails"


@pytest.mark.parametrize("name", ["official", "nlg", "vision", "kradapter"])
def test_ranks_over_the_first_steps_are_those_of_the_authors_code(name: str) -> None:
    """Of layers that their code ran, on our own draws: Λ and Γ are stepped along another loss, the ranks are theirs."""
    with np.load(Path(__file__).parents[1] / "authors" / f"{name}.npz") as own:
        (case,) = {key.partition("/")[0] for key in own.files if key.startswith("rank-")}
        shape, r = own[f"{case}/weight"].shape, own[f"{case}/A"].shape[0]
        found = first_steps.first_ranks(name, 0, shape, r)
        assert found.proven == found.numerical == own[f"{case}/ranks"].tolist()


@pytest.mark.parametrize("shape", [(7, 12), (8, 8)])
def test_ranks_over_the_first_steps_of_wide_and_square_layers(shape: tuple[int, int]) -> None:
    """0, r, d, d from Λ = 0 and 0, d, d, d from Γ = 0: without rows to spare nlg's reshape is a transpose."""
    d = min(shape)
    found = {name: first_steps.first_ranks(name, 0, shape, 3).proven for name in DIALECTS}
    assert found == {name: [0, d if name in ("vision", "kradapter") else 3, d, d] for name in DIALECTS}


def test_a_wrong_svd_changes_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    svd = np.linalg.svd

    def halved(*args: Any, **kwargs: Any) -> Any:
        U, sigma, Vt = svd(*args, **kwargs)
        return U, sigma / 2, Vt

    monkeypatch.setattr(np.linalg, "svd", halved)
    assert claims.equation_2(0).verdict == "fails"
