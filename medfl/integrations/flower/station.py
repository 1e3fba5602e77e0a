"""The site's end: a Unix socket at which its service answers what Flower's ClientApp processes bring.

Those processes last for one message each; the line, and all that the site knows, is here. One message after another.
"""

import logging
import socket
import socketserver
import ssl
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

from medfl.errors import InputError, MedflError
from medfl.integrations.flower.envelope import INLINE, LONGEST, MOST, Envelope, unpack_envelope
from medfl.integrations.flower.tunnel import Tunnel, TunnelError, context
from medfl.site.answering import Answering
from medfl.site.service import SiteService
from medfl.transport.calling import Refused
from medfl.transport.invitation import split_address
from medfl.transport.line import Line
from medfl.transport.pieces import Sent, kind_of, size_of
from medfl.transport.post import VERSIONS
from medfl.transport.protocol.medfl_pb2 import Frame
from medfl.update.wire import Buffer

log = logging.getLogger(__name__)

LENGTH = struct.Struct("<Q")
_LARGEST = 2**32
_LONGEST_PATH = 103


def socket_path(home: Path) -> Path:
    """Where the service of a home listens; InputError when the path is too long for a socket."""
    path = home.resolve() / "work" / "flower.sock"
    if len(str(path)) > _LONGEST_PATH:
        raise InputError.at(path, "is too long for a Unix socket", "keep the site's home under a shorter path")
    return path


class FlowerSite(SiteService):
    """`medfl site start --flower`: the same service, reached through Flower."""

    def _hold_line(self) -> None:
        station = Station(self.agent, self._settings, split_address(self._credentials.connection.address)[0])
        with Listener(station, socket_path(self._folder)):
            self.agent.stop.wait()
        if station.refused is not None:
            raise station.refused

    def _settings(self) -> ssl.SSLContext:
        found = self._credentials
        return context(False, found.ca, found.key, found.certificate)


class Station:
    """Answers envelopes. settings: asked for every line, so that a renewed certificate is used; host: the coordinator's
    name, as its certificate must say."""

    def __init__(self, agent: Answering, settings: Callable[[], ssl.SSLContext], host: str) -> None:
        self._agent = agent
        self._settings = settings
        self._host = host
        self._turn = threading.Lock()
        self._name, self._number = "", -1
        self._tunnel: Tunnel | None = None
        self._line: Line | None = None
        self.refused: MedflError | None = None

    def answer(self, message: Buffer) -> bytes:
        """The answer to one message of Flower."""
        with self._turn:
            try:
                envelope, data = unpack_envelope(message)
                return self._answer(envelope, data)
            except (MedflError, OSError) as error:
                log.warning("the line to the coordinator ends: %s", error)
                self._end()
                return Envelope("", 0, gone=str(error)[:400]).pack()

    def _answer(self, envelope: Envelope, data: memoryview) -> bytes:
        if envelope.number == 0:
            self._begin(envelope.line)
        elif (envelope.line, envelope.number) != (self._name, self._number + 1):
            raise TunnelError.at("line", "is not known to this process of the site")
        self._number = envelope.number
        tunnel = self._tunnel
        if tunnel is None:
            raise TunnelError.at("line", "has ended")
        before = tunnel.ready
        tunnel.feed(data)
        if tunnel.ready:
            if not before:
                tunnel.write([self._hello()])
            for frame in tunnel.frames():
                self._take(frame)
            tunnel.write(self._collect(envelope.want, min(LONGEST, max(0.0, envelope.hold))))
        return Envelope(self._name, self._number).pack(tunnel.outgoing())

    def _begin(self, name: str) -> None:
        self._end()
        self._name, self._tunnel = name, Tunnel(self._settings(), self._host)

    def _end(self) -> None:
        if self._line is not None:
            self._line.end()
        self._tunnel = self._line = None

    def _hello(self) -> Frame:
        hello = self._agent.hello()
        hello.versions.extend(VERSIONS)
        return Frame(hello=hello)

    def _take(self, frame: Sent) -> None:
        if isinstance(frame, Frame) and frame.HasField("goodbye"):
            self._goodbye(frame)
        elif self._line is not None:
            if kind_of(frame) != "beat":
                self._line.take(frame)
        elif isinstance(frame, Frame) and frame.HasField("welcome"):
            # the coordinator's messages are what beats on this line
            self._line = self._agent.box.connect(LONGEST)
            self._line.inline = INLINE
            self._agent.welcomed(frame.welcome, self._line)

    def _goodbye(self, frame: Frame) -> None:
        said = frame.goodbye
        log.info("the coordinator says: %s", said.reason)
        if not said.over and not said.again:
            self.refused = Refused.at("coordinator", f"says: {said.reason}", "ask the study lead")
        if said.over or not said.again:
            self._agent.stop.set()

    def _collect(self, want: int, hold: float) -> list[Sent]:
        """What the site has to say: its answers, or after `hold` seconds what it is doing."""
        line, found, end = self._line, list[Sent](), time.monotonic() + hold
        if line is None:
            return found
        while not self._agent.stop.is_set():
            new = line.ready(min(0.2, max(0.0, end - time.monotonic())), MOST)
            found += new
            want -= sum(kind_of(frame) == "open" for frame in new)
            size = sum(size_of(frame) for frame in new)
            if want <= 0 or size > MOST or time.monotonic() >= end:
                break
        return [*found, Frame(beat=self._agent.box.beat())]


class Listener:
    """The socket, for its owner alone. One at a time for each home."""

    def __init__(self, station: Station, path: Path) -> None:
        self._path = path
        if _answers(path):
            raise InputError.at(path, "is served by another process already", "end it first")
        path.unlink(missing_ok=True)
        self._server = _Server(str(path), _Handler)
        path.chmod(0o600)
        self._server.station = station
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="flower", daemon=True)

    def __enter__(self) -> "Listener":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._path.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    station: Station


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        prefix = self.rfile.read(LENGTH.size)
        if len(prefix) < LENGTH.size:
            return
        (size,) = LENGTH.unpack(prefix)
        if size > _LARGEST:
            log.warning("a message of %d bytes is not taken, %d are the limit", size, _LARGEST)
            return
        message = self.rfile.read(size)
        if len(message) < size:
            return
        answer = self.server.station.answer(message)  # type: ignore[attr-defined]
        try:
            self.wfile.write(LENGTH.pack(len(answer)))
            self.wfile.write(answer)
        except OSError as error:
            log.warning("the ClientApp left before it had its answer: %s", error)
