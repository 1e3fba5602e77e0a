"""A small HTTP/1.1 server for peers with certificates: strict, bounded in everything, silent about itself. Where its
context lets in callers without one, each has one small request, for as short as a handshake may take.

The standard library's server is not made for hostile networks, and servers that are do not tell who called. What this
one reads is a request line, fields and a body of a stated length: no chunks, no folded lines, no upgrades, no
trailers. Every wait has an end that more bytes do not put off.
"""

import contextlib
import logging
import re
import select
import socket
import ssl
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from http import HTTPStatus

from medfl.errors import RunError
from medfl.update.wire import Buffer

log = logging.getLogger(__name__)

_REQUEST = re.compile(rb"([A-Z]{1,8}) (/[!-~]{0,1023}) HTTP/1\.1")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}):[ \t]*([ -~\t]*?)[ \t]*")
_LENGTH = re.compile(r"[0-9]{1,9}")
_FIELDS = 64
_PIECE = 2**16
_RDHUP: int = getattr(select, "POLLRDHUP", 0)


@dataclass(frozen=True)
class Limits:
    """Counts, bytes and seconds. strangers: connections that have not yet proved who they are; each: of one
    certificate, above which its oldest is closed; rate: bytes a second that a body must make on top of `body`;
    strange: of a body without a certificate."""

    connections: int = 272
    strangers: int = 32
    each: int = 8
    head: int = 8192
    largest: int = 2**22
    handshake: float = 5.0
    idle: float = 60.0
    begun: float = 10.0
    body: float = 15.0
    rate: float = 2**15
    strange: int = 2**14

    def of_strangers(self) -> "Limits":
        return replace(self, largest=self.strange, idle=self.begun, body=self.begun)


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = b""
    fields: Mapping[str, str] = field(default_factory=dict)


class Malformed(Exception):
    """A request that is answered with a status, and the connection closed."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True)
class Head:
    """A request without its body."""

    method: str
    target: str
    length: int
    last: bool

    @classmethod
    def parse(cls, text: bytes, largest: int) -> "Head":
        """From the lines before the empty one; Malformed for anything but the plainest of requests."""
        first, *lines = text.split(b"\r\n")
        request = _REQUEST.fullmatch(first)
        if request is None or len(lines) > _FIELDS:
            raise Malformed(400)
        fields: dict[str, list[str]] = {}
        for line in lines:
            found = _FIELD.fullmatch(line)
            if found is None:
                raise Malformed(400)
            fields.setdefault(found[1].decode().lower(), []).append(found[2].decode())
        if len(fields.get("host", ())) != 1 or "transfer-encoding" in fields:
            raise Malformed(400)
        if fields.keys() & {"expect", "upgrade"}:
            raise Malformed(417)
        lengths = fields.get("content-length", ["0"])
        if len(lengths) != 1 or not _LENGTH.fullmatch(lengths[0]):
            raise Malformed(400)
        if int(lengths[0]) > largest:
            raise Malformed(413)
        last = "close" in ",".join(fields.get("connection", ())).lower()
        return cls(request[1].decode(), request[2].decode(), int(lengths[0]), last)


class Connection:
    """One caller's, with a certificate (PEM) that it proved to hold; fingerprint: its SHA-256 (DER), as hex. Both are
    empty for a stranger."""

    def __init__(self, secured: ssl.SSLSocket, source: str, limits: Limits) -> None:
        self.source = source
        self.certificate = b""
        self.fingerprint = ""
        self._socket = secured
        self._limits = limits
        self._buffer = bytearray()

    def prove(self) -> None:
        """The TLS handshake; OSError when it fails or takes too long."""
        self._socket.settimeout(self._limits.handshake)
        self._socket.do_handshake()
        found = self._socket.getpeercert(binary_form=True)
        if found is None:
            if self._socket.context.verify_mode is not ssl.CERT_OPTIONAL:
                raise ssl.SSLError("no certificate")
            self._limits = self._limits.of_strangers()
            return
        self.certificate = ssl.DER_cert_to_PEM_cert(found).encode()
        self.fingerprint = sha256(found).hexdigest()

    def head(self) -> Head | None:
        """The next request; None when the caller has gone or says nothing more."""
        limits = self._limits
        try:
            if not self._buffer:
                self._read(time.monotonic() + limits.idle)
        except TimeoutError:
            return None
        end = time.monotonic() + limits.begun
        while self._buffer and (at := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > limits.head:
                raise Malformed(431)
            if not self._read(end):
                return None
        if not self._buffer:
            return None
        if at > limits.head:
            raise Malformed(431)
        text = bytes(self._buffer[:at])
        del self._buffer[: at + 4]
        return Head.parse(text, limits.largest)

    def body(self, length: int) -> memoryview:
        """A body of this length; OSError when it does not come in time."""
        end = time.monotonic() + self._limits.body + length / self._limits.rate
        found = bytearray(length)
        at = min(length, len(self._buffer))
        found[:at] = self._buffer[:at]
        del self._buffer[:at]
        rest = memoryview(found)
        while at < length:
            self._socket.settimeout(_left(end))
            came = self._socket.recv_into(rest[at:])
            if not came:
                raise ConnectionError("ended within a body")
            at += came
        return rest

    def _read(self, end: float) -> bool:
        self._socket.settimeout(_left(end))
        found = self._socket.recv(_PIECE)
        self._buffer += found
        return bool(found)

    def send(self, answer: Answer, last: bool) -> None:
        """OSError when the caller does not take it in time."""
        fields = {"Content-Length": str(len(answer.body)), "Cache-Control": "no-store", **answer.fields}
        if last:
            fields["Connection"] = "close"
        lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}", *map(": ".join, fields.items())]
        end = time.monotonic() + self._limits.body + len(answer.body) / self._limits.rate
        content = memoryview("\r\n".join([*lines, "", ""]).encode() + answer.body)
        for at in range(0, len(content), 4 * _PIECE):
            self._socket.settimeout(_left(end))
            self._socket.sendall(content[at : at + 4 * _PIECE])

    @property
    def hung_up(self) -> bool:
        """Whether the caller has closed its end; asked while it waits for an answer."""
        poll = select.poll()
        poll.register(self._socket, _RDHUP)
        return bool(poll.poll(0))

    def cut(self) -> None:
        """End it, from any thread."""
        with contextlib.suppress(OSError):
            # below TLS: SSLSocket.shutdown would let another thread go on in plain text
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut()
        with contextlib.suppress(OSError):
            self._socket.close()


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class Service(ABC):
    """What answers requests. Called from the connections' threads."""

    @abstractmethod
    def refuse(self, connection: Connection, head: Head) -> Answer | None:
        """Asked before the body is read. An answer refuses the request, and the connection is closed after it."""

    @abstractmethod
    def answer(self, connection: Connection, head: Head, body: Buffer) -> Answer:
        """May wait."""

    @abstractmethod
    def closed(self, connection: Connection) -> None:
        """A connection that had proved itself has ended."""


