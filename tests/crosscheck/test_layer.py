"""The installed PEFT under test: its layer, starts and counts against the specification."""

import numpy as np
import pytest

from randlora_ref.conformance import Case, check, check_peft

pytestmark = pytest.mark.crosscheck


@pytest.fixture(autouse=True)
def _frameworks() -> None:
    pytest.importorskip("peft")
    pytest.importorskip("transformers")


def test_peft_is_the_peft_dialect() -> None:
    report = check_peft(count=240)
    assert report.passed, "\n".join(report.lines())
    assert report.passed_cases > 300  # 240 random ones, and the stored vectors
    assert len(report.details["known"]) >= 20
    assert not report.details["unexpected"]
    reasons = {reason.split(": ")[1].split(" ")[0] for _, _, reason in report.absent}
    assert reasons == {"PEFT"}


def test_peft_read_literally_is_diagnosed_as_crossed() -> None:
    report = check_peft("paper", count=60)
    assert not report.passed
    assert report.diagnosis == "crossed pairing"
    assert all("one term" not in f.case.notes and "rank one" not in f.case.notes for f in report.failures)


def test_random_cases_of_peft_cover_what_they_should() -> None:
    from randlora_ref.conformance import random_case

    cases = [random_case(index) for index in range(240)]
    for flag in (
        "wide",
        "square",
        "ragged",
        "rank one",
        "one term",
        "over-ranked",
        "fan_in_fan_out",
        "merged",
        "sliced",
        "dropout",
    ):
        seen = [case for case in cases if flag in case.notes]
        assert {case.dtype for case in seen} == {"float32", "float64"}, flag
        assert {case.tier for case in seen} == {"exact", "real"}, flag


def test_start_and_count() -> None:
    from randlora_ref.conformance.peft import run_peft

    shapes = ((6, 4), (4, 9), (5, 5), (3, 7), (8, 2))
    cases = [
        Case(id=f"start-{i}-{r}", kind="start", dialect="peft", shape=shape, rank=r)
        for i, shape in enumerate(shapes)
        for r in (1, 2, 3, 7)
    ]
    cases += [Case(id=f"count-{r}", kind="count", dialect="peft", shapes=shapes, rank=r) for r in (1, 2, 3, 7)]
    report = check(run_peft, cases=cases)
    assert report.passed, "\n".join(report.lines())


def test_a_layer_of_another_n_is_unsupported_with_a_reason() -> None:
    from randlora_ref.conformance.peft import run_peft

    case = Case(
        id="short", kind="layer", x=np.ones((1, 4)), weight=np.ones((5, 4)), A=np.ones((2, 4)), B=np.ones((1, 5, 2)),
        lambda_=np.ones((1, 2)), gamma=np.ones((1, 4)), dy=np.ones((1, 5)),
    )  # fmt: skip
    assert all("unsupported: PEFT has n = 2" in value for value in run_peft(case).values())


def test_peft_drops_as_the_masks_of_the_cases_say() -> None:
    """PEFT's own ``nn.Dropout`` in training mode: its mask, read off and given to ``spec``, gives its y, dx and dΛ."""
    import torch

    from randlora_ref import spec
    from randlora_ref.conformance.peft import peft_model

    for shape in ((6, 4), (4, 7)):
        model = peft_model([shape], 2, alpha=3, randlora_dropout=0.5).double()
        layer = model.base_model.model.lin0.train()
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter)
        masks: list[torch.Tensor] = []

        def read(_: object, given: tuple[torch.Tensor], out: torch.Tensor, masks: list[torch.Tensor] = masks) -> None:
            masks.append(out / given[0])

        layer.randlora_dropout["default"].register_forward_hook(read)
        x, dy = torch.randn(5, shape[1], dtype=torch.float64).requires_grad_(), torch.randn(5, shape[0]).double()
        y = layer(x)
        y.backward(dy)
        (mask,) = (one.detach().numpy() for one in masks)
        assert set(np.unique(mask.round(9))) == {0, 2}
        weight, bias = (one.detach().numpy() for one in (layer.weight, layer.bias))
        A, B, lambda_, gamma = (
            getattr(layer, f"randlora_{what}")["default"].detach().numpy() for what in ("A", "B", "lambda", "gamma")
        )
        factors = A[:, 0, :], B.transpose(1, 0, 2), lambda_.T, gamma, 3 / 2, "crossed"
        inputs, cotangent = x.detach().numpy(), dy.numpy()
        right = spec.backward(cotangent, inputs, weight, *factors, mask)
        np.testing.assert_allclose(
            y.detach().numpy(), spec.forward(inputs, weight, bias, *factors, mask), rtol=0, atol=1e-10
        )
        np.testing.assert_allclose(x.grad.numpy(), right.x, rtol=0, atol=1e-10)
        np.testing.assert_allclose(layer.randlora_lambda["default"].grad.numpy().T, right.lambda_, rtol=0, atol=1e-10)


def test_several_adapters_and_shapes_agree_but_for_the_known_fault() -> None:
    """Two adapters of one rank stand side by side; one of another rank breaks both: PEFT keeps one n a layer."""
    import torch
    from peft import RandLoraConfig

    from randlora_ref import Bases, RandLoRA
    from randlora_ref.conformance.peft import peft_model

    shapes = [(20, 20), (7, 6), (6, 9)]
    model = peft_model(shapes, 3, alpha=6)

    def add(name: str, rank: int) -> None:
        names = [f"lin{i}" for i in range(len(shapes))]
        model.add_adapter(name, RandLoraConfig(r=rank, randlora_alpha=6, target_modules=names, projection_prng_key=0))

    def agrees(index: int, name: str) -> bool:
        layer = getattr(model.base_model.model, f"lin{index}")
        torch.nn.init.normal_(layer.randlora_lambda[name])
        A, B, lambda_, gamma = (
            getattr(layer, f"randlora_{what}")[name].detach().numpy() for what in ("A", "B", "lambda", "gamma")
        )
        ours = RandLoRA(
            out_features=shapes[index][0], in_features=shapes[index][1], rank=3,
            bases=Bases(A[:, 0, :], B.transpose(1, 0, 2)), lambda_=lambda_.T, gamma=gamma, dialect="peft", alpha=6,
        ).delta_weight()  # fmt: skip
        theirs = layer.get_delta_weight(name).detach().numpy()
        return bool(np.abs(theirs - ours).max() <= 1e-5 * np.abs(ours).max())

    add("same", 3)
    assert all(agrees(index, name) for index in range(len(shapes)) for name in ("default", "same"))
    add("other", 2)
    for name in ("default", "other"):  # once this no longer raises, the fault is mended: take it off the list
        with pytest.raises(RuntimeError):
            model.base_model.model.lin1.get_delta_weight(name)


def test_known_fault_a_basis_of_one_number_is_nan() -> None:
    from randlora_ref.conformance.peft import peft_bases

    with pytest.warns(UserWarning, match="degrees of freedom"):
        A, _ = peft_bases(0, [(8, 1)], 1)
    assert np.isnan(A).all()
