"""A hash chain of records, one a line of canonical JSON. Pure: bytes and times are given.

    {"body":{..},"hash":"..","kind":"charge","prev":"..","seq":3,"time":"2026-01-31T12:00:00.000000Z"}

`seq` counts from 1 and equals the line's number; `prev` is the hash of the line before; `hash` is the SHA-256 of the
line without its hash. Whoever can write the file can also write a new chain: what protects against that, and against an
older copy put back, are the heads that other parties keep (`compare`).
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medfl.errors import Faults, RunError

GENESIS = "0" * 64
"""The hash before the first record."""

KINDS = frozenset({"open", "plan", "charge", "done", "witness", "repair"})

_FIELDS = frozenset({"body", "hash", "kind", "prev", "seq", "time"})
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_REMEDY = (
    "nothing may be released until this is clear: keep the file as it is, find out who or what changed it, and restore "
    "the newest whole copy whose head the other parties know"
)
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Record:
    """One line. time: UTC, as "2026-01-31T12:00:00.000000Z", so that texts sort as times do."""

    sequence: int
    previous: str
    time: str
    kind: str
    body: Mapping[str, Any]
    hash: str

    def line(self) -> bytes:
        return _canonical({**_content(self), "hash": self.hash}) + b"\n"


@dataclass(frozen=True, slots=True)
class Tail:
    """What was read. size: bytes of the records. torn: bytes behind them, of a line whose writing was cut off. unended:
    the last record is whole but its end of line was never written."""

    records: tuple[Record, ...]
    size: int
    torn: int = 0
    unended: bool = False


def make(last: Record | None, time: str, kind: str, body: Mapping[str, Any]) -> Record:
    """The record that follows `last`. RunError when its time lies before the last one's."""
    if last is not None and time < last.time:
        raise RunError.at("ledger", f"the clock went back from {last.time} to {time}", "set the machine's clock right")
    draft = Record(last.sequence + 1 if last else 1, last.hash if last else GENESIS, time, kind, body, "")
    return _sealed(draft)


def read(data: bytes, where: str, after: Record | None = None) -> Tail:
    """The records in `data`, which follow the record `after`.

    A last line that was cut off while it was written is told apart from damage: it is the beginning of a record without
    an end, and nothing was released under it. RunError names each line that is damaged, missing, out of order or older
    than the line before.
    """
    lines, rest = _split(data)
    faults, found, last = Faults(), [], after
    number = after.sequence if after else 0
    for line in lines:
        number += 1
        last = _next(line, last, f"{where}, line {number}", number, faults) or last
        found.append(last)
    unended = _is_whole(rest)
    if unended:
        found.append(_next(rest, last, f"{where}, line {number + 1}", number + 1, faults))
    elif rest and not _is_beginning(rest):
        faults.add(f"{where}, line {number + 1}", "has no end of line but something behind its record", _REMEDY)
    _raise(faults, where)
    size = len(data) - (0 if unended else len(rest))
    return Tail(tuple(record for record in found if record), size, len(data) - size, unended)


def compare(
    where: str,
    chain: Collection[str],
    kept: Mapping[str, str],
    witnessed: Mapping[str, Sequence[str]],
    present: Mapping[str, str],
) -> None:
    """RunError when a ledger was put back to an older copy, this one or another party's.

    chain: hashes of this chain. kept: the head of this chain that each other party kept. witnessed: the heads of each
    other party that this chain kept, in order. present: the head that each other party has now.
    """
    faults = Faults()
    for party, head in kept.items():
        if head not in chain:
            what = f"{party} has seen its record {head[:12]}, which is not in it: an older copy or another ledger"
            faults.add(where, what, "restore the newest copy; charges made since would be forgotten")
    for party, head in present.items():
        earlier = witnessed.get(party, ())
        if head in earlier and head != earlier[-1]:
            what = f"its head {head[:12]} is older than {earlier[-1][:12]}, which {where} has seen: an older copy"
            faults.add(f"ledger of {party}", what, f"{party} must restore the newest copy before it takes part again")
    faults.raise_if_any(RunError)


def is_hash(text: str) -> bool:
    """Whether the text is a SHA-256 in lower-case hexadecimal."""
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def _content(record: Record) -> dict[str, Any]:
    return {
        "seq": record.sequence,
        "prev": record.previous,
        "time": record.time,
        "kind": record.kind,
        "body": record.body,
    }


def _sealed(record: Record) -> Record:
    digest = hashlib.sha256(_canonical(_content(record))).hexdigest()
    return Record(record.sequence, record.previous, record.time, record.kind, record.body, digest)


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _split(data: bytes) -> tuple[list[bytes], bytes]:
    """The ended lines without their ends, and what stands behind them."""
    *lines, rest = data.split(b"\n")
    return lines, rest


def _is_whole(rest: bytes) -> bool:
    return rest.endswith(b"}") and _parse(rest) is not None


def _is_beginning(rest: bytes) -> bool:
    """Whether no JSON object ends inside `rest`: otherwise its end of line was not lost but changed."""
    try:
        json.JSONDecoder().raw_decode(rest.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return True
    return False


def _parse(line: bytes) -> Record | None:
    """The record that a line states; None when it is none. Its hash and place are not checked here."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.keys() != _FIELDS or type(found["seq"]) is not int:
        return None
    if not all(isinstance(found[key], str) for key in ("prev", "time", "kind", "hash")):
        return None
    if not isinstance(found["body"], dict) or found["kind"] not in KINDS or not _TIME.fullmatch(found["time"]):
        return None
    return Record(found["seq"], found["prev"], found["time"], found["kind"], found["body"], found["hash"])


def _next(line: bytes, last: Record | None, where: str, number: int, faults: Faults) -> Record | None:
    """The record of a line that should follow `last`; what is wrong with it goes to `faults`."""
    record = _parse(line)
    if record is None:
        faults.add(where, "is not a record of a ledger: it was changed or damaged", _REMEDY)
        return None
    for what in _wrong(record, line, last, number):
        faults.add(where, what, _REMEDY)
    return record


def _wrong(record: Record, line: bytes, last: Record | None, number: int) -> Iterator[str]:
    if not _is_sealed(record, line):
        yield "its content does not match its hash: it was changed or damaged"
    elif record.sequence != number:
        yield f"holds record {record.sequence}: records are missing, doubled or in another order"
    elif _is_known(last, number) and record.previous != (last.hash if last else GENESIS):
        yield "does not follow the line before it: the chain of hashes is broken"
    elif last is not None and record.time < last.time:
        yield f"its time {record.time} lies before that of the line before it, {last.time}"
    elif (record.kind == "open") != (number == 1):
        yield f"is a record {record.kind!r}, which may not stand there"


def _is_known(last: Record | None, number: int) -> bool:
    """Whether `last` is the line before: when that line is damaged, the next one is not blamed for it."""
    return (last.sequence if last else 0) == number - 1


def _is_sealed(record: Record, line: bytes) -> bool:
    try:
        return _sealed(record).hash == record.hash and record.line() == line + b"\n"
    except ValueError:  # not-a-number cannot be written
        return False


def _raise(faults: Faults, where: str) -> None:
    """Raise the first faults: after a break every later line may be one."""
    found = list(faults)
    more = len(found) - _SHOWN
    if more > 0:
        shortened = Faults()
        shortened.extend(found[:_SHOWN])
        shortened.add(where, f"{more} more lines are damaged", _REMEDY)
        faults = shortened
    faults.raise_if_any(RunError)
