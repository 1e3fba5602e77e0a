"""Decoders of quantisers meet bytes from a peer: any of them are decoded to the size or refused, in little memory.

The slow test changes valid payloads 100,000 times a codec; MEDFL_FUZZ sets another number.
"""

import os
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys.parts import plugin

from medfl.errors import RunError
from medfl.update.base import Payload, Update
from medfl.update.codecs.base import CODECS, Codec
from medfl.update.vector import Layout

SIZE = 700
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("int8", {"block": 64}),
    ("int8", {"scale": "static", "bound": 1.0}),
    ("int8", {"compress": True}),
    ("int4", {}),
    ("int4", {"rotate": True, "block": 64}),
    ("int4", {"compress": True}),
    ("sign", {"block": 64}),
    ("sign", {"scale": "none"}),
    ("qsgd", {"block": 64}),
    ("qsgd", {"compress": True}),
    ("sketch", {"block": 64}),
    ("sketch", {"bits": 3, "rotate": False}),
    ("shrinking_grid", {}),
]
every = pytest.mark.parametrize(("kind", "options"), KINDS, ids=[f"{kind}-{options}" for kind, options in KINDS])
ODD = [None, True, False, 0, 1, -1, 2**63, 2**64, 10**400, -(10**400), 0.5, 1e300, float("nan"), float("inf"), "7", []]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
META = st.dictionaries(st.sampled_from(["finite", "seed", "radius", "other"]), JSON | st.sampled_from(ODD))


def repr_(value: Any) -> str:
    return repr(value)[:20]


def valid(there: Codec, size: int = SIZE) -> Payload:
    values = np.random.default_rng(0).standard_t(3, size).astype(np.float32)
    return there.encode(Update(values, size), np.random.default_rng(1))


def taken(there: Codec, payload: Payload, size: int) -> bool:
    """Whether it was decoded; anything but a vector of the size or a RunError fails the test."""
    try:
        update = there.decode(payload, size)
    except RunError as error:
        assert str(error)
        return False
    assert payload.size == size and update.indices is None
    assert update.values.shape == (size,) and update.values.dtype == np.float32
    return True


@every
@settings(max_examples=100)
@given(st.data())
def test_any_bytes_and_header_are_decoded_to_the_size_or_refused(
    kind: str, options: dict[str, Any], data: st.DataObject
) -> None:
    there = plugin(CODECS, kind, **options)
    size = data.draw(st.integers(0, 40))
    length = sum(len(buffer) for buffer in valid(there, size).buffers)
    right = st.binary(min_size=length, max_size=length)
    buffers = data.draw(st.lists(right | st.binary(max_size=80), max_size=2) | right.map(lambda one: [one]))
    taken(
        there, Payload(kind, data.draw(st.sampled_from([size, size, 40, 2**48])), tuple(buffers), data.draw(META)), size
    )


def mutated(good: Payload, rng: np.random.Generator) -> Payload:
    """A valid payload with bytes flipped, cut, added, moved or doubled, or with another header."""
    body, meta, size = bytearray(good.buffers[0]), dict(good.meta), good.size
    for _ in range(rng.integers(1, 4)):
        place, choice = int(rng.integers(len(body) + 1)), int(rng.integers(9))
        if choice <= 1 and body:
            body[place % len(body)] ^= 1 << int(rng.integers(8))
        elif choice == 2 and body:
            body[place % len(body)] = int(rng.choice([0, 127, 128, 255]))
        elif choice == 3:
            del body[place:]
        elif choice == 4:
            body[place:place] = rng.bytes(int(rng.integers(1, 9)))
        elif choice == 5:
            part = bytes(body[place : place + 8])
            body[place % 16 : place % 16 + len(part)] = part
        elif choice == 6:
            name = ["finite", "seed", "radius"][int(rng.integers(3))]
            meta[name] = ODD[int(rng.integers(len(ODD)))]
        elif choice == 7 and meta:
            meta.pop(next(iter(meta)))
        else:
            size = int(rng.choice([size, size, size, 0, size - 1, size + 1, 2**40]))
    count = int(rng.choice([1, 1, 1, 1, 1, 0, 2]))
    return Payload(good.codec, size, (bytes(body),) * count, meta)


