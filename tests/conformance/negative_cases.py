"""What must be refused, made of a case of the exact tier and one of the real tier."""

import json
from fractions import Fraction
from typing import Any

import numpy as np
from conformance.stream import to_float64

from randlora_ref.conformance import answers, vectors
from randlora_ref.conformance.cases import Case

Array = Any


def negative_cases(exact: Case, real: Case, stored: dict[str, Any]) -> list[dict[str, Any]]:
    """Text, cases with one fault each, results that a right comparison rejects; ``stored`` is the first as JSON."""
    whole = json.dumps(stored, ensure_ascii=False)

    def case_with(path: str, value: Any) -> Any:
        one = json.loads(whole)
        *way, last = path.split(".")
        place = one
        for key in way:
            place = place[key]
        place[last] = value
        return one

    malformed = {
        "truncated": whole[:-9], "duplicate-key": '{"id": 1, "id": 2}', "nan": '{"x": NaN}',
        "infinity": '{"x": -Infinity}', "trailing-comma": "[1,]", "single-quotes": "{'a': 1}", "empty": "",
        "two-values": "1 2", "comment": "[1] // one",
    }  # fmt: skip
    invalid = {
        "unknown-kind": case_with("kind", "layers"), "unknown-pairing": case_with("given.pairing", "both"),
        "text-for-array": case_with("given.x", "1 2 3"), "list-for-array": case_with("given.x", [1, 2]),
        "short-data": case_with("given.x.data", [1]), "float-in-int": case_with("given.x.data", [0.5] * exact.x.size),
        "negative-size": case_with("given.x.shape", [-1, 2]), "huge-size": case_with("given.x.shape", [2**60, 2]),
        "unknown-dtype": case_with("given.x.dtype", "float8"), "boolean-scaling": case_with("given.scaling", True),
        "wrong-columns": case_with("given.A", vectors.encode(np.ones((1, 1)))), "no-given": case_with("given", {}),
        "ragged-terms": case_with("given.gamma", vectors.encode(np.ones((3, 2)))), "extra-key": case_with("run", "x"),
        "missing-result": case_with("expected", {}), "text-merged": case_with("given.merged", "yes"),
    }  # fmt: skip
    out: list[dict[str, Any]] = [
        {"id": f"malformed-{name}", "fault": "malformed", "text": text} for name, text in malformed.items()
    ]
    out += [{"id": f"invalid-{name}", "fault": "invalid", "case": case} for name, case in invalid.items()]
    right = {name: to_float64(x) for name, x in answers.layer(exact, Fraction).items()}
    close = {name: to_float64(x) for name, x in answers.layer(real, Fraction).items()}

    def spoiled(id_: str, of: Case, base: dict[str, Array], tensor: str, change: Any, fault: str = "mismatch") -> None:
        lists = {name: x.tolist() for name, x in base.items()}
        out.append(
            {
                "id": f"{fault}-{id_}",
                "fault": fault,
                "of": of.id,
                "results": {**lists, tensor: change(base[tensor].copy())},
            }
        )

    spoiled(
        "one-entry-by-one", exact, right, "dgamma", lambda x: (x + (np.arange(x.size) == 0).reshape(x.shape)).tolist()
    )
    spoiled("sign", exact, right, "dlambda", lambda x: (-x).tolist())
    spoiled("transposed", exact, right, "delta_weight", lambda x: x.T.tolist())
    spoiled("flat", exact, right, "y", lambda x: x.ravel().tolist())
    spoiled("extra-axis", exact, right, "y", lambda x: x[None].tolist())
    spoiled("empty", exact, right, "dx", lambda x: [])
    spoiled("zero", exact, right, "dx", lambda x: (0 * x).tolist())
    spoiled("text", exact, right, "y", lambda x: [[str(v) for v in row] for row in x])
    spoiled("one-part-in-a-million", real, close, "y", lambda x: (x * (1 + 1e-6)).tolist())
    spoiled("single-precision", real, close, "dlambda", lambda x: x.astype(np.float32).tolist())
    for word in ("NaN", "Infinity", "-Infinity"):
        spoiled(
            word.lower().strip("-") + ("-below" if "-" in word else ""),
            exact,
            right,
            "y",
            lambda x, w=word: w,
            "non-finite",
        )
    return out
