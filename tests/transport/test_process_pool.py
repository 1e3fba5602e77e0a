"""The pool of worker processes: its sharing out, and what a dead worker looks like."""

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
from medfl.transport.pool import shared_out
from medfl.transport.process_pool import worker_count


def test_sites_are_shared_out_by_their_cases() -> None:
    cases: Any = {"a": [0] * 10, "b": [0] * 6, "c": [0] * 5, "d": [0]}
    assert sorted(shared_out(cases, 2)) == [["a", "d"], ["b", "c"]]
    assert sorted(name for names in shared_out(cases, 3) for name in names) == ["a", "b", "c", "d"]


def test_never_more_workers_than_sites() -> None:
    assert worker_count(8, 3) == 3
    assert worker_count(None, 1) == 1


def test_cores_are_counted_where_a_system_has_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert worker_count(None, 8) == 3


def test_a_dead_worker_ends_the_run_with_its_name_and_a_remedy(tiny: Any, tmp_path: Path) -> None:
    class Killer(Observer):
        def round_started(self, plan: RoundPlan) -> None:
            if plan.round == 2:
                children = psutil.Process().children()
                workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
                os.kill(workers[0].pid, signal.SIGKILL)

    with pytest.raises(RunError, match=r"worker process for .*ended.*--resume"):
        simulate(tiny.inputs(), tmp_path / "run", Killer(), workers=2)
    assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def test_faults_of_all_workers_are_reported_together(tiny: Any, tmp_path: Path) -> None:
    for name in ("east", "west"):
        (tiny.sites / f"{name}.yaml").write_text(f"{{name: {name}, policy: {{minimum_cases: 500}}}}")
    with pytest.raises(InputError) as caught:
        simulate(tiny.inputs(), tmp_path / "run", Observer(), workers=2)
    assert {fault.where for fault in caught.value.faults} == {"east", "west"}
    assert not (tmp_path / "run").exists()
