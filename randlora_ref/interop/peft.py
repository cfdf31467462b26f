"""The folders in which PEFT keeps adapters.

PEFT 0.21.2 stores A as (r, 1, d_max), B as (D_max, n_max, r), Λ as (r, n) and Γ as (n, d); such layouts end in this
file. ``load_peft`` and ``save_peft`` need safetensors, imported when they are called.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import arrays
from ..adapters.randlora import RandLoRA
from ..arrays import brief
from ..bases import Bases, Kind, draw_bases

Array = Any
PREFIX = "base_model."
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True, eq=False)
class PeftAdapter:
    """A saved RandLoRA adapter: the shared ``bases``, ``lambda_`` (n, r) and ``gamma`` (n, d) by module name.

    ``config`` is PEFT's adapter_config.json. The files hold no layer's (out, in): Γ tells d, the base model the rest.
    """

    bases: Bases
    lambda_: Mapping[str, Array]
    gamma: Mapping[str, Array]
    config: Mapping[str, Any]
    __repr__ = brief

    def layer(self, name: str, shape: tuple[int, int] | None = None) -> RandLoRA:
        """One module's adapter; ``shape`` (out, in) None: (D_max, d), which right up to a transpose where D is D_max.

        Raises KeyError for a name that is not there, ValueError where ``shape`` does not fit.
        """
        if name not in self.lambda_:
            raise KeyError(f"name: {name!r}; it must be one of {', '.join(sorted(self.lambda_))}")
        d = self.gamma[name].shape[1]
        out_features, in_features = shape or (max(self.bases.B.shape[1], d), d)
        return RandLoRA(
            out_features=out_features, in_features=in_features, rank=self.config["r"], bases=self.bases,
            lambda_=self.lambda_[name], gamma=self.gamma[name], dialect="peft", alpha=self.config["randlora_alpha"],
        )  # fmt: skip


def load_peft(
    folder: str | Path, shapes: Sequence[tuple[int, int]] | None = None, *, draw_dtype: Any = "bfloat16"
) -> PeftAdapter:
    """A RandLoRA adapter that PEFT saved in ``folder``; bfloat16 tensors come as float32, value for value.

    An adapter saved without its bases (``save_projection=False``) draws them again, bit for bit, from its
    ``projection_prng_key`` and ``shapes``, the (out, in) of every adapted layer of the model, in ``draw_dtype``
    "bfloat16", or "float16" where the hardware that it was trained on has no bfloat16: no file says which.
    Raises ValueError that names the file for one that is missing, malformed or of another method.
    """
    config = _read_config(Path(folder) / CONFIG_FILE)
    path = Path(folder) / WEIGHTS_FILE
    tensors = _read_tensors(path)
    learned: dict[str, dict[str, Array]] = {"lambda": {}, "gamma": {}}
    for key, tensor in tensors.items():
        module, _, what = key.rpartition(".randlora_")
        if what in learned:
            if tensor.ndim != 2:
                raise ValueError(f"{path}: {key} {tensor.shape}; it must be (r, n) for lambda, (n, d) for gamma")
            learned[what][module.removeprefix(PREFIX + "model.")] = tensor.T if what == "lambda" else tensor
    if not learned["lambda"] or learned["lambda"].keys() != learned["gamma"].keys():
        raise ValueError(f"{path}: {len(tensors)} tensors; each module needs randlora_lambda and randlora_gamma")
    A, B = (next((tensors[key] for key in sorted(tensors) if key.endswith(f".randlora_{name}")), None) for name in "AB")
    if A is None or B is None:
        if shapes is None:
            raise ValueError(f"{path}: holds no bases; shapes must list the (out, in) of every adapted layer")
        kind: Kind = "very_sparse" if config.get("very_sparse") else "sparse" if config.get("sparse") else "dense"
        seed, rank = config["projection_prng_key"], config["r"]
        bases = draw_bases("peft", seed=seed, shapes=shapes, rank=rank, kind=kind, draw_dtype=draw_dtype)
    elif A.ndim != 3 or B.ndim != 3:
        raise ValueError(f"{path}: randlora_A {A.shape}, randlora_B {B.shape}; they must be (r, 1, d) and (D, n, r)")
    else:
        bases = Bases(A[:, 0, :], B.transpose(1, 0, 2))
    return PeftAdapter(bases, learned["lambda"], learned["gamma"], config)


def save_peft(adapter: PeftAdapter, folder: str | Path) -> None:
    """Write ``adapter`` into ``folder`` for PEFT's ``from_pretrained``, the bases once.

    PEFT stores them once more for each layer, and so warns of missing keys; what it then computes is the same.
    """
    from safetensors.numpy import save_file

    tensors = {
        f"{PREFIX}randlora_A": arrays.to_numpy(adapter.bases.A)[:, None, :],
        f"{PREFIX}randlora_B": arrays.to_numpy(adapter.bases.B).transpose(1, 0, 2),
    }
    for name, lambda_ in adapter.lambda_.items():
        tensors[f"{PREFIX}model.{name}.randlora_lambda"] = arrays.to_numpy(lambda_).T
        tensors[f"{PREFIX}model.{name}.randlora_gamma"] = arrays.to_numpy(adapter.gamma[name])
    Path(folder).mkdir(parents=True, exist_ok=True)
    contiguous = {key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}
    save_file(contiguous, Path(folder) / WEIGHTS_FILE, metadata={"format": "pt"})
    (Path(folder) / CONFIG_FILE).write_text(json.dumps(dict(adapter.config), indent=2, sort_keys=True) + "\n")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}; it must be PEFT's adapter configuration") from None
    if not isinstance(config, dict) or config.get("peft_type") != "RANDLORA":
        found = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise ValueError(f"{path}: peft_type {found!r}; it must be 'RANDLORA'")
    for key in ("r", "randlora_alpha", "projection_prng_key"):
        if not isinstance(config.get(key), (int, float)):
            raise ValueError(f"{path}: {key} {config.get(key)!r}; it must be a number")
    return config


def _read_tensors(path: Path) -> dict[str, Array]:
    """The floating-point tensors of a safetensors file by name; bfloat16 is widened to float32 by bits."""
    import safetensors

    read: Any = safetensors.deserialize
    try:
        entries = read(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path}: {error}; it must be a safetensors file") from None
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{path}: {name} of dtype {entry['dtype']}; it must be one of {', '.join(_DTYPES)}")
        tensor = np.frombuffer(entry["data"], dtype=_DTYPES[entry["dtype"]]).reshape(entry["shape"])
        tensors[name] = (tensor.astype(np.uint32) << 16).view(np.float32) if entry["dtype"] == "BF16" else tensor
    return tensors
