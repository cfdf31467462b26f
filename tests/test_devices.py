"""CuPy's devices: one is used or refused by name, never dropped, and nothing moves between devices or libraries."""

from typing import Any

import numpy as np
import pytest

import randlora_ref as rl
from randlora_ref import adapters, arrays, nn, optim

pytestmark = pytest.mark.gpu
MAKERS = {
    "draw_bases paper": lambda **where: rl.draw_bases("paper", shapes=[(6, 5)], rank=2, **where).B,
    "draw_bases peft": lambda **where: rl.draw_bases("peft", shapes=[(6, 5)], rank=2, **where).B,
    "RandLoRA paper": lambda **where: rl.RandLoRA.start(6, 5, 2, dialect="paper", **where).gamma,
    "RandLoRA peft": lambda **where: rl.RandLoRA.start(6, 5, 2, dialect="peft", **where).gamma,
    "randlora_b": lambda **where: adapters.randlora_b(6, 5, 2, **where).gamma,
    "RandLoRAa": lambda **where: adapters.RandLoRAa.start(6, 5, 2, **where).A,
    "LoRA": lambda **where: adapters.LoRA.start(6, 5, 2, **where).A,
    "VeRA": lambda **where: adapters.VeRA.start(6, 5, 2, **where).lambda_d,
    "NoLA": lambda **where: adapters.NoLA.start(6, 5, 2, num_bases=3, **where).c0,
    "FullFineTuning": lambda **where: adapters.FullFineTuning.start(6, 5, **where).delta,
    "from_numpy": lambda xp, device: arrays.from_numpy(xp, np.ones(3), device),
}


@pytest.fixture(scope="module")
def second(cupy: Any) -> Any:
    """A device that is not the current one."""
    if cupy.xp.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one GPU alone")
    return cupy.xp.cuda.Device(1)


@pytest.mark.parametrize("name", MAKERS)
def test_a_device_is_used_or_refused(cupy: Any, second: Any, name: str) -> None:
    """Inside ``with device:`` what is made lies there; elsewhere the device is named, and so is one that is not."""
    make, xp = MAKERS[name], cupy.xp
    with second:
        assert make(xp=xp, device=second).device == second
        with pytest.raises(ValueError, match=r"device: <CUDA Device 0>; it must be"):
            make(xp=xp, device=cupy.device)
    assert make(xp=xp, device=cupy.device).device == make(xp=xp, device=None).device == cupy.device
    for device, library in ((second, xp), (xp.cuda.Device(9), xp), ("cpu", xp), (0, xp), (cupy.device, np)):
        with pytest.raises(ValueError, match=rf"device: {device!r}; it must be"):
            make(xp=library, device=device)


def calls(x: Any, of: Any) -> dict[str, Any]:
    """Calls of two arrays, one of each kind of door: nn, an adapter, an optimiser, the rank."""
    layer = rl.RandLoRA.start(4, 4, 2, xp=np if isinstance(of, np.ndarray) else arrays.namespace_of("of", of))
    return {
        "weight": lambda: nn.linear(x, of),
        "adapter|x": lambda: layer.forward(x, of),
        "gradient": lambda: optim.sgd({"a": of}, {"a": x}, lr=0.1),
        "weight|B": lambda: rl.Bases(of, x[None]),
    }


@pytest.mark.parametrize("kind", ["library", "device"])
def test_arrays_apart_are_refused(cupy: Any, second: Any, kind: str) -> None:
    """Of two libraries, or on two devices: the argument is named, and what both are of."""
    host = np.ones((4, 4), np.float32)
    with second:
        there = cupy.xp.asarray(host)
    here, words = cupy.array(host), "numpy on cpu" if kind == "library" else "cupy on <CUDA Device 1>"
    for name, call in calls(host if kind == "library" else there, here).items():
        with pytest.raises(TypeError, match="it must be of one library") as error:
            call()
        assert words in str(error.value), name
        assert "cupy on <CUDA Device 0>" in str(error.value), name


def test_arrays_of_a_device_that_is_not_the_current_one(cupy: Any, second: Any) -> None:
    """CuPy would make the result elsewhere: refused by name, right inside ``with device:``, and read from anywhere."""
    host = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    with second:
        there = cupy.xp.asarray(host)
        layer = adapters.FullFineTuning(out_features=4, in_features=4, delta=there)
        assert layer.forward(there, there)[0].device == second
    with pytest.raises(TypeError, match=r"x: an array on <CUDA Device 1>; it must be on CuPy's current device"):
        nn.activation(there, "silu")
    with pytest.raises(TypeError, match="an array on <CUDA Device 1>; it must be on CuPy's current device"):
        layer.forward(there, there)
    assert np.array_equal(arrays.to_numpy(there), host)
    assert rl.certify_rank(layer).rank == 4
