"""The journal: everything needed to resume a run, and its audit trail. SQLAlchemy on SQLite or PostgreSQL.

A round is committed in one transaction with the state that follows it, so a run killed at any instant goes on from
its last committed round. Plans and verdicts are events, written before they are acted on. Arrays are stored raw
with their type, shape and checksum: no pickle.
"""

import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from isal import isal_zlib
from sqlalchemy import Connection, Engine, bindparam, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from medfl.coordinator.files import write_text
from medfl.coordinator.stores import migrations
from medfl.coordinator.stores.base import Place, myself
from medfl.coordinator.stores.base import Where as Where
from medfl.coordinator.stores.schema import SCHEMA, metadata
from medfl.coordinator.stores.schema import arrays as _arrays
from medfl.coordinator.stores.schema import chunks as _chunks
from medfl.coordinator.stores.schema import events as _events
from medfl.coordinator.stores.schema import messages as _messages
from medfl.coordinator.stores.schema import rounds as _rounds
from medfl.coordinator.stores.schema import run as _run
from medfl.errors import InputError, RunError
from medfl.update.wire import as_bytes

_CHUNK = 64 * 2**20
_RELEASE = "/release"
_FILE, _POINTER = "journal.db", "journal.url"

# of every round, and built once: to build a statement takes longer than to run it
_DROP_FACT = delete(_run).where(_run.c.key == bindparam("of"))
_ADD_FACT = insert(_run)
_REPLACE_ARRAY = update(_arrays).where(_arrays.c.name == bindparam("of"))
_ADD_ARRAY = insert(_arrays)
_DROP_CHUNKS = delete(_chunks).where(_chunks.c.name == bindparam("of"), _chunks.c.chunk >= bindparam("at"))
_REPLACE_CHUNK = update(_chunks).where(_chunks.c.name == bindparam("of"), _chunks.c.chunk == bindparam("at"))
_ADD_CHUNK = insert(_chunks)
_ADD_ROUND = insert(_rounds)
_ADD_EVENTS = insert(_events)
_DROP_LAST = delete(_run).where(_run.c.key.in_(("summary", "release", "state")))

Arrays = dict[str, npt.NDArray[Any]]


class Counted(NamedTuple):
    """A site's message that a round has used. id: the site's own, never used twice. digest: SHA-256 of the message."""

    site: str
    id: str
    digest: str
    kind: str = "update"


