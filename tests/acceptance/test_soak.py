"""Hundreds of rounds over real services while processes are killed and connections cut, and nothing lost or counted
twice. MEDFL_SOAK_SITES=30 MEDFL_SOAK_ROUNDS=200 is the whole of it, in five minutes. Fakes at the end must fail what
the real ones pass."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import soak
from toys.federations import environment, until
from toys.ports import free_port

from medfl.audit.log import AuditLog
from medfl.coordinator.files import load_model
from medfl.coordinator.journal import Journal
from medfl.federation.round import Federation
from medfl.learning.messages import TrainReply
from medfl.privacy.ledger.file import FileLedger
from medfl.study.build import build_federation
from medfl.study.load import load_study
from medfl.update.base import Payload
from medfl.update.wire import as_bytes

TESTS = Path(__file__).parents[1]
SITES, ROUNDS = int(os.environ.get("MEDFL_SOAK_SITES", "10")), int(os.environ.get("MEDFL_SOAK_ROUNDS", "60"))
TOGETHER = 5
"""Sites in one process."""


class ChaosProxy:
    """TCP to a port, which stalls, cuts lines, and opens some of them twice with the same first bytes."""

    def __init__(self, port: int, seed: int) -> None:
        self._target, self._random = port, random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._flows: asyncio.Event
        self._lines: set[asyncio.Task[None]] = set()
        self.port = free_port()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(10)

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._flows = asyncio.Event()
        self._flows.set()
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", self.port))
        started.set()
        self._loop.run_forever()
        server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            twice = self._random.random() < 0.1
            both = [self._pump(reader, far_writer, twice), self._pump(far_reader, writer)]
            tasks = [asyncio.ensure_future(one) for one in both]
            task = asyncio.ensure_future(asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED))
            self._lines.add(task)  # type: ignore[arg-type]
            with suppress(asyncio.CancelledError):
                await task
            self._lines.discard(task)  # type: ignore[arg-type]
            far_writer.transport.abort()
        writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, twice: bool = False) -> None:
        with suppress(OSError):
            while data := await reader.read(2**16):
                await self._flows.wait()
                if twice:
                    twice = False
                    self._again = asyncio.ensure_future(self._repeat(data))
                writer.write(data)
                await writer.drain()

    async def _repeat(self, data: bytes) -> None:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", self._target)
            writer.write(data)
            await asyncio.sleep(5)
            writer.transport.abort()

    def cut(self, share: float) -> None:
        def cut() -> None:
            for line in list(self._lines):
                if self._random.random() < share:
                    line.cancel()

        self._loop.call_soon_threadsafe(cut)

    def stall(self, seconds: float) -> None:
        self._loop.call_soon_threadsafe(self._flows.clear)
        time.sleep(seconds)
        self._loop.call_soon_threadsafe(self._flows.set)

    def close(self) -> None:
        def stop() -> None:
            for task in asyncio.all_tasks():
                task.cancel()
            self._loop.call_later(0.1, self._loop.stop)

        self._loop.call_soon_threadsafe(stop)
        self._thread.join(5)


class World:
    """All processes of a soak."""

    def __init__(
        self, folder: Path, sites: int, rounds: int, fault: str = "", seconds: float = 0.0, **sections: Any
    ) -> None:
        self.folder, self._told = folder, {"fault": fault, "seconds": seconds}
        port = free_port()
        self.proxy = ChaosProxy(port, 1)
        self.federation = soak.Soaked(folder, sites, rounds, self.proxy.port, **sections)
        self.federation.port = port
        self.federation.set_up()
        names = self.federation.sites
        self.groups = [names[start : start + TOGETHER] for start in range(0, len(names), TOGETHER)]
        self.sites: list[int] = []
        self.coordinator = 0
        self.memory: list[tuple[int, int, int]] = []
        self.did: Counter[str] = Counter()
        command = [sys.executable, str(TESTS / "toys" / "soak.py"), str(folder)]
        self._forks = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment() | {"PYTHONPATH": str(TESTS), "GRPC_VERBOSITY": "NONE"},
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self._forks.stdout is not None
        return self._forks.stdout.readline().strip()

    def _fork(self, **command: Any) -> int:
        assert self._forks.stdin is not None
        self._forks.stdin.write(json.dumps({**command, **self._told}) + "\n")
        self._forks.stdin.flush()
        return int(self._line())

    def start(self) -> None:
        self.coordinator = self._fork(coordinator=True)
        self.sites = [self._fork(sites=group) for group in self.groups]

    def kill_sites(self, number: int, pause: float) -> None:
        os.kill(self.sites[number], signal.SIGKILL)
        time.sleep(pause)
        self.sites[number] = self._fork(sites=self.groups[number])
        self.did["sites killed"] += len(self.groups[number])

    def kill_coordinator(self, pause: float) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.coordinator, signal.SIGKILL)
        time.sleep(pause)
        self.coordinator = self._fork(coordinator=True)
        self.did["coordinator killed"] += 1

    @property
    def done(self) -> int:
        path = self.federation.home / "run" / "rounds.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    @property
    def answered(self) -> int:
        """Sites that have trained the round that is under way."""
        files = [self.federation.site_home(site) / "kept.jsonl" for site in self.federation.sites]
        return sum(any(found[0] == self.done + 1 for found in soak.lines(file)) for file in files)

    @property
    def over(self) -> bool:
        if not alive(self.coordinator) and not (self.folder / "over").exists():
            raise AssertionError((self.folder / "coordinator.log").read_text()[-3000:])
        return (self.folder / "over").exists()

    def look(self) -> None:
        with suppress(OSError, StopIteration, IndexError):
            text = Path(f"/proc/{self.coordinator}/status").read_text()
            own = next(line for line in text.splitlines() if line.startswith("VmRSS"))
            self.memory.append((self.coordinator, self.done, int(own.split()[1]) // 1000))

    def close(self) -> None:
        for pid in (self.coordinator, *self.sites):
            with suppress(ProcessLookupError):
                if pid:
                    os.kill(pid, signal.SIGKILL)
        self._forks.kill()
        self._forks.wait()
        for pipe in (self._forks.stdin, self._forks.stdout):
            if pipe is not None:
                pipe.close()
        self.proxy.close()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def world(*arguments: Any, **sections: Any) -> Iterator[World]:
    made = World(*arguments, **sections)
    try:
        yield made
    finally:
        made.close()


def monkey(made: World, seed: int, pace: float) -> None:
    """Do something at random every `pace` seconds or so, until the run is over. In its last third the coordinator
    lives, so that its memory can be looked at."""
    chance = random.Random(seed)
    while not made.over:
        time.sleep(chance.uniform(0, 2 * pace))
        made.look()
        if made.over:
            return
        last = made.done > 2 * made.federation.rounds_wanted / 3
        what = chance.choices(["sites", "coordinator", "cut", "cut all", "stall"], [6, 0 if last else 2, 6, 1, 3])[0]
        if what == "sites":
            made.kill_sites(chance.randrange(len(made.groups)), chance.uniform(0, 0.5))
        elif what == "coordinator":
            made.kill_coordinator(chance.uniform(0, 0.5))
        elif what == "stall":
            made.proxy.stall(chance.uniform(0, 1))
            made.did["stalls"] += 1
        else:
            made.proxy.cut(1.0 if what == "cut all" else 0.2)
            made.did["cuts"] += 1


def verify(made: World, unpaid: int = 0) -> None:
    """Every round once, every update at most once, and the model that these updates make. unpaid: rounds that the
    privacy budget did not pay for any more."""
    rounds, sites = made.federation.rounds_wanted - unpaid, made.federation.sites
    journal = Journal.open(made.federation.home / "run" / "journal.db", read_only=True)
    try:
        records, events, counted = list(journal.rounds()), list(journal.events()), list(journal.messages())
    finally:
        journal.close()
    assert [record["round"] for record in records] == list(range(1, rounds + 1))
    assert [record["round"] for record in made.federation.rounds()] == list(range(1, rounds + 1))
    said = Counter((event["round"], event["site"]) for event in events if event["kind"] == "verdict")
    assert set(said.values()) == {1}
    assert {site for _, site in said} <= set(sites)
    used = Counter((message["round"], message["site"]) for message in counted if message["kind"] == "update")
    assert set(used.values()) <= {1}
    for site in sites:
        kept = Counter(round_ for round_, _ in soak.lines(made.federation.site_home(site) / "kept.jsonl"))
        again = {round_: times for round_, times in kept.items() if times > 1}
        assert not again, f"{site} trained rounds to their end more than once: {again}"
        AuditLog.open(made.federation.site_home(site) / "audit.log", f"site {site}")
    AuditLog.open(made.federation.home / "audit.log", "coordinator")


def admitted(record: dict[str, Any]) -> dict[str, int]:
    """The sites whose update counts, and which of their trainings made it."""
    taken = [site for site, verdict in record["verdicts"].items() if verdict["outcome"] == "admit"]
    return {site: record["local_steps"][site] for site in taken}


def verify_model(made: World) -> None:
    """The model's own numbers say what was counted; and the same updates, undisturbed, give the same bits."""
    rounds, sites = made.federation.rounds_wanted, made.federation.sites
    shape = soak.layout(len(sites), rounds)
    model = load_model(made.federation.home / "run" / "model", shape)
    records = made.federation.rounds()
    marks = shape.views(model)["marks"]
    for record, row in zip(records, marks, strict=True):
        numbers = admitted(record)
        wanted = np.array([numbers.get(site, 0) for site in sites])
        np.testing.assert_allclose(row * len(numbers), wanted, rtol=1e-5, err_msg=f"round {record['round']}")
    np.testing.assert_array_equal(model, replay(made, records, shape.size))


