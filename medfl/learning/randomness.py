"""Random numbers that depend only on what they are for, so that order, process and interruption do not matter.

These are the experiment's numbers: shuffling, augmentation, initialisation, sampling. None of them is ever used for
privacy noise or masks.
"""

import zlib

import numpy as np

_WORD = 2**32 - 1


def derive(seed: int, *purpose: str | int) -> np.random.SeedSequence:
    """The seed sequence of one purpose, such as derive(seed, "shuffle", round, site)."""
    words = [seed, *(part if isinstance(part, int) else zlib.crc32(part.encode()) for part in purpose)]
    # the same sequence, made in half the time
    return np.random.SeedSequence(np.array(words, np.uint32) if max(words) <= _WORD and min(words) >= 0 else words)


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A NumPy generator for one purpose."""
    return np.random.default_rng(derive(seed, *purpose))


def torch_seed(seed: int, *purpose: str | int) -> int:
    """A seed for torch's generator for one purpose."""
    return int(derive(seed, *purpose).generate_state(1, np.uint64)[0] >> 1)
