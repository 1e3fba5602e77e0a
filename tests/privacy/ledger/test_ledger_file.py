"""The ledger's file: durable before a permit is given, whole after every crash, refused after every change."""

import os
import shutil
import stat
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from medfl.audit import file
from medfl.errors import InputError, RunError
from medfl.privacy.accounting.base import Budget, GaussianEvent
from medfl.privacy.ledger.base import BudgetError, Charge
from medfl.privacy.ledger.chain import read
from medfl.privacy.ledger.file import FileLedger

CEILING = {"patient": Budget(8.0, 1e-5)}
CHARGE = Charge("study", "run", 0, "model", "patient", "data", "gaussian", GaussianEvent(10.0), 1.0, 1.0)
PATIENTS = ["patient-4711", "patient-4712"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger with two charges, one release and one data set."""
    found = tmp_path / "site" / "ledger.jsonl"
    ledger = FileLedger.open(found, "north", CEILING)
    permit = ledger.charge(replace(CHARGE, dataset=ledger.register(PATIENTS)), None)
    ledger.done(permit, "ab" * 32)
    ledger.charge(replace(CHARGE, round=1), None)
    return found


def open_again(path: Path) -> FileLedger:
    return FileLedger.open(path, "north", CEILING)


def keys_file(path: Path) -> Path:
    (found,) = path.with_name("ledger.jsonl.units").glob("*.keys")
    return found


def test_outlives_its_process(path: Path):
    ledger = open_again(path)
    assert [charge.round for charge in ledger.charges("run")] == [0, 1]
    assert len(ledger.releases()) == 1 and ledger.charges("other") == ()
    assert ledger.register(PATIENTS) == ledger.charges()[0].dataset
    assert ledger.head == read(path.read_bytes(), "x").records[-1].hash == FileLedger.read(path).head


def test_is_the_owners_alone_and_holds_no_key(path: Path):
    for found in path.parent.rglob("*"):
        assert not stat.S_IMODE(found.stat().st_mode) & 0o077
        assert found.is_dir() or b"4711" not in found.read_bytes()
    assert {found.name for found in path.parent.iterdir()} == {"ledger.jsonl", "ledger.jsonl.units"}, "no drafts stay"
    path.chmod(0o640)
    with pytest.raises(RunError, match="can be opened by other users"):
        open_again(path)


def test_a_charge_is_durable_before_its_permit(path: Path, monkeypatch: pytest.MonkeyPatch):
    ledger, done = open_again(path), []
    write, sync = os.write, os.fsync
    monkeypatch.setattr(os, "write", lambda *given: done.append("write") or write(*given))
    monkeypatch.setattr(os, "fsync", lambda *given: done.append("fsync") or sync(*given))
    ledger.charge(CHARGE, None)
    assert done == ["write", "fsync"]
    done.clear()
    monkeypatch.setattr(file, "_flush", lambda descriptor: None)  # a fake that trusts the operating system
    ledger.charge(CHARGE, None)
    assert done != ["write", "fsync"]


def test_its_creation_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.path.realpath(f"/dev/fd/{fd}")) or sync(fd))
    FileLedger.open(tmp_path / "ledger.jsonl", "north")
    assert synced[-1] == str(tmp_path.resolve()) and any(".ledger.jsonl." in name for name in synced)


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_what_the_disk_refuses_is_not_charged(path: Path, monkeypatch: pytest.MonkeyPatch, call: str):
    ledger, before = open_again(path), path.read_bytes()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(RunError, match=r"No space left on device.*nothing may be released"):
            ledger.charge(CHARGE, None)
    assert path.read_bytes() == before
    ledger.charge(CHARGE, None)
    assert len(open_again(path).charges()) == 3


def test_a_short_write_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch):
    ledger, before, write = open_again(path), path.read_bytes(), os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, line: write(descriptor, line[:50]))
        with pytest.raises(RunError, match="disk is full"):
            ledger.charge(CHARGE, None)
    assert path.read_bytes() == before


def test_a_line_cut_off_anywhere_is_repaired(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # hundreds of repairs, and no power cut
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        looked = FileLedger.read(path)
        assert path.read_bytes() == whole[:end], "looking writes nothing"
        ledger = open_again(path)
        kept = 2 if end == len(whole) - 1 else 1  # what lacks its end of line alone is whole, and counts
        assert len(ledger.charges()) == len(looked.charges()) == kept
        assert b'"repair"' in path.read_bytes() or end == start
        ledger.charge(CHARGE, None)
        assert len(open_again(path).charges()) == kept + 1


def test_another_process_may_die_while_this_one_goes_on(path: Path):
    ledger = open_again(path)
    with path.open("ab") as other:
        other.write(b'{"body":{"charge":{"adja')
    ledger.charge(CHARGE, None)
    assert len(open_again(path).charges()) == 3


def test_a_changed_byte_is_refused(path: Path):
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(RunError, match=r"ledger.jsonl, line \d"):
            open_again(path)
        with pytest.raises(RunError, match=r"ledger.jsonl, line \d"):
            FileLedger.read(path)


def _shortened(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def _replaced(path: Path) -> None:
    copy = path.with_suffix(".copy")
    shutil.copy2(path, copy)
    os.link(path, path.with_suffix(".old"))
    copy.rename(path)


def _changed(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"study":"study"', b'"study":"stvdy"'))


@pytest.mark.parametrize(
    ("harm", "said"),
    [(_shortened, "older copy was put back"), (_changed, "was changed"), (Path.unlink, "has gone")],
)
def test_harm_is_seen_while_in_use(path: Path, harm, said: str):
    ledger = open_again(path)
    harm(path)
    with pytest.raises(RunError, match=said):
        ledger.charge(CHARGE, None)


def test_a_file_replaced_while_waiting_for_it_is_not_written(path: Path, monkeypatch: pytest.MonkeyPatch):
    ledger, lock = open_again(path), file._lock
    with monkeypatch.context() as patch:
        patch.setattr(file, "_lock", lambda *given: (lock(*given), _replaced(path)))
        with pytest.raises(RunError, match="was replaced"):
            ledger.charge(CHARGE, None)


def test_an_older_copy_is_found_by_its_witness(path: Path, tmp_path: Path):
    copy = tmp_path / "backup"
    shutil.copytree(path.parent, copy)
    ledger = open_again(path)
    other = FileLedger.open(tmp_path / "coordinator.jsonl", "coordinator")
    ledger.charge(CHARGE, None)
    other.witness("north", ledger.head)
    ledger.compare(other.witnessed() and {"coordinator": other.witnessed()["north"]})

    shutil.rmtree(path.parent)
    shutil.copytree(copy, path.parent)
    restored = open_again(path)  # whole in itself
    with pytest.raises(RunError, match=r"coordinator has seen its record .*\(restore the newest copy"):
        restored.compare({"coordinator": other.witnessed()["north"]})


def clock_at(*seconds: float) -> Iterator[datetime]:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    return iter([start + timedelta(seconds=second) for second in seconds])


def test_a_clock_that_goes_back_is_refused(tmp_path: Path):
    ticks = clock_at(0, 10, 7, 8, 4)
    path = tmp_path / "ledger.jsonl"
    ledger = FileLedger.open(path, "north", clock=lambda: next(ticks))
    for _ in range(3):  # three seconds back are waited out
        ledger.charge(CHARGE, None)
    with pytest.raises(RunError, match=r"the clock went back from .*:10.* to .*:04.*set the machine's clock right"):
        ledger.charge(CHARGE, None)
    assert len(FileLedger.open(path, "north").charges()) == 3


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: path.unlink(), "is missing, though"),
        (lambda path: path.write_bytes(b""), "no record at all"),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "no record at all"),
        (lambda path: (path.parent / "ledger.jsonl.units" / "salt").unlink(), "salt: is missing"),
        (lambda path: (path.parent / "ledger.jsonl.units" / "salt").write_bytes(bytes(32)), "not the salt"),
        (lambda path: keys_file(path).write_text("00" * 32 + "\n"), "does not match its name"),
        (lambda path: keys_file(path).write_bytes(b"\xff\xfe"), "does not match its name"),
    ],
)
def test_what_belongs_to_a_ledger_must_be_there(path: Path, harm, said: str):
    harm(path)
    with pytest.raises(RunError, match=said):
        open_again(path)


def test_a_data_set_whose_keys_are_lost_counts_as_everybodys(path: Path):
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))  # PATIENTS were charged alone
    before = keys_file(path)
    ledger = open_again(path)
    affordable = replace(CHARGE, event=GaussianEvent(0.601), dataset=ledger.register(["patient-1"]))
    ledger.check(affordable, None)
    before.unlink()
    with pytest.raises(BudgetError):
        open_again(path).check(affordable, None)


def test_an_interrupted_creation_goes_on(tmp_path: Path):
    folder = tmp_path / "ledger.jsonl.units"
    folder.mkdir(mode=0o700)
    (folder / "salt").touch(mode=0o600)
    (folder / "salt").write_bytes(bytes(range(32)))
    FileLedger.open(tmp_path / "ledger.jsonl", "north").charge(CHARGE, None)
    assert (folder / "salt").read_bytes() == bytes(range(32))


def test_each_party_has_its_own(path: Path):
    with pytest.raises(RunError, match="is the ledger of north, not of south"):
        FileLedger.open(path, "south")


def test_looking_changes_nothing(path: Path, tmp_path: Path):
    ledger, before = FileLedger.read(path), path.read_bytes()
    for act in (lambda: ledger.charge(CHARGE, None), lambda: ledger.witness("south", "ab" * 32)):
        with pytest.raises(RunError, match="to look only"):
            act()
    with pytest.raises(RunError, match="to look only"):
        ledger.register(["patient-1"])
    assert path.read_bytes() == before and keys_file(path)
    with pytest.raises(InputError, match="is not a file"):
        FileLedger.read(tmp_path / "none.jsonl")


def test_a_copy_of_the_chain_alone_can_be_looked_at(path: Path, tmp_path: Path):
    copy = tmp_path / "audit.jsonl"
    shutil.copy(path, copy)
    assert len(FileLedger.read(copy).charges()) == 2


def test_threads_spend_the_ceiling_and_no_more(path: Path):
    ledgers = [open_again(path), open_again(path)]
    ceiling = [replace(CHARGE, event=GaussianEvent(3.0), run=f"run {number}") for number in range(4)]

    def spend(number: int) -> None:
        with pytest.raises(BudgetError):
            while True:
                ledgers[number % 2].charge(ceiling[number], None)

    threads = [threading.Thread(target=spend, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # mu^2 of the ceiling is 2.7754: two charges at 10, and so many at 3
    assert len(open_again(path).charges()) == 2 + int((2.7754 - 0.02) * 9)


def test_a_ledger_in_use_is_named_after_a_while(path: Path, monkeypatch: pytest.MonkeyPatch):
    ledger, other = open_again(path), open_again(path)
    monkeypatch.setattr(file, "_PATIENCE", 0.05)
    with ledger.reading(), pytest.raises(RunError, match="in use by another process"):
        other.check(CHARGE, None)
    other.check(CHARGE, None)