def replay(made: World, records: list[dict[str, Any]], size: int) -> Any:
    sites = made.federation.sites
    federation = Federation(build_federation(load_study(made.federation.study_file)), 0, np.zeros(size, np.float32))
    cases = dict.fromkeys(sites, soak.CASES)
    for record in records:
        plan = federation.plan(cases)
        assert list(plan.cohort) == record["participants"]
        round_, start = federation.open(plan), federation.model.copy()
        numbers = admitted(record)
        for site in plan.cohort:
            if site in numbers:
                vector = soak.change(start, (plan.round, sites.index(site), len(sites)), numbers[site])
                payload = Payload("fp32", size, (as_bytes(vector),))
                given = {"cases": soak.CASES, "steps": numbers[site], "epochs": 1, "loss_start": 0.5, "loss": 0.5}
                round_.receive(TrainReply(site=site, round=plan.round, payload=payload, **given))
        federation.close(round_)
    return federation.model


def coordinators_ledger(made: World) -> FileLedger:
    return FileLedger.read(made.federation.home / "ledgers" / "coordinator.ledger")


def verify_ledgers(made: World) -> None:
    """Every round that was released was charged, and nothing else but rounds whose sum stayed closed."""
    ledger = coordinators_ledger(made)
    entries = ledger.entries()
    released = Counter(entries[entry].round for entry, _ in ledger.releases())
    moved = [record["round"] for record in made.federation.rounds() if record["moved"]]
    assert released == Counter(moved)
    charged = Counter(charge.round for charge in ledger.charges())
    assert set(charged) >= set(released)
    # a charge without a release: a crash between the two, or a sum that stayed closed
    wasted = sum(charged.values()) - len(moved)
    assert 0 <= wasted <= made.did["coordinator killed"] + len([r for r in made.federation.rounds() if r["void"]])
    for site in made.federation.sites:
        own = FileLedger.read(made.federation.site_home(site) / "ledgers" / f"{site}.ledger")
        mine = Counter(charge.round for charge in own.charges())
        used = {record["round"] for record in made.federation.rounds() if site in admitted(record)}
        assert used <= set(mine)


