"""TLS 1.3 inside Flower's messages: both ends prove who they are with medfl's own certificates, and whoever carries the
messages, Flower's servers included, can neither read, change, repeat nor reorder them."""

import os
import ssl
import tempfile
from collections.abc import Iterable
from pathlib import Path
from secrets import token_hex

from cryptography.hazmat.primitives import serialization

from medfl.errors import RunError
from medfl.integrations.flower.envelope import join_frames, split_frames
from medfl.transport.protocol.medfl_pb2 import Frame
from medfl.update.wire import Buffer

_PIECE = 2**16


class TunnelError(RunError):
    """The other end did not prove itself, or somebody meddled with what it said."""


def context(server: bool, ca: bytes, key: bytes, certificate: bytes) -> ssl.SSLContext:
    """One end's settings; PEM, the key unencrypted. Both ends must show a certificate of the authority `ca`."""
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    found.minimum_version = ssl.TLSVersion.TLSv1_3
    found.verify_mode = ssl.CERT_REQUIRED
    found.load_verify_locations(cadata=ca.decode())
    if server:
        # every line begins anew: tickets would only be bytes
        found.num_tickets = 0
    _load(found, key, certificate)
    return found


def _load(found: ssl.SSLContext, key: bytes, certificate: bytes) -> None:
    """The ssl module reads keys from files alone: this one is encrypted for the moment that it lies there."""
    passphrase = token_hex(32).encode()
    protection = serialization.BestAvailableEncryption(passphrase)
    private = serialization.load_pem_private_key(key, None)
    protected = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
    descriptor, name = tempfile.mkstemp(suffix=".pem")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(protected + certificate)
        found.load_cert_chain(name, password=passphrase)
    finally:
        Path(name).unlink()


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

    def write(self, frames: Iterable[Frame]) -> None:
        for piece in join_frames(frames):
            self._tls.write(piece)

    def frames(self) -> list[Frame]:
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