def mutations(there: Codec, count: int) -> Iterator[Payload]:
    rng, good = np.random.default_rng(2), valid(there)
    return (mutated(good, rng) for _ in range(count))


@every
def test_mutations_are_decoded_or_refused(kind: str, options: dict[str, Any]) -> None:
    there = plugin(CODECS, kind, **options)
    assert taken(there, valid(there), SIZE)
    found = [taken(there, payload, SIZE) for payload in mutations(there, 300)]
    # the loop reaches both ends
    assert any(found) and not all(found)


@every
def test_mutations_take_little_memory(kind: str, options: dict[str, Any]) -> None:
    there = plugin(CODECS, kind, **options)
    taken(there, valid(there), SIZE)
    payloads = list(mutations(there, 300))
    tracemalloc.start()
    for payload in payloads:
        taken(there, payload, SIZE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300_000


MORE: list[tuple[str, dict[str, Any]]] = [("fp32", {}), ("fp16", {}), ("powersgd", {})]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "options"), KINDS + MORE, ids=str)
def test_a_hundred_thousand_mutations(kind: str, options: dict[str, Any]) -> None:
    there, slowest = plugin(CODECS, kind, **options), 0.0
    there.bind(Layout.of([("weight", (30, 20)), ("bias", (SIZE - 600,))]))
    for payload in mutations(there, int(os.environ.get("MEDFL_FUZZ", "100000"))):
        started = time.thread_time()
        taken(there, payload, SIZE)
        slowest = max(slowest, time.thread_time() - started)
    assert slowest < 0.1


@pytest.mark.parametrize("seed", [one for one in ODD if type(one) is not int or not 0 <= one < 2**63], ids=repr_)
def test_seeds_that_are_none_are_refused(seed: Any) -> None:
    for there in (plugin(CODECS, "sketch"), plugin(CODECS, "int4", rotate=True)):
        good = valid(there)
        assert not taken(there, Payload(good.codec, SIZE, good.buffers, {"seed": seed}), SIZE)
        assert not taken(there, Payload(good.codec, SIZE, good.buffers), SIZE)


@pytest.mark.parametrize("radius", [None, True, -1, 10**400, 1e300, float("nan"), float("inf"), "7", []], ids=repr_)
def test_radii_that_are_none_are_refused(radius: Any) -> None:
    there = plugin(CODECS, "shrinking_grid")
    good = valid(there)
    assert not taken(there, Payload(good.codec, SIZE, good.buffers, {"radius": radius}), SIZE)
    assert not taken(there, Payload(good.codec, SIZE, good.buffers), SIZE)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, -1.0])
def test_numbers_of_a_block_that_are_none_are_refused(number: float) -> None:
    for kind in ("int8", "qsgd", "sign", "int4", "sketch"):
        there = plugin(CODECS, kind)
        good = valid(there)
        short, last = kind == "int4", 4 if kind == "sketch" else 0
        bad = np.array([number], "<f4").tobytes()[2 if short else 0 :]
        body = bytearray(good.buffers[0])
        body[last : last + len(bad)] = bad
        assert not taken(there, Payload(kind, SIZE, (bytes(body),), good.meta), SIZE)


@every
def test_a_vector_that_is_not_finite_has_no_bytes(kind: str, options: dict[str, Any]) -> None:
    there = plugin(CODECS, kind, **options)
    good = valid(there)
    assert taken(there, Payload(kind, SIZE, (), {"finite": False}), SIZE)
    assert not taken(there, Payload(kind, SIZE, good.buffers, {**good.meta, "finite": False}), SIZE)
    for other in (0, None, "false", True):
        assert not taken(there, Payload(kind, SIZE, (), {"finite": other}), SIZE)