def soaked(folder: Path, sites: int, rounds: int, seed: int, pace: float, **sections: Any) -> World:
    """A run under chaos to its end, and what it was like."""
    with world(folder, sites, rounds, **sections) as made:
        begun = time.monotonic()
        made.start()
        until(lambda: made.done or made.over, 120, "the first round")
        made.look()
        monkey(made, seed, pace)
        spent = time.monotonic() - begun
        last = [found for found in made.memory if found[0] == made.coordinator]
        missing = sum(len(record["failed"]) for record in made.federation.rounds())
        memory = ", ".join(f"{mb} MB at round {done}" for _, done, mb in (made.memory[0], last[0], last[-1]))
        sys.stdout.write(f"\n{sites} sites, {rounds} rounds in {spent:.0f} s: {dict(made.did)}; ")
        sys.stdout.write(f"{missing} updates missing\n")
        sys.stdout.write(f"coordinator at the start, and at the start and end of its last life: {memory}\n")
        return made


@pytest.mark.slow
def test_hundreds_of_rounds_of_chaos(tmp_path: Path) -> None:
    made = soaked(tmp_path / "soak", SITES, ROUNDS, seed=7, pace=1.5)
    verify(made)
    verify_model(made)


@pytest.mark.slow
def test_chaos_costs_no_privacy(tmp_path: Path) -> None:
    privacy = {"kind": "site", "epsilon": 8, "delta": 1e-5, "accept_low_utility": True}
    made = soaked(tmp_path / "soak", 6, 40, seed=11, pace=0.7, privacy=privacy)
    charged = Counter(charge.round for charge in coordinators_ledger(made).charges())
    # a coordinator that dies between charge and release has paid in vain: the budget ends the run that much earlier
    verify(made, unpaid=sum(charged.values()) - len(charged))
    verify_ledgers(made)


def test_a_few_rounds_of_chaos(tmp_path: Path) -> None:
    made = soaked(tmp_path / "soak", 5, 20, seed=3, pace=0.5)
    verify(made)
    verify_model(made)


def interrupted(folder: Path, fault: str = "") -> World:
    """A short run whose coordinator is killed in the middle of rounds: some sites have answered, others have not."""
    with world(folder, 5, 10, fault, seconds=0.3) as made:
        made.start()
        for _ in range(2):
            until(lambda: made.over or 0 < made.answered < 5, 60, "the middle of a round")
            made.kill_coordinator(0)
            after = made.done + 2
            until(lambda after=after: made.over or made.done >= after, 60, "rounds after a kill")
        until(lambda: made.over, 120, "the end")
        return made


def test_a_killed_coordinator_has_no_work_done_again_and_counts_nothing_twice(tmp_path: Path) -> None:
    made = interrupted(tmp_path / "soak")
    verify(made)
    verify_model(made)


def test_the_fakes_are_found_out(tmp_path: Path) -> None:
    forgetful = interrupted(tmp_path / "forgets", "forgets")
    with pytest.raises(AssertionError, match="more than once"):
        verify(forgetful)
    twice = interrupted(tmp_path / "twice", "twice")
    verify(twice)
    with pytest.raises(AssertionError, match="round 1"):
        verify_model(twice)
