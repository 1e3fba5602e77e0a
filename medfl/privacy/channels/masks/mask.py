"""Masks on vectors of 32-bit words: keystreams added or subtracted modulo 2^32, in place and block by block."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medfl.privacy.keystream import BLOCK_BYTES, Keystream, scratch

Words = npt.NDArray[np.uint32]

_BLOCK = BLOCK_BYTES // 4


def apply(words: Words, added: Sequence[bytes], subtracted: Sequence[bytes]) -> None:
    """Add to `words` [size] the keystreams of the keys `added`, and subtract those of the keys `subtracted`."""
    memory = scratch()
    plus = [Keystream(key, memory) for key in added]
    minus = [Keystream(key, memory) for key in subtracted]
    for start in range(0, words.size, _BLOCK):
        block = words[start : start + _BLOCK]
        for stream in plus:
            block += stream.take(block.size, np.uint32)
        for stream in minus:
            block -= stream.take(block.size, np.uint32)
