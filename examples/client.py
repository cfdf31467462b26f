"""A client to start from, in the standard library alone: RandLoRA's layer and count in lists and loops.

``randlora-ref check --exec 'python examples/client.py'``: one case a line comes in, one answer a line goes out. Put
your own implementation in the place of ``layer``; what you leave out, answer with "unsupported" and a reason.
"""

import json
import struct
import sys
from collections.abc import Sequence
from typing import Any


def decode(array: dict[str, Any]) -> tuple[list[int], list[float]]:
    """(shape, entries in C order) of an array of the vectors."""
    data = array["data"]
    if array["dtype"] != "int":
        word = ">f" if array["dtype"] == "float32" else ">d"
        data = [struct.unpack(word, bytes.fromhex(text))[0] for text in data.split()]
    return array["shape"], data


def encode(shape: Sequence[int], data: list[float]) -> dict[str, Any]:
    """An array as float64 words."""
    return {"shape": list(shape), "dtype": "float64", "data": " ".join(struct.pack(">d", v).hex() for v in data)}


def sides(shape: Sequence[int], orientation: str) -> tuple[int, int]:
    """(D, d) of M: the larger and the smaller side; "never" leaves (out, in) as they are."""
    return (shape[0], shape[1]) if orientation == "never" else (max(shape), min(shape))


def place(o: int, i: int, shape: Sequence[int], orientation: str) -> tuple[int, int]:
    """Where in M (D, d) entry (o, i) of ΔW stands."""
    out, in_ = shape
    if orientation == "reshape":
        return divmod(i * out + o, min(out, in_))
    transposed = out < in_ or (orientation == "square_transposed" and out == in_)
    return (i, o) if transposed and orientation != "never" else (o, i)


def update(given: dict[str, Any]) -> tuple[list[list[float]], Any]:
    """M as rows, and for the gradients a function (j, k) -> (column of B, row of A), both sliced to the layer."""
    (r, d_max), A = decode(given["A"])
    (_, D_max, _), B = decode(given["B"])
    (n, _), lambda_ = decode(given["lambda_"])
    gamma = decode(given["gamma"])[1]
    D, d = sides(given["weight"]["shape"], given.get("orientation", "paper"))

    def factors(j: int, k: int) -> tuple[list[float], list[float]]:
        term, column = (j, k) if given["pairing"] == "literal" else divmod(k * n + j, r)
        return [B[(term * D_max + o) * r + column] for o in range(D)], A[k * d_max : k * d_max + d]

    M = [[0.0] * d for _ in range(D)]
    for j in range(n):
        for k in range(r):
            b, a = factors(j, k)
            for o in range(D):
                for i in range(d):
                    M[o][i] += given["scaling"] * b[o] * lambda_[j * r + k] * a[i] * gamma[j * d + i]
    return M, factors


def layer(given: dict[str, Any]) -> dict[str, Any]:
    """ΔW, y = xWᵀ + (x∘m)ΔWᵀ + b with the dropout mask m, and the gradients of Σ dy·y by x, Λ and Γ."""
    (out, in_), weight = decode(given["weight"])
    x_shape, x = decode(given["x"])
    dy_shape, dy = decode(given["dy"])
    bias = decode(given["bias"])[1] if "bias" in given else [0.0] * out
    (n, r), lambda_ = decode(given["lambda_"])
    (_, d), gamma = decode(given["gamma"])
    orientation = given.get("orientation", "paper")
    M, factors = update(given)
    places = {(o, i): place(o, i, (out, in_), orientation) for o in range(out) for i in range(in_)}
    delta = [[M[row][column] for row, column in (places[o, i] for i in range(in_))] for o in range(out)]
    mask = decode(given["dropout_mask"])[1] if "dropout_mask" in given else [1.0] * len(x)
    kept = [v * m for v, m in zip(x, mask, strict=True)]
    rows = len(x) // in_

    def seen(t: int, o: int, i: int) -> float:  # of W + ΔW, by entry i of row t
        return weight[o * in_ + i] + mask[t * in_ + i] * delta[o][i]

    y = [sum(x[t * in_ + i] * seen(t, o, i) for i in range(in_)) + bias[o] for t in range(rows) for o in range(out)]
    dx = [sum(dy[t * out + o] * seen(t, o, i) for o in range(out)) for t in range(rows) for i in range(in_)]
    G = [[0.0] * d for _ in M]  # ∂L/∂M
    for (o, i), (row, column) in places.items():
        G[row][column] = sum(dy[t * out + o] * kept[t * in_ + i] for t in range(rows))
    dlambda, dgamma = [0.0] * (n * r), [0.0] * (n * d)
    for j in range(n):
        for k in range(r):
            b, a = factors(j, k)
            for i in range(d):
                pulled = given["scaling"] * sum(b[o] * G[o][i] for o in range(len(b))) * a[i]
                dlambda[j * r + k] += pulled * gamma[j * d + i]
                dgamma[j * d + i] += pulled * lambda_[j * r + k]
    return {
        "delta_weight": encode((out, in_), [v for row in delta for v in row]),
        "y": encode(dy_shape, y),
        "dx": encode(x_shape, dx),
        "dlambda": encode((n, r), dlambda),
        "dgamma": encode((n, d), dgamma),
    }


def count(given: dict[str, Any]) -> dict[str, Any]:
    """Σ n(r + d), with n = ceil(d/r) but in three of the authors' codes; KRAdapter's Γ has the width ``in``."""
    r, dialect, learned = given["rank"], given["dialect"], 0
    for shape in given["shapes"]:
        d = min(shape)
        others = {"nlg": given.get("context", 0) // r + 1, "vision": min(1000, d // r + 1), "kradapter": -(-d // r) + 1}
        learned += others.get(dialect, -(-d // r)) * (r + (shape[1] if dialect == "kradapter" else d))
    return {"num_parameters": learned}


def main() -> None:
    """Answer each line of the standard input."""
    known = {"layer": layer, "count": count}
    for line in sys.stdin:
        case = json.loads(line)["case"]
        answer: dict[str, Any] = {"id": case["id"]}
        if case["kind"] in known:
            answer["results"] = known[case["kind"]](case["given"])
        else:
            answer["unsupported"] = f"no {case['kind']} here"
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