class Journal:
    """One run's database. Open with `create` or `open`; close when done. May be used by several threads."""

    def __init__(self, place: Place, engine: Engine, read_only: bool = False) -> None:
        self._place = place
        self._engine = engine
        self.read_only = read_only

    @property
    def where(self) -> str:
        """The file, or the URL without its password."""
        return self._place.text

    @classmethod
    def create(cls, where: Where, facts: Mapping[str, Any], *, durable: bool = False) -> "Journal":
        """A new journal that opens with these facts about the run; InputError when there is one already.

        where: a file, or postgresql://user@host/database, where the run gets a schema of its own (`medfl_<run>`, or
        the URL's ?schema=). durable: what is committed survives a loss of power too, now and whenever the journal is
        opened again; in PostgreSQL it always does.
        """
        place, token = place_of(where).made(str(facts.get("run", ""))), secrets.token_hex(8)
        journal = cls(place, place.maker(token))
        first = {"schema": SCHEMA, "durable": durable, "writer": myself(token), **facts}
        with journal._closed_on_error():
            with journal._transaction() as connection:
                place.prepare(connection)
                metadata.create_all(connection)
                connection.execute(insert(_run), [{"key": key, "value": value} for key, value in first.items()])
            journal._engine = place.placed(journal._engine, token, durable)
            place.opened()
        return journal

    @classmethod
    def open(cls, where: Where, *, read_only: bool = False) -> "Journal":
        """An existing journal; InputError when there is none that this version can read, or another process writes it.

        read_only: look at it while its run goes on. A journal of an older version is upgraded, or read as if it were.
        """
        place = place_of(where).found()
        journal = cls(place, place.reader(), read_only=True)
        with journal._closed_on_error():
            schema, durable = journal._version()
        if read_only and schema == SCHEMA:
            return journal
        journal.close()
        if read_only:
            journal = cls(place, place.copy(), read_only=True)
            with journal._closed_on_error():
                journal._upgrade(schema)
            return journal
        token = secrets.token_hex(8)
        journal = cls(place, place.writer(token, durable))
        with journal._closed_on_error():
            schema, _ = journal._version()  # whoever wrote until now may have upgraded it
            if schema < SCHEMA:
                journal._upgrade(schema, place.backup(schema))
            journal.set_fact("writer", myself(token))
            place.opened()
        return journal

    def fact(self, key: str) -> Any:
        """A fact about the run; KeyError when it is not there."""
        with self._transaction() as connection:
            found = _get(connection, key)
        if found is None:
            raise KeyError(key)
        return found[0]

    def set_fact(self, key: str, value: Any) -> None:
        with self._transaction() as connection:
            _put(connection, key, value)

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
        self,
        record: Mapping[str, Any],
        plain: Mapping[str, Any],
        arrays: Arrays,
        verdicts: Mapping[str, Any],
        counted: Iterable[Counted] = (),
    ) -> None:
        """A finished round: its record, its verdicts by site, the state that follows it, and the messages that it used;
        all or nothing. RunError when one of the messages was counted in another round, or with other content."""
        now = datetime.now(UTC)
        number = int(record["round"])
        with self._transaction() as connection:
            connection.execute(_ADD_ROUND, {"number": number, "record": dict(record), "committed_at": now})
            _append(connection, [_event(number, site, "verdict", detail) for site, detail in verdicts.items()])
            self._count(connection, number, counted)
            # a summary is about the last round: a run that goes on has none; an opened sum is used once
            connection.execute(_DROP_LAST)
            connection.execute(_ADD_FACT, {"key": "state", "value": dict(plain)})
            for name, array in arrays.items():
                _write(self._place, connection, name, array)

    def keep_release(
        self,
        release: Mapping[str, Any],
        total: npt.NDArray[Any],
        changed: Arrays,
        counted: Iterable[Counted] = (),
    ) -> None:
        """Persist an opened sum before anything is done with it: what was released once is never released again.
        changed: the sites' private arrays after the round. counted: the messages in the sum; the round's `commit` may
        name them again."""
        with self._transaction() as connection:
            _put(connection, "release", dict(release))
            if messages := list(counted):
                self._count(connection, int(release["outcome"]["plan"]["round"]), messages)
            for name, array in {_RELEASE: total, **changed}.items():
                _write(self._place, connection, name, array)

    def messages(self) -> Iterator[dict[str, Any]]:
        """The counted messages: round, site, id, kind, digest and time, by round and site."""
        order = select(_messages).order_by(_messages.c.round, _messages.c.site, _messages.c.id)
        with self._transaction() as connection:
            rows = connection.execute(order).all()
        return ({**row._asdict(), "at": row.at.isoformat()} for row in rows)

    def release(self) -> tuple[dict[str, Any], npt.NDArray[Any]] | None:
        """The opened sum of a round that was not committed, with what is known of the round; None when there is
        none. RunError when it is damaged."""
        with self._transaction() as connection:
            about = _get(connection, "release")
            if about is None:
                return None
            return about[0], _read(connection, [_RELEASE])[_RELEASE]

    def state(self) -> tuple[dict[str, Any], Arrays] | None:
        """The state after the last committed round; None before the first. RunError when an array is damaged."""
        with self._transaction() as connection:
            plain = _get(connection, "state")
            return None if plain is None else (plain[0], _all_arrays(connection))

    def arrays(self) -> Arrays:
        """All kept arrays by name, also those that were kept before the first commit."""
        with self._transaction() as connection:
            return _all_arrays(connection)

    def rounds(self) -> Iterator[dict[str, Any]]:
        """The records of all committed rounds, in order."""
        with self._transaction() as connection:
            return iter(connection.execute(select(_rounds.c.record).order_by(_rounds.c.number)).scalars().all())

    def events(self) -> Iterator[dict[str, Any]]:
        """The audit trail, in order."""
        with self._transaction() as connection:
            rows = connection.execute(select(_events).order_by(_events.c.id)).all()
        names = ("round", "site", "kind", "detail")
        return ({**{name: getattr(row, name) for name in names}, "at": row.at.isoformat()} for row in rows)

    def close(self) -> None:
        self._engine.dispose()
        if not self.read_only:
            self._place.release()

    def _version(self) -> tuple[int, bool]:
        """The schema, and whether commits are to survive a loss of power; InputError when this version cannot read
        the journal."""
        try:
            with self._transaction() as connection:
                schema, durable = _get(connection, "schema"), _get(connection, "durable")
        except RunError as error:
            what = f"is not a journal of medfl: {error.faults[0].what}"
            raise InputError.at(self.where, what, "give the folder of a run") from error
        if schema is None or not isinstance(schema[0], int) or schema[0] < 1:
            raise InputError.at(self.where, "is not a journal of medfl", "give the folder of a run")
        if schema[0] > SCHEMA:
            what = f"has schema {schema[0]}, this version reads {SCHEMA} and older"
            raise InputError.at(self.where, what, "use the version that wrote it, or a newer one")
        return schema[0], bool(durable and durable[0])

    def _upgrade(self, schema: int, backup: str = "") -> None:
        """One transaction a step, with the number and a note of it."""
        for number, step in enumerate(migrations.STEPS[schema - 1 :], schema):
            with self._transaction() as connection:
                step(connection)
                _put(connection, "schema", number + 1)
                detail = {"from": number, "to": number + 1, "backup": backup}
                _append(connection, [_event(0, "", "upgrade", detail)])

    def _count(self, connection: Connection, round_: int, messages: Iterable[Counted]) -> None:
        for message in messages:
            before = _count(connection, round_, message)
            if before is None:
                continue
            if before.digest != message.digest:
                what = f"came with the digest {before.digest[:12]} before and with {message.digest[:12]} now"
                raise RunError.at(_place_of(message), what, "a site gives each message an id of its own; ask the site")
            if before.round != round_:
                what = f"was counted in round {before.round} and cannot count in round {round_} too"
                raise RunError.at(_place_of(message), what, "go on with --resume")

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """All or nothing; RunError when the journal cannot be read or written. Transactions are not nested."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except (DBAPIError, PoolTimeout) as error:
            what = error.orig if isinstance(error, DBAPIError) else error
            remedy = "see that there is room and that no other process uses the run, then go on with --resume"
            raise RunError.at(self.where, f"cannot be used: {' '.join(str(what).split())}", remedy) from error


def place_of(where: Where) -> Place:
    """The place that a file or URL names; InputError when the URL is wrong."""
    if isinstance(where, Path):
        from medfl.coordinator.stores.sqlite import FilePlace

        return FilePlace(where)
    from medfl.coordinator.stores.postgres import PostgresPlace

    return PostgresPlace.of(where)


def journal_in(folder: Path) -> Where | None:
    """Where the journal of a run folder is; None when the folder has none."""
    if (folder / _FILE).is_file():
        return folder / _FILE
    try:
        return (folder / _POINTER).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError.at(folder / _POINTER, f"cannot be read: {error}", "write the journal's URL there") from error


def point_to(folder: Path, journal: Journal) -> None:
    """Leave in a run folder where its journal is, when that is elsewhere; a password is never written down."""
    if "://" in journal.where:
        write_text(folder / _POINTER, journal.where + "\n")


def _event(round_: int, site: str, kind: str, detail: Mapping[str, Any]) -> dict[str, Any]:
    return {"round": round_, "site": site, "kind": kind, "detail": dict(detail), "at": datetime.now(UTC)}


def _append(connection: Connection, events: list[dict[str, Any]]) -> None:
    if events:
        connection.execute(_ADD_EVENTS, events)


def _get(connection: Connection, key: str) -> tuple[Any] | None:
    row = connection.execute(select(_run.c.value).where(_run.c.key == key)).first()
    return None if row is None else (row[0],)


def _put(connection: Connection, key: str, value: Any) -> None:
    connection.execute(_DROP_FACT, {"of": key})
    connection.execute(_ADD_FACT, {"key": key, "value": value})


def _count(connection: Connection, round_: int, message: Counted) -> Any:
    """Count a message; None, or what was counted under its id before."""
    insert_ = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    row = {**message._asdict(), "round": round_, "at": datetime.now(UTC)}
    new = connection.execute(insert_(_messages).values(row).on_conflict_do_nothing().returning(_messages.c.id)).first()
    same = select(_messages).where(_messages.c.site == message.site, _messages.c.id == message.id)
    return None if new else connection.execute(same).one()


def _place_of(message: Counted) -> str:
    return f"site {message.site}, message {message.id[:64]}"


def _write(place: Place, connection: Connection, name: str, array: npt.NDArray[Any]) -> None:
    raw = as_bytes(array)
    about = {"dtype": array.dtype.str, "shape": list(array.shape), "checksum": isal_zlib.crc32(raw)}
    if not connection.execute(_REPLACE_ARRAY, {**about, "of": name}).rowcount:
        connection.execute(_ADD_ARRAY, {**about, "name": name})
    count = max(1, -(-len(raw) // _CHUNK))
    connection.execute(_DROP_CHUNKS, {"of": name, "at": count})
    for chunk in range(count):
        data = raw[chunk * _CHUNK : (chunk + 1) * _CHUNK]
        if place.overwrite(connection, name, chunk, data):
            continue
        if not connection.execute(_REPLACE_CHUNK, {"of": name, "at": chunk, "data": data}).rowcount:
            connection.execute(_ADD_CHUNK, {"name": name, "chunk": chunk, "data": data})


def _all_arrays(connection: Connection) -> Arrays:
    names = connection.execute(select(_arrays.c.name).order_by(_arrays.c.name)).scalars().all()
    return _read(connection, [name for name in names if name != _RELEASE])


def _read(connection: Connection, names: Iterable[str]) -> Arrays:
    """RunError when one is damaged."""
    found: Arrays = {}
    for name in names:
        about = connection.execute(select(_arrays).where(_arrays.c.name == name)).one()
        chunks = select(_chunks.c.data).where(_chunks.c.name == name).order_by(_chunks.c.chunk)
        raw = bytearray().join(connection.execute(chunks).scalars())
        if isal_zlib.crc32(raw) != about.checksum:
            what = "is damaged: its checksum does not match"
            raise RunError.at(f"journal, array {name}", what, "start the run again")
        found[name] = np.frombuffer(raw, np.dtype(about.dtype)).reshape(about.shape)
    return found
