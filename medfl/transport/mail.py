"""Messages of any size over a line of frames, so that a transfer that broke goes on at the first missing byte.

Both ends of a line have a `Mailbox`, which outlives connections. The sender announces a message (Open), the receiver
says where to begin (Have), the sender sends pieces (Chunk) and the receiver says that it is all there (Done). What is
on its way lies in a spool folder under its id, size and checksum, so that it is found again after a restart. Small
messages travel inside their Open. Transfers take turns: a small message does not wait for a large one.
"""

import math
import re
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from medfl.transport.limits import RateLimit
from medfl.transport.parcels import CHUNK, INLINE, Incoming, to_come
from medfl.transport.parcels import Outgoing as Outgoing
from medfl.transport.parcels import ProtocolError as ProtocolError
from medfl.transport.protocol.medfl_pb2 import Beat, Chunk, Done, Forget, Frame, Goodbye, Have, Open

MAX_FRAME = CHUNK + 2**12
"""Bytes: no frame is larger, chunk and all."""
_ID = re.compile(r"[a-z0-9-]{1,120}")
_STRIKES = 64
"""Frames about messages that are not awaited: so many at once, and one a second."""
_DEFECTS = 3
_PARALLEL = 32
"""Large messages on their way in at once."""
_PILED = 4096
"""Frames that wait to go out."""
_BEATS = (0.1, 60.0)
_BEATS_MISSED = 3
_BRISK = 0.1
"""Seconds that a fast line takes for a piece, at most."""
_FAST = 32
"""Pieces at that pace after which a line is held for a fast one."""
_PIECE = 9.0
"""Seconds that one piece of a large message may take."""

Wanted = Literal["take", "have", "no"]
"""What to do with an announced message: take it; it is here already; it is not wanted."""


