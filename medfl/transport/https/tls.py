"""TLS with certificates of both ends, from keys in memory."""

import secrets
import ssl
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

_ALPN = ["http/1.1"]


def server_context(key: bytes, certificate: bytes, ca: bytes) -> ssl.SSLContext:
    """For a server that lets in only those with a certificate of the authority `ca`. All as PEM; key: unencrypted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    # every connection proves its certificate anew
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    return _filled(context, key, certificate, ca)


def client_context(key: bytes, certificate: bytes, ca: bytes) -> ssl.SSLContext:
    """For a client that trusts only the authority `ca`, and checks the server's name."""
    return _filled(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), key, certificate, ca)


def _filled(context: ssl.SSLContext, key: bytes, certificate: bytes, ca: bytes) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(_ALPN)
    context.load_verify_locations(cadata=ca.decode("ascii"))
    # the ssl module reads keys from files only: what lies there for a moment is encrypted
    passphrase = secrets.token_hex(32)
    protection = BestAvailableEncryption(passphrase.encode())
    sealed = load_pem_private_key(key, None).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)
    with tempfile.TemporaryDirectory(prefix="medfl-") as folder:
        path = Path(folder) / "chain.pem"
        path.write_bytes(sealed + certificate)
        context.load_cert_chain(path, password=passphrase)
    return context
