"""Processes that are killed at any instant never release what was not charged, nor twice on one charge."""

import hashlib
import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from medfl.errors import RunError
from medfl.privacy.accounting.gaussian import mu_of
from medfl.privacy.ledger.file import FileLedger

SCRIPT = Path(__file__).with_name("nursery.py")
_spec = importlib.util.spec_from_file_location("nursery", SCRIPT)
nursery = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(nursery)


def allowed(noise: float) -> int:
    """Charges that the ceiling allows: the largest n with n / noise^2 <= mu^2."""
    return int(mu_of(nursery.CEILING.epsilon, nursery.CEILING.delta) ** 2 * noise**2)


class Nursery:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def start(self, kind: str, folder: Path, noise: float, *runs: str) -> list[int]:
        self._process.stdin.write(f"{kind} {folder} {noise} {' '.join(runs)}\n")
        self._process.stdin.flush()
        return [int(pid) for pid in self._until("pids")]

    def ready(self) -> None:
        self._until("ready")

    def ended(self) -> list[int]:
        return [int(code) for code in self._until("ended")]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(10)

    def _until(self, word: str) -> list[str]:
        if word in getattr(self, "seen", {}):
            return self.seen.pop(word)
        for line in self._process.stdout:
            first, *rest = line.split()
            if first == word:
                return rest
            if first == "ready":  # a child may be faster than the word that it was started
                self.seen = {"ready": rest}
        raise AssertionError("the nursery ended")


@pytest.fixture(scope="module")
def children() -> Iterator[Nursery]:
    found = Nursery()
    yield found
    found.close()


def kill(children: Nursery, kind: str, folder: Path, noise: float, times: int, seed: int = 1) -> None:
    """Start, kill and start again; some kills hit the opening of the ledger, most of them the loop."""
    dice = random.Random(seed)
    for _ in range(times):
        children.seen = {}
        (pid,) = children.start(kind, folder, noise, "run")
        if dice.random() < 0.75:
            children.ready()
            _wait_for_lines(folder / "run" / "sent.log", dice.randrange(4))
        time.sleep(dice.uniform(0, 0.01))
        os.kill(pid, signal.SIGKILL)
        assert children.ended() == [-signal.SIGKILL]


def _wait_for_lines(log: Path, more: int) -> None:
    """Until that many more releases were sent, however slow the disk is."""
    count, end = _lines(log) + more, time.monotonic() + 20
    while _lines(log) < count and time.monotonic() < end:
        time.sleep(0.001)


def _lines(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


def faults(folder: Path, noise: float, run: str = "run") -> list[str]:
    """What an auditor would object to; RunError when the chain is broken."""
    ledger = nursery.open_ledger(folder)
    entries, releases = ledger.entries(run), ledger.releases(run)
    charged = Counter(charge.round for charge in entries.values())
    files = {int(path.stem): path for path in (folder / run).glob("*.bin")}
    sent = {tuple(line.split()) for line in (folder / run / "sent.log").read_text().splitlines()}
    found = [f"round {round_} was persisted but not charged" for round_ in files if not charged[round_]]
    for round_, noises in Counter(int(round_) for round_, _ in sent).items():
        if noises > charged[round_]:
            found.append(f"round {round_} released {noises} noises on {charged[round_]} charges")
    for entry, digest in releases:
        if hashlib.sha256(files[entries[entry].round].read_bytes()).hexdigest() != digest:
            found.append(f"round {entries[entry].round} holds other bytes than were noted")
    if len({entry for entry, _ in releases}) != len(releases):
        found.append("one charge has two releases")
    if len(ledger.charges()) > allowed(noise):
        found.append("the budget was passed")
    return found


@pytest.mark.parametrize(("times", "noise"), [(40, 14.0), pytest.param(200, 30.0, marks=pytest.mark.slow)])
def test_killed_at_any_instant(children: Nursery, tmp_path: Path, times: int, noise: float):
    kill(children, "right", tmp_path, noise, times)
    assert faults(tmp_path, noise) == []
    ledger = nursery.open_ledger(tmp_path)
    assert len(ledger.releases()) > times / 2, "the test must let something happen"
    # what is left runs to the end, and to the charge
    (_,) = children.start("right", tmp_path, noise, "run")
    assert children.ended() == [nursery.OUT_OF_BUDGET]
    assert faults(tmp_path, noise) == []
    assert len(ledger.charges()) == allowed(noise)


@pytest.mark.parametrize("kind", ["early", "redraw"])
def test_the_audit_finds_a_wrong_order(children: Nursery, tmp_path: Path, kind: str):
    for attempt in range(10):
        kill(children, kind, tmp_path, 40.0, 20, seed=attempt)
        if faults(tmp_path, 40.0):
            return
    pytest.fail(f"{kind}: nothing was found in 200 kills")


def test_two_writers_at_once(children: Nursery, tmp_path: Path):
    nursery.open_ledger(tmp_path)
    children.seen = {}
    children.start("right", tmp_path, 10.0, "one", "two")
    assert children.ended() == [nursery.OUT_OF_BUDGET] * 2
    ledger = FileLedger.open(tmp_path / "ledger.jsonl", "north")
    by_run = Counter(charge.run for charge in ledger.charges())
    assert by_run.total() == allowed(10.0) == 277, "together they spend the ceiling and no more"
    assert min(by_run.values()) > 5, "both were at it"
    assert faults(tmp_path, 10.0, "one") == faults(tmp_path, 10.0, "two") == []


def test_two_writers_without_a_lock_break_the_chain(children: Nursery, tmp_path: Path):
    nursery.open_ledger(tmp_path)
    children.seen = {}
    children.start("unlocked", tmp_path, 10.0, "one", "two")
    assert children.ended() != [nursery.OUT_OF_BUDGET] * 2
    with pytest.raises(RunError):
        FileLedger.open(tmp_path / "ledger.jsonl", "north")
