"""The coordinator's end: lines of sites that call by HTTPS. What is said and when: `medfl.transport.https.frames`."""

import logging
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError

from medfl.errors import MedflError
from medfl.transport.https.frames import (
    ENROLMENT,
    HAVE_HEADER,
    PATH,
    POLL,
    RENEWAL,
    SILENCE,
    TOKEN_HEADER,
    Window,
    decode,
    encode,
)
from medfl.transport.https.http1 import Answer, Connection, Head, Limits, Listener, Service
from medfl.transport.https.tls import server_context
from medfl.transport.invitation import split_address
from medfl.transport.limits import RateLimit
from medfl.transport.line import Line
from medfl.transport.mail import ProtocolError
from medfl.transport.peers import AdmissionError, Doorkeeper, Peer
from medfl.transport.pieces import Sent, kind_of
from medfl.transport.post import Post
from medfl.transport.protocol.medfl_pb2 import Certificate, EnrolRequest, Frame, Goodbye, RenewRequest
from medfl.transport.reception import Reception, TooOften
from medfl.update.wire import Buffer

log = logging.getLogger(__name__)

Note = Callable[[str, dict[str, Any]], None]

_TARGET = re.compile(re.escape(PATH) + r"/(?P<token>[A-Za-z0-9_-]{43})/(?P<way>up|down)\?after=(?P<after>[0-9]{1,15})")
_LINGER = 10.0
_NOT_ADMITTED = "this certificate is not admitted any more"


@dataclass(eq=False)
class _Held:
    """A line and what HTTP makes of it. fingerprint: of the certificate that the token is bound to."""

    peer: Peer
    fingerprint: str
    certificate: bytes
    line: Line
    window: Window = field(default_factory=Window)
    turn: threading.Lock = field(default_factory=threading.Lock)
    received: int = 0
    busy: int = 0
    heard: float = field(default_factory=time.monotonic)
    connections: set[Connection] = field(default_factory=set)
    gone: float | None = None

    def frames(self) -> None:
        # beats of the coordinator say nothing but that it is there, and so does an empty answer
        self.window.fill(frame for frame in self.line.frames() if kind_of(frame) != "beat")


