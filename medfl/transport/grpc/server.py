"""The coordinator's end: a gRPC server that asks for certificates, and a thread or two for each stream."""

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from medfl.errors import MedflError
from medfl.transport.grpc.channel import SERVER_OPTIONS, SERVICE
from medfl.transport.grpc.enrolment import RenewalHandler, _listen
from medfl.transport.grpc.inspection import handler as inspected
from medfl.transport.limits import RateLimit
from medfl.transport.line import Line
from medfl.transport.mail import ProtocolError
from medfl.transport.peers import AdmissionError, Doorkeeper, Peer
from medfl.transport.pieces import Piece, Sent, decoded, encoded
from medfl.transport.post import Post
from medfl.transport.protocol.medfl_pb2 import Frame, Goodbye

log = logging.getLogger(__name__)

Note = Callable[[str, dict[str, Any]], None]
Evidence = Callable[[], dict[str, Any]]

_GREETING = 10.0
"""Seconds for a stream's first frame."""
_STREAMS = 4
"""Of one peer at once: the one before may not have been given up yet."""
_LOOK = 0.5
_AGAIN = 0.05
"""Seconds between two looks at the register while pieces of a message come."""
_GRACE = 2.0
_NOT_ADMITTED = "this certificate is not admitted any more"


@dataclass(eq=False)
class _Stream:
    """One that is open. ended: when (monotonic)."""

    peer: Peer
    certificate: bytes
    line: Line
    context: grpc.ServicerContext
    ended: float | None = None
    reason: str = ""


