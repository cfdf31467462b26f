"""The test vectors, and answers to them, as JSON, read with suspicion.

An array is {"shape": […], "dtype": "int", "data": [integers]}, or with "float32" or "float64" and "data" a text of
hexadecimal words, most significant byte first; in results, nested lists of numbers too. A results file is {"format":
"randlora-results", "version": 1, "results": {case id: {name: array}}}. Nothing that is read is run.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from .. import checks, nn
from ..bases import sparsity_squared
from ..dialects import get_dialect
from ..nn.block import NORMS, check_block
from .cases import ARRAYS, KINDS, Case, each
from .this_package import adapter

Array = Any
FORMAT, VERSION = "randlora-vectors", 1
STORED = Path(__file__).parent.parent / "vectors" / "v1"
FILES = tuple(f"{n}.json" for n in ("layer-exact", "layer-real", *KINDS[1:], "layer-dropout", "dialects", "telling"))
MOST_BYTES = 1 << 24  # of one file or line
MOST_ENTRIES = 1 << 20  # of one array
BOUND = 2.0**64  # of a number
SHOWN, TOLD = 60, 160  # characters of a bad value, of a reason
WORDS = {"float32": ">f4", "float64": ">f8"}
HEAD = ("id", "kind", "tier", "clause", "notes", "exact_in")
SCALARS = {
    "layer": ("pairing", "scaling", "alpha", "dtype", "fan_in_fan_out", "merged"),
    "rank": ("shape", "pairing", "scaling"),
    "bases": ("dialect", "seed", "shapes", "rank", "kind_of_basis"),
    "start": ("dialect", "shape", "rank"),
    "count": ("dialect", "shapes", "rank"),
    "block": ("block", "causal", "attention_mask", "rope_theta", "pairing", "scaling", "dtype"),
}
OPTIONAL = {"layer": ("dialect", "orientation")} | dict.fromkeys(("bases", "start", "count"), ("context",))


def parse(text: bytes | str, where: str) -> Any:
    """JSON of at most ``MOST_BYTES``, every key once, no NaN, no infinity. Raises ValueError that names ``where``."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    def constant(word: str) -> Any:
        raise ValueError(f"{word} is no JSON")

    if len(text) > MOST_BYTES:
        raise ValueError(f"{where}: {len(text)} bytes; at most {MOST_BYTES} are read")
    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=constant)
    except (RecursionError, ValueError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:TOLD]
        raise ValueError(f"{where}: {reason}; it must be the JSON of {FORMAT}") from None


def encode(x: Array, dtype: str = "int") -> dict[str, Any]:
    """An array as JSON."""
    x = np.asarray(x)
    if dtype == "int":
        return {"shape": list(x.shape), "dtype": dtype, "data": [int(value) for value in x.flat]}
    return {"shape": list(x.shape), "dtype": dtype, "data": x.astype(WORDS[dtype]).tobytes().hex(" ", x.itemsize)}


def decode(value: Any, where: str) -> Array:
    """An array from JSON, float64 or float32; ValueError for anything else."""
    if not isinstance(value, dict) or set(value) != {"shape", "dtype", "data"}:
        raise ValueError(f"{where}: {str(value)[:SHOWN]!r}; it must be an object of shape, dtype and data")
    shape, dtype, data = value["shape"], value["dtype"], value["data"]
    if not isinstance(shape, list) or not all(type(k) is int and 0 <= k <= MOST_ENTRIES for k in shape):
        raise ValueError(f"{where}: shape {str(shape)[:SHOWN]!r}; it must list sizes")
    try:
        if dtype == "int" and isinstance(data, list) and all(type(k) is int and abs(k) < 2**53 for k in data):
            flat = np.array(data, dtype=np.float64)
        else:
            flat = np.frombuffer(bytes.fromhex(data), dtype=WORDS[dtype]).astype(dtype)
    except (KeyError, TypeError, ValueError):
        held = f"dtype {str(dtype)[:SHOWN]!r}, data {str(data)[:SHOWN]!r}"
        text = "it must be int with integers, or float32 or float64 with hexadecimal words of it"
        raise ValueError(f"{where}: {held}; {text}") from None
    size = math.prod(shape)
    if size != flat.size or not np.isfinite(flat).all():
        raise ValueError(f"{where}: {flat.size} entries; it must be {size}, all finite")
    return flat.reshape(shape)


