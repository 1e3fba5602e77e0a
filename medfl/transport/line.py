"""One connection of a mailbox: frames that go out and frames that came in."""

import math
import re
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isal import isal_zlib

from medfl.transport.limits import RateLimit
from medfl.transport.parcels import INLINE, Incoming, Outgoing, ProtocolError
from medfl.transport.pieces import Piece, Sent, size_of
from medfl.transport.protocol.medfl_pb2 import Done, Forget, Frame, Goodbye, Have, Open

if TYPE_CHECKING:
    from medfl.transport.mail import Mailbox

_ID = re.compile(r"[a-z0-9-]{1,120}")
_STRIKES = 64
"""Frames about messages that are not awaited: so many at once, and one a second."""
_DEFECTS = 3
_PARALLEL = 32
"""Large messages on their way in at once."""
_PILED = 4096
"""Frames that wait to go out."""
_BEATS_MISSED = 3
_BRISK = 0.1
"""Seconds that a fast line takes for a piece, at most."""
_FAST = 32
"""Pieces at that pace after which a line is held for a fast one."""
_PIECE = 9.0
"""Seconds that one piece of a large message may take."""


@dataclass(frozen=True, eq=False)
class _Wanted:
    """A message that the other end asked for, from a byte on; until it has it, or does not want it."""

    message: Outgoing
    offset: int


