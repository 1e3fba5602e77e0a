"""Messages of any size over a line of frames, so that a transfer that broke goes on at the first missing byte.

Both ends of a line have a `Mailbox`, which outlives connections. The sender announces a message (Open), the receiver
says where to begin (Have), the sender sends pieces (Chunk) and the receiver says that it is all there (Done). What is
on its way lies in a spool folder under its id, size and checksum, so that it is found again after a restart. Small
messages travel inside their Open. Transfers take turns: a small message does not wait for a large one.
"""

import mmap
import re
import threading
import time
import zlib
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import IO, Literal

from medfl.errors import RunError
from medfl.transport.protocol.medfl_pb2 import Beat, Chunk, Done, Forget, Frame, Goodbye, Have, Open
from medfl.update.wire import Buffer

CHUNK = 2**20
INLINE = 2**16
"""Bytes: messages up to this size travel inside their Open."""
MAX_FRAME = CHUNK + 2**12
"""Bytes: no frame is larger, chunk and all."""
_ID = re.compile(r"[a-z0-9-]{1,120}")
_STRIKES = 64
_DEFECTS = 3

Wanted = Literal["take", "have", "no"]
"""What to do with an announced message: take it; it is here already; it is not wanted."""


class ProtocolError(RunError):
    """The other end broke the protocol: the connection is ended, and nothing else."""


class Outgoing:
    """A message on its way out. The pieces are not copied: they must not change while it is sent."""

    def __init__(self, id_: str, pieces: Sequence[Buffer]) -> None:
        self.id = id_
        self._pieces = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
        self._ends = list(accumulate(len(piece) for piece in self._pieces))
        self.size = self._ends[-1] if self._ends else 0
        self.sent = 0
        checksum = 0
        for piece in self._pieces:
            checksum = zlib.crc32(piece, checksum)
        self.crc32 = checksum

    def open(self) -> Frame:
        data = b"".join(self._pieces) if self.size <= INLINE else b""
        self.sent += len(data)
        return Frame(open=Open(id=self.id, size=self.size, crc32=self.crc32, data=data))

    def chunk(self, offset: int) -> Frame:
        """At most CHUNK bytes from `offset` on."""
        at = bisect_right(self._ends, offset)
        start = offset - (self._ends[at - 1] if at else 0)
        data = bytes(self._pieces[at][start : start + CHUNK])
        self.sent += len(data)
        return Frame(chunk=Chunk(id=self.id, offset=offset, data=data))


class Incoming:
    """A message on its way in, in a file of its own. Bytes that a killed process took are still there."""

    def __init__(self, spool: Path, opened: Open) -> None:
        self.id, self.size, self._crc32 = opened.id, opened.size, opened.crc32
        self.path = spool / f"{opened.id}.{opened.size:x}.{opened.crc32:08x}"
        self.received = 0
        self._file: IO[bytes] = self.path.open("a+b")
        self.have = self._file.tell()
        if self.have > self.size:
            self._file.truncate(0)
            self.have = 0
        self._checksum = self._of_file() if self.have else 0

    def _of_file(self) -> int:
        checksum = 0
        self._file.seek(0)
        while piece := self._file.read(CHUNK):
            checksum = zlib.crc32(piece, checksum)
        return checksum

    def write(self, offset: int, data: bytes) -> None:
        """The next bytes; ProtocolError when they are not the next ones or too many."""
        if offset != self.have or not data or offset + len(data) > self.size:
            raise ProtocolError.at(
                f"message {self.id}", f"got bytes {offset} to {offset + len(data)}, waited for byte {self.have}"
            )
        self._file.write(data)
        self._checksum = zlib.crc32(data, self._checksum)
        self.have += len(data)
        self.received += len(data)

    @property
    def whole(self) -> bool:
        return self.have == self.size

    def finish(self) -> memoryview | None:
        """The message, mapped into memory; None when its checksum is wrong, and it must be sent again."""
        if self._checksum != self._crc32:
            self._file.truncate(0)
            self.have, self._checksum = 0, 0
            return None
        self._file.flush()
        found = memoryview(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ))
        self._file.close()
        return found

    def close(self) -> None:
        self._file.close()


