"""The conformance kit: is an implementation right, and if not, what does it compute instead?"""

from .cases import Case, expected, random_case
from .compare import Mismatch, compare, gauges, limits
from .diagnose import diagnose
from .report import Failure, Report, check, check_peft

__all__ = [
    "Case",
    "Failure",
    "Mismatch",
    "Report",
    "check",
    "check_peft",
    "compare",
    "diagnose",
    "expected",
    "gauges",
    "limits",
    "random_case",
]
