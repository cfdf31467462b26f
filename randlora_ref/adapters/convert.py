"""The same ΔW under another dialect, where that is possible exactly: B's columns move, nothing is computed."""

from dataclasses import replace
from typing import Any

from .. import arrays, checks
from ..bases import Bases
from ..dialects import Dialect, get_dialect
from ..spec import is_transposed, sides
from .randlora import RandLoRA

Array = Any


def convert(layer: RandLoRA, dialect: str | Dialect) -> RandLoRA:
    """``layer`` under ``dialect``: its Λ, Γ, scaling and A, and B with its columns permuted if the pairings differ.

    Crossed to literal and back, and the official fork's to PEFT's. A literal B belongs to one n: layers that shared
    their bases no longer do. Raises ValueError, with the reason, for what cannot be, or is not offered.
    """
    checks.instance("layer", layer, RandLoRA)
    target, n, r = get_dialect(dialect), layer.n, layer.rank
    if (reason := _obstacle(layer, target)) is not None:
        raise ValueError(f"dialect: {target.name!r} of a layer of {layer.dialect.name!r}, {layer.shape}; {reason}")
    xp = checks.namespace(lambda_=layer.lambda_)
    own = layer.bases.slice(n, layer.D, layer.d)
    B = arrays.permute(xp, own.B, (1, 0, 2))  # (D, n, r): column f of [B_1 … B_n] is at (f div r, f mod r)
    if layer.dialect.pairing != target.pairing:  # crossed, column f = k·n + j meets row k of term j
        order = (layer.D, r, n) if target.pairing == "literal" else (layer.D, n, r)
        B = xp.reshape(arrays.permute(xp, xp.reshape(B, order), (0, 2, 1)), (layer.D, n, r))
    bases = Bases(own.A, arrays.permute(xp, B, (1, 0, 2)))
    return replace(layer, dialect=target, bases=bases, alpha=None, scaling=layer.scaling)


def _obstacle(layer: RandLoRA, target: Dialect) -> str | None:
    """Why there is no such layer, or none is offered; None where there is one."""
    shape, here, there = layer.shape, layer.dialect.orientation, target.orientation
    if sides(shape, here) != sides(shape, there):
        return "Γ is on its longer side in one of the two alone"
    if is_transposed(shape, here) != is_transposed(shape, there):
        return "one of the two alone takes the transpose of a square sum"
    if layer.tall and (here == "reshape") != (there == "reshape"):
        return "its ΔW is reshaped in one of the two alone; as blocks of d rows, if d divides D, exact, and not offered"
    if here != "paper":
        return "that is exact, and not offered"
    if there != "paper" or target.shared_sides == "max(in), max(out)":
        return "only paper's and peft's are offered"
    n = target.terms(shape, layer.rank) if target.counted_side == "d" else layer.n
    return None if n == layer.n else f"it has n = {n} terms there, the layer {layer.n}"
