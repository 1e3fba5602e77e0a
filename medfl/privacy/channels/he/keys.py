"""Keys between two sites that live for one attempt of one round.

X25519 (RFC 7748) agrees on a secret, HKDF-SHA256 (RFC 5869) turns it into one key a purpose, ChaCha20-Poly1305
(RFC 8439) seals with it. Each derived key seals one message, so that the nonce may be constant.
"""

from secrets import token_hex

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from medfl.privacy.keystream import BLOCK_BYTES, Keystream
from medfl.update.wire import Buffer

_NONCE = bytes(12)


class Ephemeral:
    """A key pair of one attempt; forgotten with it, so that later theft of a site's identity opens nothing old."""

    def __init__(self) -> None:
        self._private = X25519PrivateKey.generate()
        self.public = self._private.public_key().public_bytes_raw()

    def derive(self, other: bytes, purpose: str, binding: bytes) -> bytes:
        """The key [32 bytes] shared with the owner of `other` for one purpose; ValueError when `other` is no usable
        key. binding: what both sides must agree on."""
        secret = self._private.exchange(X25519PublicKey.from_public_bytes(other))
        label = b"medfl he 1 " + purpose.encode() + b"\0"
        return HKDF(algorithm=SHA256(), length=32, salt=None, info=label + binding).derive(secret)


def seal(key: bytes, secret: bytes, binding: bytes) -> bytes:
    return ChaCha20Poly1305(key).encrypt(_NONCE, secret, binding)


def unseal(key: bytes, box: Buffer, binding: bytes) -> bytes:
    """The sealed secret; ValueError when the box is not whole or for somebody else."""
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, box, binding)
    except InvalidTag as error:
        raise ValueError("the sealed key does not open") from error


def tokens(key: bytes, chunks: int, most: int) -> npt.NDArray[np.int64]:
    """`chunks` secret numbers, each uniform below the largest power of two that is at most `most`."""
    stream, mask, drawn = Keystream(key), (1 << (most.bit_length() - 1)) - 1, []
    step = BLOCK_BYTES // 4
    for start in range(0, chunks, step):
        drawn.append(stream.take(min(step, chunks - start), np.uint32).astype(np.int64) & mask)
    return np.concatenate(drawn) if drawn else np.zeros(0, np.int64)


def fresh_id() -> str:
    """A name for a key that was never given before."""
    return token_hex(16)
