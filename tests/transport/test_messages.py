"""The round's messages: exact round trips, and a clean error for any bytes."""

import contextlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfl.errors import RunError
from medfl.learning.messages import TrainOrder, TrainReply
from medfl.transport.messages import decode_reply, decode_statistics, encode_order, encode_reply, encode_statistics
from medfl.update.base import Payload, Update
from medfl.update.codecs.base import CODECS
from medfl.update.wire import parts, size, unpack


def reply(values: int = 5) -> TrainReply:
    codec = CODECS.build(CODECS.default("fp32"))
    payload = codec.encode(Update(np.arange(values, dtype=np.float32), values), np.random.default_rng(0))
    return TrainReply("east", 2, payload, 7, 14, 2, 0.7, 0.5, {"train": 1.25})


def test_reply_round_trip() -> None:
    message = b"".join(encode_reply(reply()))
    found = decode_reply(message)
    assert found.payload is not None
    assert bytes(found.payload.buffers[0]) == np.arange(5, dtype=np.float32).tobytes()
    assert (found.site, found.round, found.cases, found.loss_start, dict(found.seconds)) == (
        "east", 2, 7, 0.7, {"train": 1.25},
    )  # fmt: skip


def test_vectors_beside_the_update_travel_in_their_places() -> None:
    rows = np.arange(6, dtype=np.float32)
    told = replace(reply(), prototypes=Payload("fp32", 6, (rows.tobytes(),)), notice=b"mask")
    found = decode_reply(b"".join(encode_reply(told)))
    assert found.prototypes is not None and found.prototypes.size == 6 and found.snapshot is None
    assert bytes(found.prototypes.buffers[0]) == rows.tobytes() and found.notice == b"mask"
    assert found.payload is not None and bytes(found.payload.buffers[0]) == np.arange(5, dtype=np.float32).tobytes()
    assert decode_reply(b"".join(encode_reply(reply()))).prototypes is None


@pytest.mark.parametrize("listed", [None, 3, {"codec": "fp32", "size": 6}, {"codec": "fp32", "size": 6, "buffers": 2}])
def test_vectors_that_a_reply_does_not_carry_are_refused(listed: Any) -> None:
    told = replace(reply(), prototypes=Payload("fp32", 6, (bytes(24),)))
    header, buffers = unpack(b"".join(encode_reply(told)))
    with pytest.raises(RunError):
        decode_reply(b"".join(parts({**header, "prototypes": listed}, buffers)))


def test_bytes_are_counted_from_the_pieces_that_are_sent() -> None:
    order = TrainOrder("east", 1, {"local.epochs": 1.0})
    pieces = encode_order(order, Payload("fp32", 3, (b"123456789012",)))
    assert size(pieces) == len(b"".join(pieces)) > 12


def test_equal_rounds_are_equally_many_bytes() -> None:
    fast, slow = reply(), reply()
    object.__setattr__(slow, "seconds", {"train": 1234.5})
    assert size(encode_reply(fast)) == size(encode_reply(slow))


@given(st.dictionaries(st.sampled_from(["loss", "confusion", "bins"]), st.lists(st.floats(0, 1e9), max_size=20)))
def test_statistics_round_trip(tables: dict[str, list[float]]) -> None:
    statistics = {name: np.array(values, np.float64) for name, values in tables.items()}
    found = decode_statistics(encode_statistics(statistics))
    assert found.keys() == statistics.keys()
    assert all(np.array_equal(found[name], statistics[name]) for name in statistics)


@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_clean_error(message: bytes) -> None:
    for decode in (decode_reply, decode_statistics):
        with pytest.raises(RunError):
            decode(message)


@given(st.data())
def test_any_damage_to_a_reply_is_seen_or_harmless(data: st.DataObject) -> None:
    message = bytearray(b"".join(encode_reply(reply())))
    place = data.draw(st.integers(0, len(message) - 1))
    message[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(RunError):
        decode_reply(bytes(message))


def test_a_reply_tells_how_many_cases_were_skipped_and_why() -> None:
    told = replace(reply(), skipped={"the file is damaged": 3})
    assert decode_reply(b"".join(encode_reply(told))).skipped == {"the file is damaged": 3}


@pytest.mark.parametrize("skipped", [[], {"damaged": -1}, {"damaged": 1.5}, {str(n): 1 for n in range(1000)}])
def test_skipped_cases_that_are_no_counts_are_refused(skipped: Any) -> None:
    header, buffers = unpack(b"".join(encode_reply(reply())))
    with pytest.raises(RunError, match="skipped"):
        decode_reply(b"".join(parts({**header, "skipped": skipped}, buffers)))
