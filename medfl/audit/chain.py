"""A hash chain of records, one a line of canonical JSON. Pure: bytes and times are given.

    {"body":{..},"hash":"..","kind":"charge","prev":"..","seq":3,"time":"2026-01-31T12:00:00.000000Z"}

`seq` counts from 1 and equals the line's number; `prev` is the hash of the line before; `hash` is the SHA-256 of the
line without its hash. Whoever can write the file can also write a new chain: what protects against that, and against an
older copy put back, are the heads that other parties keep.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from medfl.errors import Faults, RunError

GENESIS = "0" * 64
"""The hash before the first record."""

_FIELDS = frozenset({"body", "hash", "kind", "prev", "seq", "time"})
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_KIND = re.compile(r"[a-z][a-z0-9-]{0,39}")


@dataclass(frozen=True, slots=True)
class Form:
    """What a chain is for. name: with its article, as "a ledger". remedy: what to do about a line that is damaged.
    restore: about a file that is gone or older than it was. room: about one that cannot be written. kinds: all kinds of
    records there are; None for any. forward: whether times must not go back. shown: how many faults are told, None for
    all."""

    name: str
    remedy: str
    restore: str
    room: str
    kinds: frozenset[str] | None = None
    forward: bool = True
    shown: int | None = 10

    def knows(self, kind: str) -> bool:
        return bool(_KIND.fullmatch(kind)) if self.kinds is None else kind in self.kinds


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


def make(form: Form, last: Record | None, time: str, kind: str, body: Mapping[str, Any]) -> Record:
    """The record that follows `last`. RunError when its time lies before the last one's and the form forbids that."""
    if form.forward and last is not None and time < last.time:
        what = f"the clock went back from {last.time} to {time}"
        raise RunError.at(form.name.split()[-1], what, "set the machine's clock right")
    draft = Record(last.sequence + 1 if last else 1, last.hash if last else GENESIS, time, kind, body, "")
    return _sealed(draft)


def read(form: Form, data: bytes, where: str, after: Record | None = None) -> Tail:
    """The records in `data`, which follow the record `after`.

    A last line that was cut off while it was written is told apart from damage: it is the beginning of a record without
    an end, and nothing was done under it. RunError names each line that is damaged, missing, out of order or older than
    the line before.
    """
    *lines, rest = data.split(b"\n")
    unended = _is_whole(form, rest)
    walk = _Walk(form, where, after)
    for line in [*lines, rest] if unended else lines:
        walk.take(line)
    if rest and not unended and not _is_beginning(rest):
        walk.blame("has no end of line but something behind its record", line=walk.line + 1)
    _raise(form, walk.faults, where)
    size = len(data) - (0 if unended else len(rest))
    return Tail(tuple(walk.records), size, len(data) - size, unended)


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


def _is_whole(form: Form, rest: bytes) -> bool:
    return rest.endswith(b"}") and _parse(form, rest) is not None


def _is_beginning(rest: bytes) -> bool:
    """Whether no JSON object ends inside `rest`: otherwise its end of line was not lost but changed."""
    try:
        json.JSONDecoder().raw_decode(rest.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return True
    return False


def _parse(form: Form, line: bytes) -> Record | None:
    """The record that a line states; None when it is none. Its hash and place are not checked here."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.keys() != _FIELDS or type(found["seq"]) is not int:
        return None
    if not all(isinstance(found[key], str) for key in ("prev", "time", "kind", "hash")):
        return None
    if not isinstance(found["body"], dict) or not form.knows(found["kind"]) or not _TIME.fullmatch(found["time"]):
        return None
    return Record(found["seq"], found["prev"], found["time"], found["kind"], found["body"], found["hash"])


class _Walk:
    """Goes down the lines of a chain and finds fault with each that is not as it should be, and with no other."""

    def __init__(self, form: Form, where: str, after: Record | None) -> None:
        self.records: list[Record] = []
        self.faults = Faults()
        self.line = self._number = after.sequence if after else 0
        self._form = form
        self._where = where
        self._last = after

    def blame(self, what: str, line: int) -> None:
        self.faults.add(f"{self._where}, line {line}", what, self._form.remedy)

    def take(self, line: bytes) -> None:
        self.line += 1
        self._number += 1
        record = _parse(self._form, line)
        if record is None:
            self.blame(f"is not a record of {self._form.name}: it was changed or damaged", self.line)
            return
        sealed = _is_sealed(record, line)
        for what in self._wrong(record, sealed):
            self.blame(what, self.line)
        if sealed:
            # what follows a gap, or a line out of its place, is judged by its own number
            self._number = record.sequence
        self._last = record
        self.records.append(record)

    def _wrong(self, record: Record, sealed: bool) -> Iterator[str]:
        last = self._last
        if not sealed:
            yield "its content does not match its hash: it was changed or damaged"
        elif record.sequence != self._number:
            yield f"holds record {record.sequence}: {self._gap(record.sequence)}"
        elif self._is_known(last) and record.previous != (last.hash if last else GENESIS):
            yield "does not follow the line before it: the chain of hashes is broken"
        elif self._form.forward and last is not None and record.time < last.time:
            yield f"its time {record.time} lies before that of the line before it, {last.time}"
        elif (record.kind == "open") != (self._number == 1):
            yield f"is a record {record.kind!r}, which may not stand there"

    def _gap(self, found: int) -> str:
        if found < self._number:
            return "it is there twice, or in another order"
        missing = f"record {self._number}" if found == self._number + 1 else f"records {self._number} to {found - 1}"
        return f"{missing} should stand before it, so lines are missing or in another order"

    def _is_known(self, last: Record | None) -> bool:
        """Whether `last` is the line before: when that line is damaged, the next one is not blamed for it."""
        return (last.sequence if last else 0) == self._number - 1


def _is_sealed(record: Record, line: bytes) -> bool:
    try:
        return _sealed(record).hash == record.hash and record.line() == line + b"\n"
    except ValueError:  # not-a-number cannot be written
        return False


def _raise(form: Form, faults: Faults, where: str) -> None:
    """Raise the first faults, and say how many more there are."""
    found = list(faults)
    if form.shown is not None and len(found) > form.shown:
        faults = Faults()
        faults.extend(found[: form.shown])
        faults.add(where, f"{len(found) - form.shown} more lines are damaged", form.remedy)
    faults.raise_if_any(RunError)
