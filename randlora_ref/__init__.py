"""RandLoRA as an executable specification: a small NumPy and CuPy reference with its own proof.

Start at ``randlora_ref.spec``. Importing this package imports NumPy and nothing else.
"""

from .adapters import RandLoRA
from .bases import Bases, draw_bases
from .dialects import DIALECTS, Dialect

__version__ = "0.1.0"
__all__ = ["DIALECTS", "Bases", "Dialect", "RandLoRA", "draw_bases"]
