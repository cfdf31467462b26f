"""What Eq. 4 leaves open, and how each implementation settles it: one frozen record per implementation.

Two dialects run: ``paper`` and ``peft``. The others are documented rows. Where a row differs from a running
dialect only in its count rule, its scaling or its starting values, it is reached by replacing those:

>>> from dataclasses import replace
>>> replace(DIALECTS["peft"], count_rule="floor+1", scaling_rule="alpha/(r*sqrt(n))").count_rule
'floor+1'

Sources: *paper* is arXiv 2502.00987v2; *peft* is Hugging Face PEFT 0.21.2, ``tuners/randlora``; *official*,
*nlg* and *vision* are github.com/PaulAlbert31/RandLoRA at 4ac565e (folders ``peft``, ``NLG`` and
``vision_language``); *kradapter* is the toy of github.com/PaulAlbert31/KRAdapter.
"""

import math
from dataclasses import dataclass
from typing import Literal

from . import checks
from .spec import CountRule, Pairing, number_of_terms, sides

ScalingRule = Literal["2/sqrt(n)", "alpha/r", "alpha/(r*sqrt(n))", "1"]
StartRule = Literal["0", "1", "1/d", "1/n", "1/max(n, d)", "1/max(n, r)"]


@dataclass(frozen=True)
class Dialect:
    """The choices of one implementation. Text fields are documentation, the others are computed with."""

    name: str
    source: str
    runs: bool
    pairing: Pairing
    count_rule: CountRule
    scaling_rule: ScalingRule
    lambda_start: StartRule
    gamma_start: StartRule
    default_alpha: float | None  # None: not stated, or the scaling rule needs none
    default_seed: int | None  # None: not stated
    max_terms: int | None  # None: no cap on n
    basis_rule: str
    draw_order: str
    stored: str
    orientation: str  # of a square layer
    notes: str

    def terms(self, shape: tuple[int, int], rank: int) -> int:
        """n, the number of terms of a layer of ``shape`` (out, in)."""
        n = number_of_terms(shape, rank, self.count_rule)
        return n if self.max_terms is None else min(n, self.max_terms)

    def scaling(self, rank: int, n: int, alpha: float | None = None) -> float:
        """s, the number in front of the sum. ``alpha`` None takes the dialect's own.

        The paper fixes no α: without one its s is 2/√n (Table 9), with one α/r (Table 8 has 10/r).
        """
        alpha = self.default_alpha if alpha is None else checks.number("alpha", alpha)
        if self.scaling_rule == "1":
            return 1.0
        if self.scaling_rule == "2/sqrt(n)" and alpha is None:
            return 2 / math.sqrt(n)
        if alpha is None:
            raise ValueError(f"alpha: None; the scaling {self.scaling_rule} of dialect {self.name!r} needs a number")
        return alpha / (rank * math.sqrt(n)) if self.scaling_rule == "alpha/(r*sqrt(n))" else alpha / rank

    def start(self, shape: tuple[int, int], rank: int, n: int) -> tuple[float, float]:
        """The constants that fill Λ and Γ before the first step."""
        d = sides(shape)[1]
        values = {
            "0": 0.0,
            "1": 1.0,
            "1/d": 1 / d,
            "1/n": 1 / n,
            "1/max(n, d)": 1 / max(n, d),
            "1/max(n, r)": 1 / max(n, rank),
        }
        return values[self.lambda_start], values[self.gamma_start]

    def num_parameters(self, shape: tuple[int, int], rank: int) -> int:
        """n·(r + d), the learned values of one layer: inversely proportional to the rank."""
        return self.terms(shape, rank) * (rank + sides(shape)[1])


