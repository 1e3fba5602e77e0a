"""A coordinator's post and sites' mailboxes, with the certificates of a real authority, to be joined by lines."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from medfl.coordinator.authority import Authority
from medfl.coordinator.register import Register
from medfl.keys import new_tls_key, to_pem
from medfl.transport.calling import Address
from medfl.transport.https.server import HttpsServer
from medfl.transport.mail import Mailbox, Outgoing
from medfl.transport.post import Post, Request, Ticket
from medfl.transport.protocol.medfl_pb2 import Beat, Hello, Welcome
from medfl.update.wire import parts, unpack
from toys.admission import Applicant, Clock, House

SESSION = "0123456789abcdef"


def until(true: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait until it is; AssertionError when it is not in time."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


class Today(House):
    """With a clock that goes right, as TLS asks the system's."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock(datetime.now(UTC))
        self.path = folder / "registry.db"
        self.notes = []
        self.authority = Authority.create("lead", self.clock)
        self.register = Register.create(self.path, self.authority, self.note, self.clock)


class Lead:
    """A coordinator: a register with an authority, a post, a server's key and certificate."""

    def __init__(self, folder: Path) -> None:
        self.house = Today(folder)
        self.register = self.house.register
        self.ca = self.house.authority.pem
        key = new_tls_key()
        self.key = to_pem(key)
        issued = self.house.authority.issue_server(key.public_key(), ["127.0.0.1", "localhost"])
        self.certificate = issued.public_bytes(Encoding.PEM)
        self.presence: list[tuple[str, str, str]] = []
        self.post = Post("lead", folder / "spool", lambda *seen: self.presence.append(seen), largest=2**27)
        self.greeted: list[Ticket] = []
        self.post.greeted = self.greeted.append

    def serve(self, port: int = 0, **changed: Any) -> tuple[HttpsServer, int]:
        server = HttpsServer(self.post, self.register, self.house.note, **changed)
        return server, server.start(f"127.0.0.1:{port}", self.key, self.certificate, self.ca)

    def here(self, site: str) -> bool:
        return self.post.away(site) is None

    def ask(self, site: str, kind: str, payload: bytes = b"") -> Ticket:
        return self.post.post(site, Request.of(kind, {}, [payload]))


class Stub:
    """A site's agent that answers every request with the bytes that it got, and counts what it got."""

    def __init__(self, lead: Lead, name: str, folder: Path, answer: Callable[[bytes], bytes] = bytes) -> None:
        self.name = name
        self.applicant: Applicant
        self.applicant, self.certificate = lead.house.enrolled(name)
        self.key = to_pem(self.applicant.key)
        self._ca = lead.ca
        self.stop = threading.Event()
        self.got: list[str] = []
        self.came: dict[str, int] = {}
        self.welcomes: list[Welcome] = []
        self.away: list[str] = []
        self._answer = answer
        self._folder = folder
        self.box = Mailbox(
            folder / name, lambda id_, size: "take", self._arrived, beat=lambda: Beat(state="ready", detail="")
        )

    def hello(self) -> Hello:
        return Hello(name=self.name, session=SESSION, software="stub")

    def welcomed(self, welcome: Welcome, line: Any) -> None:
        self.welcomes.append(welcome)
        line.hurry()

    def contact(self, state: str, detail: str) -> None:
        self.away.append(detail)

    def _arrived(self, id_: str, message: memoryview, came: int) -> None:
        self.got.append(id_)
        self.came[id_] = came
        _, buffers = unpack(message)
        given = self._answer(bytes(buffers[0])) if buffers else b""
        self.box.send(Outgoing(id_, parts({"answer": "echo"}, [given])))

    def address(self, port: int) -> Callable[[], Address]:
        return lambda: Address(f"127.0.0.1:{port}", self._ca, self.key, self.certificate)

    def start(self, hold: Callable[..., None], port: int, **changed: Any) -> threading.Thread:
        arguments = (self.address(port), self.hello, self.box, self.welcomed, self.stop, self.contact)
        thread = threading.Thread(target=hold, args=arguments, kwargs=changed, daemon=True)
        thread.start()
        return thread


class Pipe:
    """A proxy of our own in the middle: passes bytes on, and does to them what a test says.

    cut_after: bytes after which a connection is cut, with `shut` all of them, and new ones are refused. drop(n):
    whether the n-th answer is lost, and its connection with it.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.connections: list[tuple[socket.socket, socket.socket]] = []
        self.passed = 0
        self.cut_after: int | None = None
        self.drop: Callable[[int], bool] = lambda answer: False
        self.answers = 0
        self.dropped = 0
        self.open = True
        self.shut = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if not self.open:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            self.connections.append((near, far))
            state = {"asked": False, "secured": False}
            threading.Thread(target=self._pump, args=(near, far, state, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, state, False), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, state: dict[str, bool], up: bool) -> None:
        try:
            while data := source.recv(65536):
                self.passed += len(data)
                if self.cut_after is not None and self.passed >= self.cut_after:
                    self.cut_after = None
                    if self.shut:
                        self.open = False
                        self.cut()
                    break
                if up and len(data) > 0:
                    state["asked"] = True
                elif not up and state["asked"]:
                    # the first bytes after a request are those of an answer; the first such are the handshake's
                    state["asked"] = False
                    self.answers += state["secured"]
                    secured, state["secured"] = state["secured"], True
                    if secured and self.drop(self.answers):
                        self.dropped += 1
                        break
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        for pair in self.connections:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self.connections.clear()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
