"""Blocks to draw, and what is asked of ``spec.block`` on each, as functions of the module: a broken one can be asked.

Each question is answered by a ratio of an error to its limit, at most 1 where all is well; NaN fails, and is infinite.

*Values*, to the same in 50 digits: 4096·u of the largest entry, u = 2⁻⁵³ or 2⁻²⁴, so 4.5e-13 in float64. A block of
these sizes is a chain of some twenty sums of at most 18 terms, each right to a few u of the largest entry; most blocks
are within 3·u. But a LayerNorm of entries that are nearly equal multiplies such an error by up to 1/√ε = 316, and what
follows it by up to ten. Worst of 3,000 draws: 670·u.

*Gradients*, to the complex step along a random u: 1e-12·max(Σ|g∘u|, 2⁻⁷·the largest of these) in every tensor. Σ|g∘u|
is the gauge of ⟨g, u⟩; but where what a norm or a softmax passes on cancels (all of it for a key's bias), a gradient is
as wrong as what came in, hence the second. Worst of 4,000 draws: 0.15 of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from spec import many_digits

Array = Any
U = {"float64": 2.0**-53, "float32": 2.0**-24}
LIMIT = 1e-12
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
SCALINGS: dict[str, dict[str, Any] | None] = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": {"rope_type": "llama3", **LLAMA3},  # θ = 100, h = 6: wavelengths 6, 29, 135; kept, in part, divided
}


@dataclass(frozen=True)
class Case:
    """A block. It has the attributes of a ``BlockKind``; all numbers come from ``seed``."""

    seed: int = 0
    centred: bool = True
    fused: bool = False
    gated: bool = False
    activation: str = "gelu_tanh"
    eps: float = 1e-5
    width: int = 5
    hidden: int = 7
    heads: int = 2
    key_heads: int = 2
    head_width: int = 3
    batch: int = 2
    size: int = 4
    causal: bool = False
    padding: str = "none"  # left, right, anywhere; all: nothing of the first sequence is seen
    rotary: str | None = None
    theta: float = 100.0
    biases: bool = True
    adapted: float = 1.0  # the part of the linear roles that have an update
    rank: int = 2
    pairing: str = "crossed"
    orientation: str = "paper"
    dropout: bool = False

    @property
    def scaling(self) -> dict[str, Any] | None:
        """The configuration of ``rotary``."""
        return SCALINGS[self.rotary or "default"]

    def shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of the linear roles."""
        k, f, queries, keys = self.width, self.hidden, self.heads * self.head_width, self.key_heads * self.head_width
        inputs = {"qkv": (3 * queries, k)} if self.fused else {"q": (queries, k), "k": (keys, k), "v": (keys, k)}
        return inputs | {"o": (k, queries)} | ({"gate": (f, k)} if self.gated else {}) | {"up": (f, k), "down": (k, f)}


def cases(activations: tuple[str, ...] = tuple(many_digits.ACTIVATIONS)) -> st.SearchStrategy[Case]:
    """Every kind of block, of sizes that need not differ, padded or not, with RandLoRA in any part of its roles."""
    choices = {
        "seed": st.integers(0, 2**32 - 1),
        "activation": st.sampled_from(activations),
        "eps": st.sampled_from([1e-3, 1e-5]),
        "width": st.integers(1, 6),
        "hidden": st.integers(1, 8),
        "batch": st.integers(1, 2),
        "size": st.integers(1, 4),
        "padding": st.sampled_from(["none", "left", "right", "anywhere", "all"]),
        "theta": st.sampled_from([100.0, 10000.0]),
        "adapted": st.sampled_from([0.0, 0.5, 1.0]),
        "rank": st.integers(1, 3),
        "pairing": st.sampled_from(["literal", "crossed"]),
        "orientation": st.sampled_from(["paper", "square_transposed", "never", "reshape"]),
    }
    choices |= {name: st.booleans() for name in ("centred", "fused", "gated", "causal", "biases", "dropout")}

    @st.composite
    def draw_case(draw: st.DrawFn) -> Case:
        own = {name: draw(choice) for name, choice in choices.items()}
        rotary = draw(st.sampled_from([None, *SCALINGS]))
        key_heads, group = draw(st.integers(1, 2)), 1 if own["fused"] else draw(st.integers(1, 3))
        width = 2 * draw(st.integers(1, 3)) if rotary else draw(st.integers(1, 4))
        return Case(heads=key_heads * group, key_heads=key_heads, head_width=width, rotary=rotary, **own)

    return draw_case()


