"""What protection costs a site and the coordinator, in CPU seconds (printed) and against plain work (asserted)."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from toys.secure_sum import Federation, grid

from medfl.privacy.grid import Grid
from medfl.privacy.keystream import Keystream
from medfl.privacy.noise import _sample, system

VALUES = 11_000_000


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


@pytest.mark.parametrize("sites", [5, 10, 100])
def test_masks(benchmark: Any, sites: int) -> None:
    federation, codec = Federation(sites, size=VALUES), Grid.fit(1.0, sites)
    vector = np.random.default_rng(0).standard_normal(VALUES).astype(np.float32)
    end = federation.coordinator()
    keys, _ = seconds(lambda: end.prepare(federation.exchange))
    encoding, values = seconds(lambda: codec.encode(vector))
    sealing, sealed = seconds(lambda: federation.sites["a"].seal(1, grid(values)))
    assert sum(map(len, sealed.buffers)) == 4 * VALUES
    adding, _ = seconds(lambda: end.add("a", sealed))
    # the same number of keystreams and additions, one after the other over the whole vector
    plain, _ = seconds(lambda: naive(values.view(np.uint32), 10))
    benchmark.pedantic(codec.encode, args=(vector,), rounds=1)
    print(
        f"\n{sites} sites x {VALUES} values, CPU seconds: a site {keys / sites:.3f} keys + {encoding:.3f} grid + "
        f"{sealing:.3f} masks and signature; the coordinator {adding:.3f} a site"
    )
    assert sealing / sites < plain / 10


def naive(words: Any, masks: int) -> Any:
    """Masks of numpy's general generator, each made as a whole: neither safe nor kind to the cache."""
    for seed in range(masks):
        words = words + np.random.Generator(np.random.Philox(seed)).integers(0, 2**32, words.size, np.uint32)
    return words


@pytest.mark.parametrize("sigma", [1.0, 1e5, 1e7])
def test_noise(benchmark: Any, sigma: float) -> None:
    exact, _ = seconds(lambda: _sample(sigma, VALUES, Keystream(system.key())))
    plain, _ = seconds(lambda: np.rint(np.random.default_rng(0).normal(0, sigma, VALUES)).astype(np.int64))
    benchmark.pedantic(_sample, args=(sigma, 1 << 16, Keystream(system.key())), rounds=1)
    print(f"\n{VALUES} values, sigma {sigma:g}, CPU seconds: exact {exact:.2f}, numpy rounded {plain:.2f}")
    assert exact < 10 * plain
