"""Messages of any size over a line of frames, so that a transfer that broke goes on at the first missing byte.

Both ends of a line have a `Mailbox`, which outlives connections. The sender announces a message (Open), the receiver
says where to begin (Have), the sender sends pieces (Chunk) and the receiver says that it is all there (Done). What is
on its way lies in a spool folder under its id, size and checksum, so that it is found again after a restart. Small
messages travel inside their Open. Transfers take turns: a small message does not wait for a large one.
"""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from medfl.transport.limits import Turns
from medfl.transport.line import Line
from medfl.transport.parcels import CHUNK, to_come
from medfl.transport.parcels import Outgoing as Outgoing
from medfl.transport.parcels import ProtocolError as ProtocolError
from medfl.transport.protocol.medfl_pb2 import Beat, Forget, Frame

MAX_FRAME = CHUNK + 2**12
"""Bytes: no frame is larger, chunk and all."""
_BEATS = (0.1, 60.0)

Wanted = Literal["take", "have", "no"]
"""What to do with an announced message: take it; it is here already; it is not wanted."""


class Mailbox:
    """One end's messages to and from one peer. Thread-safe.

    wanted(id, size): asked for every announced message. room(id, size): asked for those that go into the spool;
    OSError when there is none. arrived(id, message, bytes that came over the line): called once for each whole
    message, before the other end is told. delivered(id): the other end has it. forgotten(id): it does not want it.
    unstored(id, error): a message was given up because it cannot be stored; what it raises ends the line. hashed:
    whether `digest` is wanted. turns: of large messages, both ways; those of other mailboxes too, where they share it.
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
        turns: Turns | None = None,
    ) -> None:
        spool.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.spool = spool
        self.wanted = wanted
        self.arrived = arrived
        self.delivered = delivered
        self.forgotten = forgotten
        self.unstored = unstored
        self.room = room
        self.hashed = hashed
        self.turns = turns or Turns(sys.maxsize, 0.0)
        self.digests: dict[str, str] = {}
        self.beat = beat
        self.outgoing: dict[str, Outgoing] = {}
        # bytes of unfinished messages, whatever line they came by
        self.came: Counter[str] = Counter()
        self._line: Line | None = None
        self._changed = threading.Condition()

    def send(self, message: Outgoing) -> None:
        """Send a message; again over a new line if this one breaks."""
        with self._changed:
            self.outgoing[message.id] = message
            if self._line is not None:
                self._line.announce(message)
            self._changed.notify_all()

    def forget(self, id_: str, tell: bool = False) -> None:
        """Stop sending a message. tell: let the other end know that the answer to it is not awaited any more."""
        with self._changed:
            self.outgoing.pop(id_, None)
            if self._line is not None:
                self._line.drop(id_)
                if tell:
                    self._line.control.append(Frame(forget=Forget(id=id_)))
            self._changed.notify_all()

    def connect(self, seconds: float, first: Sequence[Frame] = ()) -> Line:
        """A new line in place of the one before; unsent messages are announced again. seconds: between two beats."""
        with self._changed:
            if self._line is not None:
                self._line.end()
            # what the other end asks for need not make sense, nor be a number
            beat = seconds if _BEATS[0] <= seconds <= _BEATS[1] else 2.0
            self._line = Line(self, beat, self._changed, first)
            for message in self.outgoing.values():
                self._line.announce(message)
            self._changed.notify_all()
            return self._line

    def idle(self) -> bool:
        """Whether everything was delivered."""
        with self._changed:
            return not self.outgoing

    def digest(self, id_: str) -> str:
        """SHA-256, as hex, of a message that came in pieces, while `arrived` is called for it; "" of others."""
        return self.digests.get(id_, "")

    def missing(self, id_: str, size: int) -> int:
        """Bytes that are to come of an announced message, and of the others on their way in."""
        with self._changed:
            return to_come(self.spool, id_, size, [] if self._line is None else self._line.incoming)

    def clear(self, keep: Callable[[str], bool] = lambda id_: False) -> None:
        """Remove what lies in the spool, but for the messages to keep and those on their way in."""
        with self._changed:
            coming = set() if self._line is None else {incoming.id for incoming in self._line.incoming}
            for id_ in [id_ for id_ in self.came if id_ not in coming and not keep(id_)]:
                del self.came[id_]
        for path in self.spool.iterdir():
            id_ = path.name.split(".")[0]
            if id_ not in coming and not keep(id_):
                path.unlink(missing_ok=True)
