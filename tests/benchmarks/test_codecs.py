"""Dense codecs on the update of a ResNet-50, beside what plain numpy and torch take for the same bits.

Rates are printed, in gigabytes of float32 a second of one processor's time; only ratios within a run are asserted.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from toys.parts import plugin

from medfl.update.base import Update
from medfl.update.codecs.base import CODECS

SIZE = 25_557_032
BLOCK = 4096
Vector = npt.NDArray[np.float32]
DENSE: list[tuple[str, dict[str, Any]]] = [
    ("fp32", {}),
    ("fp16", {}),
    ("int8", {}),
    ("int8", {"rounding": "stochastic"}),
    ("int8", {"scale": "static", "bound": 0.5}),
    ("int8", {"compress": True}),
    ("int4", {}),
    ("int4", {"rotate": True}),
    ("int4", {"compress": True}),
    ("sign", {}),
    ("sign", {"scale": "none"}),
    ("qsgd", {}),
    ("qsgd", {"compress": True}),
    ("sketch", {"bits": 1}),
    ("sketch", {"bits": 8, "rotate": False}),
    ("shrinking_grid", {}),
]


@pytest.fixture(scope="module")
def update() -> Vector:
    """Heavy-tailed values, in layers of different size."""
    rng = np.random.default_rng(0)
    layers = np.repeat(10 ** rng.uniform(-4, -2, 161), -(-SIZE // 161))[:SIZE]
    return (rng.standard_t(4, SIZE) * layers).astype(np.float32)


def processor_seconds(work: Callable[[], Any], repeats: int = 3) -> float:
    """The least processor time of some runs; the first of all warms up."""
    found = []
    for _ in range(repeats + 1):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found[1:])


def rate(seconds: float) -> float:
    return 4e-9 * SIZE / seconds


def plain_int8(values: Vector) -> Any:
    rows = values[: SIZE - SIZE % BLOCK].reshape(-1, BLOCK)
    scale = np.abs(rows).max(axis=1, keepdims=True) / 127
    return np.rint(rows / scale).astype(np.int8)


def torch_int8(values: Vector) -> Any:
    rows = torch.from_numpy(values[: SIZE - SIZE % BLOCK].reshape(-1, BLOCK))
    scale = rows.abs().amax(1, keepdim=True) / 127
    return (rows / scale).round_().to(torch.int8)


def plain_sign(values: Vector) -> Any:
    rows = values[: SIZE - SIZE % BLOCK].reshape(-1, BLOCK)
    return np.abs(rows).mean(axis=1), np.packbits(values >= 0)


@pytest.mark.parametrize(("kind", "settings"), DENSE, ids=[f"{kind}-{settings}" for kind, settings in DENSE])
def test_dense_codecs(benchmark: Any, update: Vector, kind: str, settings: dict[str, Any]) -> None:
    codec, given = plugin(CODECS, kind, **settings), Update(update, SIZE)
    payload = benchmark.pedantic(codec.encode, args=(given, np.random.default_rng(0)), rounds=1, iterations=1)
    encode = processor_seconds(lambda: codec.encode(given, np.random.default_rng(0)))
    decode = processor_seconds(lambda: codec.decode(payload, SIZE))
    error = np.linalg.norm(codec.decode(payload, SIZE).values - update) / np.linalg.norm(update)
    sent = sum(len(buffer) for buffer in payload.buffers) / 1e6
    print(f"\n{sent:.2f} MB, encode {rate(encode):.2f} GB/s, decode {rate(decode):.2f} GB/s, rel. error {error:.3f}")
    assert sent * 1e6 <= update.nbytes


@pytest.mark.parametrize(
    ("kind", "peers"), [("int8", [plain_int8, torch_int8]), ("sign", [plain_sign])], ids=["int8", "sign"]
)
def test_encoding_beside_plain_arrays(
    benchmark: Any, update: Vector, kind: str, peers: list[Callable[[Vector], Any]]
) -> None:
    torch.set_num_threads(1)
    codec, target = plugin(CODECS, kind), np.empty_like(update)
    ours = benchmark.pedantic(
        processor_seconds,
        args=(lambda: codec.encode(Update(update, SIZE), np.random.default_rng(0)),),
        rounds=1,
        iterations=1,
    )
    theirs = {peer.__name__: processor_seconds(lambda peer=peer: peer(update)) for peer in peers}
    copied = processor_seconds(lambda: np.copyto(target, update))
    told = ", ".join(f"{name} {rate(seconds):.2f}" for name, seconds in theirs.items())
    print(f"\n{kind}: {rate(ours):.2f} GB/s; {told}, copying {rate(copied):.2f}")
    assert all(ours < 1.5 * seconds for seconds in theirs.values())
