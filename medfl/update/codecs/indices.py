"""Positions as bytes: strictly increasing indices become gaps, gaps become bytes, bytes go through zstd.

    gap_0 = index_0,   gap_i = index_i - index_{i-1} - 1

A gap below 65535 is one u16; a larger one is 65535, and what is left of it follows as a u64 after all gaps. The low
bytes of all gaps come first, then the high bytes (which are nearly all zero and compress to nothing), then the
escapes. The largest values of an update lie in few tensors, so that this is smaller than the entropy of evenly spread
positions.
"""

import numpy as np
import numpy.typing as npt
import zstandard

from medfl.errors import RunError
from medfl.update.inflate import inflate
from medfl.update.wire import Buffer, as_bytes

Indices = npt.NDArray[np.int64]

_ESCAPE = 0xFFFF
# higher levels are slower and not smaller: there is nothing to find but the share of each byte
_LEVEL = 1
# gaps a block: their 8-byte copies stay in the cache
_BLOCK = 1 << 15
_REMEDY = "the site must encode with the same version of medfl"


def pack_indices(indices: Indices) -> bytes:
    """The bytes of strictly increasing indices [k]."""
    count = indices.size
    planes = np.empty((2, count), np.uint8)
    escapes = []
    before = -1
    for start in range(0, count, _BLOCK):
        block = indices[start : start + _BLOCK]
        gaps = np.diff(block, prepend=before) - 1
        before = int(block[-1])
        if int(gaps.max()) >= _ESCAPE:
            escapes.append((gaps[gaps >= _ESCAPE] - _ESCAPE).astype("<u8"))
            np.minimum(gaps, _ESCAPE, out=gaps)
        pairs = gaps.astype(np.uint16)
        np.copyto(planes[0, start : start + _BLOCK], pairs, casting="unsafe")
        np.copyto(planes[1, start : start + _BLOCK], pairs >> 8, casting="unsafe")
    raw = as_bytes(planes) if not escapes else planes.tobytes() + np.concatenate(escapes).tobytes()
    return zstandard.ZstdCompressor(level=_LEVEL).compress(raw)


def most_bytes(count: int, size: int) -> int:
    """The largest `pack_indices` of `count` indices below `size`: zstd adds a 256th and 64 bytes at most to what does
    not compress."""
    raw = 2 * count + 8 * (size // _ESCAPE)
    return raw + (raw >> 8) + 64


def unpack_indices(packed: Buffer, count: int, size: int) -> Indices:
    """The `count` indices, strictly increasing and below `size`. RunError for any bytes that are not exactly that; what
    is allocated follows from count and size, not from the bytes."""
    raw = np.frombuffer(inflate(packed, 2 * count, 2 * count + 8 * (size // _ESCAPE)), np.uint8)
    gaps = raw[count : 2 * count].astype(np.int64)
    gaps <<= 8
    gaps |= raw[:count]
    tail = raw[2 * count :]
    escaped = np.flatnonzero(gaps == _ESCAPE)
    if tail.size != 8 * escaped.size:
        raise RunError.at("update", f"has {tail.size} bytes for {escaped.size} large gaps", _REMEDY)
    if escaped.size:
        beyond = tail.view("<u8")
        if int(beyond.max()) >= size:
            raise RunError.at("update", f"has a gap beyond a vector of {size} values", _REMEDY)
        gaps[escaped] += beyond.astype(np.int64)
    return positions(gaps, size)


def positions(gaps: Indices, size: int) -> Indices:
    """The indices of gaps [k] >= 0, each at most `size` + 65535, made in place. RunError when they leave the vector."""
    if not gaps.size:
        return gaps
    gaps += 1
    gaps[0] -= 1
    np.cumsum(gaps, out=gaps)
    if gaps[-1] >= size:
        raise RunError.at("update", f"has indices up to {gaps[-1]} in a vector of {size} values", _REMEDY)
    return gaps