class Mailbox:
    """One end's messages to and from one peer. Thread-safe.

    wanted(id, size): asked for every announced message. arrived(id, message, bytes that came over the line): called
    once for each whole message, before the other end is told that it arrived. delivered(id): the other end has it.
    forgotten(id): the other end does not want it.
    """

    def __init__(
        self,
        spool: Path,
        wanted: Callable[[str, int], Wanted],
        arrived: Callable[[str, memoryview, int], None],
        delivered: Callable[[str], None] = lambda id_: None,
        beat: Callable[[], Beat] = Beat,
        forgotten: Callable[[str], None] = lambda id_: None,
    ) -> None:
        spool.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._spool = spool
        self._wanted = wanted
        self._arrived = arrived
        self._delivered = delivered
        self._forgotten = forgotten
        self.beat = beat
        self._outgoing: dict[str, Outgoing] = {}
        self._line: Line | None = None
        self._changed = threading.Condition()

    def send(self, message: Outgoing) -> None:
        """Send a message; again over a new line if this one breaks."""
        with self._changed:
            self._outgoing[message.id] = message
            if self._line is not None:
                self._line.announce(message)
            self._changed.notify_all()

    def forget(self, id_: str, tell: bool = False) -> None:
        """Stop sending a message. tell: let the other end know that the answer to it is not awaited any more."""
        with self._changed:
            self._outgoing.pop(id_, None)
            if self._line is not None:
                self._line.drop(id_)
                if tell:
                    self._line.control.append(Frame(forget=Forget(id=id_)))
            self._changed.notify_all()

    def connect(self, seconds: float, first: Sequence[Frame] = ()) -> "Line":
        """A new line in place of the one before; unsent messages are announced again. seconds: between two beats."""
        with self._changed:
            if self._line is not None:
                self._line.end()
            self._line = Line(self, seconds, self._changed, first)
            for message in self._outgoing.values():
                self._line.announce(message)
            self._changed.notify_all()
            return self._line

    def idle(self) -> bool:
        """Whether everything was delivered."""
        with self._changed:
            return not self._outgoing

    def clear(self, keep: Callable[[str], bool] = lambda id_: False) -> None:
        """Remove what lies in the spool, but for the messages to keep."""
        for path in self._spool.iterdir():
            if not keep(path.name.split(".")[0]):
                path.unlink(missing_ok=True)


