"""TLS 1.3 inside Flower's messages: both ends prove who they are with medfl's own certificates, and whoever carries the
messages, Flower's servers included, can neither read, change, repeat nor reorder them."""

import ssl
from collections.abc import Iterable

from medfl.errors import RunError
from medfl.integrations.flower.envelope import join_frames, split_frames
from medfl.transport.https.tls import client_context, server_context
from medfl.transport.pieces import Sent
from medfl.update.wire import Buffer

_PIECE = 2**16


class TunnelError(RunError):
    """The other end did not prove itself, or somebody meddled with what it said."""


def context(server: bool, ca: bytes, key: bytes, certificate: bytes) -> ssl.SSLContext:
    """One end's settings; PEM, the key unencrypted. Both ends must show a certificate of the authority `ca`."""
    found = (server_context if server else client_context)(key, certificate, ca)
    found.minimum_version = ssl.TLSVersion.TLSv1_3
    return found


class Tunnel:
    """One end. Feed it what came, send on what it has. host: the name that the server's certificate must hold; None at
    the server's end."""

    def __init__(self, settings: ssl.SSLContext, host: str | None = None) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = settings.wrap_bio(self._in, self._out, server_side=host is None, server_hostname=host)
        self.ready = False

    def feed(self, data: Buffer) -> None:
        """What came from the other end; TunnelError when it is not who it must be."""
        self._in.write(data)
        if self.ready:
            return
        try:
            self._tls.do_handshake()
            self.ready = True
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            raise TunnelError.at("tunnel", f"was not opened: {error.reason or error}") from error

    def write(self, frames: Iterable[Sent]) -> None:
        for piece in join_frames(frames):
            self._tls.write(piece)

    def frames(self) -> list[Sent]:
        """The frames that came; TunnelError when they were meddled with."""
        data = bytearray()
        try:
            while piece := self._tls.read(_PIECE):
                data += piece
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise TunnelError.at("tunnel", f"was broken: {error.reason or error}") from error
        return list(split_frames(data))

    def outgoing(self) -> bytes:
        """What must go to the other end."""
        return self._out.read()

    @property
    def certificate(self) -> bytes:
        """The other end's certificate as PEM."""
        found = self._tls.getpeercert(binary_form=True)
        return b"" if found is None else ssl.DER_cert_to_PEM_cert(found).encode()
