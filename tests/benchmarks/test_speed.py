"""Speed as ratios within one run, and the absolute figures that users feel (printed, never asserted).

`make bench` runs these.
"""

import json
import statistics
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from medfl.coordinator.observer import Observer
from medfl.coordinator.runner import simulate
from medfl.data.cache import default_folder
from medfl.federation.aggregation.base import AGGREGATORS
from medfl.learning.executor import SiteExecutor
from medfl.learning.messages import TrainOrder
from medfl.learning.optimizers import AdamOptimizer
from medfl.study.build import build_local
from medfl.study.load import load_sites, load_study
from medfl.study.sources import RunInputs, assign_cases, load_site_data
from medfl.update.base import Update

PARAMETERS = 25_000_000


def federation(folder: Path, sites: int, network: dict[str, Any], **changes: Any) -> RunInputs:
    """A classification study over `sites` hospitals with a few small images each."""
    (folder / "sites").mkdir(parents=True)
    for number in range(sites):
        (folder / "sites" / f"s{number:02d}.yaml").write_text(f"name: s{number:02d}\n")
    study = {
        "name": "speed",
        "task": {"kind": "classification", "classes": ["normal", "pneumonia"], "network": network},
        "data": {
            "source": {"kind": "synthetic", "generator": "chest", "size": [16, 16], "cases": 6},
            "preprocess": {"size": [16, 16], "channels": 1},
        },
        "local": {"max_steps": 1, "batch_size": 4},
        "stop": {"rounds": 12},
        **changes,
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return RunInputs(
        study=load_study(folder / "study.yaml"), sites=tuple(load_sites(folder / "sites")), cache=default_folder()
    )


def orchestration(run: Path) -> list[float]:
    """Seconds a round, without training and evaluation; the first round warms up."""
    rounds = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    return [
        sum(record["seconds"].values())
        - record["seconds"]["evaluate"]
        - sum(site["train"] for site in record["site_seconds"].values())
        for record in rounds[1:]
    ]


@pytest.mark.parametrize(
    ("sites", "network"),
    [(10, {"layers": [1, 1, 1, 1], "width": 29}), (50, {"layers": [1], "width": 4, "stem": "small"})],
    ids=["10-sites-1M", "50-sites-tiny"],
)
def test_orchestration(benchmark: Any, tmp_path: Path, sites: int, network: dict[str, Any]) -> None:
    inputs = federation(tmp_path, sites, network)
    summary = benchmark.pedantic(
        simulate, args=(inputs, tmp_path / "run", Observer()), kwargs={"workers": 1}, rounds=1, iterations=1
    )
    seconds = orchestration(tmp_path / "run")
    print(f"\n{sites} sites x {summary['parameters']} parameters: {1000 * statistics.median(seconds):.1f} ms a round")
    assert min(seconds) > 0


def bare_loop(network: nn.Module, batches: list[Any], task: Any, clip: float) -> float:
    """The plainest PyTorch loop over the same batches; seconds."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0)
    started = time.perf_counter()
    for arrays in batches:
        optimizer.zero_grad()
        loss = task.loss(network, task.to_device(arrays, torch.device("cpu")))
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
    return time.perf_counter() - started


def test_local_training_against_a_bare_loop(benchmark: Any, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    inputs = federation(tmp_path, 1, {"layers": [2, 2, 2], "width": 16})
    local = {"local": {"batch_size": 16, "epochs": 8, "max_steps": None}}
    source = {"cases": 160, "size": [32, 32]}
    raw = yaml.safe_load((tmp_path / "study.yaml").read_text())
    raw["data"]["source"] |= source
    raw["data"]["preprocess"]["size"] = [32, 32]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**raw, **local}))
    inputs = inputs.model_copy(update={"study": load_study(tmp_path / "study.yaml")})
    parts = build_local(inputs.study)
    executor = SiteExecutor(parts, torch.device("cpu"))
    data = load_site_data(inputs, "s00", assign_cases(inputs).cases["s00"])
    samples, model = data.splits["train"], executor.network.store()
    weights = parts.task.weights(samples.labels())
    order = TrainOrder("s00", 1, {"local.epochs": 8, "local.learning_rate": 1e-3})
    size, count = parts.batch_size, len(samples)
    chosen = [np.arange(start, min(start + size, count)) for start in range(0, count, size)] * 8
    bare_network = parts.task.build()

    def both() -> float:
        started = time.perf_counter()
        executor.train(data, order, model, {})
        ours = time.perf_counter() - started
        batches = ({**samples.batch(index), "weight": weights[index]} for index in chosen)
        return bare_loop(bare_network, batches, parts.task, 5.0) / ours  # type: ignore[arg-type]

    both()
    ratios = [both() for _ in range(4)]
    ratios.append(benchmark.pedantic(both, rounds=1, iterations=1))
    print(f"\nlocal training: {statistics.median(ratios):.3f} of a bare loop's throughput ({len(chosen)} steps)")
    assert statistics.median(ratios) >= 0.95


def test_an_optimiser_step_against_torchs_default(benchmark: Any) -> None:
    parameters = nn.Parameter(torch.zeros(PARAMETERS))
    parameters.grad = torch.full_like(parameters, 1e-3)
    ours = AdamOptimizer(weight_decay=0.01).build(parameters, 1e-3)
    default = torch.optim.AdamW([parameters], 1e-3, weight_decay=0.01)

    def ratio() -> float:
        started = time.perf_counter()
        default.step()
        slow = time.perf_counter() - started
        started = time.perf_counter()
        ours.step()
        return slow / (time.perf_counter() - started)

    ratio()
    ratios = [*(ratio() for _ in range(4)), benchmark.pedantic(ratio, rounds=1, iterations=1)]
    print(f"\na step of Adam, {PARAMETERS} values: {statistics.median(ratios):.1f} times as fast as torch's default")
    assert statistics.median(ratios) > 2


def test_aggregation_against_memory_copy(benchmark: Any) -> None:
    values = np.random.default_rng(0).standard_normal(PARAMETERS).astype(np.float32)
    target = np.empty_like(values)
    aggregator = AGGREGATORS.build(AGGREGATORS.default("weighted_mean"))
    aggregator.start(PARAMETERS)
    update = Update(values, PARAMETERS)
    aggregator.add(update, 1.0)

    def ratio() -> float:
        started = time.perf_counter()
        np.copyto(target, values)
        copied = time.perf_counter() - started
        started = time.perf_counter()
        aggregator.add(update, 3.0)
        return copied / (time.perf_counter() - started)

    ratio()
    ratios = [ratio() for _ in range(9)]
    ratios.append(benchmark.pedantic(ratio, rounds=1, iterations=1))
    print(f"\naggregation of {PARAMETERS} values: {statistics.median(ratios):.2f} of memory-copy bandwidth")
    assert statistics.median(ratios) >= 0.5


def test_aggregation_memory_does_not_grow_with_the_sites(benchmark: Any) -> None:
    size = 1_000_000
    values = np.ones(size, np.float32)

    def peak(sites: int) -> int:
        aggregator = AGGREGATORS.build(AGGREGATORS.default("weighted_mean"))
        tracemalloc.start()
        aggregator.start(size)
        for _ in range(sites):
            aggregator.add(Update(values.copy(), size), 1.0)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few = peak(2)
    many = benchmark.pedantic(peak, args=(50,), rounds=1, iterations=1)
    print(f"\naggregation peak: {few / 2**20:.1f} MiB for 2 sites, {many / 2**20:.1f} MiB for 50")
    assert many < 1.05 * few


def test_start_up(benchmark: Any, tmp_path: Path) -> None:
    """From the command to the first round's start, with the images already there."""
    federation(tmp_path, 4, {"layers": [1], "width": 4, "stem": "small"})
    command = [sys.executable, "-m", "medfl", "simulate", str(tmp_path / "study.yaml"), "--rounds", "1", "--no-report"]

    def first_round(number: int) -> float:
        out = tmp_path / f"run{number}"
        subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
        summary = json.loads((out / "summary.json").read_text())
        return float(summary["seconds"]["start_up"])

    first_round(0)
    started = time.perf_counter()
    start_up = benchmark.pedantic(first_round, args=(1,), rounds=1, iterations=1)
    print(f"\nstart-up {start_up:.1f} s, whole command {time.perf_counter() - started:.1f} s")
    assert start_up > 0
