"""The k largest values of a vector, without sorting it.

A strided sample of about half a percent tells a threshold that slightly more than k values pass (Lin et al., "Deep
Gradient Compression", ICLR 2018); the exact k are then taken among those. A sample that misleads costs time only: the
threshold is found among all values.

Floats are compared as their bits without the sign, which orders them by magnitude and puts infinity and NaN above
every number: they are always selected, and stay visible to who decodes. Equal values are taken from the lowest index
up.
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from medfl.update.codecs.indices import Indices
from medfl.update.vector import FloatVector

Bits = npt.NDArray[np.uint32]
Key = Callable[[Bits, Bits], None]
"""Writes what values are ordered by, from the bits of a block [n] into a scratch array [n]."""

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_SIGN = np.uint32(0x80000000)
# values a block: keys and flags stay in the second-level cache
_BLOCK = 1 << 16
_SAMPLE = 1 << 17


def magnitude(bits: Bits, out: Bits) -> None:
    """Orders by magnitude."""
    np.bitwise_and(bits, _MAGNITUDE, out=out)


def positive(bits: Bits, out: Bits) -> None:
    """Orders by value, with everything negative as zero."""
    np.maximum(bits.view(np.int32), 0, out=out.view(np.int32))


def negative(bits: Bits, out: Bits) -> None:
    """Orders by the value's negative, with everything positive as zero."""
    np.bitwise_xor(bits, _SIGN, out=out)
    np.maximum(out.view(np.int32), 0, out=out.view(np.int32))


def largest(values: FloatVector, count: int, key: Key = magnitude) -> Indices:
    """The indices, increasing, of the `count` <= n largest of `values` [n] by `key`."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    if count >= bits.size:
        return np.arange(bits.size)
    if not count:
        return np.empty(0, np.int64)
    found = _candidates(bits, count, key)
    if found is None or found.size < count:
        return _exact(bits, count, key)
    return found[_exact(bits[found], count, key)]


def _candidates(bits: Bits, count: int, key: Key) -> Indices | None:
    """The indices that pass a sampled threshold; None when a sample would not pay, or far more pass than expected."""
    if bits.size <= 2 * _SAMPLE or count > bits.size // 16:
        return None
    # an odd stride does not keep step with the rows of tensors
    sample = bits[:: bits.size // _SAMPLE | 1].copy()
    key(sample, sample)
    expected = count * sample.size / bits.size
    rank = int(expected + 4 * expected**0.5 + 4)
    sample.partition(sample.size - rank)
    return _passing(bits, key, sample[sample.size - rank], 2 * rank * bits.size // sample.size)


def _passing(bits: Bits, key: Key, threshold: np.uint32, limit: int) -> Indices | None:
    """The indices whose key is at least the threshold; None when they are more than `limit`."""
    found, total = [], 0
    for start, keys in _blocks(bits, key):
        here = np.flatnonzero(keys >= threshold)
        here += start
        found.append(here)
        total += here.size
        if total > limit:
            return None
    return np.concatenate(found)


def _exact(bits: Bits, count: int, key: Key) -> Indices:
    """The largest without a guess, for 1 <= count <= n."""
    last, ties = _smallest_of_largest(bits, count, key)
    found, filled = np.empty(count, np.int64), 0
    for start, keys in _blocks(bits, key):
        chosen = keys > last
        if ties:
            equal = np.flatnonzero(keys == last)[:ties]
            chosen[equal] = True
            ties -= equal.size
        here = np.flatnonzero(chosen)
        np.add(here, start, out=found[filled : filled + here.size])
        filled += here.size
    return found


def _smallest_of_largest(bits: Bits, count: int, key: Key) -> tuple[int, int]:
    """The count-th largest key, and how many of its equals belong to the largest: found digit by digit, from the
    numbers of keys with each digit, in time and memory that no data can drive up."""
    prefix = 0
    for shift in (24, 16, 8, 0):
        numbers = np.zeros(256, np.int64)
        for _, keys in _blocks(bits, key):
            digits = keys >> shift
            if shift < 24:
                digits = digits[digits >> 8 == prefix]
            numbers += np.bincount(digits & 255, minlength=256)
        from_top = np.cumsum(numbers[::-1])
        step = int(np.searchsorted(from_top, count))
        count -= int(from_top[step - 1]) if step else 0
        prefix = prefix << 8 | 255 - step
    return prefix, count


def _blocks(bits: Bits, key: Key) -> Iterator[tuple[int, Bits]]:
    scratch = np.empty(min(_BLOCK, bits.size), np.uint32)
    for start in range(0, bits.size, _BLOCK):
        block = bits[start : start + _BLOCK]
        key(block, scratch[: block.size])
        yield start, scratch[: block.size]
