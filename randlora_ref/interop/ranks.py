"""The ranks of an adapter's folder, module by module."""

from typing import Any

from ..models import layer_shapes
from ..rank import certify_rank
from .peft import load_peft


def folder_ranks(folder: str, base: str | None, draw_dtype: str, progress: Any = None) -> tuple[Any, ...]:
    """The certificates of an adapter's modules, its factors where a shape is known, what holds of which shapes.

    Without the base model, a module's rank is certified if its least and its largest possible shape have the same: a
    layer between them has the one's rank at least, the other's at most.
    """
    adapter = load_peft(folder, None if base is None else layer_shapes(base), draw_dtype=draw_dtype)
    certificates, sources, notes = {}, {}, {}
    for name in adapter.modules:
        known = adapter.shapes.get(name)
        least, most = (known, known) if known else adapter.possible_shapes(name)
        factors = adapter.layer(name, least).factors()
        low = high = certify_rank(factors, progress=progress)
        if least != most and (not low.full or min(least) < min(most)):
            high = certify_rank(adapter.layer(name, most).factors(), progress=progress)
        settled = low.rank == high.rank and min(least) == min(most)
        if settled:
            certificates[name] = low
        if least == most:
            sources[name], notes[name] = factors, f"of shape {least}"
        else:
            said = "of any shape" if settled else f"rank {low.rank} to {high.rank}, by its shape,"
            notes[name] = f"{said} from {least} to {most}, or turned round; --base tells it"
    ranks = [one.rank for one in certificates.values()]
    span = f", ranks {min(ranks)} to {max(ranks)}" if ranks else ""
    full = sum(one.full for one in certificates.values())
    lines = [f"{name}: {note}" for name, note in notes.items() if name not in certificates]
    lines.append(f"{len(notes)} modules: {len(ranks)} certified, {full} of full rank{span}")
    return certificates, sources, notes, lines
