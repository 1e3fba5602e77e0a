"""A vector as the chunks that ciphertexts carry: SLOTS values, and one slot for the site's token.

The token is a number that only the site and the key holder know. The tokens in a sum must be those of the sites that
are said to be in it, each once: a coordinator that sends another sum to be decrypted, such as one site alone, would
have to guess them for every chunk.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from medfl.privacy.channels.he.scheme import DEGREE, Integers

SLOTS = DEGREE - 1


def count(size: int) -> int:
    """Chunks of a vector of `size` values."""
    return -(-size // SLOTS)


def chunks_of(values: npt.NDArray[Any], tokens: npt.NDArray[np.int64] | None = None) -> Iterator[Integers]:
    """The chunks [DEGREE] of `values` [size], filled up with zeros; `tokens` [chunks] (or zeros) come last."""
    for number in range(count(values.size)):
        chunk = np.zeros(DEGREE, np.int64)
        part = values[number * SLOTS : (number + 1) * SLOTS]
        chunk[: part.size] = part
        if tokens is not None:
            chunk[SLOTS] = tokens[number]
        yield chunk
