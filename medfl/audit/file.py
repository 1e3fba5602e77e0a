"""A chain in a file: append-only, durable when `append` returns, one writer at a time.

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

from medfl.audit.chain import Form, Record, Tail, make, read
from medfl.errors import RunError

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    return datetime.now(UTC)


_PATIENCE = 30.0  # seconds to wait for the lock
_CLOCK_STEP = timedelta(seconds=5)  # a clock that is set right by less than this is waited out


class ChainFile:
    """Several processes may use one file, each with its own object.

    take: is given every record once, in order, whoever appended it; what it raises stops the reading.
    """

    def __init__(
        self, path: Path, form: Form, take: Callable[[Record], None], clock: Clock = utc_now, read_only: bool = False
    ) -> None:
        self.path = path
        self.last: Record | None = None
        self._form = form
        self._take = take
        self._clock = clock
        self._read_only = read_only
        self._size = 0
        self._descriptor = -1

    def create(self, body: Mapping[str, Any]) -> None:
        """The file with its first record appears whole or not at all, and once."""
        place(self.path, make(self._form, None, timestamp(self._clock()), "open", body).line())

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Have the file to oneself, with all its records taken. A last line whose writing was cut off is removed, and a
        record says so, unless the file is only read. RunError names each line that was changed, lost or moved."""
        flags = os.O_RDONLY if self._read_only else os.O_RDWR | os.O_APPEND
        with locked(self.path, flags, self._form) as descriptor:
            self._descriptor = descriptor
            self._refresh()
            yield

    def append(self, kind: str, body: Mapping[str, Any]) -> Record:
        """Make a record durable; within a turn."""
        if self._read_only:
            raise RunError.at(self.path, "was opened to look only", "open it as its owner")
        record = make(self._form, self.last, self._now(), kind, body)
        _write_line(self._descriptor, record.line(), self._size, self.path, self._form)
        self._enter(record)
        return record

    def _enter(self, record: Record) -> None:
        self._take(record)
        self.last = record
        self._size += len(record.line())

    def _now(self) -> str:
        """The time of the next record. A clock that was set back a little is waited out, by more is refused by forms
        whose times go forward."""
        now = self._clock()
        last = datetime.fromisoformat(self.last.time) if self.last else now
        if now < last <= now + _CLOCK_STEP:
            now = last
        return timestamp(now)

    def _refresh(self) -> None:
        """Read what was appended since, by this process or another; repair a line that was never finished."""
        last = self.last.line() if self.last else b""
        data = _read_from(self._descriptor, self._size - len(last))
        if not data.startswith(last):
            what = "was changed, or an older copy was put back, while it was in use"
            raise RunError.at(self.path, what, self._form.restore)
        tail = read(self._form, data[len(last) :], str(self.path), self.last)
        for record in tail.records:
            self._enter(record)
        if self.last is None:
            raise RunError.at(self.path, "holds no record at all, not even that of its opening", self._form.restore)
        if (tail.torn or tail.unended) and not self._read_only:
            self._repair(tail)

    def _repair(self, tail: Tail) -> None:
        """Whoever wrote an unfinished line was never told that it is there, so nothing was done under it. A line that
        lacks nothing but its end is kept: a record too many is safe."""
        if tail.unended:
            _write_line(self._descriptor, b"\n", self._size - 1, self.path, self._form)
        else:
            os.ftruncate(self._descriptor, self._size)
            _flush(self._descriptor)
        self.append("repair", {"removed_bytes": tail.torn})


def timestamp(when: datetime) -> str:
    """A time as records have it: UTC, so that texts sort as times do."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@contextmanager
def locked(path: Path, flags: int, form: Form) -> Iterator[int]:
    """The open file, locked against all other threads and processes."""
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise RunError.at(path, "has gone", form.restore) from error
    try:
        _lock(descriptor, path)
        if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise RunError.at(path, "was replaced while it was in use", form.restore)
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


def _write_line(descriptor: int, line: bytes, size: int, path: Path, form: Form) -> None:
    """Append in one write and wait until the disk has it; on failure the file is as long as before."""
    try:
        if os.write(descriptor, line) != len(line):
            raise OSError("the disk is full")
        _flush(descriptor)
    except OSError as error:
        with suppress(OSError):  # what stays is an unfinished line, or a record too many
            os.ftruncate(descriptor, size)
        what = f"cannot be written: {error.strerror or error}"
        raise RunError.at(path, what, form.room) from error


def _flush(descriptor: int) -> None:
    # on macOS fsync leaves the bytes in the disk's own memory
    if hasattr(fcntl, "F_FULLFSYNC"):
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def place(path: Path, content: bytes) -> None:
    """A new file for its owner alone, whole or not at all; left as it is when another process was first."""
    with _drafted(path, content) as draft, suppress(FileExistsError):
        os.link(draft, path)


def rewrite(path: Path, content: bytes) -> None:
    """The file for its owner alone, with this content in place of what it had, whole or not at all."""
    with _drafted(path, content) as draft:
        draft.replace(path)


@contextmanager
def _drafted(path: Path, content: bytes) -> Iterator[Path]:
    """The content in a file beside `path`, on the disk; gone afterwards, unless it was moved to its place."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            _flush(file.fileno())
        yield draft
    finally:
        draft.unlink(missing_ok=True)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Wait until the disk has the names of a folder's files."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_private(*paths: Path) -> None:
    """RunError for each of the paths that other users can open."""
    for path in paths:
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise RunError.at(path, "can be opened by other users", f"chmod go= {path}")
