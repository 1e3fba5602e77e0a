"""Sets as packed bits, eight to a byte."""

import hashlib

import numpy as np
import numpy.typing as npt

from medfl.errors import RunError
from medfl.update.wire import Buffer


def packed(inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """[count] -> [ceil(count / 8)]; the last byte is filled with zeros."""
    return np.packbits(inside)


def unpacked(raw: Buffer | npt.NDArray[np.uint8], count: int, where: str) -> npt.NDArray[np.bool_]:
    """The set [count] of packed bits; RunError, naming `where` they are from, when they are not those of such a set."""
    found = np.frombuffer(raw, np.uint8)
    if found.size != -(-count // 8) or (count % 8 and found[-1] & ((1 << (8 - count % 8)) - 1)):
        raise RunError.at(where, f"{found.size} bytes are not a set of {count}")
    return np.unpackbits(found, count=count).view(np.bool_)


def fingerprint(raw: npt.NDArray[np.uint8]) -> str:
    """64 bits of SHA-256, as hex: which of the masks that both ends know is meant."""
    return hashlib.sha256(raw.tobytes()).hexdigest()[:16]
