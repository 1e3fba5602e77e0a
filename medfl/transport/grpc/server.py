"""The coordinator's end: a gRPC server that asks for certificates, and a thread or two for each stream."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from medfl.errors import MedflError
from medfl.transport.grpc.channel import SERVER_OPTIONS, SERVICE
from medfl.transport.grpc.enrolment import RenewalHandler, _listen
from medfl.transport.peers import AdmissionError, Doorkeeper, Peer
from medfl.transport.post import Post
from medfl.transport.protocol.medfl_pb2 import Frame, Goodbye

log = logging.getLogger(__name__)

Note = Callable[[str, dict[str, Any]], None]


class FederationServer:
    """Brings streams to a `Post`. note: what goes into the audit log."""

    def __init__(self, post: Post, doorkeeper: Doorkeeper, note: Note, peers: int = 128) -> None:
        self._post = post
        self._doorkeeper = doorkeeper
        self._note = note
        self._server = grpc.server(
            ThreadPoolExecutor(peers + 8, "stream"),
            options=list(SERVER_OPTIONS),
            maximum_concurrent_rpcs=peers + 8,
        )
        handler = grpc.stream_stream_rpc_method_handler(self._connect, Frame.FromString, Frame.SerializeToString)
        renewal = RenewalHandler(doorkeeper, self.peer_of)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"Connect": handler}), renewal.handlers())
        )

    def start(self, address: str, key: bytes, certificate: bytes, ca: bytes) -> int:
        """Listen on host:port for peers with a certificate of the authority `ca`; the port."""
        credentials = grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=True)
        port = _listen(self._server, address, credentials)
        self._server.start()
        return port

    def stop(self) -> None:
        self._server.stop(0.5).wait()

    def peer_of(self, context: grpc.ServicerContext) -> Peer:
        """Who is calling; the call ends here for those that are not let in."""
        try:
            return self._doorkeeper.admit(_certificate(context))
        except AdmissionError as error:
            self._note("refused", {"from": context.peer(), "reason": error.faults[0].what})
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "this certificate is not admitted")
            raise

    def _connect(self, frames: Iterator[Frame], context: grpc.ServicerContext) -> Iterator[Frame]:
        peer = self.peer_of(context)
        certificate = _certificate(context)
        try:
            line = self._post.welcome(peer, next(frames))
        except (MedflError, StopIteration, grpc.RpcError) as error:
            reason = error.faults[0].what if isinstance(error, MedflError) else "no greeting"
            self._note("refused", {"peer": peer.name, "from": context.peer(), "reason": reason})
            yield Frame(goodbye=Goodbye(reason=reason, again=False))
            return

        def read() -> None:
            reason = ""
            try:
                for frame in frames:
                    # a revocation counts for streams that are open, too
                    self._doorkeeper.admit(certificate)
                    self._post.take(peer, line, frame)
            except grpc.RpcError:
                reason = "connection lost"
            except AdmissionError as error:
                reason = error.faults[0].what
                line.end("this certificate is not admitted any more", again=False)
            except MedflError as error:
                reason = str(error)
                line.end(reason)
                self._note("protocol", {"peer": peer.name, "from": context.peer(), "reason": reason})
            except (OSError, ValueError) as error:
                # a full disk, or a line that was replaced while it was read
                reason = f"{type(error).__name__}: {error}"
                log.warning("site %s: %s", peer.name, reason)
            finally:
                line.end()
                self._post.gone(peer, line, reason)

        reader = threading.Thread(target=read, name=f"read-{peer.name}", daemon=True)
        reader.start()
        context.add_callback(line.end)
        yield from line.frames()
        # ends the reader, too
        context.cancel()


def _certificate(context: grpc.ServicerContext) -> bytes:
    """What the other end proved to hold, as PEM."""
    found: Sequence[bytes] = context.auth_context().get("x509_pem_cert", ())  # type: ignore[assignment]
    return found[0] if found else b""
