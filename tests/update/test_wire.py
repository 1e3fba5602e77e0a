"""The message format: round trip, and a clean error for any bytes."""

import json
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medfl.errors import RunError
from medfl.update.base import Payload
from medfl.update.wire import MAGIC, MAX_BUFFERS, pack_arrays, parts, size, unpack, unpack_arrays

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
HEADERS = st.dictionaries(TEXT.filter(lambda key: key not in ("buffers", "arrays")), JSON, max_size=4)
ARRAYS = st.dictionaries(
    TEXT,
    hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_, np.float16]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    ),
    max_size=3,
)


def message(header: Any, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<4sI", MAGIC, len(text)) + text + body


@given(HEADERS, st.lists(st.binary(max_size=20), max_size=4))
def test_round_trip(header: dict[str, Any], buffers: list[bytes]) -> None:
    pieces = parts(header, buffers)
    sent = b"".join(pieces)
    assert size(pieces) == len(sent)
    found, got = unpack(sent)
    assert found == header and [bytes(buffer) for buffer in got] == buffers


@given(HEADERS, ARRAYS)
def test_round_trip_of_arrays(header: dict[str, Any], arrays: dict[str, Any]) -> None:
    found, got = unpack_arrays(b"".join(pack_arrays(header, arrays)))
    assert found == header and list(got) == list(arrays)
    for name, array in arrays.items():
        assert got[name].dtype == array.dtype and got[name].shape == array.shape
        assert got[name].tobytes() == array.tobytes()


@given(HEADERS)
def test_the_first_buffer_is_where_numpy_can_work_on_it(header: dict[str, Any]) -> None:
    head, _ = parts(header, [b"12345678"])
    assert len(head) % 16 == 0
    assert unpack(head + b"12345678")[0] == unpack(b"".join(parts(header)))[0]


def test_arrays_that_are_not_contiguous_travel_by_value() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    _, got = unpack_arrays(b"".join(pack_arrays({}, {"a": array})))
    np.testing.assert_array_equal(got["a"], array)


@given(st.binary(max_size=60))
@example(b"")
@example(MAGIC)
@example(message([]))
@example(message({"buffers": [-1, 1]}))
@example(message({"buffers": [True]}, b"x"))
@example(message({"buffers": [10**400]}))
@example(message({"buffers": {}}))
@example(struct.pack("<4sI", MAGIC, 2**32 - 1))
@example(struct.pack("<4sI", MAGIC, 100_000) + b"[" * 100_000)
@example(struct.pack("<4sI", MAGIC, 5000) + b"1" * 5000)
def test_any_bytes_give_a_value_or_a_run_error(data: bytes) -> None:
    for read in (unpack, unpack_arrays):
        try:
            read(data)
        except RunError as error:
            assert str(error)


@given(JSON, st.binary(max_size=16))
def test_any_header_gives_a_value_or_a_run_error(value: Any, body: bytes) -> None:
    for header in (value, {"buffers": value}, {"buffers": [len(body)], "arrays": value}):
        try:
            unpack_arrays(message(header, body))
        except RunError as error:
            assert str(error)


@pytest.mark.parametrize(
    "listed",
    [
        [["a", "<f4", [3]]],
        [["a", "<f4", [-1]]],
        [["a", "<f4", [2.0]]],
        [["a", "<f4", [True, 2]]],
        [["a", "<f4", "2"]],
        [["a", "<f4", None]],
        [["a", "<f4", [1] * 100]],
        [["a", "<f4", [10**4000] * 1000]],
        [["a", "|O", [1]]],
        [["a", "(1,f4", [2]]],
        [["a", "f4,f4", [1]]],
        [["a", ["<f4"], [2]]],
        [["a", "<U2", [1]]],
        [[1, "<f4", [2]]],
        [["a", "<f4"]],
        [],
        None,
        "a",
        {"a": 1},
    ],
)
def test_arrays_that_do_not_fit_their_description(listed: Any) -> None:
    with pytest.raises(RunError):
        unpack_arrays(message({"buffers": [8], "arrays": listed}, bytes(8)))


def test_arrays_of_one_name_are_refused() -> None:
    with pytest.raises(RunError):
        unpack_arrays(message({"buffers": [4, 4], "arrays": [["a", "<f4", [1]], ["a", "<f4", [1]]]}, bytes(8)))


@pytest.mark.parametrize("change", [-1, 1])
def test_a_message_cut_off_or_too_long_is_refused(change: int) -> None:
    whole = b"".join(parts({"a": 1}, [b"12345"]))
    wrong = whole[:change] if change < 0 else whole + b"x"
    with pytest.raises(RunError):
        unpack(wrong)


def test_every_single_byte_change_of_the_prefix_is_noticed_or_harmless() -> None:
    whole = bytearray(b"".join(pack_arrays({"a": 1}, {"x": np.arange(3, dtype=np.float32)})))
    for place in range(8):
        for value in range(0, 256, 5):
            damaged = bytearray(whole)
            damaged[place] = value
            if damaged == whole:
                continue
            with pytest.raises(RunError):
                unpack_arrays(bytes(damaged))


def test_unpacking_does_not_copy_and_bounds_its_memory() -> None:
    body = bytes(8 * 2**20)
    whole = b"".join(pack_arrays({}, {"x": np.frombuffer(body, np.float32)}))
    tracemalloc.start()
    _, arrays = unpack_arrays(whole)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert arrays["x"].size == 2 * 2**20 and peak < 2**20


def test_a_crowd_of_empty_buffers_is_refused_before_it_takes_memory() -> None:
    with pytest.raises(RunError, match="buffers"):
        unpack(message({"buffers": [0] * (MAX_BUFFERS + 1)}))


def test_announced_lengths_allocate_nothing() -> None:
    tracemalloc.start()
    with pytest.raises(RunError):
        unpack(message({"buffers": [10**15]}))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@given(JSON)
@example({"codec": "fp32", "size": "12"})
@example({"codec": "fp32", "size": True})
@example({"codec": "fp32", "size": float("inf")})
@example({"codec": "fp32", "size": -1})
@example({"codec": 3, "size": 1})
@example({"codec": "fp32", "size": 1, "meta": None})
def test_a_payload_is_described_or_refused(header: Any) -> None:
    described = (
        isinstance(header, dict)
        and isinstance(header.get("codec"), str)
        and type(header.get("size")) is int
        and header["size"] >= 0
        and isinstance(header.get("meta", {}), dict)
    )
    if described:
        assert Payload.of(header, []).size == header["size"]
    else:
        with pytest.raises(RunError):
            Payload.of(header, [])


def test_payload_header_round_trip() -> None:
    payload = Payload("fp16", 3, (b"123456",), {"scale": 2.0})
    assert Payload.of(payload.header(), [memoryview(b"123456")]) == Payload(
        "fp16", 3, (memoryview(b"123456"),), {"scale": 2.0}
    )
