"""What a round over the services costs beside raw gRPC, in the same run. `make bench` runs these."""

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest

pytest.importorskip("grpc", reason="the services need the grpc extra")
HARNESS = Path(__file__).with_name("transport_harness.py")


def harness(*options: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(HARNESS), "--json", *options], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_round_against_raw_streams(benchmark: Any) -> None:
    options = ("--mb", "25", "--rounds", "7", "--agents")
    (found,) = benchmark.pedantic(harness, args=options, rounds=1, iterations=1)
    floor = median(found["floor_client"]["rounds"])
    ratios = {kind: median(found[kind]["rounds"]) / floor for kind in ("site", "agent")}
    print(f"\n25 MB, 3 sites: {ratios['site']:.2f} times raw gRPC's {floor:.2f} s, {ratios['agent']:.2f} with agents")
    assert ratios["site"] <= 4


def test_the_coordinators_memory_does_not_grow_with_the_sites(benchmark: Any) -> None:
    options = ("--mb", "10", "--sites", "3", "30", "--rounds", "3", "--no-floor")
    few, many = benchmark.pedantic(harness, args=options, rounds=1, iterations=1)
    sizes = [found["site"]["server"]["rss"] for found in (few, many)]
    print(f"\n10 MB: the coordinator takes {sizes[0]:.0f} MB with 3 sites, {sizes[1]:.0f} MB with 30")
    # 27 updates more would be 270 MB
    assert sizes[1] - sizes[0] < 100
