"""The audit log: whatever is changed in it shows, whoever writes to it at once, and whenever its writer dies."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfl.audit.log import AuditLog, read_log
from medfl.errors import InputError, RunError

COUNT = 6


def written(path: Path) -> AuditLog:
    log = AuditLog.open(path, "site north")
    for number in range(1, COUNT):
        log.append("trained", {"run": "r", "round": number, "word": f"word-{number}"})
    return log


@pytest.fixture
def path(tmp_path: Path) -> Path:
    written(tmp_path / "home" / "audit.log")
    return tmp_path / "home" / "audit.log"


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def without_a_chain(path: Path) -> None:
    """A fake verification: every line is a record in JSON. It finds none of the changes below."""
    for line in path.read_bytes().splitlines():
        assert json.loads(line).keys() == {"body", "hash", "kind", "prev", "seq", "time"}


def test_reads_what_was_written(path: Path):
    found = AuditLog.verify(path)
    log = AuditLog.open(path, "site north")
    assert (found.count, found.head, found.owner) == (COUNT, log.head, "site north")
    assert [record.kind for record in log.entries()] == ["open", *["trained"] * (COUNT - 1)]
    assert log.append("paused", {"note": "é"}) == log.head == AuditLog.verify(path).head
    assert dict(log.entries()[-1].body) == {"note": "é"}
    assert log.entries()[-1].time.endswith("Z")


def test_is_the_owners_alone(path: Path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [found.name for found in path.parent.iterdir()] == ["audit.log"]
    with pytest.raises(RunError, match="is the audit log of site north, not of coordinator"):
        AuditLog.open(path, "coordinator")
    path.chmod(0o644)
    with pytest.raises(RunError, match="can be opened by other users"):
        AuditLog.open(path, "site north")


def test_a_record_is_on_the_disk_when_append_returns(path: Path, monkeypatch: pytest.MonkeyPatch):
    log, done, write, sync = AuditLog.open(path, "site north"), [], os.write, os.fsync
    monkeypatch.setattr(os, "write", lambda *given: done.append("write") or write(*given))
    monkeypatch.setattr(os, "fsync", lambda *given: done.append("fsync") or sync(*given))
    log.append("trained", {})
    assert done == ["write", "fsync"]


def changed(number: int) -> Callable[[list[bytes]], list[bytes]]:
    def change(found: list[bytes]) -> list[bytes]:
        line = found[number - 1]
        other = line.replace(b"word-", b"w0rd-") if number > 1 else line.replace(b"north", b"norfh")
        assert other != line
        return [*found[: number - 1], other, *found[number:]]

    return change


def forged(found: list[bytes]) -> list[bytes]:
    """A record that somebody appends who knows the format, but takes up another chain."""
    last = json.loads(found[-1])
    return [*found, json.dumps({**last, "seq": last["seq"] + 1, "prev": last["hash"]}).encode() + b"\n"]


def sealed(found: list[bytes]) -> list[bytes]:
    """A record with a right hash of its own that follows nothing."""
    import hashlib

    record = {**json.loads(found[2]), "prev": "0" * 64}
    del record["hash"]
    record["hash"] = hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return [*found[:2], json.dumps(record, sort_keys=True, separators=(",", ":")).encode() + b"\n", *found[3:]]


TAMPERING: dict[str, tuple[Callable[[list[bytes]], list[bytes]], list[str]]] = {
    **{f"line {n} changed": (changed(n), [f"line {n}: its content does not match"]) for n in range(1, COUNT + 1)},
    "line deleted": (lambda found: [*found[:2], *found[3:]], ["line 3: holds record 4: record 3 should stand before"]),
    "two lines deleted": (lambda found: [*found[:1], *found[3:]], ["line 2: holds record 4: records 2 to 3 should"]),
    "first line deleted": (lambda found: found[1:], ["line 1: holds record 2"]),
    "lines swapped": (
        lambda found: [*found[:2], found[3], found[2], *found[4:]],
        ["line 3: holds record 4", "line 4: holds record 3", "line 5: holds record 5"],
    ),
    "line doubled": (lambda found: [*found[:3], *found[2:]], ["line 4: holds record 3: it is there twice"]),
    "forged record": (forged, [f"line {COUNT + 1}: its content does not match its hash"]),
    "record of its own": (sealed, ["line 3: does not follow the line before it", "line 4: does not follow"]),
    "two changes": (
        lambda found: changed(5)(changed(2)(found)),
        ["line 2: its content does not match", "line 5: its content does not match"],
    ),
}


@pytest.mark.parametrize("name", TAMPERING)
def test_each_change_is_found_and_no_other_line_is_blamed(path: Path, name: str):
    tamper, said = TAMPERING[name]
    path.write_bytes(b"".join(tamper(lines(path))))
    without_a_chain(path)
    with pytest.raises(RunError) as error:
        AuditLog.verify(path)
    found = [str(fault) for fault in error.value.faults]
    assert len(found) == len(said), found
    assert all(text in fault for text, fault in zip(said, found, strict=True)), found
    with pytest.raises(RunError):
        AuditLog.open(path, "site north")


def test_no_byte_can_change(path: Path):
    whole = path.read_bytes()
    for position in range(0, len(whole), 3):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        line = whole.count(b"\n", 0, position) + 1
        with pytest.raises(RunError, match=rf"audit.log, line {line}\b"):
            AuditLog.verify(path)


def test_a_thousand_damaged_lines_are_all_named(path: Path):
    path.write_bytes(b"".join([*lines(path), *[b"x\n"] * 1000]))
    with pytest.raises(RunError) as error:
        AuditLog.verify(path)
    assert len(error.value.faults) == 1000


def test_lines_cut_off_at_the_end_show_by_a_head_that_was_kept(path: Path):
    head = AuditLog.verify(path).head
    assert AuditLog.open(path, "site north").holds(head)
    path.write_bytes(b"".join(lines(path)[:-1]))
    AuditLog.verify(path)  # whole in itself
    without_a_chain(path)
    with pytest.raises(RunError, match=r"which another party has seen: lines were cut off at its end"):
        AuditLog.verify(path, head)
    assert not AuditLog.open(path, "site north").holds(head)


def test_a_line_cut_in_the_middle_is_named_and_mended_by_its_owner(path: Path):
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in (start + 1, (start + len(whole)) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(RunError, match=rf"line {COUNT}: was cut, or its writing was not finished"):
            AuditLog.verify(path)
        log = AuditLog.open(path, "site north")
        assert AuditLog.verify(path).head == log.head and log.entries()[-1].kind == "repair"


def test_heads_of_other_parties_are_kept(path: Path):
    log = AuditLog.open(path, "site north")
    for head in ("1" * 64, "2" * 64, "2" * 64):
        log.keep("coordinator", head)
    log.append("peer-head", {"party": "south", "head": "3" * 64})
    assert AuditLog.verify(path).kept == log.kept == {"coordinator": "2" * 64, "south": "3" * 64}
    assert AuditLog.verify(path).count == COUNT + 3, "an equal head is not kept twice"
    with pytest.raises(RunError, match="is not the head of a chain"):
        log.keep("coordinator", "x")


def test_a_clock_that_goes_back_stops_nobody(tmp_path: Path):
    start = datetime(2026, 1, 1, tzinfo=UTC)
    ticks = iter([start, start + timedelta(hours=2), start + timedelta(hours=1)])
    log = AuditLog.open(tmp_path / "audit.log", "x", clock=lambda: next(ticks))
    log.append("one", {})
    log.append("two", {})
    assert [record.time[11:13] for record in read_log(tmp_path / "audit.log")[1]] == ["00", "02", "01"]


@pytest.mark.parametrize("detail", [{"a": float("nan")}, {"a": {1, 2}}, {"a": b"bytes"}, {("a",): 1}])
def test_details_are_json(path: Path, detail: dict):
    before = path.read_bytes()
    with pytest.raises(InputError, match="its detail is not JSON"):
        AuditLog.open(path, "site north").append("trained", detail)
    for kind in ("", "Two Words", "open", "repair", "x" * 41):
        with pytest.raises(InputError, match="is not a kind of record"):
            AuditLog.open(path, "site north").append(kind, {})
    assert path.read_bytes() == before


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60)
@given(detail=st.dictionaries(st.text() | st.integers(), JSON, max_size=4))
def test_any_json_is_read_as_it_was_written(detail: dict, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("log") / "audit.log"
    log = AuditLog.open(path, "x")
    log.append("one", detail)
    log.append("two", {})
    assert dict(read_log(path)[1][1].body) == json.loads(json.dumps(detail))


@given(data=st.binary(max_size=200))
def test_any_bytes_give_a_clean_error(data: bytes, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("log") / "audit.log"
    path.write_bytes(data)
    with pytest.raises(RunError):
        AuditLog.verify(path)


WRITER = """
import sys
from pathlib import Path
from medfl.audit.log import AuditLog
log = AuditLog.open(Path(sys.argv[1]), "site north")
print("ready", flush=True)
number = 0
while number < int(sys.argv[3]):
    log.append("wrote", {"by": sys.argv[2], "number": number})
    number += 1
    print(number, flush=True)
