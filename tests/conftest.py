"""Array libraries that tests take their arrays from, and hypothesis' profiles."""

import os
from typing import Any

import array_api_strict
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings

from randlora_ref import arrays

settings.register_profile("dev", deadline=None, max_examples=50)
settings.register_profile(
    "ci", deadline=None, max_examples=50, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("faults", settings.get_profile("ci"), phases=(Phase.explicit, Phase.generate))  # not shrunk
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


class Library:
    """One array library on one device. ``array`` brings a host array in, ``host`` brings a result out."""

    def __init__(self, name: str) -> None:
        self.name, self.xp, self.device = name, np, None
        if name == "strict":
            self.xp, self.device = array_api_strict, array_api_strict.Device("device1")
        if name == "cupy":
            self.xp = pytest.importorskip("cupy", reason="CuPy is not installed")
            try:
                count = self.xp.cuda.runtime.getDeviceCount()
            except Exception as error:
                pytest.skip(f"no GPU: {error}")
            if not count:
                pytest.skip("no GPU")
            self.device = self.xp.cuda.Device(0)

    def array(self, x: Any) -> Any:
        """A copy of ``x`` as an array of this library; of NumPy's it cannot be written to: nothing given is changed."""
        if x is None:
            return None
        copy = np.array(x)
        copy.setflags(write=False)
        return arrays.from_numpy(self.xp, copy, self.device)

    def host(self, x: Any) -> Any:
        """A result as a NumPy array, once it is seen to be of this library, on its device."""
        if x is None:
            return None
        assert arrays.namespace_of("x", x) is self.xp
        if self.device is not None:
            assert x.device == self.device
        return arrays.to_numpy(x)

    def __repr__(self) -> str:
        return self.name


@pytest.fixture(
    scope="session",
    params=["numpy", "strict", pytest.param("cupy", marks=pytest.mark.gpu)],
)
def library(request: pytest.FixtureRequest) -> Library:
    """NumPy read-only, array-api-strict on a device that is not the default, CuPy where there is a GPU."""
    return Library(request.param)


@pytest.fixture(scope="session")
def cupy() -> Library:
    """CuPy where there is a GPU, for tests marked gpu that are about it alone."""
    return Library("cupy")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """After a thorough run, the worst figure of every property and of how many configurations it is."""
    if settings().max_examples > 50:
        from strategies import WORST

        for name, (count, worst, limit) in WORST.items():
            terminalreporter.write_line(f"{count:6} {worst:10.3g} <= {limit:8.3g}  {name}")
