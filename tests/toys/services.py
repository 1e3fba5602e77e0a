"""A coordinator's post office behind a real gRPC server, sites that speak to it, and a line that fails on demand."""

import queue
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificate

from medfl.coordinator.authority import Authority
from medfl.coordinator.register import Register
from medfl.keys import new_tls_key, to_pem
from medfl.learning.messages import SiteInfo, TrainReply
from medfl.transport.certificates import subject_of
from medfl.transport.grpc.client import Address, hold
from medfl.transport.grpc.server import FederationServer
from medfl.transport.line import Line
from medfl.transport.mail import Mailbox, Outgoing, Wanted
from medfl.transport.messages import encode_reply
from medfl.transport.post import Post, Ticket
from medfl.transport.protocol.medfl_pb2 import Frame, Hello, Welcome
from medfl.transport.serving import info_json
from medfl.update.base import Payload
from medfl.update.wire import Buffer, parts, unpack
from toys.admission import Applicant


def until(true: Callable[[], object], seconds: float = 10.0) -> float:
    """Seconds until something is so; AssertionError when it takes too long."""
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < seconds, "waited in vain"
        time.sleep(0.01)
    return time.monotonic() - begun


def memory() -> int:
    """Bytes of this process's own memory: files that are mapped do not count."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the system does not say how much memory is used")


class Office:
    """A coordinator without a study. notes: what the audit log would hold; told: what those who watch are told."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.notes: list[tuple[str, dict[str, Any]]] = []
        self.told: list[tuple[str, str, str]] = []
        self.greeted: list[Ticket] = []
        self.authority = Authority.create("lead")
        self.register = Register.create(folder / "registry.db", self.authority, self.note)
        key = new_tls_key()
        names = ["127.0.0.1", "localhost"]
        self.key, self.certificate = to_pem(key), self.authority.issue_server(key.public_key(), names)
        self.post = Post("coordinator", folder / "spool", lambda *said: self.told.append(said))
        self.post.greeted = self.greeted.append
        self.server = FederationServer(self.post, self.register, self.note)
        self.port = self.server.start(f"127.0.0.1:{port}", self.key, self.pem, self.authority.pem)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def note(self, kind: str, detail: Mapping[str, Any]) -> None:
        self.notes.append((kind, dict(detail)))

    def noted(self, kind: str) -> list[dict[str, Any]]:
        return [detail for found, detail in self.notes if found == kind]

    def admit(self, name: str, role: Any = "site", port: int | None = None) -> Address:
        """A peer's address and credentials."""
        peer = Applicant(name)
        certificate = peer.enrol(self.register, self.register.invite(name, role)[0])
        return Address(f"127.0.0.1:{port or self.port}", self.authority.pem, to_pem(peer.key), certificate)

    def state(self, site: str) -> str:
        return self.post.states().get(site, ("", ""))[0]

    def there(self, site: str) -> bool:
        return self.post.away(site) is None

    def close(self) -> None:
        self.post.close("the coordinator stops", over=False)
        self.server.stop()
        self.register.close()


Answer = Callable[[dict[str, Any], list[memoryview]], Sequence[Buffer] | None]


class Hospital:
    """A site that answers what it is told to answer. came: the requests, in their order."""

    def __init__(self, name: str, address: Address, spool: Path, answer: Answer | None = None) -> None:
        self.name, self.address, self.session = name, address, token_hex(16)
        self.identity = subject_of(load_pem_x509_certificate(address.certificate)).identity
        self.answer = answer or self.usual
        self.stop = threading.Event()
        self.came: list[str] = []
        self.states: list[tuple[str, str]] = []
        self.unstored: list[str] = []
        self.error: BaseException | None = None
        self.called = 0
        self.line: Line | None = None
        self._seen: set[str] = set()
        self._requests: queue.Queue[tuple[str, memoryview] | None] = queue.Queue()
        self.box = Mailbox(
            spool,
            self._wanted,
            self._arrived,
            delivered=self._seen.discard,
            forgotten=self._seen.discard,
            unstored=self._unstored,
        )
        self.threads = [threading.Thread(target=run, daemon=True) for run in (self._hold, self._work)]

    def start(self) -> "Hospital":
        for thread in self.threads:
            thread.start()
        return self

    def end(self) -> None:
        self.stop.set()
        self._requests.put(None)
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()

    def hello(self) -> Hello:
        self.called += 1
        return Hello(name=self.name, session=self.session)

    def usual(self, header: dict[str, Any], buffers: list[memoryview]) -> Sequence[Buffer] | None:
        """Joins, begins, and sends the model back."""
        kind = header["do"]
        if kind == "join":
            return parts({"answer": "open", "info": info_json(SiteInfo(self.name, {"train": 8}, {}, self.identity))})
        if kind == "begin":
            return parts({"answer": "begun", "heads": {}})
        if kind == "train":
            return reply(self.name, header["round"], bytes(buffers[0]))
        return parts({"answer": "silent"}, buffers)

    def _hold(self) -> None:
        try:
            hold(lambda: self.address, self.hello, self.box, self._welcomed, self.stop, self._contact)
        except Exception as error:
            self.error = error

    def _contact(self, state: str, detail: str) -> None:
        self.states.append((state, detail))

    def _welcomed(self, welcome: Welcome, line: Line) -> None:
        self.line = line

    def _wanted(self, id_: str, size: int) -> Wanted:
        return "have" if id_ in self._seen else "take"

    def _arrived(self, id_: str, message: memoryview, came: int) -> None:
        self._seen.add(id_)
        self._requests.put((id_, message))

    def _unstored(self, id_: str, error: OSError) -> None:
        self.unstored.append(id_)
        what = [f"site {self.name}", f"could not store the request: {error.strerror}", ""]
        self.box.send(Outgoing(id_, parts({"answer": "error", "input": False, "faults": [what]})))

    def _work(self) -> None:
        while (found := self._requests.get()) is not None:
            id_, message = found
            header, buffers = unpack(message)
            self.came.append(header["do"])
            pieces = self.answer(header, buffers)
            if pieces is not None:
                self.box.send(Outgoing(id_, pieces))