def case_to_json(case: Case) -> dict[str, Any]:
    """What an implementation is given of a case; the expected results are no part of it."""
    dtype = "int" if case.tier == "exact" else case.dtype
    given = {name: getattr(case, name) for name in SCALARS[case.kind]}
    given |= {name: x for name in OPTIONAL.get(case.kind, ()) if (x := getattr(case, name)) != getattr(Case, name)}
    if case.block is not None:
        given["block"] = asdict(case.block) | {"biases": sorted(case.block.biases)}
    given |= {name: each(lambda x: encode(x, dtype), x) for name, x in case.given.items()}
    return {**{name: getattr(case, name) for name in HEAD}, "wanted": case.wanted, "given": given}


def case_from_json(value: Any, where: str) -> Case:
    """A case, its expected results with it where they are there. ValueError in one line for anything else."""
    try:
        case = _case(value)
        _check(case)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
        raise ValueError(f"{where}: {' '.join(text.split())[:TOLD]}; it must be as schema.json has it") from None
    return case


def _case(value: Any) -> Case:
    """A case of the right names; ``_check`` reads the values."""
    required = {*HEAD, "wanted", "given"}
    if not required <= set(value) <= required | {"expected", "intermediate", "gauge"}:
        raise ValueError(f"{str(value)[:SHOWN]!r}; it must be an object of {', '.join(sorted(required))}")
    kind, given = value["kind"], value["given"]
    if not set(SCALARS[kind]) <= set(given) <= {*SCALARS[kind], *OPTIONAL.get(kind, ()), *ARRAYS}:
        raise ValueError(f"given {sorted(given)}; it must hold {', '.join(SCALARS[kind])} and the arrays")
    texts = {name: tuple(map(str, x)) if isinstance(x := value[name], list) else str(x) for name in HEAD}
    parts = {name: _array(name, x, given.get("dtype")) if name in ARRAYS else _tuples(x) for name, x in given.items()}
    if kind == "block":
        parts["block"] = nn.BlockSpec(**{**given["block"], "biases": frozenset(given["block"]["biases"])})
    case = Case(**{**texts, **parts})
    if "expected" in value:
        stored = {name: decode(x, name).astype(np.float64) for name, x in value["expected"].items()}
        if set(stored) != set(case.wanted):
            raise ValueError(f"expected {sorted(stored)}; it must hold the wanted {case.wanted}")
        case = replace(case, stored=stored)
    return case


def _array(name: str, value: Any, dtype: str | None) -> Any:
    """An array in ``dtype`` (None: as it is stored), or arrays by role."""
    if isinstance(value, dict) and "shape" not in value:
        return {role: _array(f"{name} {role[:SHOWN]}", x, dtype) for role, x in value.items()}
    x = decode(value, name)
    return x if dtype is None else x.astype(dtype)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _check(case: Case) -> None:
    """Raises what the package's doors refuse of a case, and what no door asks."""
    rules = replace(get_dialect(case.dialect), context=case.context, pairing=case.pairing, orientation=case.orientation)
    checks.choice("tier", case.tier, ("exact", "real"))
    checks.choice("dtype", case.dtype, tuple(WORDS))
    for name in ("fan_in_fan_out", "merged", "causal"):
        checks.choice(name, getattr(case, name), (False, True))
    for name, above in (("scaling", -BOUND), ("alpha", -BOUND), ("rope_theta", 0.0)):
        if (value := getattr(case, name)) is not None or name == "scaling":
            checks.number(name, value, above=above, below=BOUND)
    checks.seed(case.seed)
    if case.kind_of_basis != "dense":
        sparsity_squared(case.kind_of_basis, 4)
    if case.kind in ("bases", "start", "count"):
        for shape in checks.layer_shapes((case.shape,) if case.kind == "start" else case.shapes):
            rules.terms(shape, case.rank)
    elif case.kind == "block":
        _check_block(case)
    else:
        adapter(case)
    if case.kind == "layer":
        given = {name: getattr(case, name) for name in ("x", "weight", "bias", "dropout_mask")}
        checks.linear(case.shape, adapter=case.lambda_, **given)
        checks.shape("dy", case.dy, (*case.x.shape[:-1], case.shape[0]))
    if case.dropout_mask is not None and (case.merged or case.kind != "layer"):
        raise ValueError("dropout_mask: an array; it must be of a layer that is not merged")


