"""SEAL reads and writes paths only: this gives it a path that is memory (Linux), or else a temporary file of our own.

The only module of the privacy layer that touches the operating system. Where there is no memfd, keys pass through a
file that only this user can read and that is overwritten and removed.
"""

import os
import tempfile
from collections.abc import Callable
from types import TracebackType

from medfl.update.wire import Buffer

_LINUX_FOLDER = "/proc/self/fd"


class MemoryFile:
    """A scratch file for SEAL's save and load; a context manager, for one thread."""

    def __init__(self) -> None:
        self._owned: str | None = None
        if hasattr(os, "memfd_create") and os.access(_LINUX_FOLDER, os.X_OK):
            self._file = os.memfd_create("medfl-he")
            self._path = f"{_LINUX_FOLDER}/{self._file}"
        else:
            self._file, self._path = tempfile.mkstemp(prefix="medfl-he-")
            self._owned = self._path

    def save(self, write: Callable[[str], None]) -> bytes:
        """The bytes that `write` (a bound `save` of a SEAL object) puts into the file."""
        os.ftruncate(self._file, 0)
        write(self._path)
        os.lseek(self._file, 0, os.SEEK_SET)
        pieces = []
        while piece := os.read(self._file, os.fstat(self._file).st_size + 1):
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def load(self, read: Callable[[str], None], *parts: Buffer) -> None:
        """Call `read` (which loads a SEAL object) on a file that holds `parts` one after the other."""
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        for part in parts:
            view = memoryview(part)
            while view:
                view = view[os.write(self._file, view) :]
        read(self._path)

    def __enter__(self) -> "MemoryFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        size = os.fstat(self._file).st_size
        os.lseek(self._file, 0, os.SEEK_SET)
        os.write(self._file, bytes(size))
        os.close(self._file)
        if self._owned is not None:
            os.unlink(self._owned)  # noqa: PTH108 (one import of the system is enough here)
