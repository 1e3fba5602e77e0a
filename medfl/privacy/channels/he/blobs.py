"""The bytes of SEAL objects: many in one buffer, and checked before SEAL reads them.

SEAL puts before each object a header of 16 bytes (magic, version, compression, size), so that objects laid one after
the other can be told apart. A compressed object is inflated here, within the size that it must have: SEAL itself would
inflate whatever it is given.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from medfl.errors import RunError
from medfl.update.inflate import inflate as zstd_frame
from medfl.update.wire import Buffer

BATCH = 128
"""Objects a buffer."""
_HEADER = struct.Struct("<HBBBBHQ")
_MAGIC, _PLAIN, _ZSTD = 0xA15E, 0, 2
_MEMBERS = 73
"""Bytes of a ciphertext before its coefficients: parameters' hash, form, sizes, scale, correction factor."""
_SEED_HEADER = 17
"""Bytes before a seed: header and kind of generator."""


class BadBlobError(ValueError):
    """Bytes that are not the SEAL object they should be; the caller says whose they are."""


def split(buffers: Iterable[Buffer]) -> Iterator[memoryview]:
    """The objects in `buffers`, in order; BadBlobError when a buffer does not add up."""
    for buffer in buffers:
        view = memoryview(buffer)
        while view:
            size = _size(view)
            yield view[:size]
            view = view[size:]


def join(blobs: Iterable[bytes]) -> tuple[bytes, ...]:
    """The objects in as few buffers as BATCH allows."""
    buffers, batch = [], []
    for blob in blobs:
        batch.append(blob)
        if len(batch) == BATCH:
            buffers.append(b"".join(batch))
            batch = []
    return (*buffers, b"".join(batch)) if batch else tuple(buffers)


def inflate(blob: Buffer, most: int) -> bytes:
    """The members of an object, uncompressed; BadBlobError when they are more than `most` bytes."""
    view = memoryview(blob)
    if _size(view) != len(view):
        raise BadBlobError("is not one whole object")
    body, mode = view[_HEADER.size :], view[5]
    if mode == _ZSTD:
        try:
            return zstd_frame(body, 0, most, streamed=True)
        except RunError as error:
            raise BadBlobError(f"cannot be inflated: {error.faults[0].what}") from error
    if mode == _PLAIN and len(body) <= most:
        return bytes(body)
    raise BadBlobError("is larger than it can be, or compressed in an unknown way")


def plain_header(members: bytes, version: tuple[int, int]) -> bytes:
    """The header of an uncompressed object."""
    return _HEADER.pack(_MAGIC, _HEADER.size, *version, _PLAIN, 0, _HEADER.size + len(members))


def version(blob: Buffer) -> tuple[int, int]:
    """SEAL's version that wrote an object."""
    return memoryview(blob)[3], memoryview(blob)[4]


@dataclass(frozen=True, slots=True)
class Form:
    """What every ciphertext of one kind has in common: all its members but coefficients and seed.

    parts: offset -> the bytes that must stand there. Nested headers are among them, so that a nested object cannot ask
    for compression either.
    """

    size: int
    parts: dict[int, bytes]
    version: tuple[int, int]

    @classmethod
    def of(cls, sample: bytes, degree: int) -> "Form":
        """The form of `sample`, a saved ciphertext modulo one prime, seeded or full."""
        members = inflate(sample, 4 * 8 * degree)
        start = _MEMBERS + _HEADER.size + 8
        parts = {0: members[:start]}
        if len(members) < start + 16 * degree:
            seed = start + 8 * degree
            parts[seed] = members[seed : seed + _SEED_HEADER]
        return cls(len(members), parts, version(sample))

    def open(self, blob: Buffer) -> tuple[bytes, bytes]:
        """Header and members for SEAL to load; BadBlobError when the blob has another form."""
        members = inflate(blob, self.size)
        if len(members) != self.size or any(not members.startswith(part, at) for at, part in self.parts.items()):
            raise BadBlobError("is not a ciphertext of the round's scheme")
        return plain_header(members, self.version), members


def _size(view: memoryview) -> int:
    if len(view) < _HEADER.size:
        raise BadBlobError("is cut off")
    magic, header, _, _, _, _, size = _HEADER.unpack(view[: _HEADER.size])
    if magic != _MAGIC or header != _HEADER.size or not _HEADER.size < size <= len(view):
        raise BadBlobError("is not a whole SEAL object")
    return int(size)
