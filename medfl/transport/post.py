"""The coordinator's post office: requests to sites and their answers, whatever line they come by, and who is there.

A request's id is made from what it says, so the same request is the same after a restart: a site that has the answer
already gives it again, and does nothing twice. A request that was not answered is sent again to a new process of the
site, after the greeting that every process gets first.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from medfl.transport.checksums import Bulk, crc32_of
from medfl.transport.limits import Turns
from medfl.transport.line import Line
from medfl.transport.mail import Mailbox, Outgoing, Wanted
from medfl.transport.peers import AdmissionError, Peer
from medfl.transport.pieces import Piece, Sent
from medfl.transport.protocol.medfl_pb2 import Beat, Frame, Hello, Welcome
from medfl.transport.texts import plain
from medfl.update.wire import Buffer, parts

VERSIONS = (1,)
"""Of the protocol, that this software speaks."""
BEAT = 2.0
"""Seconds between two beats."""
_AT_ONCE = 6
"""Large messages under way at once, to and from all sites, so that memory hardly grows with their number."""
_TURN = 1.0
"""Seconds after which one keeps no other waiting: of those that take longer, more are under way."""
_SESSION = re.compile(r"[0-9a-f]{16,64}")
_HEAD = re.compile(r"[0-9a-f]{64}")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What a site is asked: pieces in the format of `medfl.update.wire`. bulk: of all pieces but the first."""

    kind: str
    pieces: Sequence[Buffer]
    bulk: Bulk

    @classmethod
    def of(
        cls, kind: str, header: Mapping[str, Any], buffers: Sequence[Buffer] = (), bulk: Bulk | None = None
    ) -> "Request":
        """bulk: of the buffers, where other requests have the same."""
        return cls(kind, parts({"do": kind, **header}, buffers), bulk or Bulk.of(buffers))

    @property
    def id(self) -> str:
        """The same for the same request."""
        digest = sha256(self.pieces[0])
        digest.update(self.bulk.digest)
        return f"{self.kind}-{digest.hexdigest()[:40]}"

    def message(self, id_: str) -> Outgoing:
        return Outgoing(id_, self.pieces, crc32_of(self.pieces[0], self.bulk))


@dataclass
class Ticket:
    """A request that was posted. answer: once it is there, with digest, its SHA-256 as hex; failure: why there will be
    none."""

    site: str
    id: str
    request: Request
    answer: memoryview | None = None
    digest: str = ""
    failure: str = ""
    up_bytes: int = 0
    down_bytes: int = 0
    progress: Callable[[str, int, int], None] | None = None
    _outgoing: Outgoing | None = None

    @property
    def settled(self) -> bool:
        return self.answer is not None or bool(self.failure)


@dataclass
class _Desk:
    """What is kept of one site, over connections."""

    peer: Peer
    box: Mailbox
    session: str = ""
    line: Line | None = None
    state: str = "away"
    detail: str = ""
    since: float = field(default_factory=time.monotonic)
    open: dict[str, Ticket] = field(default_factory=dict)
    greetings: dict[str, Ticket] = field(default_factory=dict)


Presence = Callable[[str, str, str], None]
Witness = Callable[[str, str, str], tuple[str, str]]
"""(party, head of its audit log, head of ours that it kept last) -> (ours, the head of its log that we kept last)."""


def _greeting(peer: Peer, frame: Sent) -> Hello:
    """What a peer's first frame says; AdmissionError when it is not taken."""
    if isinstance(frame, Piece) or frame.WhichOneof("kind") != "hello":
        raise AdmissionError.at(peer.name, "did not begin with a greeting")
    why = _why_not(peer, frame.hello)
    if why:
        raise AdmissionError.at(peer.name, why)
    return frame.hello


def _why_not(peer: Peer, hello: Hello) -> str:
    """Why a peer's greeting is not taken; "" when it is."""
    if hello.name != peer.name:
        return f"calls itself {plain(hello.name, 80)!r}, its certificate says {peer.name!r}"
    if peer.role == "auditor":
        return "is an auditor: it may look, and takes no part"
    if not set(hello.versions) & set(VERSIONS):
        theirs, ours = (", ".join(map(str, some)) for some in (hello.versions[:8], VERSIONS))
        return f"speaks protocol {theirs}, this coordinator {ours} ({plain(hello.software, 80)})"
    if not _SESSION.fullmatch(hello.session):
        return "has no session of its own"
    if any(head and not _HEAD.fullmatch(head) for head in (hello.audit, hello.kept)):
        return "says of audit logs what is not a SHA-256"
    return ""


