"""Frames put together and taken apart by hand: the bytes, and what is read from any bytes, are those of protobuf."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from medfl.transport.pieces import Piece, Sent, decoded, encoded, kind_of, size_of
from medfl.transport.protocol.medfl_pb2 import Beat, Chunk, Done, Frame, Have, Open

PIECES = st.builds(
    Piece, st.text("abc-", max_size=120), st.integers(0, 2**64 - 1), st.binary(max_size=2**17).map(memoryview)
)


def protobuf(piece: Piece) -> bytes:
    chunk = Chunk(id=piece.id, offset=piece.offset, data=bytes(piece.data))
    return Frame(chunk=chunk).SerializeToString(deterministic=True)


def by_protobuf(data: bytes) -> Sent | None:
    try:
        frame = Frame.FromString(data)
    except DecodeError:
        return None
    chunk = frame.chunk
    return Piece(chunk.id, chunk.offset, memoryview(chunk.data)) if frame.HasField("chunk") else frame


def by_hand(data: bytes) -> Sent | None:
    try:
        return decoded(data)
    except DecodeError:
        return None


@given(PIECES)
def test_a_piece_is_coded_as_protobuf_does(piece: Piece) -> None:
    data = encoded(piece)
    assert data == protobuf(piece)
    assert decoded(data) == piece


def test_other_frames_are_left_to_protobuf() -> None:
    for frame in (Frame(), Frame(beat=Beat(state="ready")), Frame(have=Have(id="a")), Frame(open=Open(data=b"x"))):
        assert decoded(encoded(frame)) == frame


def test_the_bytes_of_a_piece_are_not_copied() -> None:
    data = encoded(Piece("train-1", 5, memoryview(bytes(1000))))
    piece = decoded(data)
    assert isinstance(piece, Piece) and piece.data.obj is data


SMALL = Piece("a-1", 300, memoryview(b"0123456789"))
FRAME = protobuf(SMALL)
BODY = FRAME[2:]


def _wrapped(body: bytes) -> bytes:
    return FRAME[:1] + bytes([len(body)]) + body


@pytest.mark.parametrize(
    "data",
    [
        FRAME + Frame(done=Done(id="a")).SerializeToString(),
        Frame(done=Done(id="a")).SerializeToString() + FRAME,
        FRAME + FRAME,
        _wrapped(BODY[5:] + BODY[:5]),
        _wrapped(BODY + BODY[:5]),
        _wrapped(BODY + b"\x20\x05"),
        _wrapped(BODY[:-1]),
        _wrapped(BODY) + b"\x00",
        _wrapped(b""),
        _wrapped(BODY[:8]),
        _wrapped(b"\x0a\x02\xc3\xa4" + BODY[5:]),
        _wrapped(b"\x0a\x02\xff\xff" + BODY[5:]),
        _wrapped(BODY[:5] + b"\x10" + b"\xff" * 9 + b"\x01" + BODY[8:]),
        _wrapped(BODY[:5] + b"\x10" + b"\xff" * 9 + b"\x7f" + BODY[8:]),
    ],
)
def test_unusual_frames_are_read_as_protobuf_reads_them(data: bytes) -> None:
    assert by_hand(data) == by_protobuf(data)


def _lengthened(number: int, more: int) -> bytes:
    """A small number with more bytes than it needs."""
    return bytes([number | 0x80]) + b"\x80" * (more - 1) + b"\x00" if more else bytes([number])


@pytest.mark.parametrize("more", range(11))
@pytest.mark.parametrize("which", ["frame", "id", "offset", "data"])
def test_numbers_with_more_bytes_than_they_need_are_read_as_protobuf_reads_them(which: str, more: int) -> None:
    much = {which: more}
    body = b"\x0a" + _lengthened(3, much.get("id", 0)) + b"a-1"
    body += b"\x10" + _lengthened(5, much.get("offset", 0)) + b"\x1a" + _lengthened(2, much.get("data", 0)) + b"xy"
    data = FRAME[:1] + _lengthened(len(body), much.get("frame", 0)) + body
    assert by_hand(data) == by_protobuf(data)


CHANGES = st.lists(
    st.tuples(st.integers(0, len(FRAME)), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=3
)


@given(CHANGES)
def test_whatever_comes_is_read_as_protobuf_reads_it(changes: list[tuple[int, int, bytes]]) -> None:
    found = bytearray(FRAME)
    for at, gone, put in changes:
        found[at : at + gone] = put
    assert by_hand(bytes(found)) == by_protobuf(bytes(found))


def test_a_piece_has_a_kind_and_a_size() -> None:
    assert kind_of(SMALL) == "chunk" and kind_of(Frame(beat=Beat())) == "beat" and kind_of(Frame()) is None
    assert size_of(SMALL) >= 10 and size_of(Frame(open=Open(data=bytes(100)))) >= 100
