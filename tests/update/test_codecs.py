"""Codecs: round trip, bounds, refusal of payloads that do not fit."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medfl.errors import RunError
from medfl.update.base import Payload, Update
from medfl.update.codecs.base import CODECS, Codec
from medfl.update.vector import Layout
from medfl.update.wire import parts, unpack

RNG = np.random.default_rng(0)
FINITE = hnp.arrays(np.float32, st.integers(0, 20), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
KINDS = sorted(CODECS.targets)


def codec(kind: str) -> Codec:
    built: Codec = CODECS.build(CODECS.default(kind))
    return built


def travelled(payload: Payload) -> Payload:
    header, buffers = unpack(b"".join(parts({"payload": payload.header()}, payload.buffers)))
    return Payload.of(header["payload"], buffers)


@given(FINITE)
def test_fp32_is_exact(values: Any) -> None:
    there = codec("fp32")
    back = there.decode(travelled(there.encode(Update(values, values.size), RNG)), values.size)
    assert back.dense().tobytes() == values.tobytes()


def test_fp32_does_not_copy() -> None:
    values = np.arange(5, dtype=np.float32)
    payload = codec("fp32").encode(Update(values, 5), RNG)
    assert np.shares_memory(np.frombuffer(payload.buffers[0], np.float32), values)
    assert np.shares_memory(codec("fp32").decode(payload, 5).values, values)


@pytest.mark.parametrize("kind", KINDS)
def test_only_codecs_that_lose_something_draw(kind: str) -> None:
    """The others are given a generator that all sites share."""
    made, rng = CODECS.default(kind), np.random.default_rng(0)
    there, before = codec(kind), rng.bit_generator.state
    there.bind(Layout.of([("a", (20, 15))]))
    there.encode_with(Update(np.linspace(-1, 1, 300, dtype=np.float32), 300), rng, {})
    drew = rng.bit_generator.state != before
    assert "lossy" in made.traits() or not drew
    assert drew or kind not in ("qsgd", "random_k"), "the check sees who draws"


@given(FINITE)
@example(np.array([1e38, -1e38, 65504, 65519, 65520, 1e-8], np.float32))
def test_fp16_is_half_precision_and_never_overflows(values: Any) -> None:
    there = codec("fp16")
    payload = there.encode(Update(values, values.size), RNG)
    assert sum(len(buffer) for buffer in payload.buffers) == 2 * values.size
    back = there.decode(travelled(payload), values.size).dense()
    bounded = np.clip(values, -65504, 65504)
    assert back.dtype == np.float32 and np.isfinite(back).all()
    assert (np.abs(back - bounded) <= np.abs(bounded) * 2**-11 + 2**-25).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_stay_visible(kind: str, bad: float) -> None:
    values = np.array([1, bad, 2], np.float32)
    back = codec(kind).decode(codec(kind).encode(Update(values, 3), RNG), 3)
    assert not np.isfinite(back.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_a_sparse_update_may_be_encoded(kind: str) -> None:
    update = Update(np.array([1, 2], np.float32), 5, np.array([1, 4]))
    back = codec(kind).decode(codec(kind).encode(update, RNG), 5).dense()
    assert back.shape == (5,) and np.isfinite(back).all()
    if "lossy" not in CODECS.default(kind).traits():
        assert back.tolist() == [0, 1, 0, 0, 2]


@pytest.mark.parametrize("kind", KINDS)
@given(st.lists(st.binary(max_size=40), max_size=3), st.integers(0, 9), st.integers(0, 9))
def test_any_payload_is_decoded_to_the_size_or_refused(
    kind: str, buffers: list[bytes], size: int, expected: int
) -> None:
    try:
        update = codec(kind).decode(Payload(kind, size, tuple(buffers)), expected)
    except RunError as error:
        assert str(error)
    else:
        assert size == expected and update.dense().shape == (expected,)


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_payloads_are_refused(kind: str) -> None:
    good = codec(kind).encode(Update(np.ones(4, np.float32), 4), RNG)
    *others, buffer = good.buffers
    wrong = [
        Payload("other", 4, good.buffers, good.meta),
        Payload(kind, 5, good.buffers, good.meta),
        Payload(kind, 4, (*others, bytes(buffer)[:-1]), good.meta),
        Payload(kind, 4, (*others, bytes(buffer) + b"x"), good.meta),
        Payload(kind, 4, (), good.meta),
        Payload(kind, 4, (*good.buffers, buffer), good.meta),
    ]
    for payload in wrong:
        with pytest.raises(RunError):
            codec(kind).decode(payload, 4)
    with pytest.raises(RunError):
        codec(kind).decode(good, 5)


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_leaves_the_update_alone(kind: str) -> None:
    values = np.array([1e6, np.inf, -3], np.float32)
    before = values.copy()
    codec(kind).encode(Update(values, 3), RNG)
    np.testing.assert_array_equal(values, before)
