"""What a coordinator makes a site keep has an end: a quota while it asks, and time after it stopped asking."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys.services import Office, until

from medfl.audit.log import AuditLog, read_log
from medfl.errors import RunError
from medfl.learning.messages import TrainReply
from medfl.site import memory as memory_module
from medfl.site.answering import Answering
from medfl.site.memory import DiskMemory
from medfl.site.storage import prune, use_of
from medfl.study.model import Storage
from medfl.transport.grpc.client import hold
from medfl.transport.post import Request
from medfl.transport.protocol.medfl_pb2 import Open
from medfl.update.base import Payload
from medfl.update.wire import Buffer, parts

DAY = 24 * 3600.0
MIB = 2**20


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    return AuditLog.open(tmp_path / "audit.log", "site east")


# what makes way


def trained(runs: Path, run: str, rounds: int = 2) -> DiskMemory:
    found = DiskMemory(runs)
    found.begin(run)
    for round_ in range(1, rounds + 1):
        reply = TrainReply("east", round_, Payload("fp32", 2, (b"12345678",)), 3, 2, 1, 0.7, 0.5)
        found.keep(f"key-{round_}", reply, {"residual": np.full(4, round_, np.float32)})
    found.opening(rounds, ("east", "north", "west"))
    return found


def aged(folder: Path, days: float) -> None:
    then = time.time() - days * DAY
    for path in folder.iterdir():
        os.utime(path, (then, then))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def pruned(log: AuditLog) -> list[dict[str, Any]]:
    return [dict(record.body) for record in read_log(log.path)[1] if record.kind == "pruned"]


def test_what_is_old_makes_way_and_the_audit_log_says_so(tmp_path: Path, log: AuditLog) -> None:
    runs = tmp_path / "runs"
    for run, days in (("old", 91), ("recent", 89)):
        trained(runs, run)
        aged(runs / run, days)
    prune(runs, Storage(), log)
    assert names(runs / "old") == {"opened.json", "pruned.json"}
    assert names(runs / "recent") == {"opened.json", "round-000001", "round-000002"}
    (told,) = pruned(log)
    assert (told["run"], told["why"], told["files"]) == ("old", "unused", 2) and told["bytes"] > 0
    prune(runs, Storage(), log)
    assert len(pruned(log)) == 1, "once"


def test_a_run_that_is_over_makes_way_sooner_and_one_that_goes_on_does_not(tmp_path: Path, log: AuditLog) -> None:
    runs = tmp_path / "runs"
    for run in ("over", "on"):
        found = trained(runs, run)
        found.ended()
        if run == "on":
            # its operator had stopped it, and goes on with it
            DiskMemory(runs).begin(run)
        aged(runs / run, 8)
    prune(runs, Storage(), log)
    assert [told["run"] for told in pruned(log)] == ["over"] and pruned(log)[0]["why"] == "ended"
    resumed = DiskMemory(runs)
    resumed.begin("on")
    assert resumed.reply("key-2") is not None and float(resumed.state(3)["residual"][0]) == 2.0


def test_the_run_that_is_open_is_spared(tmp_path: Path, log: AuditLog) -> None:
    runs = tmp_path / "runs"
    trained(runs, "open")
    aged(runs / "open", 1000)
    prune(runs, Storage(), log, spare="open")
    assert not pruned(log) and DiskMemory(runs)._root == runs


def test_nobody_goes_on_with_a_run_that_was_pruned_as_if_it_were_whole(tmp_path: Path, log: AuditLog) -> None:
    runs = tmp_path / "runs"
    trained(runs, "old")
    aged(runs / "old", 91)
    prune(runs, Storage(), log)
    with pytest.raises(RunError, match="was pruned"):
        DiskMemory(runs).begin("old")


def test_without_the_mark_it_would_go_on_with_fresh_arrays(tmp_path: Path, log: AuditLog) -> None:
    """The fake: what is pruned leaves no mark, and the residual is lost without a word."""
    runs = tmp_path / "runs"
    trained(runs, "old")
    aged(runs / "old", 91)
    prune(runs, Storage(), log)
    (runs / "old" / "pruned.json").unlink()
    again = DiskMemory(runs)
    again.begin("old")
    assert again.state(3) == {}


def test_which_sums_were_opened_is_never_forgotten(tmp_path: Path, log: AuditLog) -> None:
    runs = tmp_path / "runs"
    found = trained(runs, "old")
    aged(runs / "old", 91)
    prune(runs, Storage(), log)
    with pytest.raises(RunError, match="does not open"):
        found.opening(2, ("east", "north"))


def test_what_is_not_ours_stays(tmp_path: Path, log: AuditLog) -> None:
    runs, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    trained(elsewhere, "old")
    aged(elsewhere / "old", 91)
    runs.mkdir()
    (runs / "link").symlink_to(elsewhere / "old")
    (runs / "notes").mkdir()
    (runs / "notes" / "round-copy").write_text("of the steward")
    aged(runs / "notes", 91)
    prune(runs, Storage(), log)
    assert not pruned(log) and len(names(elsewhere / "old")) == 3 and names(runs / "notes") == {"round-copy"}


def test_the_log_has_it_before_it_is_gone(tmp_path: Path, log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "runs"
    trained(runs, "old")
    aged(runs / "old", 91)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(AuditLog, "append", full)
    with pytest.raises(OSError, match="No space"):
        prune(runs, Storage(), log)
    assert "round-000001" in names(runs / "old")


def test_a_coordinator_that_begins_run_after_run_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "_MOST", 3)
    found = DiskMemory(tmp_path / "runs")
    for number in range(3):
        found.begin(f"run{number}")
    with pytest.raises(RunError, match="3 runs already"):
        found.begin("run3")
    found.begin("run1")
    assert len(names(tmp_path / "runs")) == 3


# the quota


class Party(Answering):
    """A site that answers everything, and keeps nothing but what is on its way."""

    def __init__(self, folder: Path, quota: int) -> None:
        super().__init__("east", folder, AuditLog.open(folder.parent / "east.log", "site east"))
        self.quota = quota
        self.did: list[str] = []
        self.free = threading.Event()
        self.free.set()

    def storage(self) -> Storage:
        return Storage(quota_gib=self.quota / 2**30)

    def do(self, id_: str, kind: str, header: dict[str, Any], buffers: list[memoryview]) -> list[Buffer]:
        self.free.wait(60)
        self.did.append(kind)
        return parts({"answer": "done"})

    @property
    def used(self) -> int:
        return use_of(self._work_folder, self.storage()).bytes


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    found = Office(tmp_path)
    yield found
    found.close()


@pytest.fixture
def party(office: Office, tmp_path: Path) -> Iterator[Party]:
    found, address = Party(tmp_path / "work", 8 * MIB), office.admit("east")
    arguments = (lambda: address, found.hello, found.box, found.welcomed, found.stop)
    threads = [threading.Thread(target=found.work), threading.Thread(target=hold, args=arguments)]
    for thread in threads:
        thread.start()
    until(lambda: office.there("east"))
    yield found
    found.stop.set()
    for thread in threads:
        thread.join(10)


def asked(office: Office, number: int, size: int) -> Any:
    return office.post.post("east", Request.of("fill", {"number": number}, [os.urandom(size)]))


def said(ticket: Any) -> bytes:
    until(lambda: ticket.settled, 20)
    return bytes(ticket.answer or b"")


def test_a_message_that_has_no_room_is_refused_with_the_reason_and_the_next_is_answered(
    office: Office, party: Party
) -> None:
    answer = said(asked(office, 1, 9 * MIB))
    assert b"HOME/work takes" in answer and b"storage.quota_gib" in answer and party.did == []
    assert b'"answer":"done"' in said(asked(office, 2, 2 * MIB)).replace(b" ", b"")
    assert party.used < 8 * MIB


def test_a_hostile_coordinator_does_not_get_past_the_quota(office: Office, party: Party) -> None:
    """It begins transfer after transfer and never waits for one; what it asks for is never more than the quota."""
    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.01):
            most = max(most, party.used)

    watching = threading.Thread(target=watch)
    watching.start()
    # the site is at work on the first, and the second waits: there is no room for more
    party.free.clear()
    tickets = [asked(office, number, 3 * MIB) for number in range(12)]
    until(lambda: sum(ticket.settled for ticket in tickets) >= 10)
    party.free.set()
    answers = [said(ticket) for ticket in tickets]
    done.set()
    watching.join()
    refused = sum(b"HOME/work takes" in answer for answer in answers)
    assert most <= 8 * MIB + 2**16 and refused == 10 and len(party.did) == 2


def promised(party: Party) -> list[str]:
    """The transfers that are let in of two that have room one by one, announced at once."""
    line = party.box.connect(2.0)
    for name in ("a-1", "b-2"):
        line._open(Open(id=name, size=5 * MIB, crc32=1))
    return [incoming.id for incoming in line.incoming]


def test_what_was_promised_counts_before_it_comes(tmp_path: Path) -> None:
    assert promised(Party(tmp_path / "work", 8 * MIB)) == ["a-1"]


def test_without_the_bytes_to_come_it_would_not(tmp_path: Path) -> None:
    """The fake: only what lies there counts, and both come in."""
    party = Party(tmp_path / "work", 8 * MIB)
    party.box.missing = lambda id_, size: size  # type: ignore[method-assign]
    assert promised(party) == ["a-1", "b-2"]


def test_what_is_full_already_takes_no_small_orders_either(office: Office, party: Party, tmp_path: Path) -> None:
    (tmp_path / "work" / "left").write_bytes(os.urandom(9 * MIB))
    assert b"HOME/work takes" in said(asked(office, 1, 10)) and party.did == []
    (tmp_path / "work" / "left").unlink()
    said(asked(office, 2, 10))
    assert party.did == ["fill"]


def test_a_transfer_that_goes_on_counts_once(tmp_path: Path) -> None:
    party = Party(tmp_path / "work", 8 * MIB)
    path = tmp_path / "work" / "spool" / "a-1.500000.00000000"
    path.write_bytes(os.urandom(5 * MIB))
    party._room("a-1", 6 * MIB)
    with pytest.raises(OSError, match="HOME/work takes"):
        party._room("b-2", 6 * MIB)


def test_who_is_refused_again_and_again_fills_no_memory(tmp_path: Path) -> None:
    party = Party(tmp_path / "work", MIB)
    line = party.box.connect(2.0)
    with pytest.raises(RunError):
        for number in range(5000):
            line._open(Open(id=f"a-{number}", size=2 * MIB, crc32=1))
            line.control.clear()
    assert len(party.box.outgoing) <= 256 and not list((tmp_path / "work" / "spool").iterdir())


def test_what_was_counted_is_what_the_disk_has(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a").write_bytes(os.urandom(MIB))
    (tmp_path / "link").symlink_to("/usr")
    use = use_of(tmp_path, Storage(quota_gib=1))
    assert MIB <= use.bytes < MIB + 2**16 and use.limit == 2**30 and str(use) == "0.00 of 1 GiB"
