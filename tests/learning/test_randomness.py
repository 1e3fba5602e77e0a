"""Random numbers by purpose."""

import zlib

import numpy as np
import pytest

from medfl.learning.randomness import derive, generator


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**32, 2**70])
def test_a_purpose_is_the_sequence_of_its_words(seed: int) -> None:
    """However it is made: a run that goes on with a newer version draws the same."""
    words = [seed, zlib.crc32(b"shuffle"), 3, zlib.crc32(b"east")]
    expected = np.random.SeedSequence(words).generate_state(8)
    assert (derive(seed, "shuffle", 3, "east").generate_state(8) == expected).all()


def test_purposes_differ() -> None:
    purposes = [("shuffle", 1, "a"), ("shuffle", 2, "a"), ("shuffle", 1, "b"), ("codec", 1, "a"), ("shuffle", 1)]
    drawn = {generator(0, *purpose).integers(2**63) for purpose in purposes} | {
        generator(1, "shuffle", 1).integers(2**63)
    }
    assert len(drawn) == len(purposes) + 1


def test_a_seed_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        derive(-1, "shuffle")
