"""The journal: everything needed to resume a run, and its audit trail. SQLAlchemy on SQLite.

A round is committed in one transaction with the state that follows it, so a run killed at any instant goes on from
its last committed round. Plans and verdicts are events, written before they are acted on. Arrays are stored raw
with their type, shape and checksum: no pickle.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import (
    JSON,
    Column,
    Connection,
    DateTime,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    delete,
    event,
    insert,
    select,
    update,
)
from sqlalchemy.exc import DatabaseError

from medfl.errors import InputError, RunError
from medfl.update.wire import as_bytes

SCHEMA = 1
_CHUNK = 64 * 2**20
# bytes: large pages suit large arrays, and the log is folded back into the database once it has grown to _WAL
_PAGE = 2**16
_WAL = 64 * 2**20

_metadata = MetaData()
_run = Table("run", _metadata, Column("key", String, primary_key=True), Column("value", JSON, nullable=False))
_rounds = Table(
    "rounds",
    _metadata,
    Column("number", Integer, primary_key=True),
    Column("record", JSON, nullable=False),
    Column("committed_at", DateTime(timezone=True), nullable=False),
)
_events = Table(
    "events",
    _metadata,
    Column("id", Integer, primary_key=True),
    Column("round", Integer, nullable=False),
    Column("site", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("detail", JSON, nullable=False),
    Column("at", DateTime(timezone=True), nullable=False),
)
_arrays = Table(
    "arrays",
    _metadata,
    Column("name", String, primary_key=True),
    Column("chunk", Integer, primary_key=True),
    Column("dtype", String, nullable=False),
    Column("shape", JSON, nullable=False),
    Column("checksum", Integer, nullable=False),
    Column("data", LargeBinary, nullable=False),
)

_RELEASE = "/release"

Arrays = dict[str, npt.NDArray[Any]]


class Journal:
    """One run's database. Open with `create` or `open`; close when done."""

    def __init__(self, engine: Engine, path: Path) -> None:
        self._engine = engine
        self.path = path

    @classmethod
    def create(cls, path: Path, facts: Mapping[str, Any]) -> "Journal":
        """A new journal that opens with these facts about the run; InputError when there is one already."""
        try:
            path.touch(mode=0o600, exist_ok=False)  # it holds the sites' private arrays
        except FileExistsError as error:
            raise InputError.at(path, "exists already", "resume it with --resume, or choose another folder") from error
        journal = cls(_connect(path), path)
        with journal._transaction() as connection:
            _metadata.create_all(connection)
            for key, value in {"schema": SCHEMA, **facts}.items():
                connection.execute(insert(_run).values(key=key, value=value))
        return journal

    @classmethod
    def open(cls, path: Path) -> "Journal":
        """An existing journal; InputError when there is none that this version can read."""
        if not path.is_file():
            raise InputError.at(path, "does not exist", "give the folder of a run")
        journal = cls(_connect(path), path)
        try:
            schema = journal.fact("schema")
        except (RunError, KeyError) as error:
            raise InputError.at(path, "is not a journal of medfl", "give the folder of a run") from error
        if schema != SCHEMA:
            raise InputError.at(
                path, f"has schema {schema}, this version reads {SCHEMA}", "use the version that wrote it"
            )
        return journal

    def fact(self, key: str) -> Any:
        """A fact about the run; KeyError when it is not there."""
        with self._transaction() as connection:
            row = connection.execute(select(_run.c.value).where(_run.c.key == key)).first()
        if row is None:
            raise KeyError(key)
        return row[0]

    def set_fact(self, key: str, value: Any) -> None:
        with self._transaction() as connection:
            connection.execute(delete(_run).where(_run.c.key == key))
            connection.execute(insert(_run).values(key=key, value=value))

    def plans(self, round_: int) -> int:
        """How often this round was planned already."""
        place = select(_events.c.id).where(_events.c.round == round_, _events.c.kind == "plan")
        with self._transaction() as connection:
            return len(connection.execute(place).all())

    def note(self, round_: int, kind: str, detail: Mapping[str, Any], site: str = "") -> None:
        """Append one event to the audit trail."""
        with self._transaction() as connection:
            _append(connection, [_event(round_, site, kind, detail)])

    def commit(
        self, record: Mapping[str, Any], plain: Mapping[str, Any], arrays: Arrays, verdicts: Mapping[str, Any]
    ) -> None:
        """A finished round: its record, its verdicts by site, and the state that follows it; all or nothing."""
        now = datetime.now(UTC)
        number = int(record["round"])
        with self._transaction() as connection:
            connection.execute(insert(_rounds).values(number=number, record=dict(record), committed_at=now))
            _append(connection, [_event(number, site, "verdict", detail) for site, detail in verdicts.items()])
            # a summary is about the last round: a run that goes on has none; an opened sum is used once
            connection.execute(delete(_run).where(_run.c.key.in_(("state", "summary", "release"))))
            connection.execute(insert(_run).values(key="state", value=dict(plain)))
            for name, array in arrays.items():
                _write(connection, name, array)

    def keep_release(self, release: Mapping[str, Any], total: npt.NDArray[Any], changed: Arrays) -> None:
        """Persist an opened sum before anything is done with it: what was released once is never released again.
        changed: the sites' private arrays after the round."""
        with self._transaction() as connection:
            connection.execute(delete(_run).where(_run.c.key == "release"))
            connection.execute(insert(_run).values(key="release", value=dict(release)))
            for name, array in {_RELEASE: total, **changed}.items():
                _write(connection, name, array)

    def release(self) -> tuple[dict[str, Any], npt.NDArray[Any]] | None:
        """The opened sum of a round that was not committed, with what is known of the round; None when there is
        none. RunError when it is damaged."""
        try:
            about = self.fact("release")
        except KeyError:
            return None
        with self._transaction() as connection:
            place = select(_arrays).where(_arrays.c.name == _RELEASE).order_by(_arrays.c.chunk)
            rows = connection.execute(place).all()
        return about, _read(_RELEASE, list(rows))

    def state(self) -> tuple[dict[str, Any], Arrays] | None:
        """The state after the last committed round; None before the first. RunError when an array is damaged."""
        try:
            plain = self.fact("state")
        except KeyError:
            return None
        return plain, self.arrays()

    def arrays(self) -> Arrays:
        """All kept arrays by name, also those that were kept before the first commit."""
        with self._transaction() as connection:
            rows = connection.execute(select(_arrays).order_by(_arrays.c.name, _arrays.c.chunk)).all()
        pieces: dict[str, list[Any]] = {}
        for row in rows:
            pieces.setdefault(row.name, []).append(row)
        pieces.pop(_RELEASE, None)
        return {name: _read(name, chunks) for name, chunks in pieces.items()}

    def rounds(self) -> Iterator[dict[str, Any]]:
        """The records of all committed rounds, in order."""
        with self._transaction() as connection:
            for row in connection.execute(select(_rounds.c.record).order_by(_rounds.c.number)):
                yield row[0]

    def events(self) -> Iterator[dict[str, Any]]:
        """The audit trail, in order."""
        with self._transaction() as connection:
            for row in connection.execute(select(_events).order_by(_events.c.id)):
                yield {
                    "round": row.round,
                    "site": row.site,
                    "kind": row.kind,
                    "detail": row.detail,
                    "at": row.at.isoformat(),
                }

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """All or nothing; RunError when the file cannot be read or written."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except DatabaseError as error:
            remedy = "see that there is room and that no other process uses the run, then go on with --resume"
            raise RunError.at(self.path, f"cannot be used: {error.orig}", remedy) from error


def _connect(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}", json_serializer=json.dumps)

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, _: Any) -> None:
        # write-ahead log: a killed process loses nothing that was committed, and readers do not wait
        connection.execute(f"PRAGMA page_size={_PAGE}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA wal_autocheckpoint={_WAL // _PAGE}")
        connection.execute("PRAGMA synchronous=NORMAL")

    return engine


def _event(round_: int, site: str, kind: str, detail: Mapping[str, Any]) -> dict[str, Any]:
    return {"round": round_, "site": site, "kind": kind, "detail": dict(detail), "at": datetime.now(UTC)}


def _append(connection: Connection, events: list[dict[str, Any]]) -> None:
    if events:
        connection.execute(insert(_events), events)


def _write(connection: Connection, name: str, array: npt.NDArray[Any]) -> None:
    raw = as_bytes(array)
    about = {"name": name, "dtype": array.dtype.str, "shape": list(array.shape), "checksum": zlib.crc32(raw)}
    count = max(1, -(-len(raw) // _CHUNK))
    connection.execute(delete(_arrays).where(_arrays.c.name == name, _arrays.c.chunk >= count))
    for chunk in range(count):
        row = {**about, "chunk": chunk, "data": raw[chunk * _CHUNK : (chunk + 1) * _CHUNK]}
        # overwriting in place costs a fraction of deleting and inserting
        place = (_arrays.c.name == name, _arrays.c.chunk == chunk)
        if not connection.execute(update(_arrays).where(*place).values(row)).rowcount:
            connection.execute(insert(_arrays).values(row))


def _read(name: str, chunks: list[Any]) -> npt.NDArray[Any]:
    raw = bytearray().join(chunk.data for chunk in chunks)
    if zlib.crc32(raw) != chunks[0].checksum:
        raise RunError.at(f"journal, array {name}", "is damaged: its checksum does not match", "start the run again")
    return np.frombuffer(raw, np.dtype(chunks[0].dtype)).reshape(chunks[0].shape)
