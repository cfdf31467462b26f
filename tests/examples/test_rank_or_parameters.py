"""The experiments of ``examples/rank_or_parameters``: their loop, their rows, their figures' arithmetic."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models.small import build

from randlora_ref import models
from randlora_ref.adapters import FullFineTuning, LoRA, RandLoRA, RandLoRAa, VeRA

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDER = EXAMPLES / "rank_or_parameters"
sys.path.insert(0, str(FOLDER))

import experiment  # noqa: E402
import measures  # noqa: E402
import plan  # noqa: E402
import report  # noqa: E402
import results  # noqa: E402
import train  # noqa: E402

RATES = st.floats(1e-5, 1.0)


# -- the loop ------------------------------------------------------------------------------------------------


def problem(method: str = "lora") -> tuple[Any, Any, Any]:
    """An objective of adapters, their values at the start, and batches that depend on the step."""
    kind, config, weights, inputs = build("ViT")
    model = kind(config, weights)
    adapters = models.adapt(model, method=method, rank=2)
    given = inputs["pixels"], inputs["labels"]
    return train.of_adapters(model, adapters), train.learned(adapters), lambda t: (given[0] + 0.1 * t, given[1])


@given(RATES, st.integers(1, 400), st.floats(0.01, 0.9))
def test_the_schedule(rate: float, steps: int, warmup: float) -> None:
    """It rises to the rate, once, and falls from there; it is positive at each step and next to nothing at the last."""
    recipe = train.Recipe(steps, rate, warmup=warmup)
    rates, top = [recipe.rate_at(step) for step in range(steps)], max(1, round(warmup * steps)) - 1
    assert max(rates) == rates[top] == pytest.approx(rate)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert min(rates) > 0
    if steps - top > 1:
        assert rates[-1] == pytest.approx(rate * math.sin(math.pi / 2 / (steps - top)) ** 2)


@pytest.mark.parametrize("stop", [0, 1, 4])
def test_a_training_that_was_stopped_goes_on_bit_for_bit(stop: int, tmp_path: Path) -> None:
    objective, values, batch = problem()
    recipe = train.Recipe(6, 0.01, groups={"A": 0.5})
    whole = train.train(objective, values, batch, recipe)
    train.save_state(tmp_path / "state.npz", train.train(objective, values, batch, recipe, until=stop), recipe)
    resumed = train.train(objective, {}, batch, recipe, state=train.load_state(tmp_path / "state.npz", recipe))
    assert resumed.curve == whole.curve
    assert all(np.array_equal(resumed.values[key], x) for key, x in whole.values.items())
    assert whole.curve[-1] < whole.curve[0]
    with pytest.raises(ValueError, match=r"state\.npz: of .*; it must be of "):
        train.load_state(tmp_path / "state.npz", train.Recipe(7, 0.01))
    (tmp_path / "state.npz").write_text("nothing")
    with pytest.raises(ValueError, match=r"state\.npz: not a saved state"):
        train.load_state(tmp_path / "state.npz", recipe)


def test_rates_by_group_and_clipping() -> None:
    """A group of rate 0 stays; gradients beyond the largest norm are shortened before AdamW sees them."""
    objective, values, batch = problem()
    still = train.train(objective, values, batch, train.Recipe(3, 0.01, groups={"A": 0.0})).values
    assert all(np.array_equal(still[key], x) == (key[1] == "A") for key, x in values.items())
    scales = [train.train(objective, values, batch, train.Recipe(3, 0.01, clip=clip)).values for clip in (1e9, 1e-9)]
    assert any(not np.array_equal(x, scales[1][key]) for key, x in scales[0].items())
    seen = []

    def gradient(values: Any, batch: Any) -> Any:
        seen.append(batch)
        return 1.0, {key: np.full(2, 3.0) for key in values}

    state = train.train(gradient, {("a", "x"): np.zeros(2)}, lambda t: t, train.Recipe(1, 0.1, clip=0.5))
    assert seen == [0]
    assert np.linalg.norm(state.optimiser["x"].first["a", "x"]) == pytest.approx(0.1 * 0.5)  # (1 − β₁)·clipped


def test_a_rate_that_is_too_large_is_named() -> None:
    objective, values, batch = problem()
    with pytest.raises(train.DivergedError, match="step 1: loss"):
        train.train(lambda v, b: (math.nan if b else 1.0, v), values, lambda t: t, train.Recipe(3, 0.01))
    with pytest.raises((train.DivergedError, ValueError)), np.errstate(all="ignore"):
        train.train(objective, values, batch, train.Recipe(9, 1e200))


def test_a_model_is_trained_by_the_same_loop() -> None:
    kind, config, weights, inputs = build("ViT")
    start = {(name, "weight"): x for name, x in weights.items()}
    objective, given = train.of_weights(kind, config), (inputs["pixels"], inputs["labels"])
    curve = train.train(objective, start, lambda t: given, train.Recipe(8, 0.01)).curve
    assert curve[-1] < 0.7 * curve[0]


# -- what is read off ----------------------------------------------------------------------------------------


def test_degrees_of_freedom() -> None:
    """LoRA's r(out + in − r); RandLoRA loses one a term, (c·Λ_j, Γ_j/c), and VeRA one in all; -a loses many."""
    full = {"dtype": "float64"}
    for adapter, expected in (
        (LoRA.start(9, 7, 3, **full), 3 * (9 + 7 - 3)),
        (RandLoRA.start(12, 12, 3, "paper", **full), 4 * (3 + 12) - 4),
        (VeRA.start(9, 7, 5, **full), 9 + 5 - 1),
        (FullFineTuning.start(4, 3, **full), 12),
    ):
        assert measures.degrees_of_freedom(adapter) == expected, adapter
    n, r, d = 8, 2, 16  # R is any (r, d) once n >= r, L has n·r values, and each of r columns a scale too many
    assert measures.degrees_of_freedom(RandLoRAa.start(d, d, r, **full)) == n * r + r * d - r < n * (r + d)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_an_update_is_cut_to_its_nearest(seed: int, rank: int) -> None:
    """The error is what the other singular values leave (Eckart and Young)."""
    delta = np.random.default_rng(seed).standard_normal((8, 6))
    adapter = FullFineTuning(out_features=8, in_features=6, delta=delta)
    found = measures.cut({"a": adapter}, rank)["a"].delta
    sigma = np.linalg.svd(delta, compute_uv=False)
    assert np.linalg.matrix_rank(found) == rank
    assert np.linalg.norm(found - delta) == pytest.approx(np.sqrt(np.sum(sigma[rank:] ** 2)), abs=1e-12)


