"""What one message of Flower holds: which line it belongs to, its place in it, and the tunnel's bytes.

    b"MFL1" | header | bytes, in the format of `medfl.update.wire`

Everything but the bytes is open to Flower's servers, and nothing in it is trusted: at worst a line must begin anew.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from google.protobuf.message import DecodeError

from medfl.errors import RunError
from medfl.transport.mail import ProtocolError
from medfl.transport.pieces import Sent, decoded, encoded
from medfl.update.wire import Buffer, parts, unpack

LONGEST = 30.0
"""Seconds that a site may keep a message until it has something to say."""
INLINE = 2**29
"""Bytes: messages up to this size travel in one piece, for each turn of a line costs seconds."""
MOST = 2**28
"""Bytes of frames in one message of Flower, and one frame more."""
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Envelope:
    """line, number: the line and the turn in it; number 0 opens it. want: answers that are awaited; hold: seconds that
    the other end may wait for them. gone: why there is no such line; "" where there is one."""

    line: str
    number: int
    want: int = 0
    hold: float = 0.0
    gone: str = ""

    def pack(self, data: Buffer = b"") -> bytes:
        return b"".join(parts(asdict(self), [data]))


def unpack_envelope(message: Buffer) -> tuple[Envelope, memoryview]:
    """Envelope and bytes; RunError for anything else."""
    header, buffers = unpack(message)
    kinds = {"line": str, "number": int, "want": int, "hold": float, "gone": str}
    if header.keys() != kinds.keys() or any(type(header[key]) is not kind for key, kind in kinds.items()):
        raise RunError.at("message of Flower", "is not one of medfl", "use one version of medfl at both ends")
    if len(buffers) != 1:
        raise RunError.at("message of Flower", f"holds {len(buffers)} pieces of bytes, not one")
    return Envelope(**header), buffers[0]


def join_frames(frames: Iterable[Sent]) -> Iterator[bytes]:
    """Each frame's length and bytes."""
    for frame in frames:
        text = encoded(frame)
        yield _LENGTH.pack(len(text))
        yield text


def split_frames(data: bytes | bytearray) -> Iterator[Sent]:
    """The frames again; ProtocolError when they do not add up."""
    view, at = memoryview(data), 0
    while at < len(view):
        start = at + _LENGTH.size
        end = start + (_LENGTH.unpack(view[at:start])[0] if start <= len(view) else 0)
        if end > len(view) or start > len(view):
            raise ProtocolError.at("line", "ends within a frame")
        try:
            yield decoded(view[start:end])
        except DecodeError as error:
            raise ProtocolError.at("line", "holds what is no frame") from error
        at = end