# Between them every choice twice, in surroundings that differ: for the tests that draw nothing.
LLAMA = {"centred": False, "gated": True, "activation": "silu", "biases": False, "causal": True}
FIXED = [
    Case(seed=1),
    Case(seed=2, fused=True, activation="gelu", causal=True, padding="left"),
    Case(seed=3, heads=4, head_width=6, rotary="llama3", padding="right", **LLAMA),
    Case(seed=4, centred=False, gated=True, activation="gelu", heads=6, head_width=2, rotary="linear", adapted=0.5),
    Case(seed=5, activation="quick_gelu", padding="all", dropout=True, pairing="literal"),
    Case(seed=6, fused=True, head_width=6, rotary="default", padding="anywhere", dropout=True, eps=1e-3, **LLAMA),
    Case(seed=8, width=4, hidden=4, orientation="square_transposed"),
    Case(seed=9, fused=True, hidden=7, orientation="reshape"),
    Case(seed=10, hidden=7, orientation="never", causal=True),
    Case(seed=7, heads=3, key_heads=1, head_width=6, rotary="llama3", padding="left", adapted=0.0, eps=1e-3),
]


def normal(rng: np.random.Generator, *shape: int, size: float = 1.0, dtype: str = "float64") -> Array:
    """A normal draw of deviation ``size``, read-only: no argument is changed in place."""
    values = (size * rng.standard_normal(shape)).astype(dtype)
    values.setflags(write=False)
    return values


