"""The conformance kit: is an implementation right, and if not, what does it compute instead?"""

from .cases import Case, expected, random_case
from .compare import Mismatch, compare, gauges, limits
from .diagnose import diagnose
from .report import Failure, Report, check
from .vectors import exact_digest, stored_cases, write_vectors
from .ways import check_peft, check_target, find_case, pytest_cases, reference, search

__all__ = [
    "Case",
    "Failure",
    "Mismatch",
    "Report",
    "check",
    "check_peft",
    "check_target",
    "compare",
    "diagnose",
    "exact_digest",
    "expected",
    "find_case",
    "gauges",
    "limits",
    "pytest_cases",
    "random_case",
    "reference",
    "search",
    "stored_cases",
    "write_vectors",
]