# -- the plan and its rows -----------------------------------------------------------------------------------


class Valley(experiment.Experiment):
    """Losses known beforehand: least at one rung, infinite above another; no model."""

    NAME, NEEDS = "valley", ()

    def __init__(self, best: int, edge: int) -> None:
        super().__init__(False, Path())
        self.best, self.edge, self.fits = best, edge, list[tuple[float, int, str]]()

    def fit(self, cell: experiment.Cell, rate: float, seed: int, split: str) -> dict[str, Any]:
        rung = round(2 * math.log10(rate))
        self.fits.append((rung, seed, split))
        return {"loss": None if rung > self.edge else abs(rung - self.best) + seed / 1e3}


CELL = experiment.Cell("valley", 1, "lora", None, 12)


@given(best=st.integers(-7, -1), edge=st.integers(-1, 2))
def test_the_ladder_is_widened_until_the_best_rung_is_inside(
    tmp_path_factory: pytest.TempPathFactory, best: int, edge: int
) -> None:
    path, valley = tmp_path_factory.mktemp("rows") / "valley.jsonl", Valley(best, edge)
    plan.open_rows(path, {"a": 1})
    plan.run_cell(valley, CELL, [], path)
    rungs = {rung for rung, _, split in valley.fits if split == "valid"}
    assert {best - 1, best, best + 1} <= rungs
    assert rungs == set(range(min(rungs), max(rungs) + 1))
    found = [(rung, seed) for rung, seed, split in valley.fits if split == "test"]
    assert found == [(best, seed) for seed in (1, 2, 3, 4, 5)]
    assert not set(plan.TUNING_SEEDS) & set(valley.seeds)


