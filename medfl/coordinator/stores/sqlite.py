"""A journal in a file: SQLite with a write-ahead log, and a lock beside it for its one writer.

    <path>         the database, readable by its owner only
    <path>.lock    held by the process that writes

The file must lie on a local file system: locks of network file systems are not relied on.
"""

import fcntl
import os
import secrets
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, Any

from sqlalchemy import Connection, Engine, Pool, QueuePool, StaticPool, create_engine, event, select
from sqlalchemy.exc import DatabaseError

from medfl.coordinator.stores.base import Place, in_use
from medfl.coordinator.stores.schema import run
from medfl.errors import Fault, InputError, RunError
from medfl.update.wire import Buffer

# bytes: large pages suit large arrays, and the log is folded back into the database once it has grown to _WAL
_PAGE = 2**16
_WAL = 64 * 2**20
# bytes of pages that the writer keeps: pages that are at hand are not read again before they are overwritten
_CACHE = 16 * 2**20
_PATIENCE = 60.0  # seconds that one thread waits for another's transaction


class FilePlace(Place):
    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = str(path)
        self._lock: IO[str] | None = None

    def made(self, run: str) -> "FilePlace":
        if self.path.exists():
            raise self._exists()
        return self

    def found(self) -> "FilePlace":
        if not self.path.is_file():
            raise InputError.at(self.text, "does not exist", "give the folder of a run")
        return self

    def reader(self) -> Engine:
        return _engine(lambda: _connect(self._reading()), "BEGIN")

    def copy(self) -> Engine:
        memory = _memory()
        try:
            with closing(_connect(self._reading())) as source:
                source.backup(memory)
        except sqlite3.Error as error:
            raise RunError.at(self.text, f"cannot be read: {error}", "copy the run folder elsewhere") from error
        return _engine(lambda: memory, "BEGIN", StaticPool)

    def writer(self, token: str, durable: bool) -> Engine:
        try:
            self._lock = _locked(self._lock_path)
        except OSError as error:
            what = f"cannot be locked: {error.strerror}"
            raise InputError.at(
                self._lock_path, what, "the folder has to be writable, on a local file system"
            ) from error
        if self._lock is None:
            raise in_use(self.text, self._holder())

        def connect() -> sqlite3.Connection:
            connection = _connect(f"{self._uri}?mode=rw")
            # write-ahead log: a killed process loses nothing that was committed, and readers do not wait
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA wal_autocheckpoint={_WAL // _PAGE}")
            connection.execute(f"PRAGMA cache_size={_CACHE // _PAGE}")
            connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            return connection

        # one connection, at which threads take turns. No transaction has to be begun again; and where two connections
        # fold the log back at once, SQLite before 3.51.3 may lose commits (sqlite.org/wal.html#walresetbug)
        return _engine(connect, "BEGIN IMMEDIATE", pool_size=1, max_overflow=0, pool_timeout=_PATIENCE)

    def maker(self, token: str) -> Engine:
        memory = _memory()
        memory.execute(f"PRAGMA page_size={_PAGE}")
        return _engine(lambda: memory, "BEGIN", StaticPool)

    def placed(self, maker: Engine, token: str, durable: bool) -> Engine:
        # made elsewhere: a process that dies in between leaves neither half a journal nor a used folder
        content = maker.raw_connection().driver_connection.serialize()  # type: ignore[union-attr]
        maker.dispose()
        try:
            _appear(self.path, content)
        except FileExistsError as error:
            raise self._exists() from error
        except OSError as error:
            raise RunError.at(
                self.text, f"cannot be made: {error.strerror}", "make room, or choose another --out"
            ) from error
        return self.writer(token, durable)

    def opened(self) -> None:
        """A file's lock cannot be lost: nothing to compare."""

    def prepare(self, connection: Connection) -> None:
        """The file is there."""

    def overwrite(self, connection: Connection, name: str, chunk: int, data: Buffer) -> bool:
        # to bind bytes to a statement costs three copies, and the old bytes are read to be replaced
        find = "SELECT rowid, length(data) FROM chunks WHERE name = ? AND chunk = ?"
        found = connection.exec_driver_sql(find, (name, chunk)).first()
        driver = connection.connection.driver_connection
        if found is None or found[1] != len(data) or driver is None:
            return False
        try:
            with driver.blobopen("chunks", "data", found[0]) as blob:
                blob.write(data)
        except sqlite3.Error as error:
            remedy = "see that there is room, then go on with --resume"
            raise RunError.at(self.text, f"cannot be written: {error}", remedy) from error
        return True

    def backup(self, schema: int) -> str:
        kept = self.path.with_name(f"{self.path.name}.schema-{schema}")
        draft = kept.with_name(f".{kept.name}.{os.getpid()}")
        draft.touch(mode=0o600)
        try:
            with closing(_connect(self._reading())) as source, closing(sqlite3.connect(draft)) as target:
                source.backup(target)
            draft.replace(kept)
        except (sqlite3.Error, OSError) as error:
            draft.unlink(missing_ok=True)
            remedy = "make room beside it: a journal is copied before it is upgraded"
            raise RunError.at(self.text, f"cannot be copied: {error}", remedy) from error
        return kept.name

    def release(self) -> None:
        if self._lock is not None:
            with suppress(FileNotFoundError):
                self._lock_path.unlink()
            self._lock.close()
            self._lock = None

    @property
    def _lock_path(self) -> Path:
        return self.path.with_name(self.path.name + ".lock")

    def _exists(self) -> InputError:
        remedy = "resume it with --resume, or choose another folder"
        return InputError(Fault(self.text, "exists already", remedy))

    @property
    def _uri(self) -> str:
        return self.path.resolve().as_uri()

    def _reading(self) -> str:
        # a folder that cannot be written has no place for the index of the log, and without a log needs none
        log = self.path.with_name(self.path.name + "-wal")
        frozen = not os.access(self.path.parent, os.W_OK) and not log.exists()
        return f"{self._uri}?mode=ro{'&immutable=1' if frozen else ''}"

    def _holder(self) -> Any:
        engine = self.reader()
        try:
            with engine.begin() as connection:
                return connection.execute(select(run.c.value).where(run.c.key == "writer")).scalar()
        except DatabaseError:
            return None  # the other process is making it just now
        finally:
            engine.dispose()


def _connect(uri: str) -> sqlite3.Connection:
    # transactions are begun by the engine, so that changes of tables are in them too
    return sqlite3.connect(uri, uri=True, timeout=_PATIENCE, check_same_thread=False, isolation_level=None)


def _memory() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)


def _engine(
    connect: Callable[[], sqlite3.Connection], begin: str, pool: type[Pool] = QueuePool, **options: Any
) -> Engine:
    engine = create_engine("sqlite://", creator=connect, poolclass=pool, hide_parameters=True, **options)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _appear(path: Path, content: bytes) -> None:
    """A new file for its owner alone, whole or not at all; where the system can, without a draft that might stay."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    draft, flags = "", os.O_WRONLY | os.O_CLOEXEC
    try:
        try:
            descriptor = os.open(".", flags | getattr(os, "O_TMPFILE", 0), 0o600, dir_fd=folder)
        except OSError:  # not every file system has files without a name
            name = f".{path.name}.{secrets.token_hex(8)}"
            descriptor, draft = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder), name
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
            # the link below /proc stands for the file, and is followed only when folders are named
            os.link(draft or f"/proc/self/fd/{descriptor}", path.name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
    finally:
        if draft:
            os.unlink(draft, dir_fd=folder)
        os.close(folder)


def _locked(path: Path) -> IO[str] | None:
    """The file, locked by this process until it is closed; None when another process has it."""
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # the holder before took it away when it ended
