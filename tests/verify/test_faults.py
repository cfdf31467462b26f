"""The drawn properties can fail: one place of the package's source broken at a time, each seen by tests and by audit.

A fault is a replacement in a copy of the package. In a process of its own the copy runs those parts of ``randlora-ref
verify`` and those default tests that draw what the fault is in, with the examples that both draw by default.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import randlora_ref
from randlora_ref.verify import block, models, points

PACKAGE, TESTS = Path(randlora_ref.__file__).parent, Path(__file__).parents[1]
DRAW = {  # by part of the audit, the tests that draw the same
    "nn": ("nn/test_properties.py", "test_functions"),
    "block": ("nn/test_properties.py", "test_blocks or test_what_changes"),
    "models": ("models/test_properties.py", "test_models"),
}
# By file, with the parts in which they are sought: what a fault is, what stands there, what is put there.
FAULTS = """
nn/__init__.py: nn
LayerNorm under RMSNorm's name
    normalize_backward, rms_norm
    normalize_backward, layer_norm as rms_norm
nn/activation.py: nn
tanh-GELU's cube
    cubic=0.044715,
    cubic=0.0447,
a slope without the whole of x·σ′
    large * small * (c + 3 * z)
    large * small * (c + z)
gate and up in each other's place
    return dy * up * slope, dy * value
    return dy * value, dy * up * slope
nn/activation.py: nn block models
erf's second coefficient in single precision
    -0.376126258
    -0.3761
nn/attention.py: nn block models
the causal mask off
    seen = before if seen is None else seen & before
    seen = seen
what is hidden weighs exp(−30)
    arrays.where(xp, seen, zero, -math.inf)
    arrays.where(xp, seen, zero, -30.0)
nn/attention.py: nn block
every sequence padded as the first
    seen = mask[:, None, None, None, :]
    seen = mask[:1, None, None, None, :]
nn/attention.py: nn
scores over h, not √h
    (q / math.sqrt(width))
    (q / width)
softmax's backward without its mean
    scale * (PdP - P * xp.sum(PdP, axis=-1, keepdims=True))
    scale * PdP
the query changed in place
    (q / math.sqrt(width))
    q.__itruediv__(math.sqrt(width))
nn/block.py: block
the residual around attention dropped
    residual = x + apply("o", join_heads(xp, output))
    residual = apply("o", join_heads(xp, output))
q and k swapped in the fused projection
    for i in range(3))
    for i in (1, 0, 2))
norm2's eps tenfold
    *parameters[role], spec.eps,
    *parameters[role], spec.eps * (10 if role == "norm2" else 1),
keys not turned
    q, k = rotate(xp, q, *tables), rotate(xp, k, *tables)
    q = rotate(xp, q, *tables)
the residual around attention dropped in backward
    d_residual = dy + pull_back("norm2", d_normed)
    d_residual = pull_back("norm2", d_normed)
nn/block.py: block models
the input changed in place
    residual = x + apply("o", join_heads(xp, output))
    residual = x.__iadd__(apply("o", join_heads(xp, output)))
nn/embedding.py: nn
rows of one id added in too few steps
    step *= 2
    step *= 4
patches column by column
    (0, 2, 4, 1, 3, 5)
    (0, 4, 2, 1, 3, 5)
nn/linear.py: nn
the bias left out
    xp, x, weight, bias, None, None, False
    xp, x, weight, None, None, None, False
nn/loss.py: nn
the mean over all rows
    share = weight / arrays.where(xp, total == 0, 1.0, total)
    share = weight / z.shape[0]
the contrastive loss by texts alone
    0.5 * (by_text + by_image)
    by_text
