"""Private runs that die at any instant: each release was charged before, none is made twice, none passes the budget."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from os import kill
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import lives
from toys.runs import (
    LOCAL,
    PATIENT,
    SITE,
    SITES,
    charged,
    crash,
    ledger,
    make_private,
    make_site,
    play,
    released,
    resume,
)
from typer.testing import CliRunner

from medfl.cli.main import app
from medfl.coordinator.desk import NoiseDesk
from medfl.coordinator.journal import Journal
from medfl.errors import RunError
from medfl.privacy.channels.base import PART, Message
from medfl.transport.door import SiteDoor

# everybody in every step: the closed form is the accountant, which is quick
KILLS = int(os.environ.get("MEDFL_KILLS", "40"))
MODES = {"site": (SITE, "clear"), "patient": ({**PATIENT, "sampling_rate": 1}, "masks")}
HE = {"kind": "he", "keys": "symmetric"}


def committed(run: Path) -> dict[int, str]:
    """When each round that moved the model was committed, by its number."""
    journal = Journal.open(run / "journal.db")
    moved = {record["round"] for record in journal.rounds() if record["moved"]}
    events = {event["round"]: event["at"] for event in journal.events() if event["kind"] == "verdict"}
    journal.close()
    return {number: at for number, at in events.items() if number in moved}


def check(run: Path, ledgers: Path, deaths: int, rounds: int) -> None:
    """What must hold of a run after so many deaths, finished or not. Opening a ledger verifies its chain."""
    book = ledger(ledgers)
    entries, times = book.entries(), book._book.times
    dones = Counter(entries[entry].round for entry, _ in book.releases())
    assert max(dones.values(), default=0) <= 1, f"a round was released twice: {dones}"
    for number, at in committed(run).items():
        first = min(times[entry] for entry, charge in entries.items() if charge.round == number)
        assert datetime.fromisoformat(first) <= datetime.fromisoformat(at).replace(tzinfo=UTC)
    for party in ("coordinator", *SITES):
        counts = Counter(charged(ledgers, party))
        assert set(committed(run)) <= set(counts), party
        assert sum(counts.values()) - len(counts) <= deaths, f"{party} was charged without need: {counts}"
        assert sum(counts.values()) <= rounds, f"{party} was charged past the budget: {counts}"


def finish(run: Path, ledgers: Path, deaths: int, rounds: int) -> dict[str, Any]:
    """Let the run end; its summary."""
    summary = resume(run)
    check(run, ledgers, deaths, rounds)
    assert summary["privacy"]["epsilon"] <= 8 and summary["stopped_by"] in ("rounds", "budget")
    return summary


CRASHES = [
    (Journal, "note", 2, True),
    (NoiseDesk, "release", 2, False),
    (NoiseDesk, "release", 2, True),
    (Journal, "keep_release", 2, False),
    (Journal, "keep_release", 2, True),
    (NoiseDesk, "done", 2, True),
    (Journal, "commit", 2, False),
    (Journal, "commit", 2, True),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("death", CRASHES, ids=lambda death: f"{death[1]}-{death[3]}")
def test_a_death_costs_at_most_one_charge(tiny: Any, tmp_path: Path, mode: str, death: Any) -> None:
    make_private(tiny, *MODES[mode], 3)
    owner, method, call, after = death
    with crash(owner, method, call, after=after):
        play(tiny, tmp_path / "run")
    check(tmp_path / "run", tmp_path / "ledgers", 1, 3)
    summary = finish(tmp_path / "run", tmp_path / "ledgers", 1, 3)
    # what was charged in vain is not given back: then the budget pays for a round less
    wasted = len(charged(tmp_path / "ledgers")) - len(set(charged(tmp_path / "ledgers")))
    assert summary["rounds_completed"] == 3 - wasted


def test_a_sum_that_was_opened_is_used_and_not_opened_again(tiny: Any, tmp_path: Path) -> None:
    make_private(tiny, SITE, "clear", 3)
    with crash(Journal, "commit", 2):
        play(tiny, tmp_path / "run")
    journal = Journal.open(tmp_path / "run" / "journal.db")
    kept = journal.release()
    journal.close()
    assert kept is not None and kept[0]["outcome"]["plan"]["round"] == 2
    resume(tmp_path / "run")
    assert charged(tmp_path / "ledgers") == [1, 2, 3] == released(tmp_path / "ledgers")


def test_a_coordinator_that_forgets_what_it_opened_is_found_out(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check can fail: without the kept sum the same round is released a second time, with other noise."""
    make_private(tiny, SITE, "clear", 3)
    with crash(Journal, "commit", 2):
        play(tiny, tmp_path / "run")
    monkeypatch.setattr(Journal, "release", lambda self: None)
    with pytest.raises(AssertionError, match="released twice"):
        finish(tmp_path / "run", tmp_path / "ledgers", 1, 3)


