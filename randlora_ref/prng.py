"""Two streams of random 32-bit words: Philox4x32-10, the package's own, and MT19937, torch's on a CPU.

Only integers here; ``bases`` turns words into numbers. Philox is counter-based (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", SC 2011): each word is a function of its place, so any part of a stream is made
alone, on any device. MT19937 (Matsumoto and Nishimura, 1998) must be read from the start, on the CPU.
"""

from typing import Any

import numpy as np

from . import arrays

Array = Any
MASK32 = 0xFFFFFFFF
WORDS_AT_A_TIME = 1 << 16  # on NumPy: what is made of them stays in cache

# Philox4x32: multipliers of the two halves of the counter, and what each round adds to the two key words.
PHILOX_M0, PHILOX_M1 = 0xD2511F53, 0xCD9E8D57
PHILOX_W0, PHILOX_W1 = 0x9E3779B9, 0xBB67AE85
PHILOX_ROUNDS = 10


def philox4x32(counter: tuple[Array, Array, Array, Array], key: tuple[int, int]) -> tuple[Array, Array, Array, Array]:
    """The four words of each block: Philox4x32-10 of ``counter`` under ``key``.

    The counter's words are uint64 arrays that broadcast together, with values below 2³²; so are the results.
    Known answers: Random123's ``kat_vectors``.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(PHILOX_ROUNDS):
        product0, product1 = PHILOX_M0 * c0, PHILOX_M1 * c2  # 32 by 32 bits: no overflow in 64
        c0, c1 = (product1 >> 32) ^ c1 ^ k0, product1 & MASK32
        c2, c3 = (product0 >> 32) ^ c3 ^ k1, product0 & MASK32
        k0, k1 = (k0 + PHILOX_W0) & MASK32, (k1 + PHILOX_W1) & MASK32
    return c0, c1, c2, c3


def philox_words(seed: int, stream: int | Array, start: int, stop: int, xp: Any = np, device: Any = None) -> Array:
    """Words ``start`` to ``stop`` of stream ``stream`` under ``seed``, as uint64 values below 2³².

    Streams given as a uint64 array (n, 1) give (n, stop − start).
    Word e is word e mod 4 of the block with counter (e//4 low, e//4 high, stream, 0) and key (seed low, seed high).
    """
    first, last = start // 4, -(-stop // 4)
    block = xp.arange(first, last, dtype=xp.uint64, **arrays.on(device, xp))
    zero = 0 * block
    counter = (block & MASK32, block >> 32, zero + stream, zero)
    words = xp.stack(philox4x32(counter, (seed & MASK32, seed >> 32)), axis=-1)
    return xp.reshape(words, (*words.shape[:-2], 4 * (last - first)))[..., start - 4 * first : stop - 4 * first]


def mt19937(seed: int) -> np.random.RandomState:
    """MT19937 as ``init_genrand`` seeds it from the low 32 bits of ``seed``: torch's CPU generator, NumPy's of old.

    Its raw 32-bit words are those of ``torch.Generator().manual_seed(seed)``.
    """
    return np.random.RandomState(seed & MASK32)


def mt19937_words(generator: np.random.RandomState, count: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """The next ``count`` raw words of ``generator``, as uint32: its integers over the full range."""
    return generator.randint(0, 2**32, size=count, dtype=np.uint32)
