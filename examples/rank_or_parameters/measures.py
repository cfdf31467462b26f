"""What is read off trained updates: their ranks, how many directions they can move in, and what rank was needed."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from randlora_ref import certify_rank
from randlora_ref.rank import spectrum


def ranks(adapters: Mapping[str, Any]) -> dict[str, float]:
    """Over all adapted modules, from the adapters' own factors and never from a rounded ΔW.

    "proven": the median of the certified ranks, "proven_least": the least; "effective" (exp of the entropy of σ/Σσ) and
    "stable" (Σσ²/σ₁²): means.
    """
    proven = [certify_rank(one).rank for one in adapters.values()]
    spectra = [spectrum(one) for one in adapters.values()]
    return {
        "proven": float(np.median(proven)),
        "proven_least": float(min(proven)),
        "effective": round(float(np.mean([one.effective_rank for one in spectra])), 2),
        "stable": round(float(np.mean([one.stable_rank for one in spectra])), 2),
    }


def degrees_of_freedom(adapter: Any, seed: int = 0) -> int:
    """The rank of the Jacobian of ΔW in the learned values at a random point: how many directions ΔW can move in.

    ΔW is linear in each learned array while the others are held, so the derivative by an entry of one is ΔW with a unit
    array in its place. Decided in float64 with NumPy's tolerance.
    """
    rng, columns = np.random.default_rng(seed), []
    point = {part: rng.standard_normal(getattr(adapter, part).shape) for part in adapter.LEARNED}
    adapter = adapter.replace(**point)
    for part, x in point.items():
        for i in range(x.size):
            unit = np.zeros(x.size)
            unit[i] = 1.0
            columns.append(adapter.replace(**{part: unit.reshape(x.shape)}).delta_weight().ravel())
    return int(np.linalg.matrix_rank(np.stack(columns)))


def cut(adapters: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """Full fine-tuning's adapters with each ΔW cut to its nearest of ``rank``: the largest singular values alone."""
    result = {}
    for name, one in adapters.items():
        U, sigma, Vt = np.linalg.svd(one.delta.astype(np.float64), full_matrices=False)
        nearest = (U[:, :rank] * sigma[:rank]) @ Vt[:rank]
        result[name] = one.replace(delta=nearest.astype(one.delta.dtype))
    return result
