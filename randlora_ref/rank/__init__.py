"""Rank: proven by ``certify_rank``, estimated by ``spectrum``, foretold by ``predicted_rank``. Knows no adapter."""

from .certify import RankCertificate, certify_rank
from .descent import Descent, rank_after_steps
from .factors import load_factors, randlora_factors
from .numerical import Spectrum, plot_spectra, spectrum
from .structure import predicted_rank

__all__ = [
    "Descent",
    "RankCertificate",
    "Spectrum",
    "certify_rank",
    "load_factors",
    "plot_spectra",
    "predicted_rank",
    "randlora_factors",
    "rank_after_steps",
    "spectrum",
]
