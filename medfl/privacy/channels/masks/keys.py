"""Keys of one round: ephemeral X25519 pairs, what they are bound to, and the keys derived from them (HKDF-SHA256).

Each site makes two pairs, as in the paper: `sealing` encrypts shares between sites and is never revealed; `masking`
makes the masks of pairs, and its private half is rebuilt from shares when the site drops out.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from medfl.errors import RunError
from medfl.privacy.channels.base import RoundContext
from medfl.privacy.channels.masks.messages import PublicKeys
from medfl.privacy.keystream import KEY_BYTES
from medfl.update.base import Payload

# every key that encrypts shares encrypts one message only
_NONCE = bytes(12)


@dataclass(frozen=True, slots=True, repr=False)
class RoundKeys:
    """The private keys of one site for one round and attempt."""

    sealing: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)
    masking: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)

    @property
    def public(self) -> tuple[bytes, bytes]:
        """The public halves of `sealing` and `masking`, 32 bytes each."""
        return self.sealing.public_key().public_bytes_raw(), self.masking.public_key().public_bytes_raw()


def needed(context: RoundContext, threshold: float) -> int:
    """Sites without which the sum of this round is not opened: a share of the whole cohort, and the minimum."""
    return max(context.minimum, ceil(Fraction(str(threshold)) * len(context.cohort)))


def statement(about: str, *said: Any) -> bytes:
    """What is signed or bound to, as bytes that no other statement has."""
    return json.dumps(["medfl masks 1", about, *said], sort_keys=True, separators=(",", ":")).encode()


def digest(about: str, *said: Any) -> str:
    return hashlib.sha256(statement(about, *said)).hexdigest()


def round_digest(context: RoundContext, threshold: float) -> str:
    """Names the round, its cohort and its rules."""
    return digest("round", context.to_json(), needed(context, threshold))


def keys_statement(about_round: str, site: str, public: tuple[bytes, bytes]) -> bytes:
    """What a site signs to make these its keys of the round."""
    return statement("keys", about_round, site, public[0].hex(), public[1].hex())


def keys_digest(about_round: str, keys: Mapping[str, PublicKeys]) -> str:
    """Names the sites that take part, and their keys."""
    return digest("participants", about_round, {site: [k.sealing.hex(), k.masking.hex()] for site, k in keys.items()})


def members_digest(about_keys: str, members: Sequence[str]) -> str:
    """Names the sites among which masks are made."""
    return digest("members", about_keys, list(members))


def sealed_statement(about_members: str, site: str, payload: Payload) -> bytes:
    """What a site signs of its masked update."""
    content = hashlib.sha256(payload.buffers[0]).hexdigest()
    return statement("sealed", about_members, site, payload.codec, payload.size, content)


def survivors_statement(about_members: str, survivors: Sequence[str]) -> bytes:
    """What a site signs to open the sum of these sites and no other."""
    return statement("survivors", about_members, list(survivors))


def derive(secret: bytes, *info: str) -> bytes:
    """A key [32 bytes] from a secret for the one use that `info` says."""
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=statement("key", *info)).derive(secret)


def agree(private: X25519PrivateKey, public: bytes, peer: str) -> bytes:
    """The secret of two sites; RunError when the peer's key is of those that give everyone the same secret."""
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise RunError.at(peer, f"sent a key that cannot be used: {error}", "check the site's software") from error


def pair_key(private: X25519PrivateKey, public: bytes, about_members: str, one: str, other: str) -> bytes:
    """The key of the mask of two sites: the same from either end."""
    return derive(agree(private, public, other), "pair mask", about_members, *sorted((one, other)))


def self_key(seed: bytes, about_members: str, site: str) -> bytes:
    """The key of a site's own mask."""
    return derive(seed, "self mask", about_members, site)


def commitment(seed: bytes, about_keys: str, site: str) -> bytes:
    """Binds a site to its seed without showing it [32 bytes]."""
    return hmac.digest(seed, statement("commitment", about_keys, site), "sha256")


def encrypt(
    private: X25519PrivateKey, public: bytes, about_keys: str, sender: str, receiver: str, text: bytes
) -> bytes:
    """The text from sender to receiver; once only for each pair and round."""
    key = derive(agree(private, public, receiver), "shares", about_keys, sender, receiver)
    return AESGCM(key).encrypt(_NONCE, text, statement("shares", about_keys, sender, receiver))


def decrypt(
    private: X25519PrivateKey, public: bytes, about_keys: str, sender: str, receiver: str, text: bytes
) -> bytes:
    """RunError when the text is not what the sender encrypted for the receiver in this round."""
    key = derive(agree(private, public, sender), "shares", about_keys, sender, receiver)
    try:
        return AESGCM(key).decrypt(_NONCE, text, statement("shares", about_keys, sender, receiver))
    except InvalidTag as error:
        raise RunError.at(
            sender, f"the shares that came from it for {receiver} are not those it sent", "repeat the round"
        ) from error
