"""RandLoRA as an executable specification: a small NumPy and CuPy reference with its own proof.

Start at ``randlora_ref.spec``. Importing this package imports NumPy and nothing else.
"""

from . import models, nn, optim
from .adapters import FullFineTuning, LoRA, NoLA, RandLoRA, RandLoRAa, VeRA, convert, randlora_b
from .bases import Bases, draw_bases
from .conformance import check
from .dialects import DIALECTS, Dialect
from .interop.peft import load_peft, save_peft
from .rank import RankCertificate, certify_rank

__version__ = "0.1.0"
__all__ = [
    "DIALECTS",
    "Bases",
    "Dialect",
    "FullFineTuning",
    "LoRA",
    "NoLA",
    "RandLoRA",
    "RandLoRAa",
    "RankCertificate",
    "VeRA",
    "certify_rank",
    "check",
    "convert",
    "draw_bases",
    "load_peft",
    "models",
    "nn",
    "optim",
    "randlora_b",
    "save_peft",
]
