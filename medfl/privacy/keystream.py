"""AES-256 in counter mode as a generator of protective randomness (NIST SP 800-38A, section 6.5)."""

from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

KEY_BYTES = 32
BLOCK_BYTES = 1 << 18
"""Most bytes of one `take`: they stay in the processor's cache."""
_ZEROS = bytes(BLOCK_BYTES)
# update_into asks for room for a cipher block beyond the data
_SPARE = 15


def scratch() -> npt.NDArray[np.uint8]:
    """Memory for any `take`, to be shared by keystreams that are read in turn."""
    return np.empty(BLOCK_BYTES + _SPARE, np.uint8)


class Keystream:
    """The keystream of one key [32 bytes]. A key is used for one keystream only: the counter starts at 0.

    memory: from `scratch`; what `take` gives is then overwritten by the next `take` into the same memory.
    """

    def __init__(self, key: bytes, memory: npt.NDArray[np.uint8] | None = None) -> None:
        self._encryptor = Cipher(AES256(key), CTR(bytes(16))).encryptor()
        self._memory = memory

    def take(self, count: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """The next `count` values of an unsigned little-endian `dtype`, at most BLOCK_BYTES bytes."""
        size = count * np.dtype(dtype).itemsize
        memory = np.empty(size + _SPARE, np.uint8) if self._memory is None else self._memory
        self._encryptor.update_into(memoryview(_ZEROS)[:size], memory.data)
        return memory[:size].view(np.dtype(dtype).newbyteorder("<"))
