"""Messages on their way: out of memory in pieces, and into a file."""

import mmap
import os
import threading
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from hashlib import sha256
from io import FileIO
from itertools import accumulate
from pathlib import Path

from isal import isal_zlib

from medfl.errors import RunError
from medfl.transport.pieces import Piece
from medfl.transport.protocol.medfl_pb2 import Frame, Open
from medfl.update.wire import Buffer

CHUNK = 2**20
"""Bytes of a piece."""
SHORT = 2**18
"""Bytes of a piece on a slow line: so few that it comes in seconds over any line that deserves the name."""
INLINE = 2**16
"""Bytes: messages up to this size travel inside their Open."""


class ProtocolError(RunError):
    """The other end broke the protocol: the connection is ended, and nothing else."""


class Outgoing:
    """A message on its way out. The pieces are not copied: they must not change while it is sent, nor for a while after
    it was given up. crc32: where the caller knows it."""

    def __init__(self, id_: str, pieces: Sequence[Buffer], crc32: int | None = None) -> None:
        self.id = id_
        self._pieces = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
        self._ends = list(accumulate(len(piece) for piece in self._pieces))
        self.size = self._ends[-1] if self._ends else 0
        self.sent = 0
        checksum = 0
        for piece in self._pieces if crc32 is None else ():
            checksum = isal_zlib.crc32(piece, checksum)
        self.crc32 = checksum if crc32 is None else crc32

    def open(self, inline: int = INLINE) -> Frame:
        """The announcement; with the message itself when it has at most `inline` bytes."""
        data = b"".join(self._pieces) if self.size <= inline else b""
        self.sent += len(data)
        return Frame(open=Open(id=self.id, size=self.size, crc32=self.crc32, data=data))

    def piece(self, offset: int, long: bool = False) -> tuple[Piece, int]:
        """A piece from `offset` on, of CHUNK bytes at most or of SHORT; where the next begins."""
        longest = CHUNK if long else min(SHORT, CHUNK)
        at = bisect_right(self._ends, offset)
        start = offset - (self._ends[at - 1] if at else 0)
        data = self._pieces[at][start : start + longest]
        self.sent += len(data)
        return Piece(self.id, offset, data), offset + len(data)


def unload(message: memoryview | None) -> None:
    """Let go of the memory of a message that was read; whoever reads it again gets it from its file again."""
    mapped = None if message is None else message.obj
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def to_come(spool: Path, id_: str, size: int, others: "Iterable[Incoming]") -> int:
    """Bytes that a spool still waits for: of an announced message, and of others on their way in."""
    there = sum(path.stat().st_size for path in spool.glob(f"{id_}.*"))
    return max(0, size - there) + sum(other.size - other.have for other in others)


class Incoming:
    """A message on its way in, in a file of its own. Bytes that a killed process took are still there. Each byte has
    its place in the file, so a line that was replaced does no harm when it writes late. hashed: whether its `digest` is
    wanted."""

    def __init__(self, spool: Path, opened: Open, hashed: bool = False) -> None:
        self.id, self.size, self.crc32 = opened.id, opened.size, opened.crc32
        self.path = spool / f"{opened.id}.{opened.size:x}.{opened.crc32:08x}"
        self._lock = threading.Lock()
        # one announced anew with other bytes takes the place of the one before: no peer fills the disk with them
        for other in spool.glob(f"{opened.id}.*"):
            if other != self.path:
                other.unlink(missing_ok=True)
        self._file = self._open()
        self.have, self._checksum = os.fstat(self._file.fileno()).st_size, 0
        self._hash = sha256() if hashed else None
        if self.have > self.size:
            self._again()
        for start in range(0, self.have, CHUNK):
            self._sum_up(self._file.read(min(CHUNK, self.have - start)))

    def _open(self) -> FileIO:
        return FileIO(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "r+")

    def _again(self) -> None:
        # a new file: the old one may be mapped somewhere
        self._file.close()
        self.path.unlink(missing_ok=True)
        self._file, self.have, self._checksum = self._open(), 0, 0
        self._hash = None if self._hash is None else sha256()

    def _sum_up(self, data: Buffer) -> None:
        """While the bytes are in the cache: to read the whole again would take memory and time."""
        self._checksum = isal_zlib.crc32(data, self._checksum)
        if self._hash is not None:
            self._hash.update(data)

    @property
    def digest(self) -> str:
        """SHA-256, as hex, of the bytes that are there; "" where nobody wants it."""
        return "" if self._hash is None else self._hash.hexdigest()

    def write(self, offset: int, data: Buffer) -> None:
        """The next bytes; ProtocolError when they are not the next ones or too many."""
        end = offset + len(data)
        if offset != self.have or not data or end > self.size:
            raise ProtocolError.at(f"message {self.id}", f"got bytes {offset} to {end}, waited for byte {self.have}")
        with self._lock:
            if self._file.closed:
                return
            self._file.seek(offset)
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
        self._sum_up(data)
        self.have = end

    @property
    def whole(self) -> bool:
        return self.have == self.size

    def finish(self) -> memoryview | None:
        """The message, mapped into memory; None when what was written to the file is not what was announced, and must
        be sent again."""
        with self._lock:
            if self._file.closed:
                raise ProtocolError.at(f"message {self.id}", "came by a line that was replaced")
            if os.fstat(self._file.fileno()).st_size != self.size or self._checksum != self.crc32:
                self._again()
                return None
            found = memoryview(mmap.mmap(self._file.fileno(), self.size, access=mmap.ACCESS_READ))
            self._file.close()
            return found

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def discard(self) -> None:
        """Give the message up, and its room."""
        self.close()
        self.path.unlink(missing_ok=True)