class Post:
    """Thread-safe. greeted(ticket): called with what a new process of a site answers first. largest: bytes of a message
    from a site."""

    def __init__(
        self,
        name: str,
        spool: Path,
        presence: Presence,
        largest: int = 2**26,
        witness: Witness = lambda party, head, kept: ("", ""),
    ) -> None:
        self.name = name
        self.largest = largest
        self.changed = threading.Condition(threading.RLock())
        self._greeting: list[Request] = []
        self.greeted: Callable[[Ticket], None] = lambda ticket: None
        self._spool = spool
        self._presence = presence
        self._witness = witness
        self._desks: dict[str, _Desk] = {}
        self._turns = Turns(_AT_ONCE, _TURN)

    # lines

    def welcome(self, peer: Peer, frame: Sent) -> Line:
        """A peer opened a stream with this frame; AdmissionError when it may not."""
        hello = _greeting(peer, frame)
        head, kept = self._witness(peer.name, hello.audit, hello.kept)
        answer = Welcome(
            version=max(set(hello.versions) & set(VERSIONS)),
            coordinator=self.name,
            beat=BEAT,
            largest=self.largest,
            audit=head,
            kept=kept,
        )
        with self.changed:
            desk = self._desk(peer)
            fresh = hello.session != desk.session
            desk.session, desk.peer = hello.session, peer
            if fresh:
                if desk.line is not None:
                    # both would come back for ever
                    desk.line.end("another process with this certificate took its place", again=False)
                self._greet(desk)
            desk.line = desk.box.connect(BEAT, [Frame(welcome=answer)])
            self._turn(desk, "connected", "")
            return desk.line

    def _desk(self, peer: Peer) -> _Desk:
        if peer.name not in self._desks:
            name = peer.name

            def wanted(id_: str, size: int) -> Wanted:
                return self._wanted(name, id_, size)

            def arrived(id_: str, message: memoryview, came: int) -> None:
                self._arrived(name, id_, message, came)

            def unstored(id_: str, error: OSError) -> None:
                self._unstored(name, id_, error)

            box = Mailbox(self._spool / name, wanted, arrived, unstored=unstored, hashed=True, turns=self._turns)
            self._desks[name] = _Desk(peer, box)
        return self._desks[peer.name]

    def _greet(self, desk: _Desk) -> None:
        """A new process: the greeting, and then everything that is open."""
        for ticket in [*desk.greetings.values(), *desk.open.values()]:
            desk.box.forget(ticket.id)
        desk.greetings = {}
        for number, request in enumerate(self._greeting):
            self._greet_with(desk, number, request)
        for ticket in desk.open.values():
            self._send(desk, ticket)

    def _greet_with(self, desk: _Desk, number: int, request: Request) -> None:
        # every process is greeted, so its session is a part of the id
        ticket = Ticket(desk.peer.name, f"{request.kind}-{desk.session[:16]}-{number}", request)
        desk.greetings[ticket.id] = ticket
        desk.box.send(request.message(ticket.id))

    def greet(self, request: Request) -> None:
        """Add to what every process of every site is asked first, and ask those that are there."""
        with self.changed:
            self._greeting.append(request)
            for desk in self._desks.values():
                if desk.session:
                    self._greet_with(desk, len(self._greeting) - 1, request)

    def regreet(self, request: Request) -> None:
        """Replace what processes that come later are asked by a request of the same kind."""
        with self.changed:
            kinds = [known.kind for known in self._greeting]
            self._greeting[kinds.index(request.kind)] = request

    def take(self, peer: Peer, line: Line, frame: Sent) -> None:
        """A frame that came by a line."""
        try:
            self._take(peer, line, frame)
        finally:
            self._turns.look()

    def _take(self, peer: Peer, line: Line, frame: Sent) -> None:
        if line.ended:
            return
        if isinstance(frame, Piece):
            line.take(frame)
        elif frame.WhichOneof("kind") == "beat":
            self._beat(peer.name, frame.beat)
        elif frame.WhichOneof("kind") == "goodbye":
            log.info("site %s says goodbye: %s", peer.name, plain(frame.goodbye.reason))
            line.end()
        else:
            line.take(frame)

    def _beat(self, site: str, beat: Beat) -> None:
        with self.changed:
            desk = self._desks[site]
            said = plain(beat.state, 40), plain(beat.detail)
            if beat.state and said != (desk.state, desk.detail):
                self._turn(desk, *said)
            running = [ticket for ticket in desk.open.values() if ticket.progress is not None]
        if running and beat.steps and running[0].progress is not None:
            running[0].progress(site, beat.done, beat.steps)

    def gone(self, peer: Peer, line: Line, reason: str) -> None:
        """A line has ended."""
        with self.changed:
            desk = self._desks.get(peer.name)
            if desk is not None and desk.line is line:
                desk.line = None
                self._turn(desk, "lost", reason)
        self._turns.look()

    def _turn(self, desk: _Desk, state: str, detail: str) -> None:
        desk.state, desk.detail = state, detail
        if state in ("lost", "connected"):
            desk.since = time.monotonic()
        self.changed.notify_all()
        self._presence(desk.peer.name, state, detail)

    # messages

    def _wanted(self, site: str, id_: str, size: int) -> Wanted:
        with self.changed:
            desk = self._desks[site]
            ticket = desk.open.get(id_) or desk.greetings.get(id_)
            if ticket is None:
                # how often it can be so, a line's strikes bound
                log.info("site %s: its answer %s is not awaited any more, and is not taken", site, id_)
                return "no"
            if ticket.settled:
                return "have"
            if size <= self.largest:
                return "take"
            # to end the line would help nobody: the site would come back with the same
            ticket.failure = f"announced an answer of {size} bytes, {self.largest} are the limit"
            self._settle(desk, ticket)
        if id_ in desk.greetings:
            self.greeted(ticket)
        return "no"

    def _unstored(self, site: str, id_: str, error: OSError) -> None:
        """No room for an answer: it costs the site this request."""
        with self.changed:
            desk = self._desks[site]
            ticket = desk.open.get(id_)
            if ticket is None:
                raise error
            if not ticket.settled:
                log.error("an answer of site %s cannot be stored: %s", site, error)
                ticket.failure = f"its answer could not be stored here: {error.strerror}"
                self._settle(desk, ticket)

    def _arrived(self, site: str, id_: str, message: memoryview, came: int) -> None:
        desk = self._desks[site]
        digest = desk.box.digest(id_) or sha256(message).hexdigest()
        with self.changed:
            greeting = desk.greetings.get(id_)
            ticket = greeting or desk.open.get(id_)
            if ticket is None or ticket.settled:
                return
            ticket.answer, ticket.digest, ticket.up_bytes = message, digest, came
            self._settle(desk, ticket)
        if greeting is not None:
            self.greeted(greeting)

    def _settle(self, desk: _Desk, ticket: Ticket) -> None:
        if ticket._outgoing is not None:
            ticket.down_bytes += ticket._outgoing.sent
            ticket._outgoing = None
        desk.box.forget(ticket.id)
        self.changed.notify_all()

    def post(self, site: str, request: Request, progress: Callable[[str, int, int], None] | None = None) -> Ticket:
        """Ask a site."""
        ticket = Ticket(site, request.id, request, progress=progress)
        with self.changed:
            desk = self._desks.get(site)
            if desk is None:
                ticket.failure = "has not called yet"
                return ticket
            known = desk.open.get(ticket.id)
            if known is not None:
                return known
            desk.open[ticket.id] = ticket
            self._send(desk, ticket)
            return ticket

    def _send(self, desk: _Desk, ticket: Ticket) -> None:
        if ticket.settled:
            return
        if ticket._outgoing is not None:
            ticket.down_bytes += ticket._outgoing.sent
        ticket._outgoing = ticket.request.message(ticket.id)
        desk.box.send(ticket._outgoing)

    def drop(self, tickets: Iterable[Ticket], reason: str) -> None:
        """Do not wait for these answers any more; what comes under their ids later is not wanted."""
        with self.changed:
            for ticket in tickets:
                desk = self._desks.get(ticket.site)
                if desk is None or desk.open.pop(ticket.id, None) is None or ticket.settled:
                    continue
                ticket.failure = reason
                self._settle(desk, ticket)
                if desk.line is not None:
                    desk.box.forget(ticket.id, tell=True)

    def sweep(self) -> None:
        """Remove what lies in the spools and is not awaited."""
        with self.changed:
            desks = list(self._desks.values())
        for desk in desks:
            desk.box.clear(keep=lambda id_, desk=desk: id_ in desk.open or id_ in desk.greetings)  # type: ignore[misc]

    # who is there

    def away(self, site: str) -> float | None:
        """Seconds since the site was lost; None while it is there, infinite when it never was."""
        with self.changed:
            desk = self._desks.get(site)
            if desk is None:
                return float("inf")
            return None if desk.line is not None else time.monotonic() - desk.since

    def peer(self, site: str) -> Peer:
        """Who calls as this site, by its certificate. KeyError for one that never called."""
        with self.changed:
            return self._desks[site].peer

    def awaits(self, site: str) -> int:
        """How many answers a site owes."""
        with self.changed:
            desk = self._desks.get(site)
            owed = [] if desk is None else [*desk.open.values(), *desk.greetings.values()]
            return sum(not ticket.settled for ticket in owed)

    def states(self) -> dict[str, tuple[str, str]]:
        """State and detail of every site that called."""
        with self.changed:
            return {name: (desk.state, desk.detail) for name, desk in self._desks.items()}

    def mark(self, site: str, state: str, detail: str = "") -> None:
        """Tell those who watch what the coordinator makes of a site."""
        with self.changed:
            if site in self._desks:
                self._turn(self._desks[site], state, detail)

    def close(self, reason: str, over: bool) -> None:
        """End all lines with a last word. over: the run is over, and nobody need come back."""
        with self.changed:
            for desk in self._desks.values():
                if desk.line is not None:
                    desk.line.end(reason, again=not over, over=over)
