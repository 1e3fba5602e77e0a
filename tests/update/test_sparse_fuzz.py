"""What arrives from a peer: any bytes and any meta are decoded to an update of the expected size or refused, in bounded
time and memory.

The slow test changes valid payloads 100,000 times a codec; MEDFL_FUZZ sets another number.
"""

import os
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from toys.parts import plugin

from medfl.errors import RunError
from medfl.update.base import Payload, Update
from medfl.update.codecs.base import CODECS, Codec

CODECS_UNDER_TEST: dict[str, Callable[[], Codec]] = {
    "topk-fp32": lambda: plugin(CODECS, "topk", values="fp32", density=0.05),
    "topk-fp16": lambda: plugin(CODECS, "topk", density=0.05),
    "topk-int8": lambda: plugin(CODECS, "topk", values="int8", density=0.05),
    "personal_topk": lambda: plugin(CODECS, "personal_topk", density=0.05),
    "random_k": lambda: plugin(CODECS, "random_k", density=0.05),
    "stc-planes": lambda: plugin(CODECS, "stc", density=0.05),
    "stc-golomb": lambda: plugin(CODECS, "stc", coding="golomb", density=0.05),
    "sparse_binary": lambda: plugin(CODECS, "sparse_binary", density=0.05),
}
NAMES = sorted(CODECS_UNDER_TEST)
SIZE = 2000
# what a decoder may take beside the update itself, whose indices take 8 bytes a value and whose values 4
MEMORY = 40 * SIZE + 100_000

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
META = st.fixed_dictionaries(
    {}, optional={"k": st.integers(0, 12) | JSON, "mean": st.floats() | JSON, "bits": st.integers(0, 4) | JSON}
)
FRAMES = st.binary(max_size=40) | st.binary(max_size=40).map(zstandard.compress)


def decoded(codec: Codec, payload: Payload, size: int) -> Update | None:
    """The update, which must be whole; None when the payload was refused."""
    try:
        update = codec.decode(payload, size)
    except RunError as error:
        assert str(error)
        return None
    assert update.size == size and update.values.dtype == np.float32
    if update.indices is None:
        assert update.values.shape == (size,)
    else:
        assert update.values.shape == update.indices.shape and update.indices.dtype == np.int64
        assert (np.diff(update.indices) > 0).all()
        assert not update.indices.size or (update.indices[0] >= 0 and update.indices[-1] < size)
    return update


@pytest.mark.parametrize("name", NAMES)
@given(st.lists(FRAMES, max_size=4), META, st.integers(0, 12))
@settings(max_examples=200)
def test_any_bytes_and_any_meta(name: str, buffers: list[bytes], meta: dict[str, Any], size: int) -> None:
    codec = CODECS_UNDER_TEST[name]()
    decoded(codec, Payload(codec.config.kind, size, tuple(buffers), meta), size)


def valid(codec: Codec) -> list[Payload]:
    """Payloads of updates of different shapes."""
    rng = np.random.default_rng(0)
    noise = rng.standard_t(3, SIZE)
    clustered = np.where(np.arange(SIZE) < 300, noise * 100, noise)
    few = np.where(np.arange(SIZE) % 700 == 3, noise, 0)
    broken = np.where(np.arange(SIZE) == 9, np.nan, noise)
    updates = [Update(values.astype(np.float32), SIZE) for values in (noise, clustered, few, broken)]
    return [codec.encode(update, rng) for update in updates]


ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    2,
    99,
    100,
    101,
    SIZE,
    SIZE + 1,
    2**31,
    2**63,
    10**400,
    0.5,
    -0.5,
    1e39,
    "1",
    [],
    {},
)
ODD_FLOATS = (float("nan"), float("inf"), -float("inf"))


def changed(payload: Payload, rng: np.random.Generator) -> Payload:
    """The payload with one to three faults: bits, bytes, lengths, whole buffers, meta, the content of a frame."""
    buffers, meta = [bytearray(buffer) for buffer in payload.buffers], dict(payload.meta)
    for _ in range(rng.integers(1, 4)):
        what = rng.integers(7)
        chosen = buffers[rng.integers(len(buffers))] if buffers else bytearray()
        if what == 0 and chosen:
            chosen[rng.integers(len(chosen))] ^= 1 << int(rng.integers(8))
        elif what == 1 and chosen:
            chosen[int(rng.integers(len(chosen)))] = int(rng.integers(256))
        elif what == 2:
            del chosen[int(rng.integers(len(chosen) + 1)) :]
        elif what == 3:
            chosen += rng.bytes(int(rng.integers(1, 9)))
        elif what == 4 and buffers:
            _reordered(buffers, rng)
        elif what == 5:
            odd = (*ODD, *ODD_FLOATS)
            meta[str(rng.choice(["k", "mean", "bits"]))] = odd[int(rng.integers(len(odd)))]
        elif what == 6 and chosen:
            _refilled(chosen, rng)
    return Payload(payload.codec, payload.size, tuple(bytes(buffer) for buffer in buffers), meta)


def _reordered(buffers: list[bytearray], rng: np.random.Generator) -> None:
    taken = buffers.pop(int(rng.integers(len(buffers))))
    if rng.random() < 0.7:
        buffers.insert(int(rng.integers(len(buffers) + 1)), taken)
    if rng.random() < 0.2:
        buffers.append(bytearray(taken))


def _refilled(buffer: bytearray, rng: np.random.Generator) -> None:
    """Another content in a frame that is well formed."""
    try:
        if zstandard.frame_content_size(bytes(buffer)) > 10 * SIZE:
            return
        content = bytearray(zstandard.decompress(bytes(buffer)))
    except zstandard.ZstdError:
        return
    for _ in range(rng.integers(1, 4)):
        if content:
            content[int(rng.integers(len(content)))] = int(rng.choice([0, 1, 127, 255, int(rng.integers(256))]))
    if rng.random() < 0.2:
        content += rng.bytes(8)
    buffer[:] = zstandard.compress(bytes(content))


def attack(name: str, number: int, seed: int) -> tuple[int, int]:
    """How many of `number` changed payloads were decoded, and how many refused; each in little memory and time."""
    codec, rng = CODECS_UNDER_TEST[name](), np.random.default_rng(seed)
    originals, taken = valid(codec), 0
    assert all(decoded(codec, original, SIZE) is not None for original in originals)
    for index in range(number):
        payload = changed(originals[index % len(originals)], rng)
        # tracing makes everything slower: a part of them is enough
        traced = index % 10 == 0
        if traced:
            tracemalloc.start()
        started = time.process_time()
        taken += decoded(codec, payload, SIZE) is not None
        seconds = time.process_time() - started
        if traced:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < MEMORY, f"{peak} bytes for {payload.meta}"
        assert seconds < 1, f"{seconds} s for {payload.meta}"
    return taken, number - taken


@pytest.mark.parametrize("name", NAMES)
def test_changed_payloads(name: str) -> None:
    taken, refused = attack(name, 500, 0)
    # faults of both kinds are tried: those that no decoder can see, and those that it must
    assert taken > 10 and refused > 100


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_changed_payloads(name: str) -> None:
    taken, refused = attack(name, int(os.environ.get("MEDFL_FUZZ", "100000")), 1)
    assert taken and refused