class Listener:
    """Accepts connections, a thread for each, within the limits."""

    def __init__(self, service: Service, context: ssl.SSLContext, limits: Limits) -> None:
        self._service = service
        self._context = context
        self._limits = limits
        self._lock = threading.Lock()
        self._connections: list[Connection] = []
        self._busy = 0
        self._strangers = 0
        self._stopping = threading.Event()
        self._socket: socket.socket | None = None
        self._acceptor: threading.Thread | None = None

    def start(self, host: str, port: int) -> int:
        """Listen; the port, of its own choice for 0. RunError when that is not possible."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family, backlog=64)
        except OSError as error:
            what = f"cannot be listened on: {error.strerror}"
            raise RunError.at(f"{host}:{port}", what, "is another coordinator there? choose a free port") from error
        self._socket.settimeout(0.2)
        self._acceptor = threading.Thread(target=self._accept, args=(self._socket,), name="https", daemon=True)
        self._acceptor.start()
        return int(self._socket.getsockname()[1])

    def stop(self, seconds: float = 1.0) -> None:
        """Accept nothing more, let answers that are under way be sent, and close all connections."""
        self._stopping.set()
        end = time.monotonic() + seconds
        while self._busy and time.monotonic() < end:
            time.sleep(0.02)
        with self._lock:
            for connection in self._connections:
                connection.cut()
        if self._socket is not None and self._acceptor is not None:
            # the port is free once nobody waits on it any more
            self._acceptor.join(2)
            self._socket.close()

    def _accept(self, listener: socket.socket) -> None:
        while not self._stopping.is_set():
            try:
                accepted, address = listener.accept()
            except TimeoutError:
                continue
            except OSError as error:
                if self._stopping.is_set():
                    return
                # no file handles left, or a caller that went at once
                log.warning("could not accept a connection: %s", error)
                self._stopping.wait(0.2)
                continue
            with self._lock:
                full = self._strangers >= self._limits.strangers or self._all() >= self._limits.connections
                self._strangers += not full
            if full:
                log.warning("closed a connection from %s: too many are open", address[0])
                accepted.close()
                continue
            arguments = (accepted, f"{address[0]}:{address[1]}")
            try:
                threading.Thread(target=self._serve, args=arguments, name="https", daemon=True).start()
            except RuntimeError as error:
                # no threads left for a while: this thread must not end over it
                log.error("closed a connection from %s: %s", address[0], error)
                accepted.close()
                with self._lock:
                    self._strangers -= 1

    def _all(self) -> int:
        return len(self._connections) + self._strangers

    def _serve(self, accepted: socket.socket, source: str) -> None:
        connection = None
        try:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            secured = self._context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
            connection = Connection(secured, source, self._limits)
            connection.prove()
            if not connection.fingerprint:
                # it stays one of the strangers, of whom there are few at once
                self._request(connection)
        except OSError as error:
            log.info("no connection from %s: %s", source, error)
        finally:
            with self._lock:
                self._strangers -= 1
        try:
            if connection is not None and connection.fingerprint:
                self._converse(connection)
        finally:
            accepted.close() if connection is None else connection.close()

    def _converse(self, connection: Connection) -> None:
        with self._lock:
            own = [other for other in self._connections if other.fingerprint == connection.fingerprint]
            if len(own) >= self._limits.each:
                own[0].cut()
            self._connections.append(connection)
        try:
            while not self._stopping.is_set() and self._request(connection):
                pass
        except OSError as error:
            log.debug("connection from %s: %s", connection.source, error)
        finally:
            with self._lock:
                self._connections.remove(connection)
            self._service.closed(connection)

    def _request(self, connection: Connection) -> bool:
        """Answer one request; whether there may be another."""
        try:
            head = connection.head()
            if head is None:
                return False
            refusal = self._service.refuse(connection, head)
        except Malformed as error:
            head, refusal = None, Answer(error.status)
        with self._lock:
            self._busy += 1
        try:
            if head is None or refusal is not None:
                connection.send(refusal or Answer(400), last=True)
                return False
            answer = self._service.answer(connection, head, connection.body(head.length))
            last = head.last or self._stopping.is_set() or not connection.fingerprint
            connection.send(answer, last)
            return not last
        finally:
            with self._lock:
                self._busy -= 1