"""


def writer(path: Path, name: str, count: int) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_two_processes_append_and_the_chain_is_one(path: Path):
    both = [writer(path, name, 200) for name in ("one", "two")]
    for process in both:
        process.communicate(timeout=60)
        assert process.returncode == 0
    entries = [record.body for record in read_log(path)[1] if record.kind == "wrote"]
    for name in ("one", "two"):
        assert [body["number"] for body in entries if body["by"] == name] == list(range(200))
    assert AuditLog.verify(path).count == COUNT + 400


def test_a_writer_killed_at_any_instant_loses_nothing_that_it_was_told_of(path: Path):
    told = 0
    for attempt in range(8):
        process = writer(path, f"writer {attempt}", 10_000)
        try:
            assert process.stdout.readline() == "ready\n"
            mine = 0
            for _ in range(attempt % 4 + 1):
                mine = int(process.stdout.readline())
            time.sleep(0.0007 * attempt)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            rest, _ = process.communicate(timeout=20)
        told += max([mine, *(int(line) for line in rest.split() if line.isdigit())])
    log = AuditLog.open(path, "site north")
    wrote = [record for record in log.entries() if record.kind == "wrote"]
    assert told <= len(wrote) <= told + 8, "at most the record that each was writing is more than was told"
    assert AuditLog.verify(path).head == log.head
