"""A ledger in a file: append-only, durable before anything is released, one writer at a time.

    <path>                    the chain, one record a line, readable by its owner only
    <path>.units/salt         the secret salt of the keys' hashes; never leaves the site
    <path>.units/<id>.keys    the salted hashes of a data set's units

A record is one write to a file opened with O_APPEND, followed by fsync, under an exclusive lock that other threads and
processes respect. The file must lie on a local file system: locks of network file systems are not relied on.
"""

import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from medfl.errors import InputError, RunError
from medfl.privacy.ledger.chain import Record, Tail, make, read
from medfl.privacy.ledger.chained import Ceiling, ChainedLedger
from medfl.privacy.ledger.units import SALT_BYTES, Keys, commitment, name_of

Clock = Callable[[], datetime]

_PATIENCE = 30.0  # seconds to wait for the lock
_CLOCK_STEP = timedelta(seconds=5)  # a clock that is set right by less than this is waited out
_RESTORE = "restore the newest whole copy whose head the other parties know; nothing may be released before that"


class FileLedger(ChainedLedger):
    """Open with `open` or, to look only, with `read`. Several processes may use one file, each with its own object."""

    def __init__(self, path: Path, ceiling: Ceiling | None, clock: Clock, read_only: bool) -> None:
        super().__init__(str(path), ceiling)
        self.path = path
        self._clock = clock
        self._read_only = read_only
        self._size = 0
        self._descriptor = -1

    @classmethod
    def open(
        cls, path: Path, owner: str, ceiling: Ceiling | None = None, clock: Clock = lambda: datetime.now(UTC)
    ) -> "FileLedger":
        """The owner's ledger; a new one when there is none. The whole chain is verified.

        ceiling: what the owner allows in all, by unit. A last line whose writing was cut off is removed, and a record
        says so. RunError names each line that was changed, lost or put in another order, and whatever is missing.
        """
        ledger = cls(path, ceiling, clock, read_only=False)
        if not path.exists():
            ledger._create(owner)
        _require_private(path, ledger._folder, ledger._folder / "salt")
        with ledger._turn():
            ledger._salt()
        if ledger.owner != owner:
            raise RunError.at(path, f"is the ledger of {ledger.owner}, not of {owner}", "give each party its own file")
        return ledger

    @classmethod
    def read(cls, path: Path) -> "FileLedger":
        """The ledger as it is now, verified, to look at: nothing is written, created or repaired."""
        if not path.is_file():
            raise InputError.at(path, "is not a file", "give the file of a ledger")
        ledger = cls(path, None, lambda: datetime.now(UTC), read_only=True)
        with ledger._turn():
            return ledger

    @property
    def _folder(self) -> Path:
        return self.path.with_name(self.path.name + ".units")

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if self._read_only and self._book.last:
            yield
            return
        with _locked(self.path, os.O_RDONLY if self._read_only else os.O_RDWR | os.O_APPEND) as descriptor:
            self._descriptor = descriptor
            self._refresh()
            self._read_units()
            yield

    def _append(self, kind: str, body: Mapping[str, Any]) -> Record:
        if self._read_only:
            raise RunError.at(self.path, "was opened to look only", "open it as its owner")
        record = make(self._book.last, self._now(), kind, body)
        _write_line(self._descriptor, record.line(), self._size, self.path)
        self._enter(record)
        return record

    def _enter(self, record: Record) -> None:
        self._book.add(record, self._where)
        self._size += len(record.line())

    def _now(self) -> str:
        """The time of the next record. A clock that was set back a little is waited out, by more is refused."""
        now = self._clock()
        last = datetime.fromisoformat(self._book.last.time) if self._book.last else now
        if now < last <= now + _CLOCK_STEP:
            now = last
        return _text(now)

    def _refresh(self) -> None:
        """Read what was appended since, by this process or another; repair a line that was never finished."""
        last = self._book.last.line() if self._book.last else b""
        data = _read_from(self._descriptor, self._size - len(last))
        if not data.startswith(last):
            what = "was changed, or an older copy was put back, while it was in use"
            raise RunError.at(self.path, what, _RESTORE)
        tail = read(data[len(last) :], self._where, self._book.last)
        for record in tail.records:
            self._enter(record)
        if self._book.last is None:
            raise RunError.at(self.path, "holds no record at all, not even that of its opening", _RESTORE)
        if (tail.torn or tail.unended) and not self._read_only:
            self._repair(tail)

    def _repair(self, tail: Tail) -> None:
        """The permit of an unfinished line was never given, so nothing was released under it. A line that lacks nothing
        but its end is kept: a charge too many is safe."""
        if tail.unended:
            _write_line(self._descriptor, b"\n", self._size - 1, self.path)
        else:
            os.ftruncate(self._descriptor, self._size)
            _flush(self._descriptor)
        self._append("repair", {"removed_bytes": tail.torn})

    def _create(self, owner: str) -> None:
        """A file with its first record appears whole or not at all, and once."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if any(self._folder.glob("*.keys")):
            raise RunError.at(self.path, f"is missing, though {self._folder} belongs to it", _RESTORE)
        salt = self._folder / "salt"
        if not salt.exists():
            _place(salt, secrets.token_bytes(SALT_BYTES))
        _place(self.path, make(None, _text(self._clock()), "open", self._opening(owner, salt.read_bytes())).line())

    def _salt(self) -> bytes:
        path = self._folder / "salt"
        salt = path.read_bytes() if path.is_file() else b""
        if commitment(salt) != self._book.commitment:
            what = "is not the salt of this ledger: patients who were charged would look like new ones"
            raise RunError.at(path, what if salt else "is missing", "restore it from the same copy as the ledger")
        return salt

    def _keep(self, dataset: str, keys: Keys) -> None:
        if self._read_only:
            raise RunError.at(self.path, "was opened to look only", "open it as its owner")
        _place(self._folder / f"{dataset}.keys", "".join(f"{key}\n" for key in sorted(keys)).encode())

    def _read_units(self) -> None:
        for path in self._folder.glob("*.keys"):
            if path.stem in self._units.known:
                continue
            keys = frozenset(path.read_text(encoding="ascii", errors="replace").split())
            if name_of(keys) != path.stem:
                raise RunError.at(path, "was changed or damaged: it does not match its name", _RESTORE)
            self._units.known[path.stem] = keys


def _text(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@contextmanager
def _locked(path: Path, flags: int) -> Iterator[int]:
    """The open file, locked against all other threads and processes."""
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise RunError.at(path, "has gone", _RESTORE) from error
    try:
        _lock(descriptor, path)
        if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise RunError.at(path, "was replaced while it was in use", _RESTORE)
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > end:
                what = f"has been in use by another process for {_PATIENCE:g} s"
                raise RunError.at(path, what, "see what that process is waiting for") from error
        time.sleep(0.002)


def _read_from(descriptor: int, start: int) -> bytes:
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(start)
        return file.read()


def _write_line(descriptor: int, line: bytes, size: int, path: Path) -> None:
    """Append in one write and wait until the disk has it; on failure the file is as long as before."""
    try:
        if os.write(descriptor, line) != len(line):
            raise OSError("the disk is full")
        _flush(descriptor)
    except OSError as error:
        with suppress(OSError):  # what stays is an unfinished line, or a charge too many
            os.ftruncate(descriptor, size)
        what = f"cannot be written: {error.strerror or error}"
        raise RunError.at(path, what, "nothing may be released; make room, then go on") from error


def _flush(descriptor: int) -> None:
    # on macOS fsync leaves the bytes in the disk's own memory
    if hasattr(fcntl, "F_FULLFSYNC"):
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def _place(path: Path, content: bytes) -> None:
    """A new file for its owner alone, whole or not at all; left as it is when another process was first."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            _flush(file.fileno())
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _require_private(*paths: Path) -> None:
    for path in paths:
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise RunError.at(path, "can be opened by other users", f"chmod go= {path}")