@given(st.integers(0, 12))
def test_a_second_start_makes_what_is_missing_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, kept: int
) -> None:
    """Stopped after any number of rows, and in the middle of the next: the rows end as those of one run."""
    path = tmp_path_factory.mktemp("rows") / "valley.jsonl"
    plan.open_rows(path, {"a": 1})
    plan.run_cell(Valley(-3, 9), CELL, [], path)
    lines = path.read_text().splitlines(keepends=True)
    kept = min(kept, len(lines) - 2)
    path.write_text("".join(lines[: kept + 1]) + lines[kept + 1][:-3])
    again = Valley(-3, 9)
    rows = plan.open_rows(path, {"a": 1})
    assert len(rows) == kept
    plan.run_cell(again, CELL, rows, path)
    assert len(again.fits) == len(lines) - 1 - kept
    assert sorted(path.read_text().splitlines()) == sorted(one.rstrip("\n") for one in lines)


def test_rows_of_another_setting_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "valley.jsonl"
    plan.open_rows(path, {"width": 64, "seeds": (1, 2)})
    plan.append(path, {"cell": CELL.name, "split": "test", "seed": 1, "loss": 1.0})
    assert len(plan.open_rows(path, {"width": 64, "seeds": (1, 2)})) == 1
    with pytest.raises(ValueError, match=r"valley\.jsonl: rows with width 64; it must be 48: take another --folder"):
        plan.open_rows(path, {"width": 48, "seeds": (1, 2)})
    path.write_text("{}\n")
    with pytest.raises(ValueError, match=r"valley\.jsonl: it must be the rows of an experiment"):
        plan.open_rows(path, {"width": 48})


def test_counts_are_equal_and_ranks_are_the_grids() -> None:
    """RandLoRA at full rank has every other method's count; the rest of the grid has the ranks that were asked for."""
    config = models.ViTConfig.from_dict(
        {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 8,
         "patch_size": 4}
    )  # fmt: skip
    cells = list(experiment.comparison("t", 1, 16, 6, (2, 8), (2, 8, 16), ("lora", "randlora_a", "vera")))
    ranks, counts = [], {2: set(), 8: set()}
    for cell in cells:
        adapters = models.adapt(config, method=cell.method, **cell.options)
        total = sum(one.num_parameters() for one in adapters.values())
        adapter = adapters["vit.layers.0.attention.q_proj"]
        if cell.method == "randlora":
            ranks.append((adapter.n, adapter.n * adapter.rank))
        if cell.method != "full" and (cell.method != "randlora" or adapter.n * adapter.rank == 16):
            counts[2 if total < 6 * 16 * 5 else 8].add(total)
    assert ranks == [(2, 2), (2, 8), (2, 16), (8, 8), (8, 16)]
    assert counts == {2: {6 * 16 * 3}, 8: {6 * 16 * 9}}


