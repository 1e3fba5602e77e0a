"""Frames in the bodies of requests and answers: numbered, kept until the other end has them, taken once.

The protocol, over HTTP/1.1 and TLS with certificates of both ends. A body is frames, each behind its length (4 bytes,
big-endian).

    POST /v1/line                       Hello -> the line's token (header Medfl-Line), and its first frames: a Welcome
    POST /v1/line/<token>/up?after=N    frames N+1, N+2, ... of the site -> Medfl-Have: how many have arrived so far
    POST /v1/line/<token>/down?after=N  -> frames N+1, ... of the coordinator, as soon as there are any; none after 20 s
    POST /v1/certificate                RenewRequest -> Certificate
    POST /v1/enrolment                  EnrolRequest -> Certificate; the one request that needs no certificate

`after` of the way down says at once what arrived: frames up to N are not kept any longer. A request whose answer was
lost is repeated as it was.
"""

import struct
import threading
from collections import deque
from collections.abc import Iterable, Sequence

from google.protobuf.message import DecodeError

from medfl.transport.mail import MAX_FRAME, ProtocolError
from medfl.transport.pieces import Sent, decoded, encoded
from medfl.update.wire import Buffer

PATH = "/v1/line"
RENEWAL = "/v1/certificate"
ENROLMENT = "/v1/enrolment"
TOKEN_HEADER = "Medfl-Line"
HAVE_HEADER = "Medfl-Have"
BATCH = 2**21
"""Bytes: no frame is added to a body that has as many."""
MAX_BODY = 2**22
"""Bytes: no body is larger."""
POLL = 20.0
"""Seconds that a request for frames waits for some."""
SILENCE = 45.0
"""Seconds after which a line that nothing is heard of is dead."""

_WINDOW = 2 * BATCH
_GATHER = 0.005
_LENGTH = struct.Struct(">I")


def encode(frames: Iterable[bytes]) -> bytes:
    return b"".join(piece for frame in frames for piece in (_LENGTH.pack(len(frame)), frame))


def decode(body: Buffer) -> list[Sent]:
    """The frames of a body; ProtocolError when it is not made of frames."""
    view, at, found = memoryview(body), 0, []
    while at < len(view):
        if len(view) - at < _LENGTH.size:
            raise ProtocolError.at("line", "got a body that ends within a length")
        (size,) = _LENGTH.unpack_from(view, at)
        at += _LENGTH.size
        if size > min(MAX_FRAME, len(view) - at):
            raise ProtocolError.at("line", f"got a frame of {size} bytes, which its body or the limit does not hold")
        try:
            found.append(decoded(view[at : at + size]))
        except DecodeError as error:
            raise ProtocolError.at("line", "got bytes that are no frame") from error
        at += size
    return found


class Window:
    """Numbered frames on their way out. Thread-safe."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._gone = 0
        self._offered = 0
        self._over = False
        self._closed = False
        self._changed = threading.Condition()

    def fill(self, frames: Iterable[Sent]) -> None:
        """Number frames as they come; waits while many bytes are kept. Returns when there are no more, or on
        `close`."""
        for frame in frames:
            data = encoded(frame)
            with self._changed:
                self._changed.wait_for(lambda: self._bytes < _WINDOW or self._closed)
                if self._closed:
                    return
                self._frames.append(data)
                self._bytes += len(data)
                self._changed.notify_all()
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def batch(self, after: int, seconds: float) -> Sequence[bytes]:
        """Frames up to `after` have arrived; the next ones, none when there are none for so long, or no more.
        ProtocolError for an `after` that cannot be."""
        with self._changed:
            if not self._gone <= after <= self._gone + len(self._frames):
                had = f"{self._gone} to {self._gone + len(self._frames)}"
                raise ProtocolError.at("line", f"was told of frame {after}, with frames {had} on their way")
            while self._gone < after:
                self._bytes -= len(self._frames.popleft())
                self._gone += 1
            self._changed.notify_all()
            if self._changed.wait_for(lambda: self._frames or self.drained, seconds):
                # where there is one piece there are more: few large bodies are faster than many small ones
                self._changed.wait_for(lambda: self._bytes >= BATCH or self._over or self._closed, _GATHER)
            found, size = list[bytes](), 0
            # while this waited, a later request may have said that more arrived
            for frame in self._frames if self._gone == after else ():
                if size >= BATCH:
                    break
                found.append(frame)
                size += len(frame)
            self._offered = max(self._offered, self._gone + len(found))
            return found

    def close(self) -> None:
        """Take and give nothing more."""
        with self._changed:
            self._closed = True
            self._frames.clear()
            self._changed.notify_all()

    @property
    def drained(self) -> bool:
        """Whether there are no frames, and will be none."""
        return self._closed or (self._over and not self._frames)

    @property
    def offered(self) -> bool:
        """Whether the last frame was given out at least once."""
        return self._closed or (self._over and self._offered >= self._gone + len(self._frames))
