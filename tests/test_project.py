"""What pyproject.toml declares, beside what the README says."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_extra_and_the_group_of_the_tests_are_one_list() -> None:
    """pip reads the one, tools that know dependency groups the other."""
    assert DECLARED["project"]["optional-dependencies"]["test"] == DECLARED["dependency-groups"]["test"]


def test_what_the_tests_need_has_a_lowest_version() -> None:
    """CI installs exactly these: a name, ">=" and a release, nothing else."""
    for need in DECLARED["project"]["dependencies"] + DECLARED["project"]["optional-dependencies"]["test"]:
        assert re.fullmatch(r"[a-z-]+>=[0-9.]+", need), need


def test_the_python_versions_that_were_tried() -> None:
    """The classifiers name those of the README, the first of which is the least that is required."""
    tried = re.findall(r":: Python :: (3\.\d+)", "\n".join(DECLARED["project"]["classifiers"]))
    assert f"(tried: {', '.join(tried)})" in README
    assert DECLARED["project"]["requires-python"] == f">={tried[0]}"
    assert f"needs Python {tried[0]} or newer" in README
