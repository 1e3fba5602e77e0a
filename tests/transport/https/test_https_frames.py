"""Bodies of frames, windows and heads of requests: what is not right is an error, never a guess."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfl.transport.https.frames import BATCH, MAX_BODY, Window, decode, encode
from medfl.transport.https.http1 import Head, Malformed
from medfl.transport.mail import CHUNK, MAX_FRAME, ProtocolError
from medfl.transport.pieces import Piece
from medfl.transport.protocol.medfl_pb2 import Done, Frame


def done(number: int) -> Frame:
    return Frame(done=Done(id=str(number)))


@given(st.lists(st.text(max_size=40), max_size=20))
def test_frames_come_back_as_they_were(ids: list[str]):
    frames = [Frame(done=Done(id=id_)) for id_ in ids]
    assert decode(encode(frame.SerializeToString() for frame in frames)) == frames


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_an_error(body: bytes):
    try:
        assert all(isinstance(frame, Frame | Piece) for frame in decode(body))
    except ProtocolError as error:
        assert "line" in str(error)


def test_no_frame_is_larger_than_the_limit():
    with pytest.raises(ProtocolError, match="the limit does not hold"):
        decode((MAX_FRAME + 1).to_bytes(4, "big") + bytes(MAX_FRAME + 1))


@given(st.data())
def test_a_window_gives_every_frame_once_however_often_it_is_asked(data: st.DataObject):
    window, count = Window(), data.draw(st.integers(0, 12))
    window.fill(done(number) for number in range(count))
    have = 0
    while have < count:
        asked = data.draw(st.integers(1, 3))
        for _ in range(asked):
            frames = decode(encode(window.batch(have, 0)))
        assert frames == [done(number) for number in range(have, count)]
        have = data.draw(st.integers(have + 1, count))
    assert list(window.batch(have, 0)) == [] and window.drained


def test_a_window_is_not_told_of_frames_that_never_were():
    window = Window()
    window.fill([done(0), done(1)])
    window.batch(1, 0)
    for after in (0, 3):
        with pytest.raises(ProtocolError, match="was told of frame"):
            window.batch(after, 0)


def test_a_window_keeps_few_bytes_and_its_bodies_fit():
    window, made = Window(), list[int]()

    def frames():
        for number in range(32):
            made.append(number)
            yield Piece("m", 0, memoryview(bytes(CHUNK)))

    thread = threading.Thread(target=window.fill, args=(frames(),), daemon=True)
    thread.start()
    have = 0
    while found := window.batch(have, 5.0):
        assert len(encode(found)) <= MAX_BODY
        assert len(made) - have <= 2 * BATCH // CHUNK + 1
        have += len(found)
    assert have == 32
    thread.join(5)
    assert not thread.is_alive()


def test_closing_a_window_lets_its_filler_go():
    window = Window()
    frames = (Piece("m", 0, memoryview(bytes(CHUNK))) for _ in range(100))
    thread = threading.Thread(target=window.fill, args=(frames,), daemon=True)
    thread.start()
    window.close()
    thread.join(5)
    assert not thread.is_alive() and not window.batch(0, 0)


PLAIN = b"POST /v1/line HTTP/1.1\r\nHost: a\r\nContent-Length: 3"


def test_a_plain_request_is_read():
    assert Head.parse(PLAIN, 10) == Head("POST", "/v1/line", 3, False)
    assert Head.parse(PLAIN + b"\r\nConnection: close", 10).last


@pytest.mark.parametrize(
    "text, status",
    [
        (b"POST /v1/line HTTP/1.0\r\nHost: a", 400),
        (b"POST /v1/line\r\nHost: a", 400),
        (b"POST http://a/v1/line HTTP/1.1\r\nHost: a", 400),
        (b"POST /v1/line HTTP/1.1", 400),
        (b"POST /v1/line HTTP/1.1\r\nHost: a\r\nHost: b", 400),
        (b"POST /v1/line HTTP/1.1\nHost: a", 400),
        (PLAIN + b"\r\nContent-Length: 3", 400),
        (PLAIN + b"\r\nTransfer-Encoding: chunked", 400),
        (PLAIN + b"\r\n folded: yes", 400),
        (PLAIN + b"\r\nSpace : yes", 400),
        (PLAIN + b"\r\nNul: \x00", 400),
        (PLAIN + b"".join(b"\r\nX-%d: 1" % n for n in range(70)), 400),
        (PLAIN + b"\r\nExpect: 100-continue", 417),
        (PLAIN.replace(b"3", b"11"), 413),
        (PLAIN.replace(b"3", b"-3"), 400),
        (PLAIN.replace(b"3", b"3, 3"), 400),
        (PLAIN.replace(b"3", b"9" * 30), 400),
    ],
)
def test_anything_else_is_refused(text: bytes, status: int):
    with pytest.raises(Malformed) as caught:
        Head.parse(text, 10)
    assert caught.value.status == status


@given(st.one_of(st.binary(max_size=300), st.binary(max_size=60).map(lambda tail: PLAIN + b"\r\n" + tail)))
def test_any_bytes_are_a_head_or_malformed(text: bytes):
    try:
        assert Head.parse(text, 10).length <= 10
    except Malformed as error:
        assert 400 <= error.status < 500
