"""Sparse codecs on an update of 25.6 million values: ratios to torch within one run, and the figures that users feel
(printed, never asserted). `make bench` runs these."""

import statistics
import time
import tracemalloc
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from toys.parts import plugin

from medfl.update.base import Update
from medfl.update.codecs.base import CODECS
from medfl.update.codecs.indices import pack_indices, unpack_indices
from medfl.update.codecs.selection import largest
from medfl.update.codecs.stc import golomb_bits, pack_golomb, unpack_golomb

SIZE, COUNT = 25_557_032, 255_570
TENSORS = 161


@cache
def update() -> Update:
    """Student-t values, scaled tensor by tensor."""
    rng = np.random.default_rng(0)
    values = rng.standard_t(3, SIZE).astype(np.float32)
    bounds = np.sort(rng.choice(SIZE, TENSORS - 1, replace=False))
    for part in np.split(values, bounds):
        part *= np.float32(rng.lognormal(0, 1.5))
    return Update(values, SIZE)


def milliseconds(work: Callable[[], Any], times: int = 5) -> float:
    """Median CPU time of this process."""
    found = []
    for _ in range(times):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return 1000 * statistics.median(found)


def test_selection_against_torch(benchmark: Any) -> None:
    values = update().values
    tensor = torch.from_numpy(values)

    def ratio() -> float:
        theirs = milliseconds(lambda: torch.topk(tensor.abs(), COUNT, sorted=False), 1)
        return theirs / milliseconds(lambda: largest(values, COUNT), 1)

    ratio()
    ratios = [ratio() for _ in range(4)]
    ratios.append(benchmark.pedantic(ratio, rounds=1, iterations=1))
    expected = torch.topk(tensor.abs(), COUNT).indices.numpy()
    recall = np.isin(expected, largest(values, COUNT)).mean()
    speed = milliseconds(lambda: largest(values, COUNT))
    print(f"\ntop 1 % of {SIZE}: {speed:.0f} ms, {statistics.median(ratios):.1f} times torch.topk, recall {recall:.4f}")
    assert statistics.median(ratios) >= 3 and recall >= 0.99


@pytest.mark.parametrize("what", ["zeros", "equal", "misleading"])
def test_no_vector_makes_selection_slow(benchmark: Any, what: str) -> None:
    values = np.zeros(SIZE, np.float32) if what == "zeros" else np.ones(SIZE, np.float32)
    if what == "misleading":
        values[1::2] = 0
    tensor = torch.from_numpy(update().values)
    theirs = milliseconds(lambda: torch.topk(tensor.abs(), COUNT, sorted=False), 1)
    ours = benchmark.pedantic(milliseconds, args=(lambda: largest(values, COUNT), 3), rounds=1, iterations=1)
    print(f"\n{what}: {ours:.0f} ms, torch.topk of usual values {theirs:.0f} ms")
    assert ours < theirs


def test_positions(benchmark: Any) -> None:
    values = update().values
    clustered = largest(values, COUNT)
    spread = np.sort(np.random.default_rng(1).choice(SIZE, COUNT, replace=False))
    bits = golomb_bits(COUNT, SIZE)

    def coding(indices: npt.NDArray[np.int64]) -> list[float]:
        planes, golomb = pack_indices(indices), pack_golomb(indices, bits)
        return [
            milliseconds(lambda: pack_indices(indices), 9),
            milliseconds(lambda: unpack_indices(planes, COUNT, SIZE), 9),
            len(planes) / 1e6,
            milliseconds(lambda: pack_golomb(indices, bits), 9),
            milliseconds(lambda: unpack_golomb(golomb, COUNT, SIZE, bits), 9),
            sum(len(buffer) for buffer in golomb) / 1e6,
        ]

    found = {"clustered": coding(clustered)}
    found["spread"] = benchmark.pedantic(coding, args=(spread,), rounds=1, iterations=1)
    for name, (pack, unpack, size, golomb, golomb_back, golomb_size) in found.items():
        print(
            f"\n{COUNT} {name} positions: planes {pack:.2f} ms, back {unpack:.2f} ms, {size:.3f} MB; "
            f"Golomb {golomb:.2f} ms, back {golomb_back:.2f} ms, {golomb_size:.3f} MB"
        )
        # no entry of either code is read on its own
        assert golomb_back < 10 * unpack
    assert found["clustered"][2] < found["clustered"][5]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("topk", {}),
        ("topk", {"values": "int8"}),
        ("topk", {"density": 0.25}),
        ("personal_topk", {}),
        ("random_k", {}),
        ("stc", {}),
        ("stc", {"coding": "golomb"}),
        ("stc", {"coding": "golomb", "density": 0.0025}),
        ("sparse_binary", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(str(part) for part in value.values()) or "default",
)
def test_codec(benchmark: Any, kind: str, settings: dict[str, Any]) -> None:
    """Bytes, time and memory of a whole update."""
    codec, rng = plugin(CODECS, kind, **settings), np.random.default_rng(0)
    payload = benchmark.pedantic(codec.encode, args=(update(), rng), rounds=1, iterations=1)

    def peak(work: Callable[[], Any]) -> float:
        tracemalloc.start()
        work()
        found = tracemalloc.get_traced_memory()[1] / (4 * SIZE)
        tracemalloc.stop()
        return found

    peaks = [peak(lambda: codec.encode(update(), rng)), peak(lambda: codec.decode(payload, SIZE))]
    encode = milliseconds(lambda: codec.encode(update(), rng), 3)
    decode = milliseconds(lambda: codec.decode(payload, SIZE), 3)
    size = sum(len(buffer) for buffer in payload.buffers)
    print(
        f"\n{kind} {settings}: {size / 1e6:.3f} MB (x{4 * SIZE / size:.0f}), encode {encode:.0f} ms, "
        f"decode {decode:.1f} ms, peak {peaks[0]:.2f} and {peaks[1]:.2f} of the update"
    )
    assert max(peaks) <= 1.5