class Mailbox:
    """One end's messages to and from one peer. Thread-safe.

    wanted(id, size): asked for every announced message. room(id, size): asked for those that go into the spool;
    OSError when there is none. arrived(id, message, bytes that came over the line): called once for each whole
    message, before the other end is told. hashed: whether `digest` is wanted. delivered(id): the other end has it.
    forgotten(id): it does not want it. unstored(id, error): a message was given up because it cannot be stored;
    what it raises ends the line.
    """

    def __init__(
        self,
        spool: Path,
        wanted: Callable[[str, int], Wanted],
        arrived: Callable[[str, memoryview, int], None],
        delivered: Callable[[str], None] = lambda id_: None,
        beat: Callable[[], Beat] = Beat,
        forgotten: Callable[[str], None] = lambda id_: None,
        unstored: Callable[[str, OSError], None] = lambda id_, error: None,
        room: Callable[[str, int], None] = lambda id_, size: None,
        hashed: bool = False,
    ) -> None:
        spool.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._spool = spool
        self._wanted = wanted
        self._arrived = arrived
        self._delivered = delivered
        self._forgotten = forgotten
        self._unstored = unstored
        self._room = room
        self._hashed = hashed
        self._digests: dict[str, str] = {}
        self.beat = beat
        self._outgoing: dict[str, Outgoing] = {}
        # bytes of unfinished messages, whatever line they came by
        self._came: Counter[str] = Counter()
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
            # what the other end asks for need not make sense, nor be a number
            beat = seconds if _BEATS[0] <= seconds <= _BEATS[1] else 2.0
            self._line = Line(self, beat, self._changed, first)
            for message in self._outgoing.values():
                self._line.announce(message)
            self._changed.notify_all()
            return self._line

    def idle(self) -> bool:
        """Whether everything was delivered."""
        with self._changed:
            return not self._outgoing

    def digest(self, id_: str) -> str:
        """SHA-256, as hex, of a message that came in pieces, while `arrived` is called for it; "" of others."""
        return self._digests.get(id_, "")

    def missing(self, id_: str, size: int) -> int:
        """Bytes that are to come of an announced message, and of the others on their way in."""
        with self._changed:
            return to_come(self._spool, id_, size, [] if self._line is None else self._line._incoming.values())

    def clear(self, keep: Callable[[str], bool] = lambda id_: False) -> None:
        """Remove what lies in the spool, but for the messages to keep and those on their way in."""
        with self._changed:
            coming = set() if self._line is None else set(self._line.coming)
            for id_ in [id_ for id_ in self._came if id_ not in coming and not keep(id_)]:
                del self._came[id_]
        for path in self._spool.iterdir():
            id_ = path.name.split(".")[0]
            if id_ not in coming and not keep(id_):
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
        self._strikes = RateLimit(1.0, _STRIKES)
        self._defects: dict[str, int] = {}
        self._ended = False
        self._pulled = 0.0
        self._brisk = 0
        self._heard = time.monotonic()
        self.inline = INLINE
        """Bytes: larger where each turn of a line costs seconds."""

    def announce(self, message: Outgoing) -> None:
        """Under the mailbox's lock."""
        self.control.append(message.open(self.inline))

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
            stopped = list(self._incoming.values())
            self._incoming.clear()
        for incoming in stopped:
            incoming.close()

    @property
    def coming(self) -> Iterable[str]:
        """The messages on their way in. Under the mailbox's lock."""
        return self._incoming.keys()

    @property
    def ended(self) -> bool:
        return self._ended

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """While a frame that came is taken; what takes long here is not the other end's silence."""
        self._heard = math.inf
        try:
            yield
        finally:
            self._heard = time.monotonic()

    @property
    def silent(self) -> bool:
        """Whether the other end is dead: it owes beats. A piece of a large message may take longer, and what stands
        before it in buffers too."""
        return time.monotonic() - self._heard > (_PIECE if self._incoming else _BEATS_MISSED * self._seconds)

    def hurry(self) -> None:
        """Send a beat now."""
        with self._changed:
            # on a line that is seldom asked the newest is enough
            if self.control and self.control[-1].WhichOneof("kind") == "beat":
                self.control.pop()
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

    def ready(self, seconds: float, most: int) -> list[Frame]:
        """What waits to go out, for a line that is asked and not held open: at most `most` bytes and one frame more.
        Waits up to `seconds` for the first frame."""
        found: list[Frame] = []
        size, due = 0, time.monotonic() + seconds
        with self._changed:
            while size <= most:
                frame = self._next()
                if frame is not None:
                    found.append(frame)
                    size += frame.ByteSize()
                elif found or self._ended or (left := due - time.monotonic()) <= 0:
                    break
                else:
                    self._changed.wait(left)
        return found

    def _next(self) -> Frame | None:
        if self.control:
            return self.control.popleft()
        if self._ended or not self._sending:
            return None
        message, offset = self._sending.popleft()
        now = time.monotonic()
        self._brisk = self._brisk + 1 if now - self._pulled < _BRISK else 0
        self._pulled = now
        # on a slow line a beat must not wait behind a long piece, and buffers take the first ones of any line at once
        frame, offset = message.chunk(offset, long=self._brisk >= _FAST)
        if offset < message.size:
            self._sending.append((message, offset))
        return frame

    def take(self, frame: Frame) -> None:
        """A frame of the transfers that came in. ProtocolError when the other end breaks the rules."""
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
            self._stop(frame.forget.id)
            self._box.forget(frame.forget.id)
            self._box._forgotten(frame.forget.id)
        else:
            raise ProtocolError.at("line", f"got a frame {kind!r} out of place")

    def _say(self, frame: Frame) -> None:
        with self._changed:
            if len(self.control) >= _PILED:
                raise ProtocolError.at("line", f"asks and does not listen: {_PILED} frames wait for it")
            self.control.append(frame)
            self._changed.notify_all()

    def _strike(self, what: str) -> None:
        # a few are in order: of transfers that were given up while they were under way
        if not self._strikes.allow():
            raise ProtocolError.at("line", f"got too many {what}")

    def _stop(self, id_: str) -> Incoming | None:
        """End a transfer in."""
        with self._changed:
            incoming = self._incoming.pop(id_, None)
        if incoming is not None:
            incoming.close()
        return incoming

    def _open(self, opened: Open) -> None:
        if not _ID.fullmatch(opened.id):
            raise ProtocolError.at("line", "got a message whose id is not one")
        known = self._incoming.get(opened.id)
        if known is not None and (known.size, known.crc32) == (opened.size, opened.crc32):
            # announced twice: the transfer that runs goes on
            return
        self._stop(opened.id)
        wanted = self._box._wanted(opened.id, opened.size)
        if wanted == "have":
            self._say(Frame(done=Done(id=opened.id)))
        elif wanted == "no":
            self._strike("messages that nobody asked for")
            self._say(Frame(forget=Forget(id=opened.id)))
        elif opened.data or not opened.size:
            self._whole(opened)
        else:
            self._begin(opened)

    def _whole(self, opened: Open) -> None:
        if len(opened.data) != opened.size or zlib.crc32(opened.data) != opened.crc32:
            raise ProtocolError.at(f"message {opened.id}", "is damaged")
        self._box._arrived(opened.id, memoryview(opened.data), opened.size)
        self._say(Frame(done=Done(id=opened.id)))

    def _begin(self, opened: Open) -> None:
        if len(self._incoming) >= _PARALLEL:
            raise ProtocolError.at("line", f"sends more than {_PARALLEL} large messages at once")
        try:
            self._box._room(opened.id, opened.size)
            incoming = Incoming(self._box._spool, opened, self._box._hashed)
        except OSError as error:
            self._give_up(opened.id, error)
            return
        with self._changed:
            if self._ended:
                incoming.close()
                return
            self._incoming[opened.id] = incoming
        if incoming.whole:
            self._finish(incoming)
        else:
            self._say(Frame(have=Have(id=opened.id, offset=incoming.have)))

    def _chunk(self, chunk: Chunk) -> None:
        incoming = self._incoming.get(chunk.id)
        if incoming is None:
            self._strike("bytes of messages that were not announced")
            return
        # each look at it is a copy
        data = chunk.data
        try:
            incoming.write(chunk.offset, data)
        except OSError as error:
            self._give_up(chunk.id, error)
            return
        self._box._came[chunk.id] += len(data)
        if incoming.whole:
            self._finish(incoming)

    def _finish(self, incoming: Incoming) -> None:
        try:
            message = incoming.finish()
        except OSError as error:
            self._give_up(incoming.id, error)
            return
        if message is None:
            self._defects[incoming.id] = defects = self._defects.get(incoming.id, 0) + 1
            if defects >= _DEFECTS:
                raise ProtocolError.at(f"message {incoming.id}", f"came damaged {defects} times")
            self._say(Frame(have=Have(id=incoming.id, offset=0)))
            return
        self._stop(incoming.id)
        self._box._digests[incoming.id] = incoming.digest
        try:
            self._box._arrived(incoming.id, message, self._box._came.pop(incoming.id, 0))
        finally:
            del self._box._digests[incoming.id]
        self._say(Frame(done=Done(id=incoming.id)))

    def _give_up(self, id_: str, error: OSError) -> None:
        """There is no room: the message is not taken, and what there is of it makes way."""
        incoming = self._stop(id_)
        if incoming is not None:
            incoming.discard()
        self._box._unstored(id_, error)
        self._say(Frame(forget=Forget(id=id_)))

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
