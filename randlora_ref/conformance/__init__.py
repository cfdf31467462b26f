"""The conformance kit: is an implementation right, and if not, what does it compute instead?"""

from .answers import expected as expected
from .autograd import autograd as autograd
from .cases import Case as Case
from .cases import random_case as random_case
from .compare import Mismatch as Mismatch
from .compare import compare as compare
from .compare import gauges as gauges
from .compare import limits as limits
from .diagnose import diagnose as diagnose
from .peft import check_peft as check_peft
from .random_search import search as search
from .report import Failure as Failure
from .report import Report as Report
from .report import check as check
from .this_package import reference as reference
from .vectors import exact_digest as exact_digest
from .vectors import stored_cases as stored_cases
from .vectors import write_vectors as write_vectors
from .ways import check_target as check_target
from .ways import find_case as find_case
from .ways import pytest_cases as pytest_cases
