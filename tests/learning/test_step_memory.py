"""What training takes beside the arithmetic. A step makes no vector as long as the parameters: to get one from the
system takes longer than to fill it."""

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toys.parts import plugin

from medfl.learning.flat import FlatNetwork
from medfl.learning.optimizers import AdamOptimizer, SgdOptimizer, clip_gradient
from medfl.learning.rules.base import RULES

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
