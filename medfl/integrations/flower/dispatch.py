"""The coordinator's end: a `Post` whose lines are requests to nodes, one under way to each site at a time.

A site that owes an answer is asked again and again; one that owes none is looked after now and then. A request that was
lost ends the line; the next one begins anew, and what had not arrived is sent again.
"""

import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any, Protocol

from medfl.errors import MedflError, RunError
from medfl.integrations.flower.envelope import INLINE, MOST, Envelope, unpack_envelope
from medfl.integrations.flower.tunnel import Tunnel
from medfl.transport.line import Line
from medfl.transport.peers import Doorkeeper, Peer
from medfl.transport.pieces import Sent, kind_of
from medfl.transport.post import Post
from medfl.transport.protocol.medfl_pb2 import Frame, Goodbye

log = logging.getLogger(__name__)

Note = Callable[[str, Mapping[str, Any]], None]

_LOOK = 5.0
_SLOWEST = 60.0
_PATIENT = ("done", "beat")
"""Kinds of frames that travel with the next request: a message of their own would keep it waiting."""


@dataclass(frozen=True, slots=True)
class Reply:
    """To a request. failure: why there is no data."""

    id: str
    data: bytes = b""
    failure: str = ""


class Courier(Protocol):
    """What carries requests. Anything that it raises is taken for a server that is away, and tried again."""

    def nodes(self) -> set[int]:
        """Those that are there."""

    def push(self, requests: Sequence[tuple[int, bytes]], seconds: float) -> Sequence[str]:
        """Send bytes to nodes; an id each. seconds: after which nobody waits for the reply."""

    def pull(self, ids: Sequence[str]) -> Iterable[Reply]:
        """The replies that have come."""


@dataclass(frozen=True)
class Pace:
    """Seconds. step: between two looks for replies; hold: that a site may keep a message until it has an answer; idle:
    between two messages to a site that owes nothing; answer: after which a message counts as lost; grace: after which
    a site whose line broke counts as lost; again: before the first try to open it again, later ones wait longer."""

    step: float = 0.1
    hold: float = 15.0
    idle: float = 30.0
    answer: float = 120.0
    grace: float = 60.0
    again: float = 1.0


@dataclass
class _Node:
    """A SuperNode, and the line to the site behind it."""

    id: int
    name: str = ""
    number: int = 0
    tunnel: Tunnel | None = None
    peer: Peer | None = None
    line: Line | None = None
    old: Line | None = None
    certificate: bytes = b""
    waiting: list[Sent] = field(default_factory=list)
    pending: str = ""
    sent: float = field(default_factory=time.monotonic)
    wait: float = 0.0
    broken: float | None = None
    over: bool = False

    @property
    def site(self) -> str:
        return f"node {self.id}" if self.peer is None else f"site {self.peer.name}"