def test_a_missing_extra_is_named_before_any_work(tmp_path: Path) -> None:
    """In a Python that finds neither; one line, status 2, and nothing is made."""
    script = (
        "import importlib.util as u, runpy, sys; find = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name in ('sklearn', 'matplotlib') else find(name, *more)\n"
        f"sys.path.insert(0, {str(FOLDER)!r})\n"
        "for name in ('vision', 'matrices', 'vision_language', 'language', 'report'):\n"
        f"    sys.argv = [name, '--folder', {str(tmp_path / 'rows')!r}]\n"
        "    try:\n"
        f"        runpy.run_path({str(FOLDER)!r} + f'/{{name}}.py', run_name='__main__')\n"
        "    except SystemExit as end:\n"
        "        print(end.code)\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    both, install = "scikit-learn and matplotlib", "pip install 'randlora-ref[examples]'"
    needs = {
        "vision": both,
        "matrices": both,
        "vision_language": both,
        "language": "matplotlib",
        "report": "matplotlib",
    }
    assert found.stderr.splitlines() == [f"{name}.py: needs {names}: {install}" for name, names in needs.items()]
    assert found.stdout.split() == ["2"] * 5
    assert not list(tmp_path.iterdir())


# -- the report ----------------------------------------------------------------------------------------------


def test_intervals_and_differences() -> None:
    """By hand: 1 … 5 has deviation √2.5, so 2.776·√2.5/√5 = 1.963; a difference is taken seed by seed."""
    assert results.interval([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2.776 * math.sqrt(0.5))
    one, other = (
        results.Result(CELL, {seed: {"loss": seed + extra * (1 + 0.01 * seed)} for seed in range(1, 6)})
        for extra in (1.0, 0.0)
    )
    assert results.difference(one, other) == "+1.030 ± 0.020 *"
    assert results.difference(one, one) == "+0.000 ± 0.000"


@pytest.mark.slow
def test_the_report_has_every_finished_cell_and_no_other(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "vision.jsonl"
    plan.open_rows(path, {"seeds": {"results": (1, 2, 3, 4, 5)}})
    cells = list(experiment.comparison("permuted", 9, 16, 6, (2, 8), (2, 8, 16), ("lora", "vera")))
    ranks = {"lora": 1, "vera": 16, "full": 16}
    for i, cell in enumerate(cells):
        for seed in range(1, 5 if cell.method == "vera" and cell.count == 288 else 6):
            proven = {2: 2, 8: 8}.get((cell.rank or 0) * (2 if cell.count < 700 else 8), 16) if cell.rank else 0
            row = {"cell": cell.name, "split": "test", "rung": -4, "seed": seed, "loss": i + seed / 100, "train": i}
            row |= {
                "values": cell.count or 9999,
                "proven": proven or ranks[cell.method],
                "effective": 1.0,
                "stable": 1.0,
            }
            plan.append(path, row | {"ms": 1.0, "cut": {"1": 3.0}} if cell.method == "full" else row | {"ms": 1.0})
    report.write(tmp_path, tmp_path / "out", lambda line: None)
    text = (tmp_path / "out" / "vision.md").read_text()
    assert "Cells without all seeds, left out: 1." in text
    assert text.count("VeRA") == 2  # its one finished cell, in the results and in one difference
    assert "| RandLoRA, n = 8, r = 2 |" in text
    assert "rank 2 → 8 at n = 2" in text
    for name in ("vision.png", "strip.png", "vision.jsonl"):
        assert (tmp_path / "out" / name).stat().st_size > 1000
    with pytest.raises(ValueError, match="no finished cell of any experiment"):
        report.write(tmp_path / "out" / "nowhere", tmp_path)


# -- whole, with scikit-learn --------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_control_row_is_found_again() -> None:
    """Fifty steps in float64 from the stored pre-trained weights: the stored figures, to 1e-6."""
    pytest.importorskip("sklearn")
    import vision

    reports = EXAMPLES / "reports" / "rank_or_parameters"
    _, rows = plan.read(reports / "vision.jsonl")
    (stored,) = (row for row in rows if row["split"] == "control")
    found = vision.control(vision.Vision(False, reports))
    for key, value in found.items():
        assert value == pytest.approx(stored[key], rel=1e-6), key
    assert stored["cell"] == vision.CONTROL.name


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_to_the_same_rows(tmp_path: Path) -> None:
    """Ctrl-C leaves rows, and a second start ends as one that was not stopped: bit for bit, but for times."""
    pytest.importorskip("sklearn")

    def command(folder: str) -> list[str]:
        return [sys.executable, str(FOLDER / "matrices.py"), "--quick", "--folder", str(tmp_path / folder)]

    def rows(folder: str) -> list[Any]:
        found = plan.read(tmp_path / folder / "quick" / "matrices.jsonl")[1]
        return sorted(
            json.dumps({k: x for k, x in row.items() if k != "ms"}) for row in found if row["split"] != "time"
        )

    assert subprocess.run(command("whole"), capture_output=True, check=False).returncode == 0
    with subprocess.Popen(command("stopped"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        kept = tmp_path / "stopped" / "quick" / "matrices.jsonl"
        while not kept.exists() or kept.read_text().count("\n") < 30:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130
    assert "stopped; the rows in" in errors
    assert 30 <= kept.read_text().count("\n") < len(rows("whole"))
    assert subprocess.run(command("stopped"), capture_output=True, check=False).returncode == 0
    assert rows("stopped") == rows("whole")