@pytest.mark.parametrize("mode", MODES)
def test_the_last_round_that_the_budget_pays_for_survives_a_death(tiny: Any, tmp_path: Path, mode: str) -> None:
    make_private(tiny, *MODES[mode], 2)
    with crash(Journal, "commit", 2):
        play(tiny, tmp_path / "run")
    summary = resume(tmp_path / "run")
    assert (summary["rounds_completed"], summary["stopped_by"]) == (2, "rounds")


def test_a_release_is_noted_although_the_process_died_before(tiny: Any, tmp_path: Path) -> None:
    make_private(tiny, SITE, "clear", 3)
    with crash(NoiseDesk, "done", 2):
        play(tiny, tmp_path / "run")
    resume(tmp_path / "run")
    assert released(tmp_path / "ledgers") == [1, 2, 3]


def test_what_one_site_says_of_its_ledger_does_not_end_the_run(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that is none costs that site its round, and at the end of the run nobody anything."""
    real_seal, real_answer = SiteDoor.seal, SiteDoor.answer

    def seal(self: SiteDoor, reply: Any) -> Any:
        found = real_seal(self, reply)
        return replace(found, ledger="x") if self.name == "east" and reply.round == 2 else found

    def answer(self: SiteDoor, stage: str, message: Message) -> Message:
        return Message({"head": 7}) if stage == PART and self.name == "east" else real_answer(self, stage, message)

    monkeypatch.setattr(SiteDoor, "seal", seal)
    monkeypatch.setattr(SiteDoor, "answer", answer)
    make_private(tiny, LOCAL, "clear", 3)
    assert play(tiny, tmp_path / "run")["rounds_completed"] == 3
    records = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert [sorted(record["failed"]) for record in records] == [[], ["east"], []]
    assert "is not the head of a chain" in records[1]["failed"]["east"]


@pytest.mark.parametrize(("privacy", "channel"), [(SITE, HE), (LOCAL, "clear")], ids=["site-he", "local"])
def test_other_modes_are_not_charged_for_nothing(tiny: Any, tmp_path: Path, privacy: Any, channel: Any) -> None:
    make_private(tiny, privacy, channel, 3)
    with crash(Journal, "commit", 2):
        play(tiny, tmp_path / "run")
    summary = resume(tmp_path / "run")
    counts = Counter(charged(tmp_path / "ledgers"))
    assert sum(counts.values()) <= 3 and max(counts.values()) <= 2 and summary["privacy"]["epsilon"] <= 8
    assert set(committed(tmp_path / "run")) <= set(counts)


class Lives:
    """The process that starts runs for `kill -9`."""

    def __init__(self) -> None:
        path = [sys.executable, lives.__file__]
        self._process = subprocess.Popen(path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def live(self, inputs: dict[str, Any], run: Path, seconds: float | None) -> int:
        """Start or go on with a run, and kill it after so many seconds; its exit code."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"inputs": inputs, "run": str(run)}) + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        if seconds is not None:
            time.sleep(seconds)
            # a child that has just ended is awaited by its parent, so its id may be gone
            with suppress(ProcessLookupError):
                kill(pid, signal.SIGKILL)
        return int(self._process.stdout.readline())

    def end(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


@pytest.fixture
def nursery() -> Iterator[Lives]:
    found = Lives()
    yield found
    found.end()


@pytest.mark.parametrize("mode", MODES)
def test_killed_at_any_instant(tiny: Any, tmp_path: Path, nursery: Lives, mode: str) -> None:
    rounds, rng = 5, random.Random()
    privacy, channel = MODES[mode]
    # a budget that pays for all deaths
    make_private(tiny, {**privacy, "noise_multiplier": 3}, channel, rounds)
    run, ledgers = tmp_path / "run", tmp_path / "ledgers"
    inputs = tiny.inputs().model_copy(update={"ledgers": ledgers}).model_dump(mode="json")
    started = time.perf_counter()
    assert nursery.live({**inputs, "ledgers": str(tmp_path / "others")}, tmp_path / "whole", None) == 0
    whole, deaths = time.perf_counter() - started, 0
    for _ in range(4):
        instant = rng.uniform(0.2, 0.8) * whole
        print(f"killed after {instant:.3f} s")
        code = nursery.live(inputs, run, instant)
        assert code in (0, -signal.SIGKILL)
        if not (run / "journal.db").exists():
            continue  # it died before the run had begun, and nothing was charged
        deaths += code != 0
        check(run, ledgers, deaths, rounds + deaths)
        if code == 0:
            break
    assert nursery.live(inputs, run, None) == 0
    check(run, ledgers, deaths, rounds + deaths)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["rounds_completed"], summary["stopped_by"]) == (rounds, "rounds")
    assert summary["privacy"]["epsilon"] <= 8 and sorted(committed(run)) == sorted(set(charged(ledgers)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", MODES)
def test_killed_many_times(tiny: Any, tmp_path: Path, nursery: Lives, mode: str) -> None:
    """Run after run, killed at random instants until so many processes have died (MEDFL_KILLS=100: six minutes)."""
    rounds, rng, dead = 40, random.Random(), 0
    privacy, channel = MODES[mode]
    make_private(tiny, {**privacy, "noise_multiplier": 40}, channel, rounds)
    plain = tiny.inputs()
    while dead < KILLS:
        run, deaths = tmp_path / f"run{dead}", 0
        ledgers = tmp_path / f"ledgers{dead}"
        inputs = plain.model_copy(update={"ledgers": ledgers}).model_dump(mode="json")
        while dead + deaths < KILLS:
            code = nursery.live(inputs, run, rng.uniform(0.1, 1.5))
            assert code in (0, -signal.SIGKILL)
            if code == 0:
                break
            deaths += 1
            if (run / "journal.db").exists():
                check(run, ledgers, deaths, rounds + deaths)
        assert nursery.live(inputs, run, None) == 0
        check(run, ledgers, deaths, rounds + deaths)
        summary = json.loads((run / "summary.json").read_text())
        assert summary["rounds_completed"] == rounds and sorted(committed(run)) == sorted(set(charged(ledgers)))
        dead += max(1, deaths)


def test_runs_on_the_same_data_add_up_in_the_sites_ledger(tiny: Any, tmp_path: Path) -> None:
    make_private(tiny, SITE, "clear", 2)
    play(tiny, tmp_path / "one")
    make_private(tiny, SITE, "clear", 2)
    play(tiny, tmp_path / "two")
    play(tiny, tmp_path / "apart", tmp_path / "other")
    together, alone = (site_ledger(folder / "east.ledger") for folder in (tmp_path / "ledgers", tmp_path / "other"))
    ((both,), (single,)) = together["groups"], alone["groups"]
    assert (both["runs"], both["charges"], single["runs"], single["charges"]) == (2, 4, 1, 2)
    assert single["epsilon"] == pytest.approx(7.9999, abs=1e-3) and both["epsilon"] > 12
    # Gaussian charges add up in mu squared: twice the rounds cost more than once and less than twice epsilon
    assert single["epsilon"] < both["epsilon"] < 2 * single["epsilon"]


def site_ledger(path: Path) -> dict[str, Any]:
    found = CliRunner().invoke(app, ["site", "ledger", str(path), "--json"])
    assert found.exit_code == 0
    said: dict[str, Any] = json.loads(found.stdout)
    return said


def test_noise_is_fresh_in_every_run(tiny: Any, tmp_path: Path) -> None:
    """The same study, seed and images: without noise the models are equal, with noise they must not be."""
    models = {}
    for privacy in (SITE, None):
        make_private(tiny, SITE, "clear", 1)
        if privacy is None:
            make_private(tiny, SITE, "clear", 1, privacy=None)
        for name in ("one", "two"):
            run = tmp_path / f"{name}-{privacy is None}"
            play(tiny, run, tmp_path / f"{name}-ledgers")
            models[privacy is None, name] = (run / "model" / "model.safetensors").read_bytes()
    assert models[True, "one"] == models[True, "two"] and models[False, "one"] != models[False, "two"]


def test_a_site_whose_ceiling_is_spent_takes_part_no_more(tiny: Any, tmp_path: Path) -> None:
    make_private(tiny, SITE, "clear", 2)
    make_site(tiny, "east", policy={"max_epsilon": 9})
    play(tiny, tmp_path / "one")
    again = play(tiny, tmp_path / "two")
    failed = [json.loads(line)["failed"] for line in (tmp_path / "two" / "rounds.jsonl").read_text().splitlines()]
    assert all(set(each) == {"east"} for each in failed) and again["rounds_completed"] == 2
    assert np.isclose(site_ledger(tmp_path / "ledgers" / "east.ledger")["groups"][0]["epsilon"], 7.9999, atol=1e-3)


@pytest.mark.parametrize(
    ("party", "rounds"),
    [
        ("east", 1),
        ("coordinator", 2),
        ("coordinator", 1),
    ],
)
def test_a_ledger_that_was_put_back_stops_the_next_run(tiny: Any, tmp_path: Path, party: str, rounds: int) -> None:
    make_private(tiny, SITE, "clear", rounds)
    play(tiny, tmp_path / "one")
    path = tmp_path / "ledgers" / f"{party}.ledger"
    before = path.read_bytes()
    play(tiny, tmp_path / "two")
    path.write_bytes(before)
    with pytest.raises(RunError, match=r"older copy"):
        play(tiny, tmp_path / "three")
    assert not (tmp_path / "three" / "summary.json").exists() and path.read_bytes() == before