class Dispatcher:
    """Runs in a thread of its own from `start` to `finish`. note: what goes into the audit log."""

    def __init__(
        self,
        post: Post,
        doorkeeper: Doorkeeper,
        note: Note,
        courier: Courier,
        settings: ssl.SSLContext,
        pace: Pace | None = None,
    ) -> None:
        self._post = post
        self._doorkeeper = doorkeeper
        self._note = note
        self._courier = courier
        self._settings = settings
        self._pace = pace or Pace()
        self._nodes: dict[int, _Node] = {}
        self._looked = -_LOOK
        self._stop = threading.Event()
        self._finishing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flower", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self, seconds: float = 60.0) -> None:
        """Deliver the last words, and end."""
        self._finishing.set()
        self._thread.join(seconds)
        self._stop.set()
        self._thread.join(self._pace.step + 5)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._step()
            except MedflError as error:
                log.warning("%s", error)
            except Exception as error:
                # whatever the courier raises when its server is away: it may come back
                log.warning("%s: %s", type(error).__name__, error)
                self._stop.wait(2.0)
            if self._finishing.is_set() and not any(node.pending or node.line for node in self._nodes.values()):
                return
            self._stop.wait(self._pace.step)

    def _step(self) -> None:
        now = time.monotonic()
        if now - self._looked >= _LOOK and not self._finishing.is_set():
            self._look()
            self._looked = now
        pending = {node.pending: node for node in self._nodes.values() if node.pending}
        for reply in self._courier.pull(list(pending)) if pending else ():
            node = pending[reply.id]
            node.pending = ""
            self._replied(node, reply)
        for node in self._nodes.values():
            if node.pending and now - node.sent > self._pace.answer:
                self._break(node, "did not answer in time")
            if node.broken is not None and now - node.broken > self._pace.grace:
                self._lose(node, "its line broke, and was not opened again")
        self._push([(node, data) for node in self._nodes.values() if (data := self._next(node, now)) is not None])

    def _look(self) -> None:
        """Which SuperNodes there are."""
        there = self._courier.nodes()
        for id_ in there - self._nodes.keys():
            self._nodes[id_] = _Node(id_)
        for id_ in self._nodes.keys() - there:
            self._break(self._nodes[id_], "its SuperNode is away")
            self._lose(self._nodes.pop(id_), "its SuperNode is away")

    def _push(self, waiting: list[tuple[_Node, bytes]]) -> None:
        if not waiting:
            return
        ids = self._courier.push([(node.id, data) for node, data in waiting], self._pace.answer)
        for (node, _), id_ in zip(waiting, ids, strict=True):
            node.pending, node.sent = id_, time.monotonic()
            node.number += 1

    def _next(self, node: _Node, now: float) -> bytes | None:
        """What the node is sent now."""
        if node.pending or node.over or now < node.sent + node.wait:
            return None
        if node.tunnel is None:
            if self._finishing.is_set():
                return None
            node.name, node.number, node.tunnel = token_hex(16), 0, Tunnel(self._settings)
            return Envelope(node.name, 0).pack()
        want = 0
        if node.line is not None and node.peer is not None:
            ended, want = node.line.ended, self._post.awaits(node.peer.name)
            node.waiting += node.line.ready(0.0, MOST)
            patient = all(kind_of(frame) in _PATIENT for frame in node.waiting)
            if patient and not want and now - node.sent < self._pace.idle and not ended:
                return None
            node.tunnel.write(node.waiting)
            node.waiting, node.over = [], ended
        hold = self._pace.hold if want and not node.over else 0.0
        return Envelope(node.name, node.number, want, hold).pack(node.tunnel.outgoing())

    def _replied(self, node: _Node, reply: Reply) -> None:
        if node.over:
            # that was the last word
            node.line = None
            return
        try:
            if reply.failure:
                raise RunError.at(node.site, f"could not be asked: {reply.failure}")
            envelope, data = unpack_envelope(reply.data)
            if envelope.gone:
                raise RunError.at(node.site, f"ended the line: {envelope.gone}")
            if node.tunnel is None or (envelope.line, envelope.number + 1) != (node.name, node.number):
                raise RunError.at(node.site, "answered out of turn")
            node.tunnel.feed(data)
            if node.tunnel.ready:
                self._take(node, node.tunnel)
            node.wait = 0.0
        except (MedflError, OSError) as error:
            self._break(node, str(error))

    def _take(self, node: _Node, tunnel: Tunnel) -> None:
        if not node.certificate:
            node.certificate = tunnel.certificate
        # a revocation counts for lines that are open, too
        peer = self._doorkeeper.admit(node.certificate)
        for frame in tunnel.frames():
            if node.line is None:
                self._welcome(node, peer, frame)
            else:
                self._post.take(peer, node.line, frame)

    def _welcome(self, node: _Node, peer: Peer, frame: Sent) -> None:
        try:
            node.line = self._post.welcome(peer, frame)
        except MedflError as error:
            self._note("refused", {"peer": peer.name, "from": f"node {node.id}", "reason": error.faults[0].what})
            if node.tunnel is not None:
                node.tunnel.write([Frame(goodbye=Goodbye(reason=error.faults[0].what, again=False))])
            node.over = True
            return
        node.line.inline = INLINE
        node.peer, node.old, node.broken = peer, None, None

    def _break(self, node: _Node, reason: str) -> None:
        """The line is of no more use; a new one is tried after a while."""
        log.warning("%s: %s", node.site, reason)
        if node.line is not None:
            node.old, node.line, node.broken = node.line, None, time.monotonic()
        node.tunnel, node.pending, node.certificate = None, "", b""
        node.waiting = []
        node.wait = min(_SLOWEST, max(self._pace.again, node.wait * 2))
        node.sent = time.monotonic()

    def _lose(self, node: _Node, reason: str) -> None:
        if node.old is not None and node.peer is not None:
            node.old.end()
            self._post.gone(node.peer, node.old, reason)
        node.old, node.broken = None, None
