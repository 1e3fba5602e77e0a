"""Checks of what many messages have in common, made once."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from isal import isal_zlib

from medfl.update.wire import Buffer

_BLOCK = 2**18
_POLYNOMIAL = 0xEDB88320
_ONE, _BYTE = 1 << 31, 1 << 23
"""1 and x^8, the coefficient of the highest power last."""


@dataclass(frozen=True, slots=True)
class Bulk:
    """What many messages end with: a model, say. digest: SHA-256."""

    digest: bytes
    crc32: int
    size: int

    @classmethod
    def of(cls, buffers: Sequence[Buffer]) -> "Bulk":
        """Reads them once, block by block."""
        digest, crc32, size = sha256(), 0, 0
        for buffer in buffers:
            view = memoryview(buffer).cast("B") if len(buffer) else memoryview(b"")
            for start in range(0, len(view), _BLOCK):
                block = view[start : start + _BLOCK]
                digest.update(block)
                crc32 = isal_zlib.crc32(block, crc32)
            size += len(view)
        return cls(digest.digest(), crc32, size)


def crc32_of(head: Buffer, bulk: Bulk) -> int:
    """CRC-32 of `head` followed by the bulk, as zlib's crc32_combine finds it: the head's checksum times x^(8 n) for n
    bytes that follow, plus theirs, over GF(2)."""
    factor, power, left = _ONE, _BYTE, bulk.size
    while left:
        if left & 1:
            factor = _times(factor, power)
        power, left = _times(power, power), left >> 1
    return _times(factor, isal_zlib.crc32(head)) ^ bulk.crc32


def _times(one: int, other: int) -> int:
    """The product of two polynomials modulo that of CRC-32."""
    product, bit = 0, _ONE
    while bit:
        if one & bit:
            product ^= other
        other = other >> 1 ^ (_POLYNOMIAL if other & 1 else 0)
        bit >>= 1
    return product
