"""Signing keys of the parties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfl.errors import RunError
from medfl.privacy.identity import Ed25519Identity, verify

ALICE, BOB = Ed25519Identity.generate("alice"), Ed25519Identity.generate("bob")
ROSTER = {"alice": ALICE.public, "bob": BOB.public}


@given(st.binary(max_size=100))
def test_what_a_party_signed_is_accepted_and_nothing_else(message: bytes) -> None:
    signature = ALICE.sign(message)
    assert len(signature) == 64
    verify(ROSTER, "alice", signature, message)
    for name, sign, text in (
        ("bob", signature, message),
        ("alice", BOB.sign(message), message),
        ("alice", signature, message + b"\0"),
        ("alice", signature[:-1] + bytes([signature[-1] ^ 1]), message),
        ("alice", b"", message),
    ):
        with pytest.raises(RunError, match=f"^{name}: the signature is not {name}'s"):
            verify(ROSTER, name, sign, text)


def test_known_answer() -> None:
    """RFC 8032, section 7.1, test 2."""
    private = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    identity = Ed25519Identity.from_private("x", private)
    assert identity.public.hex() == "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    assert identity.sign(b"\x72").hex().startswith("92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da")


def test_a_key_survives_as_bytes_and_is_not_shown() -> None:
    again = Ed25519Identity.from_private("alice", ALICE.private)
    assert again.public == ALICE.public
    verify(ROSTER, "alice", again.sign(b"m"), b"m")
    assert ALICE.private.hex() not in repr(ALICE) and "alice" in repr(ALICE)
    assert Ed25519Identity.generate("alice").public != ALICE.public


def test_who_is_not_on_the_roster_is_named() -> None:
    with pytest.raises(RunError, match=r"^carol: carol is not on the roster"):
        verify(ROSTER, "carol", ALICE.sign(b"m"), b"m")
    with pytest.raises(RunError, match=r"^carol, round 3: carol's key on the roster is not"):
        verify({"carol": b"short"}, "carol", ALICE.sign(b"m"), b"m", "carol, round 3")
    with pytest.raises(RunError, match=r"^alice: its private key is not an Ed25519 key"):
        Ed25519Identity.from_private("alice", b"short")
