"""Sites in Ray's actors: the model is that of one process, and a dead actor ends the run with a remedy."""

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from medfl.coordinator.observer import Observer
from medfl.coordinator.runner import simulate
from medfl.errors import InputError, RunError
from medfl.federation.outcome import RoundPlan
from medfl.transport.engines import Engine

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'medfl[ray]'")
pytestmark = pytest.mark.slow


def model(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def test_ray_gives_the_model_of_one_process(tiny: Any, tmp_path: Path) -> None:
    class Steps(Observer):
        def __init__(self) -> None:
            self.seen: set[str] = set()

        def local_progress(self, site: str, done: int, steps: int) -> None:
            self.seen.add(site)

    simulate(tiny.inputs(), tmp_path / "one", Observer(), workers=1)
    watch = Steps()
    simulate(tiny.inputs(), tmp_path / "ray", watch, engine=Engine(2, ray=True))
    assert model(tmp_path / "ray") == model(tmp_path / "one")
    assert len(watch.seen) > 1
    assert not ray.is_initialized()


def test_a_run_of_ray_is_resumed_by_the_pool(tiny: Any, tmp_path: Path) -> None:
    class Stop(Observer):
        def round_started(self, plan: RoundPlan) -> None:
            if plan.round == 2:
                raise KeyboardInterrupt

    simulate(tiny.inputs(), tmp_path / "whole", Observer(), workers=1)
    simulate(tiny.inputs(), tmp_path / "run", Stop(), engine=Engine(2, ray=True))
    simulate(tiny.inputs(), tmp_path / "run", Observer(), workers=2, resume=True)
    assert model(tmp_path / "run") == model(tmp_path / "whole")


def test_a_dead_actor_ends_the_run_with_its_name_and_a_remedy(tiny: Any, tmp_path: Path) -> None:
    class Killer(Observer):
        def round_started(self, plan: RoundPlan) -> None:
            if plan.round == 2:
                family = psutil.Process().children(recursive=True)
                actors = [child for child in family if "Actor" in " ".join(child.cmdline())]
                os.kill(actors[0].pid, signal.SIGKILL)

    with pytest.raises(RunError, match=r"Ray actor for .*ended.*--resume"):
        simulate(tiny.inputs(), tmp_path / "run", Killer(), engine=Engine(2, ray=True))
    assert not ray.is_initialized()


def test_faults_of_all_actors_are_reported_together(tiny: Any, tmp_path: Path) -> None:
    for name in ("east", "west"):
        (tiny.sites / f"{name}.yaml").write_text(f"{{name: {name}, policy: {{minimum_cases: 500}}}}")
    with pytest.raises(InputError) as caught:
        simulate(tiny.inputs(), tmp_path / "run", Observer(), engine=Engine(2, ray=True))
    assert {fault.where for fault in caught.value.faults} == {"east", "west"}
