"""Files that only their owner may read: private keys (PKCS #8, PEM), identities, and the folders that hold them.

They are written by `medfl.audit.file.rewrite`: whole, durable and for their owner alone.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medfl.errors import InputError

Ask = Callable[[Path], bytes]
"""Gives the passphrase of a key file, when that file turns out to be encrypted."""

_OTHERS = 0o077
_LARGEST = 64 * 1024  # bytes; no key and no passphrase is larger
_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"


def make_private_folder(path: Path) -> None:
    """A folder for its owner alone (0700), made when it is not there; InputError when others can look into it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError as error:
        if not path.is_dir():
            raise InputError.at(path, "is not a folder", "choose another place") from error
        _refuse_open(path, path.stat(), "700")


def read_private(path: Path) -> bytes:
    """The content of a file that is its owner's alone; InputError when it is not, is not there or is too large."""
    try:
        with path.open("rb") as file:
            # of the open file, so that nobody can exchange it between the look and the reading
            _refuse_open(path, os.fstat(file.fileno()), "600")
            content = file.read(_LARGEST + 1)
    except FileNotFoundError as error:
        raise InputError.at(path, "does not exist", "check the path, or restore it from the backup") from error
    except IsADirectoryError as error:
        raise InputError.at(path, "is a folder, not a file", "give the file") from error
    except OSError as error:
        raise InputError.at(path, f"cannot be read: {error.strerror}", "run as the user that owns it") from error
    if len(content) > _LARGEST:
        raise InputError.at(path, f"is larger than {_LARGEST} bytes", "give the right file")
    return content


def _refuse_open(path: Path, found: os.stat_result, wanted: str) -> None:
    mode = stat.S_IMODE(found.st_mode)
    if mode & _OTHERS:
        raise InputError.at(path, f"is open to others than its owner (mode {mode:o})", f"chmod {wanted} {path}")


def new_tls_key() -> EllipticCurvePrivateKey:
    """A fresh key on NIST P-256: what every TLS library accepts in certificates, BoringSSL included."""
    return generate_private_key(SECP256R1())


def to_pem(key: EllipticCurvePrivateKey | Ed25519PrivateKey, passphrase: bytes | None = None) -> bytes:
    """A private key as PKCS #8 PEM, encrypted when there is a passphrase."""
    protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        protection = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)


def is_protected(path: Path) -> bool:
    """Whether a key file needs a passphrase."""
    return read_private(path).lstrip().startswith(_ENCRYPTED)


def load_tls_key(path: Path, ask: Ask | None = None) -> EllipticCurvePrivateKey:
    """The P-256 key in a file; InputError when it is another kind, open to others, or its passphrase is wrong."""
    key = _load(path, ask)
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise InputError.at(path, "is not a private key on P-256", "restore it from the backup")
    return key


def load_signing_key(path: Path, ask: Ask | None = None) -> Ed25519PrivateKey:
    """The Ed25519 key in a file; errors as those of `load_tls_key`."""
    key = _load(path, ask)
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError.at(path, "is not an Ed25519 private key", "restore it from the backup")
    return key


def _load(path: Path, ask: Ask | None) -> object:
    content = read_private(path)
    passphrase = None
    if content.lstrip().startswith(_ENCRYPTED):
        if ask is None:
            remedy = "give --passphrase-file, or set MEDFL_PASSPHRASE_FILE"
            raise InputError.at(path, "is protected by a passphrase, and none was given", remedy)
        passphrase = ask(path)
    try:
        return serialization.load_pem_private_key(content, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if passphrase is not None:
            raise InputError.at(path, "cannot be opened with this passphrase", "give the right one") from error
        raise InputError.at(path, "is not a private key in PEM", "restore it from the backup") from error


def read_passphrase(path: Path) -> bytes:
    """The passphrase in a file: its first line. InputError when it is empty or others can read the file."""
    first = read_private(path).split(b"\n", 1)[0].rstrip(b"\r")
    if not first:
        raise InputError.at(path, "holds no passphrase in its first line", "write it there")
    return first
