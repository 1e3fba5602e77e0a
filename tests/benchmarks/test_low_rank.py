"""What staying in the range of A costs a local step of SE-ResNet18 (11.3 million values), in one run. `make bench` runs
it."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from toys.parts import CPU, plugin

from medfl.learning.flat import FlatNetwork, seeded
from medfl.learning.partial import PartialTraining
from medfl.tasks.base import TASKS
from medfl.update.submodels.base import SUBMODELS, Choice, Setup

RESNET18 = {"layers": [2, 2, 2, 2], "width": 64}


def seconds(work: Callable[[], Any], times: int) -> float:
    """Median CPU time of this process."""
    found = []
    for _ in range(times):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return statistics.median(found)


def test_a_projection_costs_less_than_a_tenth_of_a_step(benchmark: Any) -> None:
    torch.set_num_threads(1)
    task = plugin(TASKS, "classification", classes=["normal", "pneumonia"], network=RESNET18)
    network = FlatNetwork(seeded(task.build, 0), CPU)
    submodel = plugin(SUBMODELS, "low_rank", rank=4)
    submodel.bind(Setup(network.layout, 0, Exception, Exception))
    drawn = seconds(lambda: submodel.part(Choice("a", 1)), 3)
    part = submodel.part(Choice("a", 1))
    training = PartialTraining(network, network.parameters.detach().clone(), part)
    optimizer = torch.optim.SGD([network.parameters], lr=1e-6, momentum=0.9)
    images = np.random.default_rng(0).normal(size=(16, 1, 64, 64)).astype(np.float32)
    batch = task.to_device({"image": images, "label": np.zeros(16, np.int64)}, CPU)

    def step() -> None:
        network.gradient.zero_()
        task.loss(network.module, batch).backward()
        optimizer.step()

    def projection() -> None:
        training.direction()
        training.hold()

    projection()
    whole = seconds(step, 5)
    share = benchmark.pedantic(lambda: seconds(projection, 9), rounds=1, iterations=1) / whole
    print(f"\nrank 4: {share:.1%} of a step, {1000 * drawn:.1f} ms a round to draw A, {part.size / part.whole:.1%} up")
    assert share < 0.1
