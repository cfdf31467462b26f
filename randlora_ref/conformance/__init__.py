"""The conformance kit: is an implementation right, and if not, what does it compute instead?"""

from .answers import expected
from .autograd import autograd
from .cases import Case, random_case
from .compare import Mismatch, compare, gauges, limits
from .diagnose import diagnose
from .peft import check_peft
from .random_search import search
from .report import Failure, Report, check
from .this_package import reference
from .vectors import exact_digest, stored_cases, write_vectors
from .ways import check_target, find_case, pytest_cases

__all__ = [
    "Case",
    "Failure",
    "Mismatch",
    "Report",
    "autograd",
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
