"""The chain tells a line that was never finished from one that was changed, lost, moved or put back."""

import hashlib
import json
from itertools import count, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfl.errors import RunError
from medfl.privacy.accounting.base import GaussianEvent
from medfl.privacy.ledger.base import Charge
from medfl.privacy.ledger.chain import Record, compare, make, read
from medfl.privacy.ledger.memory import MemoryLedger


def charge(round_: int) -> Charge:
    return Charge("study", "run", round_, "model", "patient", "d", "gaussian", GaussianEvent(10.0), 1.0, 1.0)


def a_ledger() -> MemoryLedger:
    ticks = count()
    ledger = MemoryLedger("north", clock=lambda: f"2026-01-01T00:00:{next(ticks):02d}.000000Z")
    for round_ in range(3):
        permit = ledger.charge(charge(round_), None)
        ledger.done(permit, hashlib.sha256(bytes([round_])).hexdigest())
    ledger.witness("coordinator", "ab" * 32)
    return ledger


LINES = a_ledger().lines
LAST = LINES.rindex(b"\n", 0, -1) + 1


def test_reads_what_was_written():
    tail = read(LINES, "ledger")
    assert [record.kind for record in tail.records] == ["open", *["charge", "done"] * 3, "witness"]
    assert b"".join(record.line() for record in tail.records) == LINES
    assert (tail.size, tail.torn, tail.unended) == (len(LINES), 0, False)
    half = LINES.index(b"\n") + 1
    (first,) = read(LINES[:half], "ledger").records
    assert read(LINES[half:], "ledger", first).records == tail.records[1:]


def test_no_bit_can_flip():
    for position in range(len(LINES)):
        for bit in (0, 5):
            changed = bytearray(LINES)
            changed[position] ^= 1 << bit
            line = LINES.count(b"\n", 0, position) + 1
            with pytest.raises(RunError) as error:
                read(bytes(changed), "ledger")
            assert f"ledger, line {line}" in str(error.value)


@given(st.integers(0, len(LINES) - 1), st.integers(0, 255))
def test_no_byte_can_change(position: int, value: int):
    changed = LINES[:position] + bytes([value]) + LINES[position + 1 :]
    if changed == LINES:
        assert read(changed, "ledger").size == len(LINES)
    else:
        with pytest.raises(RunError):
            read(changed, "ledger")


def test_a_check_of_links_alone_misses_a_change():
    """A fake that follows `prev` only lets the last record say anything."""

    def linked(data: bytes) -> bool:
        rows = [json.loads(line) for line in data.splitlines()]
        return all(after["prev"] == before["hash"] for before, after in pairwise(rows))

    changed = LINES[:LAST] + LINES[LAST:].replace(b"coordinator", b"k0ordinator")
    assert linked(changed)
    with pytest.raises(RunError, match="line 8: its content does not match its hash"):
        read(changed, "ledger")


def test_a_last_line_cut_anywhere_is_told_apart():
    for end in range(LAST, len(LINES) - 1):
        tail = read(LINES[:end], "ledger")
        assert (len(tail.records), tail.size, tail.torn, tail.unended) == (7, LAST, end - LAST, False)
    tail = read(LINES[:-1], "ledger")
    assert (len(tail.records), tail.torn, tail.unended) == (8, 0, True), "a record that lacks only its end is kept"


@pytest.mark.parametrize("zeros", [1, 300])
def test_zeros_of_a_file_system_are_an_unfinished_line(zeros: int):
    assert read(LINES[: LAST + 20] + bytes(zeros), "ledger").torn == 20 + zeros


def test_an_older_line_cannot_be_cut():
    lines = LINES.splitlines(keepends=True)
    with pytest.raises(RunError, match=r"line 3: is not a record"):
        read(b"".join([*lines[:2], lines[2][:40] + b"\n", *lines[3:]]), "ledger")


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ([0, 1, 3, 4, 5, 6, 7], "line 3: holds record 4"),
        ([0, 1, 2, 2, 3, 4, 5, 6, 7], "line 4: holds record 3"),
        ([0, 2, 1, 3, 4, 5, 6, 7], "line 2: holds record 3"),
        ([1, 2, 3], "line 1: holds record 2"),
    ],
)
def test_lines_cannot_be_dropped_doubled_or_moved(order: list[int], said: str):
    lines = LINES.splitlines(keepends=True)
    with pytest.raises(RunError, match=said):
        read(b"".join(lines[index] for index in order), "ledger")


