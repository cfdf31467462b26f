"""PEFT beside the reference: its adapters' files, and the installed PEFT as an implementation under test.

PEFT 0.21.2 stores A as (r, 1, d_max), B as (D_max, n_max, r), Λ as (r, n) and Γ as (n, d); all such layouts end in
this file. ``load_peft`` and ``save_peft`` need safetensors, the rest PyTorch, transformers and PEFT, imported when
they are called.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import arrays
from ..adapters.randlora import RandLoRA
from ..bases import Bases, Kind, draw_bases

if TYPE_CHECKING:
    from ..conformance.cases import Case

Array = Any
NAME = "default"  # PEFT's name of a model's first adapter
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


def load_peft(folder: str | Path, shapes: Sequence[tuple[int, int]] | None = None) -> PeftAdapter:
    """A RandLoRA adapter that PEFT saved in ``folder``; bfloat16 tensors come as float32, value for value.

    An adapter saved without its bases (``save_projection=False``) draws them again, bit for bit, from its
    ``projection_prng_key`` and ``shapes``, the (out, in) of every adapted layer of the model.
    Raises ValueError that names the file for one that is missing, malformed or of another method.
    """
    config = _read_config(Path(folder) / CONFIG_FILE)
    path = Path(folder) / WEIGHTS_FILE
    tensors = _read_tensors(path)
    learned: dict[str, dict[str, Array]] = {"lambda": {}, "gamma": {}}
    for key, tensor in tensors.items():
        module, _, what = key.rpartition(".randlora_")
        if what in learned:
            learned[what][module.removeprefix(PREFIX + "model.")] = tensor.T if what == "lambda" else tensor
    if not learned["lambda"] or learned["lambda"].keys() != learned["gamma"].keys():
        raise ValueError(f"{path}: {len(tensors)} tensors; each module needs randlora_lambda and randlora_gamma")
    A, B = (next((tensors[key] for key in sorted(tensors) if key.endswith(f".randlora_{name}")), None) for name in "AB")
    if A is None or B is None:
        if shapes is None:
            raise ValueError(f"{path}: holds no bases; shapes must list the (out, in) of every adapted layer")
        kind: Kind = "very_sparse" if config.get("very_sparse") else "sparse" if config.get("sparse") else "dense"
        bases = draw_bases("peft", seed=config["projection_prng_key"], shapes=shapes, rank=config["r"], kind=kind)
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
        "base_model.randlora_A": arrays.to_numpy(adapter.bases.A)[:, None, :],
        "base_model.randlora_B": arrays.to_numpy(adapter.bases.B).transpose(1, 0, 2),
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


def installed() -> dict[str, str]:
    """The versions of PyTorch, transformers and PEFT here. ModuleNotFoundError for one that is not installed."""
    import peft
    import torch
    import transformers

    return {one.__name__: one.__version__ for one in (torch, transformers, peft)}


def run_peft(case: "Case") -> dict[str, Any]:
    """What the installed PEFT makes of a conformance case: NumPy arrays by name, or "unsupported: reason"."""
    if case.kind == "layer":
        return _run_layer(case)
    if case.kind == "bases":
        if case.dialect != "peft":
            return dict.fromkeys("AB", "unsupported: PEFT draws its own bases alone")
        A, B = peft_bases(case.seed, case.shapes, case.rank, case.kind_of_basis)
        return {"A": A, "B": B}
    if case.kind == "start":
        layer = peft_model([case.shape], case.rank).base_model.model.lin0
        delta = _numpy(layer.get_delta_weight(NAME))
        lambda_, gamma = _numpy(layer.randlora_lambda[NAME]).T, _numpy(layer.randlora_gamma[NAME])
        return {"lambda_": lambda_, "gamma": gamma, "delta_weight": delta}
    if case.kind == "count":
        model = peft_model(case.shapes, case.rank)
        return {"num_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)}
    return dict.fromkeys(case.wanted, f"unsupported: PEFT has no {case.kind} of its own")


def peft_bases(
    seed: int, shapes: Sequence[tuple[int, int]], rank: int, kind: Any = "dense", draw_dtype: str = "bfloat16"
) -> tuple[Array, Array]:
    """PEFT's own A (r, d_max) and B (n_max, D_max, r) for layers of ``shapes`` (out, in), from its seed, in float32.

    ``draw_dtype`` "float16" makes PEFT believe that the hardware has no bfloat16.
    """
    if kind not in ("dense", "sparse", "very_sparse"):
        raise ValueError(f"kind: {kind!r}; PEFT's must be 'dense', 'sparse' or 'very_sparse'")
    sparse = {"sparse": kind == "sparse", "very_sparse": kind == "very_sparse"}
    model = peft_model(shapes, rank, draw_dtype=draw_dtype, projection_prng_key=seed, **sparse).base_model
    return _numpy(model.randlora_A[NAME])[:, 0, :], _numpy(model.randlora_B[NAME]).transpose(1, 0, 2)


def peft_model(
    shapes: Sequence[tuple[int, int]], rank: int, *, alpha: Any = 640, bias: bool = True, conv1d: bool = False,
    draw_dtype: str = "bfloat16", **config: Any,
) -> Any:  # fmt: skip
    """PEFT around a module with ``lin{i}``, a Linear (not filled) or Conv1D, for each (out, in) of ``shapes``."""
    from unittest import mock

    import torch
    from peft import RandLoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    module = torch.nn.Module()
    for i, (out_features, in_features) in enumerate(shapes):
        empty = torch.nn.utils.skip_init(torch.nn.Linear, in_features, out_features, bias=bias)
        module.add_module(f"lin{i}", Conv1D(out_features, in_features) if conv1d else empty)
    names = [f"lin{i}" for i in range(len(shapes))]
    settings = RandLoraConfig(r=rank, randlora_alpha=alpha, target_modules=names, fan_in_fan_out=conv1d, **config)
    if draw_dtype == "bfloat16":
        return get_peft_model(module, settings)
    with mock.patch("peft.tuners.randlora.model.is_bf16_available", return_value=False):
        return get_peft_model(module, settings)


def _run_layer(case: "Case") -> dict[str, Any]:
    """Forward and backward of PEFT's layer with the case's arrays in the case's dtype."""
    import torch

    (n, rank), shape = case.lambda_.shape, case.weight.shape
    if n != -(-min(shape) // rank):
        return dict.fromkeys(case.wanted, f"unsupported: PEFT has n = {-(-min(shape) // rank)} terms here, never {n}")
    alpha = case.scaling * rank if case.alpha is None else case.alpha
    model = peft_model([shape], rank, bias=case.bias is not None, conv1d=case.fan_in_fan_out, alpha=alpha)
    layer = model.to(getattr(torch, case.dtype)).base_model.model.lin0
    _fill(layer, case)
    delta = _numpy(layer.get_delta_weight(NAME))
    if case.merged:
        layer.merge()
    if case.dropout_mask is not None:  # PEFT's own dropout, of p = 0, in training mode, times the mask
        mask = _tensor(case.dropout_mask, case.dtype)
        layer.train().randlora_dropout[NAME].register_forward_hook(lambda module, given, output: output * mask)
    x = _tensor(case.x, case.dtype).requires_grad_()
    y = layer(x)
    y.backward(_tensor(case.dy, case.dtype))
    results = {"delta_weight": delta.T if case.fan_in_fan_out else delta, "y": _numpy(y), "dx": _numpy(x.grad)}
    if not case.merged:
        results["dlambda"] = _numpy(layer.randlora_lambda[NAME].grad).T
        results["dgamma"] = _numpy(layer.randlora_gamma[NAME].grad)
    return results


def _fill(layer: Any, case: "Case") -> None:
    """Put the case's arrays into PEFT's layer, in PEFT's layouts."""
    import torch

    base = layer.get_base_layer()
    bias = np.zeros(case.weight.shape[0]) if case.bias is None else case.bias
    with torch.no_grad():
        base.weight.copy_(_tensor(case.weight.T if case.fan_in_fan_out else case.weight, case.dtype))
        if base.bias is not None:
            base.bias.copy_(_tensor(bias, case.dtype))
        layer.randlora_lambda[NAME].copy_(_tensor(case.lambda_.T, case.dtype))
        layer.randlora_gamma[NAME].copy_(_tensor(case.gamma, case.dtype))
    layer.randlora_A[NAME] = _tensor(case.A[:, None, :], case.dtype)
    layer.randlora_B[NAME] = _tensor(case.B.transpose(1, 0, 2), case.dtype)


def _tensor(x: Array, dtype: str) -> Any:
    import torch

    return torch.tensor(np.asarray(x, dtype=np.float64).copy(), dtype=getattr(torch, dtype))


def _numpy(x: Any) -> Array:
    return x.detach().float().numpy() if str(x.dtype) == "torch.bfloat16" else x.detach().numpy()