def reply(site: str, round_: int, update: bytes = b"1234", /, **changed: Any) -> list[Buffer]:
    found = TrainReply(site, round_, Payload("fp32", len(update) // 4, (update,)), 8, 4, 1, 0.7, 0.5, {"train": 0.1})
    pieces = encode_reply(found)
    if not changed:
        return pieces
    header, buffers = unpack(b"".join(pieces))
    return parts(header | changed, buffers)


class Caller:
    """A peer that says just what a test wants, frame by frame. heard: what it was told."""

    def __init__(self, address: Address, *frames: Frame) -> None:
        from medfl.transport.grpc.channel import CONNECT, open_channel

        self.address = address
        self.frames: queue.Queue[Any] = queue.Queue()
        self.heard: list[Frame] = []
        self.error: Any = None
        self.over = threading.Event()
        self.channel = open_channel(address.target, address.ca, address.key, address.certificate)
        method = self.channel.stream_stream(CONNECT, _as_bytes, Frame.FromString)
        for frame in frames:
            self.frames.put(frame)
        self.call = method(iter(self.frames.get, None))
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        import grpc

        try:
            for frame in self.call:
                self.heard.append(frame)
        except grpc.RpcError as error:
            self.error = error
        self.over.set()

    def say(self, *frames: Any) -> None:
        for frame in frames:
            self.frames.put(frame)

    def kinds(self) -> list[str]:
        return [str(frame.WhichOneof("kind")) for frame in self.heard]

    def end(self) -> None:
        self.frames.put(None)
        self.call.cancel()
        self.channel.close()


def _as_bytes(frame: Any) -> bytes:
    return frame if isinstance(frame, bytes) else bytes(frame.SerializeToString())


def hello(name: str, **changed: Any) -> Frame:
    return Frame(hello=Hello(**{"versions": [1], "name": name, "session": token_hex(16), **changed}))


class Proxy:
    """TCP to a port, which can fall silent, be cut, be slow (bytes a second each way), and counts (up, down)."""

    def __init__(self, port: int, rate: float = 0.0) -> None:
        self.target, self.rate = port, rate
        self.silent = threading.Event()
        self.up = self.down = 0
        self.cut_after: int | None = None
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                caller, _ = self._listener.accept()
                if self.rate:
                    # deep buffers would hide that the line is slow
                    caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
                target = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                continue
            self._pairs.append((caller, target))
            for one, other, up in ((caller, target, True), (target, caller, False)):
                threading.Thread(target=self._pump, args=(one, other, up), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket, up: bool) -> None:
        with suppress(OSError, ValueError):
            while not self._closed.is_set():
                if self.silent.is_set():
                    time.sleep(0.05)
                    continue
                if not select.select([one], [], [], 0.2)[0]:
                    continue
                if self.silent.is_set():
                    continue
                data = one.recv(2**14 if self.rate else 2**16)
                if not data:
                    break
                other.sendall(data)
                if up:
                    self.up += len(data)
                else:
                    self.down += len(data)
                if self.rate:
                    self._closed.wait(len(data) / self.rate)
                if self.cut_after is not None and self.up + self.down >= self.cut_after:
                    self.cut_after = None
                    self.cut()
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """End all connections."""
        pairs, self._pairs = self._pairs, []
        for end in (end for pair in pairs for end in pair):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._closed.set()
        self._listener.close()
        self.cut()
