"""GPT-2, Llama, ViT and CLIP over drawn configurations: every property of ``verify``, on every array library."""

import re
from collections import Counter
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from strategies import drawn, examples, holds

from randlora_ref.verify import models, points
from randlora_ref.verify.configurations import HOST, Backend
from randlora_ref.verify.models import Model, ModelCase, draw_model
from randlora_ref.verify.networks import INVARIANCES

LEARNED = ("lambda_", "gamma", "A", "B", "lambda_b", "lambda_d", "c0", "c1", "delta")


def all_hold(name: str, model: Model, backend: Backend) -> None:
    """What needs the code alone, on read-only arrays."""
    for x in (*model.values.values(), *model.given.values()):
        x.setflags(write=False)
    for one in (*models.POINTS, *INVARIANCES, *models.OF_MODELS):
        holds(name, one, model, backend)


def kinds(model: Model) -> dict[str, str]:
    """A tensor of each kind: a saved name without its numbers; a learned array's by its adapter's method.

    A table of tokens that is the head too, or has a row for padding, or is not looked up, is of a kind of its own.
    """
    case, table = model.case, model.table
    learned = {f"{module}.{part}": f"{one.method}.{part}" for module, one in case.adapters.items() for part in LEARNED}
    learned[table] = (
        f"{table} {[case.keys.get(key) for key in ('tie_word_embeddings', 'pad_token_id')]} {case.embedded}"
    )
    return {learned.get(name, re.sub(r"\d+", "#", name)): name for name in model.values}


@pytest.mark.parametrize("name", models.KINDS)
def test_models(name: str) -> None:
    """A model of any configuration, adapted anyhow anywhere, equals its stack; gradients by the complex step.

    Of few examples a tensor of every kind is stepped when it comes first, and six of the rarest at least.
    """
    thorough, times = settings().max_examples > 50, Counter[str]()

    @examples(12, 500)
    @given(drawn(partial(draw_model, name)))
    def check(case: ModelCase) -> None:
        model = case.build()
        all_hold(name, model, HOST)
        own = kinds(model)
        rarest = sorted(own, key=times.__getitem__)[: max(6, sum(times[kind] == 0 for kind in own))]
        names = None if thorough else [own[kind] for kind in rarest]
        holds(name, points.DRAWN_STEP._replace(figure=partial(points.drawn_step, names=names)), model)
        times.update(rarest)

    check()


@pytest.mark.parametrize("name", models.KINDS)
@pytest.mark.parametrize("library", ["strict", pytest.param("cupy", marks=pytest.mark.gpu)], indirect=True)
def test_every_array_library(library: Any, name: str) -> None:
    """The same on every other library than NumPy's, which ``test_models`` has, and on its device."""
    backend = Backend(library.xp, library.device)

    @settings(max_examples=2)
    @given(drawn(partial(draw_model, name)))
    def check(case: ModelCase) -> None:
        all_hold(f"{library!r}, {name}", case.build(), backend)

    check()
