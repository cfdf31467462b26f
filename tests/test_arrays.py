"""The room that knows the array libraries apart."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from randlora_ref import arrays, checks


def test_helpers_agree_with_numpy(library: Any) -> None:
    """Each spelling gives NumPy's result, on the library's own device."""
    xp, host = library.xp, np.arange(24.0).reshape(2, 3, 4)
    x = library.array(host)
    assert np.array_equal(library.host(arrays.permute(xp, x, (1, 0, 2))), host.transpose(1, 0, 2))
    assert np.array_equal(library.host(arrays.swap_last(x)), host.swapaxes(1, 2))
    assert np.array_equal(library.host(arrays.as_rows(xp, x)), host.reshape(6, 4))
    assert library.host(arrays.astype(xp, x, xp.float32)).dtype == np.float32
    assert arrays.as_rows(xp, x[0, 0, :]).shape == (1, 4)
    assert arrays.as_rows(xp, x[:0, ...]).shape == (0, 4)
    assert checks.precision("x", x) == "float64"
    assert checks.namespace(x=x, nothing=None) is xp


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128", "int64"])
def test_where_takes_a_number_in_either_place(library: Any, dtype: str) -> None:
    """Also beside a scalar, as NumPy's sums over all axes are; the array beside the number gives the dtype."""
    xp, x = library.xp, library.array(np.array([1, 2, 3], dtype=dtype))
    condition = library.array(np.array([True, False, True]))
    total = xp.sum(x)
    for chosen, first, second, expected in [
        (condition, 7, x, [7, 2, 7]),
        (condition, x, 7, [1, 7, 3]),
        (condition, x, 2 * x, [1, 4, 3]),
        (total == 6, 7, total, 7),
        (total == 0, total, 7, 7),
    ]:
        got = library.host(arrays.where(xp, chosen, first, second))
        assert got.dtype == dtype
        assert got.tolist() == expected


def test_check_finite_names_the_argument(library: Any) -> None:
    """The first that holds NaN or infinity."""
    good, bad = library.array(np.ones(3)), library.array(np.array([1.0, np.nan, 2.0]))
    checks.finite(library.xp, good=good, none=None)
    with pytest.raises(ValueError, match="bad: holds NaN or infinity"):
        checks.finite(library.xp, good=good, bad=bad)


def test_unit_roundoffs() -> None:
    """Half a unit in the last place of 1."""
    for name in ("float16", "float32", "float64"):
        assert arrays.unit_roundoff(name) == np.finfo(name).eps / 2
    assert arrays.unit_roundoff("bfloat16") == 2.0**-8
    assert arrays.unit_roundoff("complex128") == 2.0**-53
    with pytest.raises(ValueError, match="dtype: 'int8'; it must be one of"):
        arrays.unit_roundoff("int8")


def test_what_is_no_array_is_named() -> None:
    """Lists, numbers, integers where reals are needed, and no array at all."""
    with pytest.raises(TypeError, match="x: list; it must be an array"):
        checks.namespace(x=[1.0])
    with pytest.raises(TypeError, match="x: dtype int64; it must be float16, float32, float64 or complex"):
        checks.precision("x", np.arange(3))
    with pytest.raises(TypeError, match="x: None; it must be an array"):
        checks.namespace(x=None)


def test_importing_the_package_imports_numpy_alone() -> None:
    """No framework, no extra: they come with their users."""
    code = (
        "import sys, randlora_ref; print(sorted(set(sys.modules) & {'torch', 'cupy', 'peft', 'transformers', "
        "'matplotlib', 'scipy', 'safetensors', 'hypothesis', 'pytest', 'jsonschema', 'array_api_strict'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
