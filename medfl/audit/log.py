"""The audit log of a coordinator or a site: what happened, in an order and with a content that nobody changes unseen.

    {"body":{"study":"3f..","by":"dr. a"},"hash":"..","kind":"approved","prev":"..","seq":7,"time":".."}

Anybody can verify the file by itself. That lines were cut off at its end shows by the heads that other parties keep.
Details never hold an identifier of a patient.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medfl import __version__
from medfl.audit.chain import Form, Record, is_hash, read
from medfl.audit.file import ChainFile, Clock, locked, require_private, utc_now
from medfl.errors import Faults, InputError, RunError

PEER_HEAD = "peer-head"
"""The kind of record that keeps the head of another party's log: {"party", "head"}."""

_FORMAT = 1
_END = b"\n"
_REMEDY = "keep the file as it is, and find out who or what changed it; a copy whose head another party knows is whole"

# a clock that was set back must not stop a hospital: the order is that of the numbers, and the times are the clock's
LOG = Form(
    name="an audit log",
    remedy=_REMEDY,
    restore="restore the newest whole copy whose head the other parties know",
    room="nothing may happen that is not written down; make room, then go on",
    forward=False,
    shown=None,
)


@dataclass(frozen=True, slots=True)
class Verification:
    """A log that is whole. count: records; head: hash of the last one; kept: the last head of each other party's log
    that this one keeps."""

    owner: str
    count: int
    head: str
    kept: Mapping[str, str]


class AuditLog:
    """Open with `open`. Several processes and threads may append to one file, each with its own object."""

    def __init__(self, path: Path, clock: Clock = utc_now) -> None:
        self.path = path
        self._contents = _Contents()
        self._file = ChainFile(path, LOG, self._contents.take, clock)

    @classmethod
    def open(cls, path: Path, owner: str, clock: Clock = utc_now) -> "AuditLog":
        """The owner's log; a new one when there is none. The whole chain is verified.

        A last line whose writing was cut off is removed, and a record says so. RunError names every line that was
        changed, lost or put in another order, a log of another owner and one that other users can open.
        """
        log = cls(path, clock)
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            log._file.create({"format": _FORMAT, "owner": owner, "version": __version__})
        require_private(path)
        with log._file.turn():
            found = log._contents.owner
        if found != owner:
            raise RunError.at(path, f"is the audit log of {found}, not of {owner}", "give each party its own file")
        return log

    def append(self, kind: str, detail: Mapping[str, Any]) -> str:
        """The log's head after this record, which is on the disk. InputError when the kind is not a word such as
        "approved", or when the detail is not JSON."""
        if not LOG.knows(kind) or kind in ("open", "repair"):
            raise InputError.at(f"audit record {kind!r}", "is not a kind of record", "use lower-case words and hyphens")
        body = _plain(kind, detail)
        with self._file.turn():
            return self._file.append(kind, body).hash

    def keep(self, party: str, head: str) -> None:
        """Keep the head of another party's log, if it is not the one that was kept last."""
        if not is_hash(head):
            raise RunError.at(f"audit log of {party}", f"{head!r} is not the head of a chain", "send a SHA-256")
        with self._file.turn():
            if self._contents.kept.get(party) != head:
                self._file.append(PEER_HEAD, {"party": party, "head": head})

    def holds(self, head: str) -> bool:
        """Whether a record has this hash: false for a head that another party kept means that lines were cut off, or
        that this is another log."""
        with self._file.turn():
            return head in self._contents.hashes

    @property
    def head(self) -> str:
        with self._file.turn():
            return self._contents.head

    @property
    def kept(self) -> Mapping[str, str]:
        """The last head of each other party's log."""
        with self._file.turn():
            return dict(self._contents.kept)

    def evaluations(self, study: str) -> int:
        """How often metrics were told of a study, given by its hash, since it was approved last."""
        with self._file.turn():
            return self._contents.evaluated[study]

    def entries(self) -> list[Record]:
        """All records, from the first."""
        with self._file.turn():
            return list(read(LOG, self.path.read_bytes(), str(self.path)).records)

    @staticmethod
    def verify(path: Path, head: str | None = None) -> Verification:
        """Verify a log without writing to it. head: one that another party kept, which must be in the log.

        RunError names every line that was changed, is missing, out of order or cut.
        """
        return read_log(path, head)[0]


class _Contents:
    """What the records of a log say together."""

    def __init__(self) -> None:
        self.owner = ""
        self.head = ""
        self.hashes: set[str] = set()
        self.kept: dict[str, str] = {}
        self.evaluated: Counter[str] = Counter()

    def take(self, record: Record) -> None:
        self.head = record.hash
        self.hashes.add(record.hash)
        if record.kind == "open":
            self.owner = str(record.body.get("owner"))
        elif record.kind == PEER_HEAD:
            self.kept[str(record.body.get("party"))] = str(record.body.get("head"))
        elif record.kind == "evaluated":
            self.evaluated[str(record.body.get("study"))] += 1
        elif record.kind == "approved":
            self.evaluated.pop(str(record.body.get("study")), None)


def read_log(path: Path, head: str | None = None) -> tuple[Verification, list[Record]]:
    """A log's verification and its records, without writing to it; errors as of `AuditLog.verify`."""
    if not path.is_file():
        raise InputError.at(path, "is not a file", "give the file of an audit log")
    with locked(path, os.O_RDONLY, LOG):
        data = path.read_bytes()
    faults, contents, records = Faults(), _Contents(), list[Record]()
    try:
        records += read(LOG, data, str(path)).records
    except RunError as error:
        faults.extend(error.faults)
    if data and not data.endswith(b"\n"):
        where, what = f"{path}, line {data.count(_END) + 1}", "was cut, or its writing was not finished"
        faults.add(where, what, f"if a process died there, opening the log mends it; else {_REMEDY}")
    elif not records and not faults:
        faults.add(path, "holds no record at all, not even that of its opening", LOG.restore)
    for record in records:
        contents.take(record)
    if head is not None and not faults and head not in contents.hashes:
        what = f"does not hold the record {head[:12]}, which another party has seen: lines were cut off at its end"
        faults.add(path, f"{what}, or it is another log", LOG.restore)
    faults.raise_if_any(RunError)
    return Verification(contents.owner, len(contents.hashes), contents.head, contents.kept), records


def _plain(kind: str, detail: Mapping[str, Any]) -> dict[str, Any]:
    """The detail as it will be read again."""
    try:
        found: dict[str, Any] = json.loads(json.dumps(dict(detail), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError.at(f"audit record {kind!r}", f"its detail is not JSON: {error}") from error
    return found
