"""What Eq. 4 leaves open, and how each implementation settles it: one validated, frozen record per implementation.

All six run. What differs from each of them is reached by replacing a field:

>>> from dataclasses import replace
>>> replace(DIALECTS["peft"], count_rule="floor+1", scaling_rule="alpha/(r*sqrt(n))").count_rule
'floor+1'

NLG's ``c_attn`` is one fused weight (3d, d) of GPT-2, of which that code adapts q and v. Each is a square layer that
takes M itself: the record under ``orientation="paper"``, on views of the network's bases, q with rows 0 … d of each B_j
and v with rows d … 2d. Both start at Γ = 1/max(n, 2d), by the width of the two together; the record has no rule for
that, so give ``gamma``. Here n = 3 // 2 + 1, and B has 4·3 rows:

>>> from randlora_ref import Bases, RandLoRA, draw_bases
>>> c_attn = replace(DIALECTS["nlg"], orientation="paper", context=3)
>>> shared = draw_bases(c_attn, rank=2)
>>> of_q, of_v = (Bases(shared.A, shared.B[:, rows, :]) for rows in (slice(0, 3), slice(3, 6)))
>>> q, v = (RandLoRA.start(3, 3, rank=2, dialect=c_attn, bases=own) for own in (of_q, of_v))
>>> q, v = (layer.replace(gamma=0 * layer.gamma + 1 / max(layer.n, 2 * 3)) for layer in (q, v))
>>> q.delta_weight().shape, v.n, q.num_parameters() + v.num_parameters()
((3, 3), 2, 20)

Vision's ``merge`` is not its forward on square layers: it adds M where the forward adds Mᵀ, and ``RandLoRA.merge`` does
as it does. Its fused ``in_proj`` (3d, d) takes M.

Sources: *paper* is arXiv 2502.00987v2; *peft* is Hugging Face PEFT 0.21.2, ``tuners/randlora``; *official*,
*nlg* and *vision* are github.com/PaulAlbert31/RandLoRA at 4ac565e (folders ``peft``, ``NLG`` and
``vision_language``); *kradapter* is the toy of github.com/PaulAlbert31/KRAdapter at ea88a71.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from . import checks
from .spec import CountRule, Orientation, Pairing, number_of_terms, sides

CountedSide = Literal["d", "context"]  # what the count rule divides by r: a layer's d, or the network's context length
ScalingRule = Literal["2/sqrt(n)", "alpha/r", "alpha/(r*sqrt(n))", "1"]
StartRule = Literal["0", "1", "1/d", "1/n", "1/max(n, d)", "1/max(n, r)", "1/max(out, in)"]
# (D_max, d_max) of the bases that layers share, by the sides of each layer
SharedSides = Literal[
    "max(D), max(d)", "sorted max(out), max(in)", "max(in), max(out)", "max(out), max(in)", "4*context, context"
]
# Whose draws. The last three are torch's in float32: A then each B_j, each B_j then A, B whole then A.
Generator = Literal["philox", "torch", "torch_float32", "torch_terms_first", "torch_whole"]


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """The choices of one implementation. Text fields are documentation, the others are computed with.

    Raises ValueError that names the field, for a rule that is not of its list and for a number that is none.
    """

    name: str
    source: str
    pairing: Pairing
    count_rule: CountRule
    counted_side: CountedSide = "d"
    scaling_rule: ScalingRule
    lambda_start: StartRule
    gamma_start: StartRule
    default_alpha: float | None = None  # None: not stated, or the scaling rule needs none
    default_seed: int | None
    max_terms: int | None = None  # None: no cap on n
    num_terms: int | None = None  # n of every layer, whatever the rule and the cap
    context: int | None = None  # the network's context length, where that is the counted side
    shared_sides: SharedSides
    generator: Generator
    basis_rule: str
    draw_order: str
    stored: str
    orientation: Orientation = "paper"
    notes: str = ""

    def __post_init__(self) -> None:
        for name, allowed in RULES.items():
            checks.choice(name, getattr(self, name), allowed)
        for name, least in (("max_terms", 1), ("num_terms", 1), ("context", 1), ("default_seed", 0)):
            if getattr(self, name) is not None:
                checks.integer(name, getattr(self, name), least)
        if self.default_alpha is not None:
            checks.number("default_alpha", self.default_alpha)

    def terms(self, shape: tuple[int, int], rank: int, *, context: int | None = None) -> int:
        """n, the terms of a layer of ``shape`` (out, in), by ``context`` (None: the record's) where that counts."""
        shape, rank = checks.layer_shape(shape), checks.integer("rank", rank)
        if self.counted_side == "context":
            shape = (checks.integer("context", self.context if context is None else context),) * 2
        n = number_of_terms(shape, rank, self.count_rule)
        return self.num_terms or (n if self.max_terms is None else min(n, self.max_terms))

    def scaling(self, rank: int, n: int, alpha: float | None = None) -> float:
        """s, the number in front of the sum. ``alpha`` None takes the dialect's own.

        The paper fixes no α: without one its s is 2/√n (Table 9), with one α/r (Table 8 has 10/r).
        """
        rank, n = checks.integers_of(rank=rank, n=n)
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
        rank, n = checks.integers_of(rank=rank, n=n)
        d = sides(checks.layer_shape(shape), self.orientation)[1]
        values = {"0": 0.0, "1": 1.0, "1/d": 1 / d, "1/n": 1 / n, "1/max(n, d)": 1 / max(n, d)}
        values |= {"1/max(n, r)": 1 / max(n, rank), "1/max(out, in)": 1 / max(shape)}
        return values[self.lambda_start], values[self.gamma_start]

    def num_parameters(self, shape: tuple[int, int], rank: int, *, context: int | None = None) -> int:
        """n·(r + d), the learned values of one layer: inversely proportional to the rank."""
        d = sides(checks.layer_shape(shape), self.orientation)[1]
        return self.terms(shape, rank, context=context) * (int(rank) + d)


RULES = {name: get_args(hint) for name, hint in get_type_hints(Dialect).items() if get_origin(hint) is Literal}
FLOAT32 = "Kaiming uniform (a=√5) over its own deviation, in float32"
# fmt: off
DIALECTS: dict[str, Dialect] = {row.name: row for row in (
    Dialect(
        name="paper",
        source="arXiv 2502.00987v2, Eq. 4; what it leaves open is our choice: n, scaling, start and bases",
        pairing="literal", count_rule="ceil", scaling_rule="2/sqrt(n)", lambda_start="0", gamma_start="1/d",
        default_seed=0, generator="philox", shared_sides="max(D), max(d)",
        basis_rule="ours: uniform on ±√3 or ternary, unit variance, from counters, in float32 or float64",
        draw_order="none: every entry has its own counter", stored="A (r, d), B (n, D, r), Λ (n, r), Γ (n, d)",
        notes="n = d/r in §4.1, its floor in Table 9; s = 10/r in Table 8, 2/√n in Table 9",
    ),
    Dialect(
        name="peft", source="Hugging Face PEFT 0.21.2, tuners/randlora",
        pairing="crossed", count_rule="ceil", scaling_rule="alpha/r", default_alpha=640, lambda_start="0",
        gamma_start="1/max(n, d)", default_seed=0, generator="torch", shared_sides="sorted max(out), max(in)",
        basis_rule="Kaiming uniform (a=√5) over its own deviation, in bfloat16 or float16; sparse in float32",
        draw_order="A, then B_1 … B_n", stored="A (r, 1, d_max), B (D_max, n_max, r), Λ (r, n), Γ (n, d)",
        notes="shared shapes from the element-wise maximum of all (out, in); very_sparse has s = 2√d, not √D",
    ),
    Dialect(
        name="official", source="github.com/PaulAlbert31/RandLoRA at 4ac565e, peft/",
        pairing="crossed", count_rule="ceil", scaling_rule="alpha/(r*sqrt(n))", default_alpha=64, lambda_start="0",
        gamma_start="1/max(n, d)", default_seed=8539, generator="torch_float32", shared_sides="max(in), max(out)",
        basis_rule=FLOAT32, draw_order="A, then B_1 … B_n",
        stored="A (r, 1, max out), B (max in, n, r), Λ (r, n), Γ (n, d)",
        notes="the shared sides are not sorted: a network of tall layers alone raises",
    ),
    Dialect(
        name="nlg", source="github.com/PaulAlbert31/RandLoRA at 4ac565e, NLG/ (GPT-2)",
        pairing="crossed", count_rule="floor+1", counted_side="context", scaling_rule="alpha/(r*sqrt(n))",
        default_alpha=128, lambda_start="0", gamma_start="1/max(n, d)", default_seed=69196,
        generator="torch_terms_first", shared_sides="4*context, context", orientation="reshape",
        basis_rule=FLOAT32, draw_order="B_1 … B_n, then A",
        stored="A (1, r, n_ctx), B (n, 4·n_ctx, r), Λ (n, r), Γ (n, d); of c_attn (n, 2r), (n, 2d), q then v",
        notes="n is the whole network's, not the layer's; the reshape, of Conv1D's weight, is a scramble for out > in; "
        "c_attn is two square layers of orientation paper, q on rows 0 … d of B, v on d … 2d, with Γ = 1/max(n, 2d) at "
        "the start; scripts have α = 2r and seed 8",
    ),
    Dialect(
        name="vision", source="github.com/PaulAlbert31/RandLoRA at 4ac565e, vision_language/ (CLIP)",
        pairing="crossed", count_rule="floor+1", max_terms=1000, scaling_rule="alpha/r", default_alpha=1,
        lambda_start="1/max(n, r)", gamma_start="0", default_seed=1, generator="torch_terms_first",
        shared_sides="max(out), max(in)", orientation="square_transposed",
        basis_rule="Kaiming uniform (a=√5) or normal over its own deviation, in float32",
        draw_order="B_1 … B_n, then A",
        stored="A (1, r, max in), B (1000, max out, r), Λ (n, r) named …_B, Γ (n, d) named …_A",
        notes="merge takes M on square layers, the forward Mᵀ: they disagree; the fused in_proj takes M of 3d rows",
    ),
    Dialect(
        name="kradapter", source="github.com/PaulAlbert31/KRAdapter at ea88a71, its RandLoRA toy",
        pairing="literal", count_rule="ceil+1", scaling_rule="1", lambda_start="1/n", gamma_start="0",
        default_seed=42, generator="torch_whole", shared_sides="max(out), max(in)", orientation="never",
        basis_rule=f"{FLOAT32}; fan_in is r·in for A, out·r for B", draw_order="B whole, then A",
        stored="A (1, r, in), B (n, out, r), Λ (n, r) named A, Γ (n, in) named B",
        notes="bases of each layer's own; the seed is that of the global generator",
    ),
)}
# fmt: on


def get_dialect(dialect: str | Dialect) -> Dialect:
    """The dialect of that name, or the record itself. Raises ValueError for an unknown name."""
    if isinstance(dialect, Dialect):
        return dialect
    checks.choice("dialect", dialect, DIALECTS)
    return DIALECTS[dialect]