def build(case: Case, block: Any, dtype: str = "float64") -> dict[str, Any]:
    """x, dy, parameters, updates, the mask and what is seen, and rotary tables: read-only arrays."""
    rng = np.random.default_rng(case.seed)

    def draw(*shape: int) -> Array:
        return normal(rng, *shape, dtype=dtype)

    def bias(size: int) -> Array | None:
        return draw(size) if case.biases else None

    k, tokens = case.width, (case.batch, case.size)
    x, dy = draw(*tokens, k), draw(*tokens, k)
    parameters, updates = {role: (1 + draw(k) / 4, bias(k)) for role in ("norm1", "norm2")}, {}
    for role, (out, inner) in case.shapes().items():
        parameters[role] = draw(out, inner) / np.sqrt(inner).astype(dtype), bias(out)
        if rng.random() >= case.adapted:
            continue
        (D, d), r = (out, inner) if case.orientation == "never" else (max(out, inner), min(out, inner)), case.rank
        n = -(-d // r)
        dropped = (2 * (rng.random((*tokens, inner)) < 0.5)).astype(dtype) if case.dropout else None
        factors = draw(r, d), draw(n, D, r), draw(n, r), draw(n, d)
        updates[role] = block.Update(*factors, 0.25 / np.sqrt(inner).item(), case.pairing, dropped, case.orientation)
    mask = None if case.padding == "none" else rng.random(tokens) < 0.6
    if case.padding in ("left", "right"):
        mask = np.ones(tokens, dtype=int)
        mask[0, slice(0, 1) if case.padding == "left" else slice(-1, None)] = 0
    if case.padding == "all":
        mask = np.arange(case.batch)[:, None] + np.zeros(tokens, dtype=int)
    tables = None
    if case.rotary:
        tables = block.rotary_tables(case.size, case.head_width, case.theta, case.scaling, dtype)
    seen = None if mask is None and not case.causal else block.visible(case.size, case.causal, mask)
    own = {"x": x, "dy": dy, "kind": case, "parameters": parameters, "updates": updates}
    return own | {"seen": seen, "tables": tables, "mask": mask}


def widened(built: Any) -> Any:
    """The same numbers in float64."""
    if isinstance(built, dict):
        return {name: widened(part) for name, part in built.items()}
    if isinstance(built, tuple):
        parts = [widened(part) for part in built]
        return type(built)(*parts) if hasattr(built, "_fields") else tuple(parts)
    return built.astype(np.float64) if getattr(built, "dtype", None) == np.float32 else built


def forward(block: Any, built: Mapping[str, Any]) -> Array:
    """y of a block that was built."""
    return block.block_forward(*(built[name] for name in ("x", "kind", "parameters", "updates", "seen", "tables")))[0]


def backward(block: Any, built: Mapping[str, Any]) -> tuple[Array, Any]:
    """∂L/∂x and the gradients by role."""
    names = ("dy", "x", "kind", "parameters", "updates", "seen", "tables")
    return block.block_backward(*(built[name] for name in names))


def in_digits(built: Mapping[str, Any], directions: Mapping[str, Array] | None = None, h: Any = 0) -> Any:
    """The same y, in 50 digits; with every tensor that has a direction u (see ``tensors``) moved by h·u."""

    def number(name: str, value: Array | None) -> Any:
        exact, u = many_digits.numbers(value), (directions or {}).get(name)
        return exact if u is None else many_digits.moved(exact, many_digits.numbers(u), h)

    parameters = {
        role: (number(f"{role}/weight", weight), number(f"{role}/bias", bias))
        for role, (weight, bias) in built["parameters"].items()
    }
    updates = {
        role: {
            name: number(f"{role}/{name}", x) if not isinstance(x, str) else x for name, x in update._asdict().items()
        }
        for role, update in built["updates"].items()
    }
    return many_digits.block(number("x", built["x"]), built["kind"], parameters, updates, built["mask"])


def distance(found: Array, expected: Any, dtype: str = "float64") -> float:
    """max|found − expected| over 4096·u·max|expected|; infinite if misshapen, of another dtype or not finite."""
    expected = np.array(expected, dtype=float)
    if found.shape != expected.shape or found.dtype != dtype or not np.all(np.isfinite(found)):
        return float("inf")
    error, size = np.max(np.abs(found - expected), initial=0.0), np.max(np.abs(expected), initial=2.0**-1000)
    return float(error / (4096 * U[dtype] * size))


def tensors(built: Mapping[str, Any]) -> dict[str, Array]:
    """Everything that has a gradient, by name. ``role/y`` is a zero added to that role's output, token by token."""
    found = {"x": built["x"]}
    tokens = built["x"].shape[:2]
    for role, (weight, bias) in built["parameters"].items():
        found[f"{role}/weight"] = weight
        found[f"{role}/y"] = np.zeros((*tokens, weight.shape[0])) + (0 if bias is None else bias)
        if bias is not None:
            found[f"{role}/bias"] = bias
    for role, update in built["updates"].items():
        found |= {f"{role}/lambda_": update.lambda_, f"{role}/gamma": update.gamma}
    return found


def changed(built: Mapping[str, Any], name: str, value: Array) -> dict[str, Any]:
    """The block with one tensor changed."""
    if name == "x":
        return {**built, "x": value}
    role, part = name.split("/")
    weight, bias = built["parameters"][role]
    if part in ("lambda_", "gamma"):
        return {**built, "updates": built["updates"] | {role: built["updates"][role]._replace(**{part: value})}}
    pair = (value, bias) if part == "weight" else (weight, value)
    return {**built, "parameters": built["parameters"] | {role: pair}}


def gradients(block: Any, built: Mapping[str, Any]) -> dict[str, Array]:
    """The gradients of ``tensors``, under their names."""
    dx, by_role = backward(block, built)
    names = [name for name in tensors(built) if name != "x"]
    return {"x": dx} | {name: getattr(by_role[name.split("/")[0]], name.split("/")[1]) for name in names}


def gap(found: Mapping[str, tuple[float, float, float]]) -> float:
    """The worst of (⟨g, u⟩, Σ|g∘u|, the derivative along u), over the limit of the module's docstring."""
    largest = max(max(size, abs(exact)) for _, size, exact in found.values())
    return max(
        abs(ours - exact) / (LIMIT * max(size, 2.0**-7 * largest, 2.0**-1000)) if np.isfinite(ours) else float("inf")
        for ours, size, exact in found.values()
    )


def gradient_gap(block: Any, case: Case) -> float:
    """Every gradient of a block whose activation is analytic, by the complex step along a random direction of each."""
    built, rng, found = build(case, block), np.random.default_rng(case.seed + 1), {}
    values = tensors(built)
    for name, gradient in gradients(block, built).items():
        u = rng.standard_normal(values[name].shape)
        if gradient.shape != u.shape:
            return float("inf")
        y = forward(block, changed(built, name, values[name] + 1e-30j * u))
        found[name] = (
            float(np.sum(gradient * u)),
            float(np.sum(np.abs(gradient * u))),
            np.sum(built["dy"] * y).imag / 1e-30,
        )
    return gap(found)


def gradient_gap_by_differences(block: Any, case: Case) -> float:
    """Every gradient again, by differences in 50 digits along one direction of all tensors together."""
    built, rng = build(case, block), np.random.default_rng(case.seed + 2)
    own = {name: gradient for name, gradient in gradients(block, built).items() if not name.endswith("/y")}
    directions = {name: rng.standard_normal(gradient.shape) for name, gradient in own.items()}
    above, below = (np.array(in_digits(built, directions, h), dtype=object) for h in (many_digits.H, -many_digits.H))
    exact = float(np.sum(built["dy"] * (above - below)) / (2 * many_digits.H))
    products = np.concatenate([(own[name] * u).ravel() for name, u in directions.items()])
    return gap({"all": (float(np.sum(products)), float(np.sum(np.abs(products))), exact)})


def value_gap(block: Any, case: Case, dtype: str = "float64") -> float:
    """y of a block, to the same in 50 digits."""
    built = build(case, block, dtype)
    return distance(forward(block, built), in_digits(built), dtype)
