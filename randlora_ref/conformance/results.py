"""Results as JSON: the answer of a program, and a results file, which is checked offline.

A file is {"format": "randlora-results", "version": 1, "results": {case id: {name: array}}}.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .cases import Case
from .vectors import VERSION, decode, parse, read_file, stored_cases


def results_from_json(answer: Any, case: Case) -> Mapping[str, Any]:
    """The results in a program's answer. ValueError for an answer that is none."""
    if not isinstance(answer, dict) or answer.get("id") != case.id:
        raise ValueError(f"{str(answer)[:60]!r}; it must be an object with the case's id {case.id!r}")
    if isinstance(answer.get("unsupported"), str):
        return dict.fromkeys(case.wanted, f"unsupported: {answer['unsupported'][:200]}")
    return named_results(answer.get("results"), case.id)


def named_results(results: Any, where: str) -> Mapping[str, Any]:
    """Results by name from JSON: arrays as in the vectors, nested lists, or "unsupported: reason"."""
    if not isinstance(results, dict):
        raise ValueError(f"{where}: results {str(results)[:40]!r}; it must be an object of arrays by name")
    return {name: decode(x, f"{where}: {name}") if isinstance(x, dict) else x for name, x in results.items()}


def results_file(path: str | Path) -> Callable[[Case], Mapping[str, Any]]:
    """The answers in a results file as an implementation. ValueError that names the file for a bad one."""
    content = parse(read_file(Path(path)), str(path))
    head = [content.get(key) for key in ("format", "version")] if isinstance(content, dict) else []
    if head != ["randlora-results", VERSION]:
        raise ValueError(f"{path}: it must be of format 'randlora-results', version {VERSION}")
    rows = content.get("results")
    if not isinstance(rows, dict):
        raise ValueError(f"{path}: results {str(rows)[:40]!r}; it must be an object by case id")
    unknown = sorted(set(rows) - {case.id for case in stored_cases()})
    if unknown:
        raise ValueError(f"{path}: case {unknown[0][:60]!r} of results; it must be an id of the vectors")
    return lambda case: named_results(rows[case.id], case.id) if case.id in rows else {}
