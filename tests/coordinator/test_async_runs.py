"""Asynchronous runs as a whole: the same model in one process and in several, after any interruption, and replayed."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from toys.crashes import Crash, CrashAt, model_bytes, records

from medfl.coordinator.async_replay import replay_run
from medfl.coordinator.journal import Journal
from medfl.coordinator.observer import Observer
from medfl.coordinator.runner import inputs_of, simulate
from medfl.errors import InputError, RunError
from medfl.federation.outcome import Contribution
from medfl.transport.base import Transport
from medfl.transport.in_process import InProcess

SPEEDS = "speeds: {east: 1, south: 2.5, west: 7}"
KINDS = {
    "fedasync": [f"federation.schedule={{kind: fedasync, {SPEEDS}}}", "federation.server=sgd", "stop.rounds=12"],
    "buffered": [f"federation.schedule={{kind: buffered, size: 2, {SPEEDS}}}", "stop.rounds=6"],
}
HOOKS = [("answered", 6), ("evaluating", 2), ("round_finished", 4)]
QUIET = ["local.epochs=1", "evaluation.every=4"]


def order_of(run: Path) -> list[str]:
    return [arrived["site"] for record in records(run) for arrived in record["arrivals"]]


def by_the_clock(cases: Mapping[str, int], arrivals: int) -> list[str]:
    """Who arrives when: steps of four images, at the study's speeds, ties by name."""
    takes = {site: speed * math.ceil(cases[site] / 4) for site, speed in (("east", 1), ("south", 2.5), ("west", 7))}
    due, found = dict(takes), list[str]()
    while len(found) < arrivals:
        site = min(due, key=lambda name: (due[name], name))
        due[site] += takes[site]
        found.append(site)
    return found


def test_a_run_says_what_arrived_and_how_old_it_was(tiny: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary = simulate(tiny.inputs(*KINDS["fedasync"], *QUIET), run, Observer(), workers=1)
    found = records(run)
    assert [record["version"] for record in found] == list(range(1, 13))
    assert all(len(record["arrivals"]) == 1 for record in found)
    cases = {site: summary["data"][site]["cases"]["train"] for site in ("east", "south", "west")}
    assert order_of(run) == by_the_clock(cases, 12)
    for number, record in enumerate(found):
        (arrived,) = record["arrivals"]
        assert arrived["staleness"] == number - arrived["version"]
        assert record["staleness"] == {arrived["site"]: arrived["staleness"]}
        assert record["participants"] == [arrived["site"]]
        assert set(record["in_flight"]) == {"east", "south", "west"} - {arrived["site"]}
        assert arrived["share"] <= 0.6
    told = summary["asynchronous"]
    assert told["arrivals"] == 12
    assert told["outcomes"] == {"admit": 12}
    assert {site: own["arrivals"] for site, own in told["sites"].items()} == dict(Counter(order_of(run)))
    assert told["sites"]["west"]["staleness_mean"] > told["sites"]["east"]["staleness_mean"]
    assert summary["regulator"]["outcomes"] == {"admit": 12}
    journal = Journal.open(run / "journal.db")
    orders = [event for event in journal.events() if event["kind"] == "order"]
    counted = list(journal.messages())
    journal.close()
    east = [event["detail"]["order"] for event in orders if event["site"] == "east"]
    assert east == list(range(1, order_of(run).count("east") + (order_of(run)[-1] != "east") + 1))
    assert sorted((each["site"], each["digest"]) for each in counted) == sorted(
        (arrived["site"], arrived["digest"]) for record in found for arrived in record["arrivals"]
    )


def test_a_synchronous_run_says_nothing_of_it(tiny: Any, tmp_path: Path) -> None:
    summary = simulate(tiny.inputs("stop.rounds=1"), tmp_path / "run", Observer(), workers=1)
    assert "asynchronous" not in summary
    assert not {"version", "arrivals", "staleness"} & records(tmp_path / "run")[0].keys()
    with pytest.raises(InputError, match="no asynchronous run"):
        replay_run(tmp_path / "run")


@pytest.mark.parametrize("kind", KINDS)
def test_a_pool_gives_the_same_model_and_records(tiny_with_teacher: Any, tmp_path: Path, kind: str) -> None:
    inputs = tiny_with_teacher.inputs(*KINDS[kind], *QUIET)
    simulate(inputs, tmp_path / "alone", Observer(), workers=1)
    simulate(inputs, tmp_path / "pool", Observer(), workers=2)
    assert model_bytes(tmp_path / "alone") == model_bytes(tmp_path / "pool")
    assert records(tmp_path / "alone") == records(tmp_path / "pool")


def test_other_speeds_give_another_model(tiny: Any, tmp_path: Path) -> None:
    simulate(tiny.inputs(*KINDS["fedasync"], *QUIET), tmp_path / "a", Observer(), workers=1)
    simulate(
        tiny.inputs("federation.schedule=fedasync", "stop.rounds=12", *QUIET), tmp_path / "b", Observer(), workers=1
    )
    assert model_bytes(tmp_path / "a") != model_bytes(tmp_path / "b")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("hook", "call"), [("round_started", 3), ("answered", 6), ("evaluating", 2), ("round_finished", 4)]
)
def test_a_resumed_run_equals_an_undisturbed_one(
    tiny_with_teacher: Any, tmp_path: Path, kind: str, hook: str, call: int
) -> None:
    """With private states at the sites, momentum and error feedback; killed within and between steps."""
    inputs = tiny_with_teacher.inputs(*KINDS[kind], *QUIET)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    simulate(inputs, whole, Observer(), workers=1)
    with pytest.raises(Crash):
        simulate(inputs, broken, CrashAt(hook, call), workers=1)
    simulate(inputs_of(broken), broken, Observer(), workers=1, resume=True)
    assert model_bytes(whole) == model_bytes(broken)
    assert records(whole) == records(broken)