class HttpsServer(Service):
    """Brings lines to a `Post`. note: what goes into the audit log, of each peer a few lines a minute. lost: seconds
    after which a line without any connection is dead; silence: one that nothing is heard of; poll: that a request for
    frames waits; reception: answers invitations, and so lets callers in who have no certificate yet, for that alone."""

    def __init__(
        self,
        post: Post,
        doorkeeper: Doorkeeper,
        note: Note,
        peers: int = 128,
        limits: Limits | None = None,
        lost: float = 8.0,
        silence: float = SILENCE,
        poll: float = POLL,
        reception: Reception | None = None,
    ) -> None:
        self._reception = reception
        self._post = post
        self._doorkeeper = doorkeeper
        self._note = note
        self._notes = RateLimit(1 / 30, 10)
        self._limits = limits or Limits(connections=2 * peers + 16)
        self._lost, self._silence, self._poll = lost, silence, poll
        self._lock = threading.Lock()
        self._lines: dict[str, _Held] = {}
        self._stopped = threading.Event()
        self._listener: Listener | None = None

    def start(self, address: str, key: bytes, certificate: bytes, ca: bytes) -> int:
        """Listen on host:port for peers with a certificate of the authority `ca` (all PEM, key unencrypted); the port,
        of its own choice for 0. RunError when it is taken."""
        host, _, port = address.rpartition(":")
        self._listener = Listener(self, server_context(key, certificate, ca, self._reception is not None), self._limits)
        found = self._listener.start(split_address(host)[0], int(port))
        threading.Thread(target=self._watch, name="https-lines", daemon=True).start()
        return found

    def stop(self) -> None:
        """End all lines, with what they still have to say."""
        with self._lock:
            lines = list(self._lines.values())
        for held in lines:
            held.line.end()
        end = time.monotonic() + 1.0
        while time.monotonic() < end and not all(held.window.offered or not held.connections for held in lines):
            time.sleep(0.02)
        if self._listener is not None:
            self._listener.stop()
        self._stopped.set()
        for held in lines:
            self._end(held, "the coordinator stops")

    # requests

    def refuse(self, connection: Connection, head: Head) -> Answer | None:
        """Nothing is read of those that are not let in, or that ask for anything but what there is."""
        if not connection.fingerprint:
            return Answer(404) if (head.method, head.target) != ("POST", ENROLMENT) else None
        try:
            self._doorkeeper.admit(connection.certificate)
        except AdmissionError as error:
            self._tell("refused", connection, {"reason": error.faults[0].what})
            held = self._line_of(connection, head)
            if held is None:
                return Answer(403)
            self._expel(held, error.faults[0].what)
            return Answer(403, encode([_goodbye(_NOT_ADMITTED)]))
        except MedflError as error:
            log.error("nobody is let in: %s", error)
            return Answer(503)
        plain = head.target in (PATH, RENEWAL)
        if not plain and _TARGET.fullmatch(head.target) is None:
            return Answer(404)
        if head.method != "POST":
            return Answer(405, fields={"Allow": "POST"})
        if not plain and self._line_of(connection, head) is None:
            # whether the token is another's or nobody's is not told
            return Answer(404)
        return None

    def answer(self, connection: Connection, head: Head, body: Buffer) -> Answer:
        if not connection.fingerprint:
            return self._enrol(connection, body)
        if head.target == PATH:
            return self._open(connection, body)
        if head.target == RENEWAL:
            return self._renew(connection, body)
        held, target = self._line_of(connection, head), _TARGET.fullmatch(head.target)
        if held is None or target is None:
            return Answer(404)
        with self._lock:
            held.busy += 1
            held.heard = time.monotonic()
            held.connections.add(connection)
        try:
            after = int(target["after"])
            return self._up(held, after, body) if target["way"] == "up" else self._down(held, after, connection)
        except MedflError as error:
            self._broken(held, connection, str(error))
            return Answer(410)
        finally:
            with self._lock:
                held.busy -= 1
                held.heard = time.monotonic()

    def closed(self, connection: Connection) -> None:
        with self._lock:
            for held in self._lines.values():
                held.connections.discard(connection)

    def _line_of(self, connection: Connection, head: Head) -> _Held | None:
        target = _TARGET.fullmatch(head.target)
        with self._lock:
            held = None if target is None else self._lines.get(target["token"])
        return held if held is not None and held.fingerprint == connection.fingerprint else None

    def _open(self, connection: Connection, body: Buffer) -> Answer:
        name = ""
        try:
            peer = self._doorkeeper.admit(connection.certificate)
            name, frames = peer.name, decode(body)
            if len(frames) != 1:
                raise ProtocolError.at(name, "did not begin with a greeting")
            line = self._post.welcome(peer, frames[0])
        except (AdmissionError, ProtocolError) as error:
            reason = error.faults[0].what
            self._tell("refused", connection, {"peer": name, "reason": reason})
            return Answer(200, encode([_goodbye(reason)]))
        except (MedflError, OSError) as error:
            # the fault is here: sites come back when it is mended
            log.error("site %s could not be welcomed: %s", name, error)
            return Answer(503)
        held, token = _Held(peer, connection.fingerprint, connection.certificate, line), secrets.token_urlsafe(32)
        held.connections.add(connection)
        with self._lock:
            former = [old for old in self._lines.values() if old.peer.name == peer.name]
            self._lines[token] = held
        for old in former:
            self._forget(old, "called anew")
        threading.Thread(target=held.frames, name=f"https-{peer.name}", daemon=True).start()
        return Answer(200, encode(held.window.batch(0, self._poll)), {TOKEN_HEADER: token})

    def _enrol(self, connection: Connection, body: Buffer) -> Answer:
        host, _, port = connection.source.rpartition(":")
        try:
            request = EnrolRequest.FromString(bytes(body))
            if self._reception is None or not request.token:
                return Answer(400)
            return Answer(200, self._reception.enrol(request, host, port).SerializeToString())
        except DecodeError:
            return Answer(400)
        except TooOften:
            return Answer(429)
        except AdmissionError:
            return Answer(403)
        except MedflError:
            # the reception has said why
            return Answer(503)

    def _renew(self, connection: Connection, body: Buffer) -> Answer:
        try:
            request = RenewRequest.FromString(bytes(body)).request
            found = self._doorkeeper.renew(self._doorkeeper.admit(connection.certificate), request)
        except (AdmissionError, DecodeError):
            # the register has noted why
            return Answer(403)
        except MedflError as error:
            log.error("a certificate could not be renewed: %s", error)
            return Answer(503)
        return Answer(200, Certificate(certificate=found).SerializeToString())

    def _up(self, held: _Held, after: int, body: Buffer) -> Answer:
        frames = decode(body)
        # a repeated request waits for the one that it repeats
        with held.turn:
            if after > held.received:
                raise ProtocolError.at("line", f"got frames after {after}, waited for those after {held.received}")
            for frame in frames[held.received - after :]:
                if held.line.ended:
                    return Answer(410)
                self._take(held, frame)
                held.received += 1
            return Answer(200, fields={HAVE_HEADER: str(held.received)})

    def _take(self, held: _Held, frame: Sent) -> None:
        try:
            self._post.take(held.peer, held.line, frame)
        except MedflError:
            raise
        except Exception as error:
            # a full disk, a line that was replaced while it was read, or whatever a frame sets off: of one site
            log.exception("site %s", held.peer.name)
            self._end(held, f"{type(error).__name__}: {error}")

    def _down(self, held: _Held, after: int, connection: Connection) -> Answer:
        end = time.monotonic() + self._poll
        while True:
            frames = held.window.batch(after, max(0.0, min(0.5, end - time.monotonic())))
            if frames:
                return Answer(200, encode(frames))
            if held.window.drained:
                return Answer(410)
            if time.monotonic() >= end:
                return Answer(200)
            if connection.hung_up:
                raise ConnectionError("the site hung up")

    def _tell(self, kind: str, connection: Connection, detail: dict[str, Any]) -> None:
        """Into the audit log, unless somebody tries to fill it."""
        if self._notes.allow(connection.fingerprint):
            self._note(kind, {**detail, "from": connection.source})

    # lines

    def _broken(self, held: _Held, connection: Connection, reason: str) -> None:
        held.line.end(reason)
        self._tell("protocol", connection, {"peer": held.peer.name, "reason": reason})
        self._end(held, reason)

    def _expel(self, held: _Held, reason: str) -> None:
        held.line.end(_NOT_ADMITTED, again=False)
        self._end(held, reason)

    def _end(self, held: _Held, reason: str) -> None:
        """Its last frames can still be fetched for a while."""
        with self._lock:
            if held.gone is not None:
                return
            held.gone = time.monotonic()
        held.line.end()
        self._post.gone(held.peer, held.line, reason)

    def _forget(self, held: _Held, reason: str) -> None:
        self._end(held, reason)
        held.window.close()
        with self._lock:
            self._lines = {token: other for token, other in self._lines.items() if other is not held}

    def _watch(self) -> None:
        while not self._stopped.wait(0.5):
            with self._lock:
                lines = list(self._lines.values())
            for held in lines:
                try:
                    self._look_at(held, time.monotonic())
                except MedflError as error:
                    log.error("who is admitted cannot be told: %s", error)
                except Exception:
                    # without this thread no revocation would count any more
                    log.exception("site %s", held.peer.name)

    def _look_at(self, held: _Held, now: float) -> None:
        quiet = 0.0 if held.busy else now - held.heard
        if held.gone is not None:
            if now - held.gone > _LINGER:
                self._forget(held, "")
        elif held.line.ended:
            self._end(held, "")
        elif quiet > self._silence or (not held.connections and quiet > self._lost):
            self._end(held, f"nothing was heard for {quiet:.0f} s")
        else:
            try:
                # a revocation counts for those that wait, too
                self._doorkeeper.admit(held.certificate)
            except AdmissionError as error:
                self._expel(held, error.faults[0].what)


def _goodbye(reason: str) -> bytes:
    return Frame(goodbye=Goodbye(reason=reason, again=False)).SerializeToString()
