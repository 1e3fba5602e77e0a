"""Frames as bytes and back, as protobuf has them, byte for byte.

Pieces of large messages are put together and taken apart here: protobuf copies a large field at each step, which took
longer than to send it. Whatever looks otherwise than what `encoded` writes is left to protobuf.
"""

from typing import NamedTuple

from medfl.transport.protocol.medfl_pb2 import Chunk, Frame
from medfl.update.wire import Buffer


class Piece(NamedTuple):
    """A `Chunk` whose bytes are a view of where they lie, and so must stay as they are until it was coded."""

    id: str
    offset: int
    data: memoryview


Sent = Frame | Piece
"""What goes over a line: a piece of a message, or one of the other frames."""

_LENGTHS, _NUMBER = 2, 0
_CHUNK = Frame.CHUNK_FIELD_NUMBER << 3 | _LENGTHS
_ID = Chunk.ID_FIELD_NUMBER << 3 | _LENGTHS
_OFFSET = Chunk.OFFSET_FIELD_NUMBER << 3 | _NUMBER
_DATA = Chunk.DATA_FIELD_NUMBER << 3 | _LENGTHS


def kind_of(frame: Sent) -> str | None:
    """The name of what a frame holds; None for an empty one."""
    return "chunk" if isinstance(frame, Piece) else frame.WhichOneof("kind")


def size_of(frame: Sent) -> int:
    """Bytes of a frame, about."""
    return len(frame.data) if isinstance(frame, Piece) else frame.ByteSize()


def encoded(frame: Sent) -> bytes:
    """One copy of a piece's bytes, and no more."""
    if not isinstance(frame, Piece):
        return frame.SerializeToString()
    head = Chunk(id=frame.id, offset=frame.offset).SerializeToString()
    if frame.data:
        head += bytes([_DATA]) + _varint(len(frame.data))
    return b"".join((bytes([_CHUNK]), _varint(len(head) + len(frame.data)), head, frame.data))


def decoded(data: Buffer) -> Sent:
    """DecodeError (protobuf's) for what is no frame. A piece's bytes are those of `data`, without a copy."""
    piece = _piece(memoryview(data))
    if piece is not None:
        return piece
    frame = Frame.FromString(bytes(data))
    if frame.WhichOneof("kind") != "chunk":
        return frame
    return Piece(frame.chunk.id, frame.chunk.offset, memoryview(frame.chunk.data))


def _piece(view: memoryview) -> Piece | None:
    """None for bytes that are to be left to protobuf."""
    try:
        at = _after(view, 0, _CHUNK)
        size, at = _number(view, at)
        end = at + size
        length, at = _number(view, _after(view, at, _ID))
        id_ = bytes(view[at : at + length]).decode("ascii")
        at += length
        offset = 0
        if view[at] == _OFFSET:
            offset, at = _number(view, at + 1)
        length, at = _number(view, _after(view, at, _DATA))
        if not end == at + length == len(view):
            return None
        return Piece(id_, offset, view[at:])
    except (IndexError, ValueError):
        return None


def _after(view: memoryview, at: int, tag: int) -> int:
    if view[at] != tag:
        raise ValueError
    return at + 1


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _number(view: memoryview, at: int) -> tuple[int, int]:
    """A number of at most five bytes, and where the next byte is. ValueError for one that is longer, or has more bytes
    than it needs."""
    number = shift = 0
    while view[at] > 0x7F:
        number |= (view[at] & 0x7F) << shift
        shift += 7
        at += 1
        if shift > 28:
            raise ValueError
    if shift and not view[at]:
        raise ValueError
    return number | view[at] << shift, at + 1
