"""Small codes packed without gaps: 1 to 8 bits a value, least significant bit first.

Eight codes are one 64-bit word with a byte each; three merges (neighbours, pairs, fours) bring them to its lower
8 * bits bits, so the work is done on words and needs no loop over values.
"""

from functools import cache

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.uint8]
_WORD = np.dtype("<u8")


def packed_length(count: int, bits: int) -> int:
    """Bytes of `count` codes."""
    return -(-count * bits // 8)


def pack(codes: Codes, bits: int, out: Codes) -> None:
    """Write the lower `bits` bits of each of `codes` [n] to `out` [packed_length(n, bits)]; one bit is any but 0."""
    if bits == 8:
        out[...] = codes
    elif bits == 1:
        out[...] = np.packbits(codes, bitorder="little")
    else:
        if codes.size % 8:
            codes = np.concatenate([codes, np.zeros(-codes.size % 8, np.uint8)])
        words = codes.view(_WORD)
        for lane, mask, kept in _merges(bits):
            words = (words & mask) | ((words >> np.uint64(lane - kept)) & (mask << np.uint64(kept)))
        merged = words.view(np.uint8).reshape(-1, 8)
        whole = out if out.size % bits == 0 else np.empty(merged.shape[0] * bits, np.uint8)
        for column in range(bits):  # a fifth of the time of one copy with short rows
            whole[column::bits] = merged[:, column]
        if whole is not out:
            out[...] = whole[: out.size]


def unpack(packed: Codes, bits: int, count: int) -> Codes:
    """The codes [count], as they were but without the bits that were not sent."""
    if bits == 8:
        return packed
    if bits == 1:
        return np.unpackbits(packed, count=count, bitorder="little")
    if packed.size % bits:
        packed = np.concatenate([packed, np.zeros(-packed.size % bits, np.uint8)])
    words = np.zeros(packed.size // bits, _WORD)
    merged = words.view(np.uint8).reshape(-1, 8)
    for column in range(bits):
        merged[:, column] = packed[column::bits]
    for lane, mask, kept in reversed(_merges(bits)):
        words = (words & mask) | ((words << np.uint64(lane - kept)) & (mask << np.uint64(lane)))
    return words.view(np.uint8)[:count]


def signed(codes: Codes, bits: int) -> npt.NDArray[np.int8]:
    """Codes of `bits` bits read as two's complement."""
    if bits == 8:
        return codes.view(np.int8)
    spare = np.uint8(8 - bits)
    return (codes << spare).view(np.int8) >> spare.view(np.int8)


@cache
def _merges(bits: int) -> tuple[tuple[int, np.uint64, int], ...]:
    """Of each merge: bits of half a lane, the mask of what is kept of the lower halves, and how many bits that is."""
    found = []
    for lane in (8, 16, 32):
        kept = bits * lane // 8
        mask = sum(((1 << kept) - 1) << place for place in range(0, 64, 2 * lane))
        found.append((lane, np.uint64(mask), kept))
    return tuple(found)
