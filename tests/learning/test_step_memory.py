"""What training takes beside the arithmetic. A step makes no vector as long as the parameters: to get one from the
system takes longer than to fill it."""

import gc
import os
import platform
import subprocess
import sys
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from toys.parts import CPU, local_parts, plugin, values
from toys.problems import least_squares
from toys.tasks import LeastSquares, Rows, site

from medfl.learning.executor import SiteExecutor
from medfl.learning.flat import FlatNetwork
from medfl.learning.messages import TrainOrder
from medfl.learning.optimizers import AdamOptimizer, SgdOptimizer, clip_gradient
from medfl.learning.rules.base import RULES, LocalContext, LocalRule
from medfl.plugins import PluginConfig

SIZE = 10_000


def vectors_made(act: Callable[[], Any]) -> int:
    """How often memory of about the parameters' size is asked for, after the first time."""
    act()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        act()
    # of what an operation gets and gives back the profiler knows the difference, so a little less than a vector
    return sum(event.self_cpu_memory_usage > 3.9 * SIZE for event in profile.events())


def network() -> FlatNetwork:
    found = FlatNetwork(torch.nn.Linear(SIZE // 10, 10, bias=False), torch.device("cpu"))
    found.gradient.normal_()
    return found


@pytest.mark.parametrize(
    "optimizer",
    [SgdOptimizer(), SgdOptimizer(momentum=0.9, nesterov=True, weight_decay=0.1), AdamOptimizer(weight_decay=0.1)],
    ids=repr,
)
def test_an_optimiser_makes_none(optimizer: SgdOptimizer | AdamOptimizer) -> None:
    flat = network()
    assert vectors_made(optimizer.build(flat.parameters, 0.1).step) == 0


def test_nor_do_clipping_and_the_proximal_term() -> None:
    flat, rule = network(), plugin(RULES, "fedprox")
    context: Any = SimpleNamespace(
        network=flat, anchor=torch.ones(SIZE), values={"fedprox.mu": 0.1, "local.learning_rate": 0.1}
    )

    def act() -> None:
        rule.direction(context)
        clip_gradient(flat.gradient, 1.0)

    assert vectors_made(act) == 0


def test_torchs_default_is_seen_to_make_some() -> None:
    flat = network()
    assert vectors_made(torch.optim.AdamW([flat.parameters]).step) == 2
    assert vectors_made(lambda: flat.gradient.add_(flat.parameters.detach() - 1, alpha=0.1)) == 1


def loads_the_compiler(code: str) -> bool:
    """Whether a process that does this has loaded torch's compiler."""
    code += "\nimport sys; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1] == "True"


def test_training_does_without_torchs_compiler(tiny_with_teacher: Any) -> None:
    run = ["simulate", str(tiny_with_teacher.study), "--out", str(tiny_with_teacher.folder / "run")]
    code = f"""
from medfl.cli.main import app
try:
    app({[*run, "--workers", "1", "--no-report"]!r})
except SystemExit as end:
    assert not end.code, end.code
"""
    assert not loads_the_compiler(code)
    assert loads_the_compiler("import torch; torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]).step()")


class Watching(LocalRule):
    """Notes when a training's context is gone."""

    contexts: ClassVar[list[weakref.ref[LocalContext]]] = []

    def begin(self, context: LocalContext) -> None:
        self.contexts.append(weakref.ref(context))


@pytest.mark.parametrize("rule", ["sgd", "svrg"])
def test_nothing_of_a_training_waits_for_the_garbage_collector(rule: str) -> None:
    """A context has vectors of the model's size. Gradients by request hold it: the fake leaves them there."""
    rows = least_squares(1, 5, 21, 1.0)[0]
    rules = [plugin(RULES, rule), Watching(PluginConfig(kind="watching"))]
    executor = SiteExecutor(local_parts(LeastSquares(5), rules=rules), CPU)
    gc.disable()
    try:
        for round_ in (1, 2):
            data = site("a", Rows(rows.features, rows.targets))
            executor.train(data, TrainOrder("a", round_, values(rate=0.05)), np.zeros(5, np.float32), {})
            assert Watching.contexts.pop()() is None
    finally:
        gc.enable()


_FAULTS = """
import resource, torch
from medfl.learning.allocation import keep_freed_memory
print(keep_freed_memory())
def step():
    parts = [torch.ones(2**20) for _ in range(8)]
for _ in range(3): step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20): step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment: str) -> list[str]:
    """What is said of the request, and how often a process had to be given memory in 20 steps."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    told = {**plain, **environment}
    done = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True, env=told)
    return done.stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_used_again() -> None:
    # 8 vectors of 1,024 pages of 4 KiB a step
    kept, count = faults()
    assert kept == "True" and int(count) < 1024
    # whoever tuned the C library is left alone, and gives all of it back
    kept, count = faults(MALLOC_TRIM_THRESHOLD_="131072")
    assert kept == "False" and int(count) > 20 * 1024
