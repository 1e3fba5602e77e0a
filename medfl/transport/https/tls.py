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


def server_context(key: bytes, certificate: bytes, ca: bytes, strangers: bool = False) -> ssl.SSLContext:
    """For a server that lets in only those with a certificate of the authority `ca`; strangers: and those with none,
    who are to be told apart. All as PEM; key: unencrypted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_OPTIONAL if strangers else ssl.CERT_REQUIRED
    # every connection proves its certificate anew
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    return _proving(_trusting(context, ca), key, certificate)


def client_context(key: bytes | None, certificate: bytes | None, ca: bytes) -> ssl.SSLContext:
    """For a client that trusts only the authority `ca`, and checks the server's name; key, certificate: None for one
    that has none yet."""
    context = _trusting(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ca)
    return context if key is None or certificate is None else _proving(context, key, certificate)


def _trusting(context: ssl.SSLContext, ca: bytes) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(_ALPN)
    context.load_verify_locations(cadata=ca.decode("ascii"))
    return context


def _proving(context: ssl.SSLContext, key: bytes, certificate: bytes) -> ssl.SSLContext:
    # the ssl module reads keys from files only: what lies there for a moment is encrypted
    passphrase = secrets.token_hex(32)
    protection = BestAvailableEncryption(passphrase.encode())
    sealed = load_pem_private_key(key, None).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)
    with tempfile.TemporaryDirectory(prefix="medfl-") as folder:
        path = Path(folder) / "chain.pem"
        path.write_bytes(sealed + certificate)
        context.load_cert_chain(path, password=passphrase)
    return context