# fmt: off
_ROWS = (
    Dialect(
        name="paper", runs=True,
        source="arXiv 2502.00987v2, Eq. 4; what it leaves open is our choice: n, scaling, start and bases",
        pairing="literal", count_rule="ceil", max_terms=None, scaling_rule="2/sqrt(n)", default_alpha=None,
        lambda_start="0", gamma_start="1/d", default_seed=0,
        basis_rule="ours: uniform on ±√3 or ternary, unit variance, from counters, in float32 or float64",
        draw_order="none: every entry has its own counter",
        stored="A (r, d), B (n, D, r), Λ (n, r), Γ (n, d)", orientation="Σ…",
        notes="n = d/r in §4.1, its floor in Table 9; s = 10/r in Table 8, 2/√n in Table 9",
    ),
    Dialect(
        name="peft", runs=True,
        source="Hugging Face PEFT 0.21.2, tuners/randlora",
        pairing="crossed", count_rule="ceil", max_terms=None, scaling_rule="alpha/r", default_alpha=640,
        lambda_start="0", gamma_start="1/max(n, d)", default_seed=0,
        basis_rule="Kaiming uniform (a=√5) over its own deviation, in bfloat16 or float16; sparse in float32",
        draw_order="A, then B_1 … B_n",
        stored="A (r, 1, d_max), B (D_max, n_max, r), Λ (r, n), Γ (n, d)", orientation="Σ…",
        notes="shared shapes from the element-wise maximum of all (out, in); very_sparse has s = 2√d, not √D",
    ),
    Dialect(
        name="official", runs=False,
        source="github.com/PaulAlbert31/RandLoRA at 4ac565e, peft/",
        pairing="crossed", count_rule="ceil", max_terms=None, scaling_rule="alpha/(r*sqrt(n))", default_alpha=64,
        lambda_start="0", gamma_start="1/max(n, d)", default_seed=8539,
        basis_rule="Kaiming uniform (a=√5) over its own deviation, in float32", draw_order="A, B",
        stored="A (r, 1, …), B (…, n, r), Λ (r, n), Γ (n, d)", orientation="Σ…",
        notes="",
    ),
    Dialect(
        name="nlg", runs=False,
        source="github.com/PaulAlbert31/RandLoRA at 4ac565e, NLG/ (GPT-2)",
        pairing="crossed", count_rule="floor+1", max_terms=None, scaling_rule="alpha/(r*sqrt(n))", default_alpha=None,
        lambda_start="0", gamma_start="1/max(n, d)", default_seed=None,
        basis_rule="Kaiming uniform (a=√5) over its own deviation, in float32", draw_order="B, A",
        stored="A (1, r, …), B (n, …, r), Λ (n, r), Γ (n, d)", orientation="(Σ…)ᵀ for Conv1D",
        notes="n is the whole network's, not the layer's; for out > in (B@S).view(weight.shape), a scramble",
    ),
    Dialect(
        name="vision", runs=False,
        source="github.com/PaulAlbert31/RandLoRA at 4ac565e, vision_language/ (CLIP)",
        pairing="crossed", count_rule="floor+1", max_terms=1000, scaling_rule="alpha/r", default_alpha=1,
        lambda_start="1/max(n, r)", gamma_start="0", default_seed=None,
        basis_rule="Kaiming uniform or normal over its own deviation, in float32", draw_order="B, A",
        stored="A (1, r, …), B (1000, …, r), Λ (n, r), Γ (n, d)", orientation="forward (Σ…)ᵀ, merge Σ…: they disagree",
        notes="fused in_proj of 3d rows",
    ),
    Dialect(
        name="kradapter", runs=False,
        source="github.com/PaulAlbert31/KRAdapter, its RandLoRA toy",
        pairing="literal", count_rule="ceil+1", max_terms=None, scaling_rule="1", default_alpha=None,
        lambda_start="1/n", gamma_start="0", default_seed=42,
        basis_rule="in float32", draw_order="not stated; the global generator",
        stored="A (1, r, …), B (n, …, r), Λ (n, r), Γ (n, d)", orientation="Σ…",
        notes="",
    ),
)
# fmt: on
DIALECTS: dict[str, Dialect] = {row.name: row for row in _ROWS}


def get_dialect(dialect: str | Dialect) -> Dialect:
    """The running dialect of that name, or the record itself.

    Raises ValueError for an unknown name, and for a dialect that is documented but does not run.
    """
    if isinstance(dialect, Dialect):
        row = dialect
    elif isinstance(dialect, str) and dialect in DIALECTS:
        row = DIALECTS[dialect]
    else:
        raise ValueError(f"dialect: {dialect!r}; it must be one of {', '.join(DIALECTS)}, or a Dialect")
    if not row.runs:
        raise ValueError(
            f"dialect: {row.name!r} is documented, not run; it must be 'paper' or 'peft', with another count_rule, "
            "scaling_rule, lambda_start or gamma_start where wanted (dataclasses.replace)"
        )
    return row