class _Threads(ThreadPoolExecutor):
    """A thread for each call, as long as it lasts; the server limits how many there are. Those of lines that are stuck
    do not keep the process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, name="stream", daemon=True).start()
        return future


class FederationServer:
    """Brings streams to a `Post`. note: what goes into the audit log, of each peer a few lines a minute. evidence: what
    auditors are told."""

    def __init__(
        self, post: Post, doorkeeper: Doorkeeper, note: Note, peers: int = 128, evidence: Evidence | None = None
    ) -> None:
        self._post = post
        self._doorkeeper = doorkeeper
        self._note = note
        self._notes = RateLimit(1 / 30, 10)
        self._streams: set[_Stream] = set()
        self._count: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._server = grpc.server(
            _Threads(),
            options=list(SERVER_OPTIONS),
            maximum_concurrent_rpcs=peers + 8,
        )
        handler = grpc.stream_stream_rpc_method_handler(self._connect, decoded, encoded)
        renewal = RenewalHandler(doorkeeper, self.peer_of)
        inspection = [] if evidence is None else [inspected(self.peer_of, note, evidence)]
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"Connect": handler}), renewal.handlers(), *inspection)
        )

    def start(self, address: str, key: bytes, certificate: bytes, ca: bytes) -> int:
        """Listen on host:port for peers with a certificate of the authority `ca`; the port."""
        credentials = grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=True)
        port = _listen(self._server, address, credentials)
        self._server.start()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        return port

    def stop(self) -> None:
        self._stopped.set()
        # a line that is stuck must not keep the process
        self._server.stop(0.5).wait(_GRACE)

    def peer_of(self, context: grpc.ServicerContext) -> Peer:
        """Who is calling; the call ends here for those that are not let in."""
        try:
            return self._doorkeeper.admit(_certificate(context))
        except AdmissionError as error:
            self._tell("refused", context.peer(), {"reason": error.faults[0].what})
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "this certificate is not admitted")
            raise
        except MedflError as error:
            log.error("nobody is let in: %s", error)
            context.abort(grpc.StatusCode.UNAVAILABLE, "nobody can be let in at the moment")
            raise

    def _tell(self, kind: str, caller: str, detail: dict[str, Any], source: str = "") -> None:
        """Into the audit log, unless somebody tries to fill it."""
        if self._notes.allow(source or caller.rpartition(":")[0]):
            self._note(kind, {**detail, "from": caller})

    @contextmanager
    def _counted(self, peer: Peer, context: grpc.ServicerContext) -> Iterator[None]:
        with self._lock:
            self._count[peer.name] += 1
            crowd = self._count[peer.name] > _STREAMS
        try:
            if crowd:
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "this peer has too many streams")
            yield
        finally:
            with self._lock:
                self._count[peer.name] -= 1
                self._count += Counter()

    def _connect(self, frames: Iterator[Sent], context: grpc.ServicerContext) -> Iterator[Sent]:
        peer = self.peer_of(context)
        with self._counted(peer, context):
            try:
                line = self._post.welcome(peer, _first(frames, context))
            except (MedflError, OSError) as error:
                yield self._refused(peer, context, error)
                return
            yield from self._serve(_Stream(peer, _certificate(context), line, context), frames)

    def _refused(self, peer: Peer, context: grpc.ServicerContext, error: Exception) -> Frame:
        if isinstance(error, AdmissionError):
            reason = error.faults[0].what
            self._tell("refused", context.peer(), {"peer": peer.name, "reason": reason}, peer.name)
            return Frame(goodbye=Goodbye(reason=reason, again=False))
        # the fault is here: sites come back when it is mended
        log.error("site %s could not be welcomed: %s", peer.name, error)
        return Frame(goodbye=Goodbye(reason="the coordinator cannot take sites at the moment", again=True))

    def _serve(self, stream: _Stream, frames: Iterator[Sent]) -> Iterator[Sent]:
        reader = threading.Thread(
            target=self._read, args=(stream, frames), name=f"read-{stream.peer.name}", daemon=True
        )
        with self._lock:
            self._streams.add(stream)
        try:
            reader.start()
            stream.context.add_callback(stream.line.end)
            yield from stream.line.frames()
            # the last word is on its way: whoever hears it hangs up
            reader.join(1.0)
        finally:
            stream.line.end()
            stream.context.cancel()
            with self._lock:
                self._streams.discard(stream)

    def _read(self, stream: _Stream, frames: Iterator[Sent]) -> None:
        peer, line, asked = stream.peer, stream.line, -math.inf
        try:
            for frame in frames:
                with line.hearing():
                    # a revocation counts for streams that are open, too; of pieces a few come in a millisecond
                    if not isinstance(frame, Piece) or time.monotonic() - asked > _AGAIN:
                        asked = time.monotonic()
                        self._doorkeeper.admit(stream.certificate)
                    self._post.take(peer, line, frame)
                # not kept until the next one comes
                del frame
        except grpc.RpcError:
            stream.reason = stream.reason or "connection lost"
        except AdmissionError as error:
            self._cut(stream, error.faults[0].what, _NOT_ADMITTED, again=False)
        except ProtocolError as error:
            if not line.ended:
                self._tell("protocol", stream.context.peer(), {"peer": peer.name, "reason": str(error)}, peer.name)
                self._cut(stream, str(error), str(error))
        except Exception as error:
            # of one site, whatever it is: the others go on
            log.exception("site %s", peer.name)
            self._cut(stream, f"{type(error).__name__}: {error}", "the coordinator could not take what was sent")
        finally:
            line.end()
            self._post.gone(peer, line, stream.reason)

    def _cut(self, stream: _Stream, reason: str, told: str, again: bool = True) -> None:
        if not stream.line.ended:
            stream.reason = reason
            stream.line.end(told, again=again)

    def _watch(self) -> None:
        """End the streams of those that are not admitted any more, that are silent, or that do not listen when told."""
        while not self._stopped.wait(_LOOK):
            with self._lock:
                streams = list(self._streams)
            for stream in streams:
                try:
                    self._look_at(stream, time.monotonic())
                except Exception:
                    # without this thread no revocation would count any more
                    log.exception("site %s", stream.peer.name)

    def _look_at(self, stream: _Stream, now: float) -> None:
        if stream.line.ended:
            stream.ended = stream.ended or now
            if now - stream.ended > _GRACE:
                stream.context.cancel()
            return
        try:
            self._doorkeeper.admit(stream.certificate)
        except AdmissionError as error:
            self._cut(stream, error.faults[0].what, _NOT_ADMITTED, again=False)
        except MedflError as error:
            log.error("who is admitted cannot be told: %s", error)
        if stream.line.silent:
            self._cut(stream, "nothing was heard of it", "nothing was heard of this site")


def _first(frames: Iterator[Sent], context: grpc.ServicerContext) -> Sent:
    """What a stream begins with; an empty frame when it says nothing in time."""
    patience = threading.Timer(_GREETING, context.cancel)
    patience.start()
    try:
        return next(frames, Frame())
    except grpc.RpcError:
        return Frame()
    finally:
        patience.cancel()


def _certificate(context: grpc.ServicerContext) -> bytes:
    """What the other end proved to hold, as PEM."""
    found: Sequence[bytes] = context.auth_context().get("x509_pem_cert", ())  # type: ignore[assignment]
    return found[0] if found else b""
