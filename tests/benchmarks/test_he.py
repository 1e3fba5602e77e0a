"""What encryption costs: bytes counted from real payloads, CPU seconds and memory of one process (`make bench`).

Printed; asserted are bytes, which do not depend on the machine, exactness, and ratios within one run. Each measurement
has a fresh process. "site" measures one site's sealing alone; "all" also coordinator and key holder, which share
the process, so that `peak_mb` is that of all together.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("tenseal")

pytestmark = pytest.mark.benchmark(group="he")

SITE = """
import json, resource, sys, time
import numpy as np
from medfl.privacy.channels.base import Message, RoundContext
from medfl.privacy.channels.he import He, HeConfig
from medfl.privacy.identity import Ed25519Identity
from medfl.update.base import Payload
from medfl.update.wire import as_bytes

def resident():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

size, scheme, keys, part = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
names = ("a", "b", "c")
identities = {name: Ed25519Identity.generate(name) for name in names}
roster = {name: identity.public for name, identity in identities.items()}
channel = He(HeConfig(scheme=scheme, keys=keys))
context = RoundContext("run", 1, 1, names, size, 8_000_000)
ends = {name: channel.site(identity, roster, lambda *_: None) for name, identity in identities.items()}
spent, passed = {}, {}

def exchange(stage, messages):
    start = time.process_time()
    answers = {site: ends[site].answer(stage, message) for site, message in messages.items()}
    spent[stage] = time.process_time() - start
    passed[stage] = sum(len(b) for m in [*messages.values(), *answers.values()] for b in m.buffers)
    return answers

end = channel.coordinator(context, roster)
end.prepare(exchange)
def payload(seed):
    values = np.random.default_rng(seed).normal(0, 20_000, size).astype(np.int32)
    return Payload("grid", size, (as_bytes(values),))
result = {}
first = payload(0)
before = resident()
start = time.process_time()
sealed = ends["a"].seal(1, first)
result["site_cpu_s"] = time.process_time() - start
result["site_rss_mb"] = peak() - before
result["up_bytes"] = sum(len(buffer) for buffer in sealed.buffers)
if part == "all":
    end.add("a", sealed)
    sealed = ends["b"].seal(1, payload(1))
    start = time.process_time()
    end.add("b", sealed)
    result["add_cpu_s"] = time.process_time() - start
    sealed = ends["c"].seal(1, payload(2))
    end.add("c", sealed)
    del sealed
    start = time.process_time()
    total = end.open(exchange)
    result["open_cpu_s"] = time.process_time() - start
    result["decrypt_cpu_s"] = spent["he.decrypt"]
    result["sum_bytes"] = passed["he.decrypt"] - 4 * size
    result["peak_mb"] = peak()
    values = [np.frombuffer(payload(seed).buffers[0], np.int32).astype(np.int64) for seed in range(3)]
    result["exact"] = bool(np.array_equal(total, sum(values)))
print(json.dumps(result))
"""

VECTOR = """
import json, resource, sys, time
import numpy as np
from medfl.privacy.channels.he.vector import CkksVectors
size, result = int(sys.argv[1]), {}
values = np.random.default_rng(0).integers(-2**20, 2**20, size).astype(np.float32) * 2.0**-20
sites = CkksVectors.generate()
coordinator = sites.public()
def timed(name, work):
    start = time.process_time()
    made = list(work())
    result[name] = time.process_time() - start
    return made
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
first = timed("site_cpu_s", lambda: sites.encrypt(values))
result["site_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
result["up_bytes"] = sum(map(len, first))
total = timed("add_cpu_s", lambda: coordinator.add(first, first))
start = time.process_time()
opened = sites.decrypt(total, 2.0**-20)
result["decrypt_cpu_s"] = time.process_time() - start
result["sum_bytes"] = sum(map(len, total))
result["exact"] = bool(np.array_equal(opened, 2 * values))
print(json.dumps(result))
"""


def measured(script: str, *arguments: object) -> dict[str, Any]:
    process = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], check=True, capture_output=True, text=True
    )
    result: dict[str, Any] = json.loads(process.stdout)
    return result


def report(title: str, size: int, result: dict[str, Any]) -> None:
    shown = {key: round(value, 2) if isinstance(value, float) else value for key, value in result.items()}
    per_value = {key: round(result[key] / size, 2) for key in ("up_bytes", "sum_bytes") if key in result}
    print(f"\n{title}, {size:,} parameters: {shown}; bytes a parameter: {per_value}")


@pytest.mark.parametrize(
    ("scheme", "keys", "size", "part", "most"),
    [
        ("bfv", "symmetric", 11_000_000, "site", 7.0),
        ("bfv", "symmetric", 25_000_000, "site", 7.0),
        ("bfv", "symmetric", 11_000_000, "all", 7.0),
        ("ckks", "symmetric", 11_000_000, "site", 8.0),
        ("bfv", "public", 1_000_000, "all", 14.0),
        ("ckks", "public", 1_000_000, "all", 16.0),
    ],
)
def test_channel(benchmark: Any, scheme: str, keys: str, size: int, part: str, most: float) -> None:
    result = benchmark.pedantic(measured, (SITE, size, scheme, keys, part), rounds=1)
    report(f"{scheme} {keys}, {part}", size, result)
    assert result["up_bytes"] / size <= most
    assert result.get("exact", True)


def test_against_ckks_vector(benchmark: Any) -> None:
    """One million parameters, side by side with the way of other systems."""
    size = 1_000_000
    peer = benchmark.pedantic(measured, (VECTOR, size), rounds=1)
    own = measured(SITE, size, "bfv", "symmetric", "all")
    report("ckks_vector 8192 [60, 40, 40]", size, peer)
    report("bfv symmetric", size, own)
    assert peer["exact"]
    assert own["exact"]
    assert peer["up_bytes"] > 8 * own["up_bytes"]
    assert peer["site_cpu_s"] > 2 * own["site_cpu_s"]
