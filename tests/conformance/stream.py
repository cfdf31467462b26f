"""The numbers that cases are made of: words of Philox, the same everywhere."""

from typing import Any

import numpy as np

from randlora_ref.conformance import oracle

Array = Any


class Stream:
    """Numbers from one stream of words: the same on every machine and with every version of NumPy."""

    def __init__(self, stream: int) -> None:
        self.words = (oracle.philox_word(20250201, stream, e) for e in range(1 << 30))

    def integers(self, low: int, high: int, *shape: int) -> Array:
        size = int(np.prod(shape))
        return np.array([low + next(self.words) % (high - low + 1) for _ in range(size)], dtype=np.float64).reshape(
            shape
        )

    def reals(self, dtype: str, *shape: int) -> Array:
        """Uniform on ±2 with all the digits of ``dtype``."""
        size = int(np.prod(shape))
        scaled = [(next(self.words) * 2**32 + next(self.words)) / 2**62 - 2 for _ in range(size)]
        return np.array(scaled, dtype=dtype).reshape(shape)


def to_float64(x: Array) -> Array:
    """Numbers of any kind, rounded once."""
    return np.array([float(v) for v in np.asarray(x).flat]).reshape(np.shape(x))
