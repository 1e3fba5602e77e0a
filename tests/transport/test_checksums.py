"""Checks made once for many messages are those that zlib finds."""

import zlib
from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st

from medfl.transport.checksums import Bulk, crc32_of
from medfl.transport.parcels import Outgoing
from medfl.transport.post import Request


@given(st.binary(max_size=300), st.lists(st.binary(max_size=300), max_size=4))
def test_a_combined_checksum_is_that_of_the_whole(head: bytes, buffers: list[bytes]) -> None:
    bulk = Bulk.of(buffers)
    whole = b"".join(buffers)
    assert (bulk.crc32, bulk.size, bulk.digest) == (zlib.crc32(whole), len(whole), sha256(whole).digest())
    assert crc32_of(head, bulk) == zlib.crc32(head + whole)


def test_a_large_bulk_is_read_in_blocks() -> None:
    buffer = bytes(range(256)) * 5000
    assert crc32_of(b"head", Bulk.of([buffer, b"end"])) == zlib.crc32(b"head" + buffer + b"end")


@given(st.text("abc", max_size=3), st.integers(0, 9), st.lists(st.binary(max_size=50), max_size=3))
def test_a_message_has_the_checksum_of_its_pieces_whoever_made_it(site: str, round_: int, buffers: list[bytes]) -> None:
    request = Request.of("train", {"site": site, "round": round_}, buffers)
    shared = Request.of("train", {"site": site, "round": round_}, buffers, Bulk.of(buffers))
    assert request.id == shared.id
    assert request.message("a").crc32 == Outgoing("a", request.pieces).crc32
    other = Request.of("train", {"site": site, "round": round_}, [*buffers, b"x"])
    assert other.id != request.id
