"""Known answers of the two generators, and the places of Philox's words."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from randlora_ref import checks, prng

# Random123 1.14, tests/kat_vectors, philox4x32 with 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, expected) -> None:  # type: ignore[no-untyped-def]
    """The published vectors, as arrays of one block."""
    words = prng.philox4x32(tuple(np.array([word], dtype=np.uint64) for word in counter), key)
    assert tuple(int(word[0]) for word in words) == expected


@given(st.integers(0, 2**64 - 1), st.integers(0, 5), st.integers(0, 2**34), st.integers(0, 40), st.integers(0, 40))
def test_any_part_of_a_stream_is_the_same(seed: int, stream: int, start: int, skip: int, count: int) -> None:
    """Word e is a function of (seed, stream, e), e beyond 2³² too."""
    whole = prng.philox_words(seed, stream, start, start + skip + count)
    assert np.array_equal(prng.philox_words(seed, stream, start + skip, start + skip + count), whole[skip:])


def test_words_stand_where_the_definition_says() -> None:
    """Word e is word e mod 4 of the block with counter (e//4 low, e//4 high, stream, 0), key (low, high)."""
    seed, stream, e = 0x0123456789ABCDEF, 7, (5 << 34) + 4 * 11 + 2
    counter = tuple(np.array([word], dtype=np.uint64) for word in ((e // 4) & 0xFFFFFFFF, (e // 4) >> 32, stream, 0))
    block = prng.philox4x32(counter, (0x89ABCDEF, 0x01234567))
    assert int(prng.philox_words(seed, stream, e, e + 1)[0]) == int(block[2][0])


def test_philox_on_every_array_library(library) -> None:  # type: ignore[no-untyped-def]
    """The same words from each library and device."""
    words = prng.philox_words(2**63 + 1, 3, 5, 77, library.xp, library.device)
    assert np.array_equal(library.host(words), prng.philox_words(2**63 + 1, 3, 5, 77))


def test_mersenne_twister_known_answers() -> None:
    """The C++ standard's 10000th word (28.5.5), and the first words of the published C code for seed 5489."""
    words = prng.mt19937_words(prng.mt19937(5489), 10000)
    assert words[:3].tolist() == [3499211612, 581869302, 3890346734]
    assert int(words[-1]) == 4123659995


def test_torch_uniform_known_answers() -> None:
    """torch.rand(4, generator=torch.Generator().manual_seed(2024)), torch 2.13.0: (word & 0xFFFFFF)·2⁻²⁴."""
    words = prng.mt19937_words(prng.mt19937(2024), 4) & 0xFFFFFF
    expected = [0.5317158699035645, 0.8312679529190063, 0.9718379974365234, 0.11930084228515625]
    assert (words * 2.0**-24).tolist() == expected


def test_torch_takes_the_low_half_of_a_seed() -> None:
    """Seeds that agree in their low 32 bits give the same stream."""
    words = [prng.mt19937_words(prng.mt19937(seed), 5).tolist() for seed in (7, 7 + 2**32, 8)]
    assert words[0] == words[1] != words[2]


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "7", None, True, np.float64(3)])
def test_seeds_that_are_none(seed: object) -> None:
    """Only an integer in [0, 2⁶⁴) is a seed; the error says so and names what it was."""
    with pytest.raises((TypeError, ValueError), match=r"seed: .*must be an integer in \[0, 2\*\*64\)"):
        checks.seed(seed)


def test_seeds_at_the_ends() -> None:
    """0 and 2⁶⁴ − 1, and NumPy's integers."""
    assert [checks.seed(seed) for seed in (0, 2**64 - 1, np.uint64(2**64 - 1))] == [0, 2**64 - 1, 2**64 - 1]