nn/norm.py: nn
the variance of a sample
    mean(xp, c * c) + (root
    mean(xp, c * c) * (c.shape[-1] / (c.shape[-1] - 1)) + (root
LayerNorm's gradient not centred
    dc - mean(xp, dc) if centred else dc
    dc if centred else dc - mean(xp, dc)
nn/rotary.py: nn
turned halfway back
    second * cos + first * sin
    second * cos - first * sin
Llama 3.1's slow turns
    (turns - low) / (high - low)
    (turns - low) / high
models/__init__.py: models
Llama under GPT-2's name
    from .gpt2 import GPT2, GPT2Config
    from .gpt2 import CausalModel as GPT2, GPT2Config
models/config.py: models
exact GELU in GPT-2
    "gelu_new": "gelu_tanh"
    "gelu_new": "gelu"
eps tenfold
    spec = BlockSpec(*sizes, eps,
    spec = BlockSpec(*sizes, 10 * eps,
models/clip.py: models
the end of text not at the largest token
    marks = ids if end == 2 else
    marks = ids if end == 0 else
the last end of text
    xp.argmax(marks, axis=1)[:, None]
    (ids.shape[1] - 1 - xp.argmax(xp.flip(marks, axis=1), axis=1))[:, None]
the temperature's gradient twice
    nn.LinearGrads(d_log_scale, None)
    nn.LinearGrads(2 * d_log_scale, None)
the mask without effect
    pool[:, :, None], mask)
    pool[:, :, None])
models/core.py: models
a gradient laid down as (out, in) that is saved as (in, out)
    value.T if module.transposed and part == "weight" else value
    value
a tied head's gradient in place of the sum
    grads.weights[saved] + value if saved in grads.weights else value
    value
models/gpt2.py: models
the two norms of a block exchanged
    "norm1": "ln_1", "qkv": "attn.c_attn", "o": "attn.c_proj", "norm2": "ln_2"
    "norm1": "ln_2", "qkv": "attn.c_attn", "o": "attn.c_proj", "norm2": "ln_1"
models/llama.py: models
scaled angles not read
    read_scaling(given, self.max_position_embeddings)
    None
models/towers.py: models
labels not shifted
    [labels[:, 1:], xp.full_like(labels[:, :1], nn.IGNORED)]
    [labels[:, :1], labels[:, 1:]]
positions from the table's end
    tensors["position_embeddings"][0])[:size, :]
    tensors["position_embeddings"][0])[-size:, :]
every text padded as the first
    causal=True, mask=mask)
    causal=True, mask=None if mask is None else mask[:1])
the padding token learns from the lookup
    if pad is not None:
    if False:
the head's gradient twice where the head's own is not asked for
    through=None if learned else weight
    through=None if learned else 2 * weight
the images' norm with the texts' eps
    norm(x, *tensors["pre_norm"], spec.eps)
    norm(x, *tensors["pre_norm"], model.towers[0].spec.eps)
the class token's output from the last patch
    x = x[:, 0, :]
    x = x[:, -1, :]
the class token's gradient from the last patch
    d_rows[0, :]
    d_rows[-1, :]
the gradients of positions and class token, means over the batch
    d_rows = xp.sum(dx, axis=0)
    d_rows = xp.mean(dx, axis=0)
models/vit.py: models
the names under which queries and keys are saved, exchanged
    "q": "attention.attention.query", "k": "attention.attention.key"
    "q": "attention.attention.key", "k": "attention.attention.query"
adapters/base.py: nn
∂L/∂b a mean
    d_bias = xp.sum(dy, axis=0)
    d_bias = xp.mean(dy, axis=0)
adapters/base.py: block models
the weight changed by its layer
    y = rows @ weight.T  # (T, out)
    weight *= 2; y = rows @ weight.T / 2  # (T, out)
adapters/base.py: nn block
a gradient where no cotangent is
    xp.reshape(dy @ weight, tuple(x.shape))
    xp.reshape(dy @ weight + 1e-200, tuple(x.shape))
adapters/base.py: block models
ΔW subtracted to merge
    self._added(weight, self._merged_update())
    self._added(weight, -self._merged_update())
adapters/randlora.py: block
∂L/∂Λ without the scaling
    d_lambda = s * (P @ self.gamma[:, :, None])[:, :, 0]
    d_lambda = (P @ self.gamma[:, :, None])[:, :, 0]
Γ squared
    xp.reshape(A * gamma, (-1, self.d))
    xp.reshape(A * gamma * gamma, (-1, self.d))
adapters/randlora.py: block
ΔW affine in Λ
    scaled = self.scaling * self.lambda_
    scaled = self.scaling * (self.lambda_ + 0.1)
adapters/randlora.py: block models
Λ not zero at the start
    make.full(lambda_value, n, rank)
    make.full(lambda_value + 1e-3, n, rank)
"""


class Fault(NamedTuple):
    """A replacement in a file of the package, and the parts of the audit that must see it."""

    file: str
    parts: tuple[str, ...]
    old: str
    new: str


def faults() -> Iterator[tuple[str, Fault]]:
    """Every fault by "file: what it is"."""
    lines = FAULTS.strip("\n").split("\n")
    while lines:
        if match := re.fullmatch(r"(\S+\.py): (.+)", lines[0]):
            (file, parts), lines = match.groups(), lines[1:]
        name, old, new, *lines = lines
        yield f"{file}: {name}", Fault(file, tuple(parts.split()), old.removeprefix("    "), new.removeprefix("    "))


ALL = dict(faults())
RUN = """
import json, sys, warnings
from pathlib import Path
import pytest, randlora_ref
from randlora_ref.verify import audit

