"""Two mailboxes and the frames between them, which tests lose, repeat and reorder."""

from collections import deque
from collections.abc import Mapping
from pathlib import Path

from medfl.transport.limits import Turns
from medfl.transport.line import Line
from medfl.transport.mail import Mailbox, Outgoing, ProtocolError, Wanted
from medfl.transport.pieces import Sent, decoded, encoded, kind_of


class End:
    """One side: what it sends, and what arrived, which it remembers over restarts as a journal does."""

    def __init__(self, spool: Path, messages: Mapping[str, bytes], turns: Turns | None = None) -> None:
        self.spool = spool
        self.turns = turns
        self.unsent = dict(messages)
        self.arrived: list[tuple[str, bytes]] = []
        self.digests: list[str] = []
        self.ways: deque[Sent] = deque()
        self.line: Line
        self.restart()

    def restart(self) -> None:
        """The process begins anew, over the spool that it left."""
        self.box = Mailbox(
            self.spool,
            self.wanted,
            self._arrived,
            delivered=lambda id_: self.unsent.pop(id_, None),
            hashed=True,
            turns=self.turns,
        )
        for id_, message in self.unsent.items():
            self.box.send(Outgoing(id_, [message[:3], message[3:]]))

    def wanted(self, id_: str, size: int) -> Wanted:
        return "have" if any(id_ == known for known, _ in self.arrived) else "take"

    def _arrived(self, id_: str, message: memoryview, came: int) -> None:
        self.arrived.append((id_, bytes(message)))
        self.digests.append(self.box.digest(id_))


class Wire:
    """Frames move when a test says so."""

    def __init__(self, one: End, other: End) -> None:
        self.ends = (one, other)
        self.cuts = -1
        self.cut()

    def cut(self) -> None:
        """What is under way is lost, and there is a new connection."""
        self.cuts += 1
        for end in self.ends:
            end.ways.clear()
            end.line = end.box.connect(2.0)

    def send(self, at: int) -> bool:
        """Put an end's next frame on its way; whether there was one."""
        frames = self.ends[at].line.ready(0.0, 0)
        self.ends[at].ways.extend(frames)
        return bool(frames)

    def deliver(self, at: int) -> bool:
        """The other end takes the next frame of this one; whether there was one. A broken rule cuts the line."""
        if not self.ends[at].ways:
            return False
        frame = self.ends[at].ways.popleft()
        if kind_of(frame) != "beat":
            try:
                self.ends[1 - at].line.take(decoded(encoded(frame)))
            except ProtocolError:
                self.cut()
        return True

    def settle(self, most: int = 100_000) -> bool:
        """Move frames until nothing is under way; False when that takes too many."""
        return any(not any([self.send(0), self.send(1), self.deliver(0), self.deliver(1)]) for _ in range(most))