def test_a_resume_that_forgets_the_orders_in_flight_differs(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard of the test above."""
    from medfl.federation.asynchronous.federation import AsynchronousFederation

    real = AsynchronousFederation.restore

    def forgetful(self: AsynchronousFederation, plain: Mapping[str, Any], arrays: Any) -> None:
        real(self, plain, arrays)
        self.flights.clear()

    inputs = tiny.inputs(*KINDS["fedasync"], *QUIET)
    simulate(inputs, tmp_path / "whole", Observer(), workers=1)
    with pytest.raises(Crash):
        simulate(inputs, tmp_path / "broken", CrashAt("round_finished", 4), workers=1)
    monkeypatch.setattr(AsynchronousFederation, "restore", forgetful)
    simulate(inputs_of(tmp_path / "broken"), tmp_path / "broken", Observer(), workers=1, resume=True)
    assert model_bytes(tmp_path / "whole") != model_bytes(tmp_path / "broken")


def test_a_killed_process_resumes_to_the_same_model(tiny: Any, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    longer = [*KINDS["fedasync"], "local.epochs=6", "evaluation.every=50", "stop.rounds=30"]
    simulate(tiny.inputs(*longer), whole, Observer(), workers=1)
    command = [sys.executable, "-m", "medfl", "simulate", str(tiny.study), "--sites", str(tiny.sites)]
    command += [part for change in longer for part in ("--set", change)]
    command += ["--out", str(killed), "--workers", "2", "--no-report"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        rounds, end = killed / "rounds.jsonl", time.monotonic() + 120
        while process.poll() is None and not (rounds.exists() and rounds.read_text().count("\n") >= 4):
            assert time.monotonic() < end
            time.sleep(0.01)
        assert process.poll() is None, "the run ended before it could be killed"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert 4 <= len(records(killed)) < 30
    simulate(inputs_of(killed), killed, Observer(), workers=1, resume=True)
    assert model_bytes(whole) == model_bytes(killed)
    assert records(whole) == records(killed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_journals_arrivals_give_the_model_bit_for_bit(tiny: Any, tmp_path: Path, kind: str) -> None:
    """Whatever order they came in: here one that no speeds explain."""
    run = tmp_path / "run"
    rng = np.random.default_rng(5)

    class Shuffled(InProcess):
        """Answers come when they please, as over a network."""

        def submit(self, order: Any, model: Any, due: float, progress: Any = None) -> None:
            super().submit(order, model, float(rng.random()), progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medfl.transport.in_process.InProcess", Shuffled)
        simulate(tiny.inputs(*KINDS[kind], *QUIET), run, Observer(), workers=1)
    tensors = load_file(run / "model" / "model.safetensors")
    found = replay_run(run)
    assert found.same
    assert sorted(found.model.tolist()) == sorted(
        np.concatenate([tensor.ravel() for tensor in tensors.values()]).tolist()
    )
    _forge(run)
    with pytest.raises(RunError, match="replays as"):
        replay_run(run)


def _forge(run: Path) -> None:
    """Give one recorded update another digest."""
    import sqlite3

    with sqlite3.connect(run / "journal.db") as database:
        (text,) = database.execute("SELECT record FROM rounds WHERE number = 3").fetchone()
        record = json.loads(text)
        record["arrivals"][0]["digest"] = "0" * 64
        database.execute("UPDATE rounds SET record = ? WHERE number = 3", (json.dumps(record),))


@pytest.mark.parametrize("kind", KINDS)
def test_a_refused_and_a_failing_site_end_no_run(tiny: Any, tmp_path: Path, kind: str) -> None:
    (tiny.sites / "west.yaml").write_text("{name: west, fault: {kind: nan}}")
    summary = simulate(tiny.inputs(*KINDS[kind], *QUIET), tmp_path / "run", Observer(), workers=1)
    assert summary["rounds_completed"] == (12 if kind == "fedasync" else 6)
    assert summary["asynchronous"]["sites"]["west"]["used"] == 0
    assert summary["metrics"]["global"]["loss"]["value"] < 10


def test_a_run_in_which_nobody_can_be_used_ends(tiny: Any, tmp_path: Path) -> None:
    for site in ("east", "south", "west"):
        (tiny.sites / f"{site}.yaml").write_text(f"{{name: {site}, fault: {{kind: nan}}}}")
    summary = simulate(tiny.inputs(*KINDS["fedasync"], *QUIET), tmp_path / "run", Observer(), workers=1)
    assert summary["rounds_completed"] == 12
    assert all(record["void"] and not record["moved"] for record in records(tmp_path / "run"))
    assert summary["asynchronous"]["outcomes"] == {"refuse": 36}


def test_old_updates_are_dropped_and_counted(tiny: Any, tmp_path: Path) -> None:
    schedule = f"federation.schedule={{kind: fedasync, max_staleness: 4, {SPEEDS}}}"
    summary = simulate(tiny.inputs(schedule, "stop.rounds=12", *QUIET), tmp_path / "run", Observer(), workers=1)
    assert summary["regulator"]["reasons"] == {"staleness": 1}
    assert summary["asynchronous"]["sites"]["west"]["used"] == 0
    assert summary["asynchronous"]["outcomes"] == {"admit": 12, "refuse": 1}


def test_a_transport_of_rounds_says_that_it_knows_no_orders() -> None:
    with pytest.raises(RunError, match="knows rounds only"):
        Transport.submit(object(), None, None, 0.0)  # type: ignore[arg-type]


def test_an_operator_may_stop_and_go_on(tiny: Any, tmp_path: Path) -> None:
    class Stop(Observer):
        def answered(self, site: str, contribution: Contribution) -> None:
            if site == "south":
                raise KeyboardInterrupt

    whole, run = tmp_path / "whole", tmp_path / "run"
    inputs = tiny.inputs(*KINDS["fedasync"], *QUIET)
    simulate(inputs, whole, Observer(), workers=1)
    summary = simulate(inputs, run, Stop(), workers=2)
    assert (summary["stopped_by"], summary["rounds_completed"]) == ("operator", 2)
    simulate(inputs_of(run), run, Observer(), workers=1, resume=True)
    assert model_bytes(whole) == model_bytes(run)


def test_sites_are_told_their_own_count(tiny: Any, tmp_path: Path) -> None:
    """A site's approval is for as many rounds as the study has, and it is asked at most that often."""
    seen: dict[str, list[int]] = {}

    class Watched(InProcess):
        def submit(self, order: Any, model: Any, due: float, progress: Any = None) -> None:
            seen.setdefault(order.site, []).append(order.round)
            super().submit(order, model, due, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medfl.transport.in_process.InProcess", Watched)
        simulate(tiny.inputs(*KINDS["buffered"], *QUIET), tmp_path / "run", Observer(), workers=1)
    assert all(rounds == list(range(1, len(rounds) + 1)) for rounds in seen.values())
    assert max(len(rounds) for rounds in seen.values()) <= 6


def test_the_report_shows_staleness(tiny: Any, tmp_path: Path) -> None:
    from medfl.report.page import write_report

    summary = simulate(tiny.inputs(*KINDS["fedasync"], *QUIET), tmp_path / "run", Observer(), workers=1)
    page = write_report(tmp_path / "run", pictures=False).read_text()
    for site, own in summary["asynchronous"]["sites"].items():
        cells = f'<th scope="row">{site}</th><td class="num">{own["arrivals"]}</td><td class="num">{own["used"]}</td>'
        assert cells in page
    assert "<h3>Staleness</h3>" in page
    simulate(tiny.inputs("stop.rounds=1"), tmp_path / "other", Observer(), workers=1)
    assert "Staleness" not in write_report(tmp_path / "other", pictures=False).read_text()
