"""Shamir's shares, keys and keystreams of the masks channel."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from medfl.errors import RunError
from medfl.privacy.channels.base import RoundContext
from medfl.privacy.channels.masks import MasksConfig, keys, mask, shamir
from medfl.privacy.keystream import BLOCK_BYTES, Keystream, scratch


@settings(max_examples=40)
@given(st.data(), st.binary(min_size=32, max_size=32))
def test_any_enough_shares_rebuild_the_secret(data: st.DataObject, secret: bytes) -> None:
    count = data.draw(st.integers(1, 12))
    threshold = data.draw(st.integers(1, count))
    points = data.draw(st.lists(st.integers(1, 200), min_size=count, max_size=count, unique=True))
    shares = dict(zip(points, shamir.split(secret, threshold, points), strict=True))
    chosen = data.draw(st.permutations(points))[:threshold]
    assert shamir.combine(shamir.weights(chosen), [shares[point] for point in chosen]) == secret


def test_too_few_shares_tell_nothing() -> None:
    """Two shares of three fit every secret: for each there is a third share that rebuilds it."""
    points = [1, 2, 3]
    shares = shamir.split(bytes(32), 3, points)
    weights = shamir.weights(points)
    known = sum(w * int.from_bytes(s, "big") for w, s in zip(weights[:2], shares[:2], strict=True))
    for other in (b"\xff" * 32, b"secret" + bytes(26)):
        third = (int.from_bytes(other, "big") - known) * pow(weights[2], -1, shamir.PRIME) % shamir.PRIME
        assert shamir.combine(weights, [*shares[:2], third.to_bytes(shamir.SHARE_BYTES, "big")]) == other
    # the fake, a line instead of a parabola, gives its secret away to two
    line = shamir.split(b"\x07" * 32, 2, points)
    assert shamir.combine(shamir.weights(points[:2]), line[:2]) == b"\x07" * 32
    with pytest.raises(RunError, match="do not belong to one secret"):
        shamir.combine(shamir.weights(points[:2]), shares[:2])


def test_shares_are_drawn_anew() -> None:
    assert len({share for _ in range(5) for share in shamir.split(bytes(32), 2, [1, 2, 3])}) == 15


def test_the_field_is_prime() -> None:
    # Lucas-Lehmer: decides for numbers 2^p - 1
    value = 4
    for _ in range(521 - 2):
        value = (value * value - 2) % shamir.PRIME
    assert value == 0 and shamir.PRIME > 2**256


@given(st.integers(3, 100), st.sampled_from([0.501, 0.51, 0.67, 0.9, 1.0]))
def test_more_than_half_of_the_cohort_is_needed(count: int, threshold: float) -> None:
    context = RoundContext("run", 1, 1, tuple(map(str, range(count))), 1, 1)
    needed = keys.needed(context, threshold)
    assert 2 * needed > count and needed >= 3 and needed <= count and needed >= threshold * count - 1e-9


@pytest.mark.parametrize("threshold", [0.5, 0.0, 1.01])
def test_threshold_is_above_one_half(threshold: float) -> None:
    with pytest.raises(ValidationError):
        MasksConfig(threshold=threshold)
    assert MasksConfig().traits() == {"reveals-sum"}


def test_keys_are_bound_to_everything() -> None:
    one, other = keys.RoundKeys(), keys.RoundKeys()
    public = other.public[1]
    key = keys.pair_key(one.masking, public, "x", "a", "b")
    assert key == keys.pair_key(other.masking, one.public[1], "x", "b", "a")
    assert key != keys.pair_key(one.masking, public, "y", "a", "b")
    assert key != keys.pair_key(one.masking, public, "x", "a", "c")
    base = RoundContext("run", 1, 1, ("a", "b", "c"), 5, 100)
    changes = [{"run": "r"}, {"round": 2}, {"attempt": 2}, {"cohort": ("a", "c", "b")}, {"size": 6}, {"limit": 1}]
    from dataclasses import replace

    contexts = [base, *(replace(base, **change) for change in changes), replace(base, minimum=2)]
    digests = [keys.round_digest(context, 0.67) for context in contexts]
    digests.append(keys.round_digest(replace(base, cohort=tuple("abcdefg")), 0.67))
    digests.append(keys.round_digest(replace(base, cohort=tuple("abcdefg")), 0.9))
    assert len(set(digests)) == len(digests)


def test_shares_can_be_read_by_their_receiver_only() -> None:
    sender, receiver, thief = keys.RoundKeys(), keys.RoundKeys(), keys.RoundKeys()
    text = keys.encrypt(sender.sealing, receiver.public[0], "x", "a", "b", b"share")
    assert keys.decrypt(receiver.sealing, sender.public[0], "x", "a", "b", text) == b"share"
    for private, about, names in (
        (thief, "x", "ab"),
        (receiver, "y", "ab"),
        (receiver, "x", "ba"),
        (receiver, "x", "cb"),
    ):
        with pytest.raises(RunError, match="are not those it sent"):
            keys.decrypt(private.sealing, sender.public[0], about, *names, text)
    with pytest.raises(RunError, match="b: sent a key that cannot be used"):
        keys.agree(sender.sealing, bytes(32), "b")


@pytest.mark.parametrize("size", [0, 1, 3, BLOCK_BYTES // 4, BLOCK_BYTES // 4 + 1, BLOCK_BYTES // 2 + 7])
def test_masks_cancel(size: int) -> None:
    start = np.random.default_rng(0).integers(0, 2**32, size, dtype=np.uint32)
    words, added, subtracted = start.copy(), [b"a" * 32, b"b" * 32], [b"c" * 32]
    mask.apply(words, added, subtracted)
    assert size == 0 or not np.array_equal(words, start)
    mask.apply(words, subtracted, added)
    np.testing.assert_array_equal(words, start)


def test_keystream_is_aes_256_in_counter_mode() -> None:
    """NIST SP 800-38A, F.5.5, starts at another counter; its cipher blocks are these of AES-256 in F.1.5."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counters = b"".join(i.to_bytes(16, "big") for i in range(64))
    expected = Cipher(algorithms.AES256(key), modes.ECB()).encryptor().update(counters)
    one = Keystream(key)
    assert one.take(100, np.uint8).tobytes() + one.take(231, np.uint32).tobytes() == expected
    shared = scratch()
    streams = [Keystream(bytes([i]) * 32, shared) for i in range(3)]
    taken = [[stream.take(5, np.uint64).tobytes() for stream in streams] for _ in range(3)]
    assert len(set(itertools.chain.from_iterable(taken))) == 9