class Line:
    """One connection of a mailbox: `frames` out of one thread, `take` into it from another."""

    def __init__(self, box: Mailbox, seconds: float, changed: threading.Condition, first: Sequence[Frame] = ()) -> None:
        self._box = box
        self._seconds = seconds
        self._changed = changed
        self.control: deque[Frame] = deque(first)
        self._sending: deque[tuple[Outgoing, int]] = deque()
        self._incoming: dict[str, Incoming] = {}
        self._strikes = 0
        self._defects: dict[str, int] = {}
        self._ended = False

    def announce(self, message: Outgoing) -> None:
        """Under the mailbox's lock."""
        self.control.append(message.open())

    def drop(self, id_: str) -> None:
        """Under the mailbox's lock."""
        self._sending = deque(item for item in self._sending if item[0].id != id_)

    def end(self, goodbye: str = "", again: bool = True, over: bool = False) -> None:
        """Let `frames` end, after a last word."""
        with self._changed:
            if goodbye:
                self.control.append(Frame(goodbye=Goodbye(reason=goodbye, again=again, over=over)))
            self._ended = True
            self._changed.notify_all()
            for incoming in self._incoming.values():
                incoming.close()
            self._incoming.clear()

    @property
    def ended(self) -> bool:
        return self._ended

    def hurry(self) -> None:
        """Send a beat now."""
        with self._changed:
            self.control.append(Frame(beat=self._box.beat()))
            self._changed.notify_all()

    def frames(self) -> Iterator[Frame]:
        """What goes out, until the line ends. A beat at least every few seconds."""
        due = time.monotonic() + self._seconds
        while True:
            with self._changed:
                frame = self._next()
                while frame is None:
                    if self._ended:
                        return
                    left = due - time.monotonic()
                    if left <= 0:
                        frame = Frame(beat=self._box.beat())
                        break
                    self._changed.wait(left)
                    frame = self._next()
            if time.monotonic() >= due:
                due = time.monotonic() + self._seconds
            yield frame

    def _next(self) -> Frame | None:
        if self.control:
            return self.control.popleft()
        if self._ended or not self._sending:
            return None
        message, offset = self._sending.popleft()
        frame = message.chunk(offset)
        offset += len(frame.chunk.data)
        if offset < message.size:
            self._sending.append((message, offset))
        return frame

    def take(self, frame: Frame) -> None:
        """A frame of the transfers that came in. ProtocolError when the other end breaks the rules; OSError when it
        cannot be stored."""
        kind = frame.WhichOneof("kind")
        if kind == "open":
            self._open(frame.open)
        elif kind == "chunk":
            self._chunk(frame.chunk)
        elif kind == "have":
            self._have(frame.have)
        elif kind == "done":
            self._done(frame.done.id)
        elif kind == "forget":
            self._box.forget(frame.forget.id)
            self._box._forgotten(frame.forget.id)
        else:
            raise ProtocolError.at("line", f"got a frame {kind!r} out of place")

    def _say(self, frame: Frame) -> None:
        with self._changed:
            self.control.append(frame)
            self._changed.notify_all()

    def _open(self, opened: Open) -> None:
        if not _ID.fullmatch(opened.id):
            raise ProtocolError.at("line", "got a message whose id is not one")
        if opened.id in self._incoming:
            # announced twice: the transfer that runs goes on
            return
        wanted = self._box._wanted(opened.id, opened.size)
        if wanted == "have":
            self._say(Frame(done=Done(id=opened.id)))
            return
        if wanted == "no":
            self._strikes += 1
            if self._strikes > _STRIKES:
                raise ProtocolError.at("line", f"got {self._strikes} messages that nobody asked for")
            self._say(Frame(forget=Forget(id=opened.id)))
            return
        if opened.data or not opened.size:
            self._whole(opened)
            return
        incoming = Incoming(self._box._spool, opened)
        self._incoming[opened.id] = incoming
        if incoming.whole:
            self._finish(incoming)
        else:
            self._say(Frame(have=Have(id=opened.id, offset=incoming.have)))

    def _whole(self, opened: Open) -> None:
        if len(opened.data) != opened.size or zlib.crc32(opened.data) != opened.crc32:
            raise ProtocolError.at(f"message {opened.id}", "is damaged")
        self._box._arrived(opened.id, memoryview(opened.data), opened.size)
        self._say(Frame(done=Done(id=opened.id)))

    def _chunk(self, chunk: Chunk) -> None:
        incoming = self._incoming.get(chunk.id)
        if incoming is None:
            # of a transfer that was given up while it was under way
            self._strikes += 1
            if self._strikes > _STRIKES:
                raise ProtocolError.at("line", "got bytes of a message that was not announced")
            return
        incoming.write(chunk.offset, chunk.data)
        if incoming.whole:
            self._finish(incoming)

    def _finish(self, incoming: Incoming) -> None:
        message = incoming.finish()
        if message is None:
            self._defects[incoming.id] = defects = self._defects.get(incoming.id, 0) + 1
            if defects >= _DEFECTS:
                raise ProtocolError.at(f"message {incoming.id}", f"came damaged {defects} times")
            self._say(Frame(have=Have(id=incoming.id, offset=0)))
            return
        self._incoming.pop(incoming.id, None)
        self._box._arrived(incoming.id, message, incoming.received)
        self._say(Frame(done=Done(id=incoming.id)))

    def _have(self, have: Have) -> None:
        with self._changed:
            message = self._box._outgoing.get(have.id)
            if message is None:
                return
            if have.offset >= message.size:
                raise ProtocolError.at(f"message {have.id}", f"is asked for from byte {have.offset} of {message.size}")
            self.drop(have.id)
            self._sending.append((message, have.offset))
            self._changed.notify_all()

    def _done(self, id_: str) -> None:
        with self._changed:
            known = self._box._outgoing.pop(id_, None)
            self.drop(id_)
        if known is not None:
            self._box._delivered(id_)