def _check_block(case: Case) -> None:
    """The arrays of a block; no door asks whether there are the roles that must be there and no others, and tokens."""
    kind, tokens, theta = case.block, case.x.shape[:2], case.rope_theta
    for name in ("centred", "fused", "gated"):
        checks.choice(name, getattr(kind, name), (False, True))
    named = case.weight.keys() == {*NORMS, *kind.shapes()} and case.bias.keys() == kind.biases
    if not (named and case.A.keys() == case.B.keys() == case.lambda_.keys() == case.gamma.keys()):
        raise ValueError("roles of the arrays; they must be those of the block, of biases and of what is adapted")
    if np.shape(case.attention_mask) != tokens or case.x.size == 0:
        raise ValueError(f"attention_mask: it must have an entry for each token of x, shape {case.x.shape}")
    for entry in chain(*case.attention_mask):
        checks.choice("attention_mask", checks.integer("attention_mask", entry, 0), (0, 1))
    for role in case.A:
        adapter(case, role)
    tables = theta and nn.rotary_tables(case.x, tokens[1], kind.head_width, theta)
    check_block(case.x, kind, case.parameters, None, tables)
    checks.shape("dy", case.dy, case.x.shape)


def results_from_json(answer: Any, case: Case) -> Mapping[str, Any]:
    """Results by name: arrays as in the vectors, nested lists, or "unsupported: reason". ValueError for no answer."""
    if not isinstance(answer, dict) or answer.get("id") != case.id:
        raise ValueError(f"{str(answer)[:SHOWN]!r}; it must be an object with the case's id {case.id!r}")
    if isinstance(answer.get("unsupported"), str):
        return dict.fromkeys(case.wanted, f"unsupported: {answer['unsupported'][:TOLD]}")
    results = answer.get("results")
    if not isinstance(results, dict):
        raise ValueError(f"{case.id}: results {str(results)[:SHOWN]!r}; it must be an object of arrays by name")
    return {name: _result(x, f"{case.id}: {name}") for name, x in results.items()}


def _result(value: Any, where: str) -> Any:
    """A result as it is written, or why it cannot be read: the others are judged all the same."""
    try:
        return decode(value, where) if isinstance(value, dict) else value
    except ValueError as error:
        return str(error)


def results_file(path: str | Path) -> Callable[[Case], Mapping[str, Any]]:
    """The answers in a results file as an implementation. ValueError that names the file for a bad one."""
    rows = _content(Path(path), "randlora-results").get("results")
    if not isinstance(rows, dict):
        raise ValueError(f"{path}: results {str(rows)[:SHOWN]!r}; it must be an object by case id")
    unknown = sorted(set(rows) - {case.id for case in stored_cases()})
    if unknown:
        raise ValueError(f"{path}: case {unknown[0][:SHOWN]!r} of results; it must be an id of the vectors")
    return lambda case: results_from_json({"id": case.id, "results": rows.get(case.id, {})}, case)


def _content(path: Path, known: str) -> dict[str, Any]:
    """The JSON object of a file of this format."""
    content = parse(read_file(path), str(path))
    if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (known, VERSION):
        raise ValueError(f"{path}: it must be of format {known!r}, version {VERSION}")
    return content


def read_file(path: Path) -> bytes:
    """A file's bytes, one more than ``parse`` takes at most; ValueError where it cannot be read."""
    try:
        with checks.regular_file(path).open("rb") as file:
            return file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; it must be a file of {FORMAT}") from None


@cache
def stored_cases(folder: Path = STORED) -> tuple[Case, ...]:
    """All cases of a folder of vectors, each file's SHA-256 compared with the manifest's. ValueError names the file."""
    manifest, cases = _content(folder / "MANIFEST.json", FORMAT), list[Case]()
    for name in FILES:
        content = read_file(folder / name)
        if hashlib.sha256(content).hexdigest() != manifest.get("files", {}).get(name, {}).get("sha256"):
            raise ValueError(f"{folder / name}: its SHA-256 is not the manifest's; it must be left as it was written")
        cases += [case_from_json(one, name) for one in parse(content, name)["cases"]]
    return tuple(cases)


def exact_digest(results: Iterable[tuple[str, Mapping[str, Array]]]) -> str:
    """One hash for the exact tier: SHA-256 of lines "id name entries…", the entries as integers, C order.

    The manifest's is that of layer-exact and layer-dropout.
    """
    rows = ((id_, name, np.asarray(x).flat) for id_, out in results for name, x in out.items())
    text = "".join(f"{id_} {name} {' '.join(str(int(entry)) for entry in x)}\n" for id_, name, x in rows)
    return hashlib.sha256(text.encode()).hexdigest()


def write_vectors(folder: str | Path) -> list[Path]:
    """Copy the vectors, schema and manifest into ``folder``, made if need be; the paths written."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copy(path, folder)) for path in sorted(STORED.iterdir()) if path.is_file()]