class Line:
    """`frames` out of one thread, `take` into it from another."""

    def __init__(
        self, box: "Mailbox", seconds: float, changed: threading.Condition, first: Sequence[Frame] = ()
    ) -> None:
        self._box = box
        self._seconds = seconds
        self._changed = changed
        self.control: deque[Frame] = deque(first)
        self._sending: deque[tuple[Outgoing, int]] = deque()
        self._wanted: dict[str, _Wanted] = {}
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
        wanted = self._wanted.pop(id_, None)
        if wanted is not None:
            self._box.turns.end(wanted)

    def end(self, goodbye: str = "", again: bool = True, over: bool = False) -> None:
        """Let `frames` end, after a last word."""
        with self._changed:
            if goodbye:
                self.control.append(Frame(goodbye=Goodbye(reason=goodbye, again=again, over=over)))
            self._ended = True
            self._changed.notify_all()
            stopped = list(self._incoming.values())
            self._incoming.clear()
            for id_ in list(self._wanted):
                self.drop(id_)
        for incoming in stopped:
            self._box.turns.end(incoming)
            incoming.close()

    @property
    def incoming(self) -> Collection[Incoming]:
        """The messages on their way in. Under the mailbox's lock."""
        return self._incoming.values()

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

    def frames(self) -> Iterator[Sent]:
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
            self._box.turns.look()

    def ready(self, seconds: float, most: int) -> list[Sent]:
        """What waits to go out, for a line that is asked and not held open: at most `most` bytes and one frame more.
        Waits up to `seconds` for the first frame."""
        found: list[Sent] = []
        self._box.turns.look()
        size, due = 0, time.monotonic() + seconds
        with self._changed:
            while size <= most:
                frame = self._next()
                if frame is not None:
                    found.append(frame)
                    size += size_of(frame)
                elif found or self._ended or (left := due - time.monotonic()) <= 0:
                    break
                else:
                    self._changed.wait(left)
        return found

    def _next(self) -> Sent | None:
        if self.control:
            return self.control.popleft()
        if self._ended or not self._sending:
            return None
        message, offset = self._sending.popleft()
        now = time.monotonic()
        self._brisk = self._brisk + 1 if now - self._pulled < _BRISK else 0
        self._pulled = now
        # on a slow line a beat must not wait behind a long piece, and buffers take the first ones of any line at once
        piece, offset = message.piece(offset, long=self._brisk >= _FAST)
        if offset < message.size:
            self._sending.append((message, offset))
        return piece

    def take(self, frame: Sent) -> None:
        """A frame of the transfers that came in. ProtocolError when the other end breaks the rules."""
        if isinstance(frame, Piece):
            self._piece(frame)
            return
        kind = frame.WhichOneof("kind")
        if kind == "open":
            self._open(frame.open)
        elif kind == "have":
            self._have(frame.have)
        elif kind == "done":
            self._done(frame.done.id)
        elif kind == "forget":
            self._stop(frame.forget.id)
            self._box.forget(frame.forget.id)
            self._box.forgotten(frame.forget.id)
        else:
            raise ProtocolError.at("line", f"got a frame {kind!r} out of place")

    def _say(self, frame: Frame) -> None:
        with self._changed:
            self._require_listener()
            self.control.append(frame)
            self._changed.notify_all()

    def _require_listener(self) -> None:
        if len(self.control) >= _PILED:
            raise ProtocolError.at("line", f"asks and does not listen: {_PILED} frames wait for it")

    def _strike(self, what: str) -> None:
        # a few are in order: of transfers that were given up while they were under way
        if not self._strikes.allow():
            raise ProtocolError.at("line", f"got too many {what}")

    def _stop(self, id_: str) -> Incoming | None:
        """End a transfer in."""
        with self._changed:
            incoming = self._incoming.pop(id_, None)
        if incoming is not None:
            self._box.turns.end(incoming)
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
        wanted = self._box.wanted(opened.id, opened.size)
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
        if len(opened.data) != opened.size or isal_zlib.crc32(opened.data) != opened.crc32:
            raise ProtocolError.at(f"message {opened.id}", "is damaged")
        self._box.arrived(opened.id, memoryview(opened.data), opened.size)
        self._say(Frame(done=Done(id=opened.id)))

    def _begin(self, opened: Open) -> None:
        if len(self._incoming) >= _PARALLEL:
            raise ProtocolError.at("line", f"sends more than {_PARALLEL} large messages at once")
        try:
            self._box.room(opened.id, opened.size)
            incoming = Incoming(self._box.spool, opened, self._box.hashed)
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
            self._require_listener()
            self._box.turns.ask(incoming, lambda: self._ask_for(incoming))

    def _ask_for(self, incoming: Incoming) -> None:
        """Its turn has come. Called in the thread of any line."""
        with self._changed:
            if self._ended or self._incoming.get(incoming.id) is not incoming:
                self._box.turns.end(incoming)
                return
            self.control.append(Frame(have=Have(id=incoming.id, offset=incoming.have)))
            self._changed.notify_all()

    def _piece(self, piece: Piece) -> None:
        incoming = self._incoming.get(piece.id)
        if incoming is None:
            self._strike("bytes of messages that were not announced")
            return
        try:
            incoming.write(piece.offset, piece.data)
        except OSError as error:
            self._give_up(piece.id, error)
            return
        self._box.came[piece.id] += len(piece.data)
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
        self._box.digests[incoming.id] = incoming.digest
        try:
            self._box.arrived(incoming.id, message, self._box.came.pop(incoming.id, 0))
        finally:
            del self._box.digests[incoming.id]
        self._say(Frame(done=Done(id=incoming.id)))

    def _give_up(self, id_: str, error: OSError) -> None:
        """There is no room: the message is not taken, and what there is of it makes way."""
        incoming = self._stop(id_)
        if incoming is not None:
            incoming.discard()
        self._box.unstored(id_, error)
        self._say(Frame(forget=Forget(id=id_)))

    def _have(self, have: Have) -> None:
        with self._changed:
            message = self._box.outgoing.get(have.id)
            if message is None:
                return
            if have.offset >= message.size:
                raise ProtocolError.at(f"message {have.id}", f"is asked for from byte {have.offset} of {message.size}")
            self.drop(have.id)
            wanted = self._wanted[have.id] = _Wanted(message, have.offset)
        self._box.turns.ask(wanted, lambda: self._begin_sending(wanted))

    def _begin_sending(self, wanted: "_Wanted") -> None:
        """Its turn has come. Called in the thread of any line."""
        with self._changed:
            if self._ended or self._wanted.get(wanted.message.id) is not wanted:
                self._box.turns.end(wanted)
                return
            self._sending.append((wanted.message, wanted.offset))
            self._changed.notify_all()

    def _done(self, id_: str) -> None:
        with self._changed:
            known = self._box.outgoing.pop(id_, None)
            self.drop(id_)
        if known is not None:
            self._box.delivered(id_)