copy, parts, selected = Path(sys.argv[1]), sys.argv[2].split(), sys.argv[3:]
assert Path(randlora_ref.__file__).is_relative_to(copy)
seen = {"audit": {}, "tests": []}
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for part in parts:
        seen["audit"][part] = [one.name for one in audit.properties(parts=[part]) if not one.ok]


class Failed:
    def pytest_runtest_logreport(self, report):
        if report.failed:
            seen["tests"].append(report.nodeid.rpartition("::")[2])


pytest.main(["-q", "-p", "no:cacheprovider", *selected], plugins=[Failed()])
print(json.dumps(seen))
"""


def outcome(fault: Fault, folder: Path) -> dict[str, Any]:
    """What the audit and the tests see of a fault, each by the part it is in."""
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / PACKAGE.name / fault.file
    path.write_text(path.read_text(encoding="utf-8").replace(fault.old, fault.new))
    files = sorted({str(TESTS / DRAW[part][0]) for part in fault.parts})
    chosen = " or ".join(f"({DRAW[part][1]})" for part in fault.parts)
    command = [sys.executable, "-c", RUN, str(folder), " ".join(fault.parts), *files, "-k", chosen]
    options = ["-c", str(TESTS.parent / "pyproject.toml"), "--rootdir", str(TESTS.parent)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment = {**os.environ, **threads, "PYTHONPATH": str(folder), "HYPOTHESIS_PROFILE": "faults"}
    done = subprocess.run(command + options, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


class Outcomes:
    """The outcome of each fault, as many at a time as there are cores; ``ahead`` are started at once."""

    def __init__(self, folder: Path, ahead: Iterable[str]) -> None:
        self.folder, self.pool, self.started = folder, ThreadPoolExecutor(os.cpu_count()), dict[str, Future[Any]]()
        for name in ahead:
            self.start(name)

    def start(self, name: str) -> Future[Any]:
        """A fault's process, if it is not started yet."""
        if name not in self.started:
            self.started[name] = self.pool.submit(outcome, ALL[name], self.folder / str(len(self.started)))
        return self.started[name]

    def __getitem__(self, name: str) -> dict[str, Any]:
        return dict(self.start(name).result())


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """Every fault of the tests that run; other modules have faults of their own."""
    asked = [item.callspec.params.get("fault") for item in request.session.items if hasattr(item, "callspec")]
    return Outcomes(tmp_path_factory.mktemp("faults"), [name for name in asked if name in ALL])


def test_each_fault_is_one_place_and_every_file_has_one() -> None:
    """What is replaced stands once in its file; no file of ``nn`` and of ``models`` is without a fault.

    But for what computes no output: adapters and weights at their start are held by ``models/test_adapt.py``, what is
    read by ``interop`` and by the crosscheck with ``transformers`` and PEFT.
    """
    for name, fault in ALL.items():
        assert (PACKAGE / fault.file).read_text(encoding="utf-8").count(fault.old) == 1, name
    files = {str(path.relative_to(PACKAGE)) for room in ("nn", "models") for path in (PACKAGE / room).glob("*.py")}
    assert files - {f"models/{name}.py" for name in ("adapting", "load", "layers")} <= {
        fault.file for fault in ALL.values()
    }


@pytest.mark.slow
def test_what_is_not_broken_passes(tmp_path: Path) -> None:
    """The copy as it is passes all that a fault must fail."""
    found = outcome(Fault("nn/block.py", tuple(DRAW), "", ""), tmp_path)
    assert found == {"audit": {part: [] for part in DRAW}, "tests": []}


@pytest.mark.slow
@pytest.mark.parametrize("fault", ALL)
def test_each_fault_is_seen(fault: str, outcomes: Outcomes) -> None:
    """By each part of the audit that draws it, and by the default tests."""
    found = outcomes[fault]
    print(json.dumps(found, ensure_ascii=False))
    assert found["tests"]
    assert all(found["audit"].values())


@pytest.mark.slow
def test_every_property_fails_for_some_fault(outcomes: Outcomes) -> None:
    """No property of ``nn``, of a block or of a model is there that cannot fail."""
    failed = {
        name.partition(", most in")[0] for fault in ALL for own in outcomes[fault]["audit"].values() for name in own
    }
    properties = {f"nn: {one.name}" for one in (*points.PROPERTIES, points.STEP)}
    properties |= {f"block: {one.name}" for one in block.PROPERTIES}
    properties |= {f"models: {one.name}" for one in models.PROPERTIES}
    assert properties <= failed