def chained(*steps: tuple[str, str]) -> bytes:
    """Records (time, kind) that are linked rightly, whatever they say."""
    last, lines = None, b""
    for time, kind in steps:
        base = Record(last.sequence, last.hash, "", "", {}, last.hash) if last else None
        last = make(base, f"2026-01-01T00:00:{time}.000000Z", kind, {})
        lines += last.line()
    return lines


def test_time_goes_forward():
    assert len(read(chained(("05", "open"), ("05", "charge"), ("06", "done")), "ledger").records) == 3
    with pytest.raises(RunError, match=r"line 3: its time 2026-01-01T00:00:04.000000Z lies before"):
        read(chained(("05", "open"), ("06", "charge"), ("04", "done")), "ledger")
    with pytest.raises(RunError, match="the clock went back"):
        make(make(None, "2026-01-02T00:00:00.000000Z", "open", {}), "2026-01-01T00:00:00.000000Z", "done", {})


def test_a_chain_begins_once():
    for steps in ([("00", "charge")], [("00", "open"), ("00", "open")]):
        with pytest.raises(RunError, match="may not stand there"):
            read(chained(*steps), "ledger")


def test_another_chain_cannot_be_continued():
    one, other = (a_ledger().lines for _ in range(2))
    with pytest.raises(RunError, match="line 8: does not follow the line before it"):
        read(one[: one.rindex(b"\n", 0, -1) + 1] + other[other.rindex(b"\n", 0, -1) + 1 :], "ledger")


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_give_a_clean_error_or_an_unfinished_line(data: bytes, after: bool):
    try:
        tail = read(LINES + data if after else data, "ledger")
    except RunError:
        return
    assert len(tail.records) == (8 if after else 0) and b"\n" not in data and tail.torn == len(data)


@given(
    st.recursive(st.none() | st.floats() | st.text(), lambda inner: st.dictionaries(st.text(), inner) | st.lists(inner))
)
def test_any_json_gives_a_clean_error(value: object):
    with pytest.raises(RunError):
        read(json.dumps(value).encode() + b"\n", "ledger")
    body = json.dumps({**json.loads(LINES.splitlines()[0]), "body": value}).encode() + b"\n"
    with pytest.raises(RunError):
        read(body, "ledger")


def test_all_faults_at_once_but_not_a_thousand():
    lines = LINES.splitlines(keepends=True)
    with pytest.raises(RunError) as error:
        read(b"".join([lines[0], b"x\n", *lines[2:4], b"y\n", *lines[5:]]), "ledger")
    assert [fault.where for fault in error.value.faults] == ["ledger, line 2", "ledger, line 5"]
    with pytest.raises(RunError, match="990 more lines are damaged"):
        read(b"x\n" * 1000, "ledger")


def test_rollback_shows_in_the_heads_that_others_keep():
    hashes = [record.hash for record in read(LINES, "ledger").records]
    compare("north", hashes, {"coordinator": hashes[-1]}, {}, {})
    with pytest.raises(RunError, match=r"north: coordinator has seen its record .* not in it"):
        compare("north", hashes[:-2], {"coordinator": hashes[-1], "south": hashes[0]}, {}, {})


def test_rollback_of_another_party_shows_in_what_was_witnessed():
    seen = {"coordinator": ["1" * 64, "2" * 64]}
    for head in ("2" * 64, "3" * 64):
        compare("north", [], {}, seen, {"coordinator": head})
    with pytest.raises(RunError, match="ledger of coordinator: its head 111111111111 is older than 222222222222"):
        compare("north", [], {}, seen, {"coordinator": "1" * 64})
