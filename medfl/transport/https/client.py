"""The site's end: a line to the coordinator made of requests. What is said: `medfl.transport.https.frames`."""

import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse, HTTPSConnection

from medfl.errors import MedflError, RunError
from medfl.transport.calling import Address, Contact, Welcomed, keep_calling, take_leave, unheard
from medfl.transport.https.frames import (
    HAVE_HEADER,
    MAX_BODY,
    PATH,
    POLL,
    SILENCE,
    TOKEN_HEADER,
    Window,
    decode,
    encode,
)
from medfl.transport.https.proxy import Proxy
from medfl.transport.https.tls import client_context
from medfl.transport.invitation import split_address
from medfl.transport.line import Line
from medfl.transport.mail import Mailbox
from medfl.transport.pieces import Sent, kind_of
from medfl.transport.protocol.medfl_pb2 import Frame, Hello
from medfl.transport.texts import plain

log = logging.getLogger(__name__)

_BEAT = 5.0
_CONNECT = 10.0
_FAREWELL = 2.0


class Lost(RunError):
    """A line that cannot go on. Another one may be had."""


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes
    response: HTTPResponse

    def field(self, name: str) -> str:
        return self.response.getheader(name) or ""


class Caller:
    """Requests over one connection after another, each as long as it holds. For one thread; `cut` from any."""

    def __init__(self, target: str, context: ssl.SSLContext) -> None:
        host, port = split_address(target)
        if port is None:
            raise RunError.at(target, "names no port", "give --https-port")
        self._host, self._port = host, port
        self._context = context
        self._connection: HTTPSConnection | None = None
        self._closed = False

    def post(self, path: str, body: bytes, seconds: float) -> _Answer:
        """OSError or HTTPException when there is no answer; seconds: to wait for one."""
        if self._connection is not None and self._connection.sock is None:
            # the last answer said that nothing comes after it
            self._drop()
        connection = self._connection = self._connection or self._connect()
        try:
            connection.sock.settimeout(seconds)
            connection.request("POST", path, body, {"Content-Type": "application/octet-stream"})
            return _read(connection.getresponse())
        except (OSError, HTTPException):
            self._drop()
            raise

    def _connect(self) -> HTTPSConnection:
        if self._closed:
            raise ConnectionError("is closed")
        proxy = Proxy.of_environment(self._host)
        if proxy is None:
            connection = HTTPSConnection(self._host, self._port, timeout=_CONNECT, context=self._context)
        else:
            connection = HTTPSConnection(proxy.host, proxy.port, timeout=_CONNECT, context=self._context)
            secret = {"Proxy-Authorization": proxy.authorization} if proxy.authorization else {}
            connection.set_tunnel(self._host, self._port, secret)
        try:
            connection.connect()
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except (OSError, HTTPException):
            connection.close()
            raise
        if self._closed:
            connection.close()
            raise ConnectionError("is closed")
        return connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def cut(self) -> None:
        """End what is under way; there is no more after it."""
        self._closed = True
        found = self._connection
        if found is not None and found.sock is not None:
            with contextlib.suppress(OSError):
                # below TLS: SSLSocket.shutdown would let another thread go on in plain text
                socket.socket.shutdown(found.sock, socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut()
        self._drop()


def _read(response: HTTPResponse) -> _Answer:
    if response.length is None or response.length > MAX_BODY:
        raise HTTPException("an answer without an end, or a larger one than was agreed")
    return _Answer(response.status, response.read(), response)


@dataclass
class _Talk:
    """One line. Two callers: one brings frames up, one waits for those that come down."""

    up: Caller
    down: Caller
    window: Window = field(default_factory=Window)
    over: threading.Event = field(default_factory=threading.Event)
    heard: float = field(default_factory=time.monotonic)
    silence: float = SILENCE
    token: str = ""
    line: Line | None = None

    def ask(self, caller: Caller, path: str, body: bytes, seconds: float) -> _Answer:
        """Ask until there is an answer, the same again; Lost when there is none for too long, or it says so."""
        wait = 0.05
        while True:
            try:
                answer = caller.post(path, body, seconds)
                break
            except (OSError, HTTPException) as error:
                reason = reason_of(error)
            if self.over.is_set() or time.monotonic() - self.heard > self.silence:
                raise Lost.at("line", reason)
            log.debug("no answer (%s): again in %.1f s", reason, wait)
            self.over.wait(wait)
            wait = min(2.0, wait * 2)
        self.heard = time.monotonic()
        if answer.status not in (200, 403, 410):
            raise Lost.at("line", f"was answered {answer.status}")
        return answer

    def send(self) -> None:
        """The thread that brings frames up."""
        have = 0
        try:
            while not self.over.is_set():
                frames = self.window.batch(have, 1.0)
                if frames:
                    path = f"{PATH}/{self.token}/up?after={have}"
                    answer = self.ask(self.up, path, encode(frames), self.silence)
                    if answer.status != 200:
                        # the way down says why
                        return
                    have = int(answer.field(HAVE_HEADER))
                elif self.window.drained:
                    return
        except (MedflError, ValueError) as error:
            log.info("the way up ended: %s", error)
            self.end()
        finally:
            self.window.close()
            self.up.close()

    def fetch(self, after: int) -> list[Sent]:
        answer = self.ask(self.down, f"{PATH}/{self.token}/down?after={after}", b"", POLL + 15)
        frames = decode(answer.body)
        if answer.status != 200 and not frames:
            raise Lost.at("line", "the line ended" if answer.status == 410 else "this certificate is not admitted")
        return frames

    def end(self) -> None:
        self.over.set()
        self.up.cut()
        self.down.close()


def hold_https(
    address: Callable[[], Address],
    hello: Callable[[], Hello],
    box: Mailbox,
    welcomed: Welcomed,
    stop: threading.Event,
    contact: Contact = unheard,
    silence: float = SILENCE,
) -> None:
    """Keep a line by HTTPS and through the proxy that the environment names; see `keep_calling`.

    address is asked before every try; when it changes, a new line takes the place of the open one. silence: seconds
    after which a line is given up.
    """
    keep_calling(lambda first: _once(address, first, box, welcomed, stop, silence), hello, stop, contact, _why)


def _once(
    address: Callable[[], Address],
    hello: Frame,
    box: Mailbox,
    welcomed: Welcomed,
    stop: threading.Event,
    silence: float,
) -> None:
    """One line, until it ends."""
    here = address()
    with _talking(here, stop, silence) as talk:
        answer = talk.down.post(PATH, encode([hello.SerializeToString()]), POLL)
        if answer.status != 200:
            raise Lost.at("line", f"was answered {answer.status}")
        talk.token, frames, taken = answer.field(TOKEN_HEADER), decode(answer.body), 0
        while address() == here:
            for frame in frames:
                taken += 1
                if not _take(talk, frame, box, welcomed, stop):
                    return
            frames = talk.fetch(taken)


def _take(talk: _Talk, frame: Sent, box: Mailbox, welcomed: Welcomed, stop: threading.Event) -> bool:
    """A frame of the coordinator; whether the line goes on."""
    if isinstance(frame, Frame) and frame.HasField("goodbye"):
        take_leave(frame.goodbye, stop)
        return False
    if talk.line is not None:
        if kind_of(frame) != "beat":
            talk.line.take(frame)
    elif isinstance(frame, Frame) and frame.HasField("welcome"):
        talk.line = box.connect(max(frame.welcome.beat, _BEAT))
        welcomed(frame.welcome, talk.line)
        threading.Thread(target=talk.window.fill, args=(talk.line.frames(),), name="line-out", daemon=True).start()
        threading.Thread(target=talk.send, name="line-up", daemon=True).start()
    return True


@contextmanager
def _talking(address: Address, stop: threading.Event, silence: float) -> Iterator[_Talk]:
    context = client_context(address.key, address.certificate, address.ca)
    talk = _Talk(Caller(address.target, context), Caller(address.target, context), silence=silence)
    threading.Thread(target=_end_on, args=(stop, talk), name="line-stop", daemon=True).start()
    try:
        yield talk
    finally:
        if talk.line is not None:
            talk.line.end()
        talk.window.close()
        talk.end()


def _end_on(stop: threading.Event, talk: _Talk) -> None:
    while not talk.over.wait(0.1):
        if not stop.is_set():
            continue
        if talk.line is not None:
            talk.line.end("the site stops")
            end = time.monotonic() + _FAREWELL
            while not talk.window.drained and time.monotonic() < end:
                time.sleep(0.02)
        talk.end()


def _why(error: Exception) -> str | None:
    return reason_of(error) if isinstance(error, MedflError | OSError | HTTPException | ValueError) else None


def reason_of(error: Exception) -> str:
    """Why there is no line, in one sentence."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the coordinator's certificate is not good: {error.verify_message}"
    return plain(str(error) if isinstance(error, MedflError) else f"{type(error).__name__}: {error}")
