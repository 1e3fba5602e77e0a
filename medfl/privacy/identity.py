"""Long-lived signing keys of the parties (Ed25519, RFC 8032), and the check of a signature against the pinned roster.

Keys are raw bytes here: where they are kept is the business of the site and the coordinator.
"""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from medfl.errors import RunError
from medfl.privacy.channels.base import Identity, Roster


class Ed25519Identity(Identity):
    """A party that can sign. Its text form shows the name and the public key only."""

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        self.name = name
        self._key = key

    @classmethod
    def generate(cls, name: str) -> "Ed25519Identity":
        """A new identity from the system's cryptographic generator."""
        return cls(name, Ed25519PrivateKey.generate())

    @classmethod
    def from_private(cls, name: str, private: bytes) -> "Ed25519Identity":
        """The identity of a raw private key [32 bytes]; RunError when it is none."""
        try:
            return cls(name, Ed25519PrivateKey.from_private_bytes(private))
        except ValueError as error:
            raise RunError.at(name, f"its private key is not an Ed25519 key: {error}", "give its 32 bytes") from error

    @property
    def private(self) -> bytes:
        """The raw private key, 32 bytes: for the party's own key file and nothing else."""
        return self._key.private_bytes_raw()

    @property
    def public(self) -> bytes:
        return self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"Ed25519Identity({self.name!r}, public={self.public.hex()})"


def verify(roster: Roster, name: str, signature: bytes, message: bytes, where: str = "") -> None:
    """RunError that names the party (at `where`, when given) unless it is on the roster and signed the message."""
    where = where or name
    if name not in roster:
        raise RunError.at(where, f"{name} is not on the roster of this federation", "enrol it first")
    try:
        key = Ed25519PublicKey.from_public_bytes(roster[name])
    except ValueError as error:
        raise RunError.at(
            where, f"{name}'s key on the roster is not an Ed25519 public key", "enrol it again"
        ) from error
    try:
        key.verify(signature, message)
    except InvalidSignature as error:
        raise RunError.at(
            where,
            f"the signature is not {name}'s: it does not fit the message and the key on the roster",
            "check who sent it, and enrol the party again if its key was replaced",
        ) from error
