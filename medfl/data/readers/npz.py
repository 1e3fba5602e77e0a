"""Entries of numpy archives (MedMNIST). Objects are refused: they would need pickle."""

import math
import os
import threading
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import numpy as np

from medfl.data.base import Array, Image
from medfl.data.readers.base import Reader, limit_size, reading
from medfl.errors import DataError

KEEP = 64 * 2**20
"""Arrays up to this many bytes are kept in memory while their entries are read; larger ones are streamed."""
OPEN = 4
"""Archives' arrays that stay open."""


class NpzReader(Reader):
    """`index` selects an entry of `array`; without an index the whole array is the image. Without a name the archive's
    only array is meant. A last axis of 1, 3 or 4 beside two larger axes holds channels."""

    def accepts(self, path: Path, head: bytes) -> bool:
        return head.startswith(b"PK\x03\x04") or (not path.is_dir() and path.suffix.lower() == ".npz")

    def read(self, path: Path, *, index: int | None = None, array: str = "") -> Image:
        with reading(path, "npz"):
            entries = _entries(path, array)
            pixels = _channels(path, entries.whole() if index is None else entries.entry(index))
            if not pixels.size:
                raise DataError.at(path, "holds no pixels", "leave it out")
            if pixels.dtype.kind not in "fiub":
                raise DataError.at(path, f"holds {pixels.dtype}, not numbers", "store numbers")
            return Image(pixels.astype(np.float32), (1.0,) * (pixels.ndim - 1))


def array_names(path: Path) -> tuple[str, ...]:
    """The names of an archive's arrays; DataError when it is no archive."""
    with reading(path, "npz"), zipfile.ZipFile(path) as archive:
        return tuple(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))


def array_shape(path: Path, name: str) -> tuple[int, ...]:
    """The shape of one array, from its header; DataError when it is absent or broken."""
    with reading(path, "npz"):
        return _entries(path, name).shape


def load_array(path: Path, name: str) -> Array:
    """One whole array, for labels and the like; DataError when it is absent, broken or holds objects."""
    with reading(path, "npz"):
        return _entries(path, name).whole()


class _Entries:
    """One array of an archive. Reads of rising entries decompress the stream once; memory stays one entry."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self._lock = threading.Lock()
        self._archive = zipfile.ZipFile(path)
        self._stream: IO[bytes] = self._archive.open(f"{name}.npy")
        self.shape, self.fortran, self.dtype = _header(path, self._stream)
        self._start = self._stream.tell()
        limit_size(path, math.prod(self.shape[1:]) if self.shape else 1)
        declared = math.prod(self.shape) * self.dtype.itemsize
        held = self._archive.getinfo(f"{name}.npy").file_size - self._start
        if declared != held:
            raise DataError.at(path, f"array {name!r} has {held} of {declared} bytes", "copy or export the file again")
        self._kept = self._load() if declared <= KEEP else None

    def whole(self) -> Array:
        if self._kept is not None:
            return self._kept
        limit_size(self.path, math.prod(self.shape))
        with self._lock:
            return self._load()

    def entry(self, index: int) -> Array:
        count = self.shape[0] if self.shape else 0
        if not 0 <= index < count:
            raise DataError.at(
                self.path, f"array {self.name!r} has {count} entries, there is no entry {index}", "correct the index"
            )
        if self._kept is not None:
            kept: Array = self._kept[index]
            return kept
        if self.fortran:
            slow: Array = self.whole()[index]
            return slow
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        with self._lock:
            self._stream.seek(self._start + index * size)
            return np.frombuffer(self._stream.read(size), dtype=self.dtype).reshape(self.shape[1:])

    def _load(self) -> Array:
        self._stream.seek(self._start)
        flat = np.frombuffer(self._stream.read(), dtype=self.dtype)
        return flat.reshape(self.shape, order="F" if self.fortran else "C")


def _header(path: Path, stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise DataError.at(path, f"is of array format {version}", "save it with numpy.savez")
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise DataError.at(path, "holds Python objects", "store plain numbers: objects would need pickle")
    return shape, fortran, dtype


_opened: "OrderedDict[tuple[Path, str, int, int, int], _Entries]" = OrderedDict()
_opening = threading.Lock()


def _entries(path: Path, name: str) -> _Entries:
    name = name or _only(path)
    status = path.stat()
    # The process counts: a stream shared over a fork would have one position for both.
    key = (path, name, status.st_mtime_ns, status.st_size, os.getpid())
    with _opening:
        if key not in _opened:
            if name not in array_names(path):
                known = ", ".join(array_names(path)) or "none"
                raise DataError.at(path, f"has no array {name!r}", f"use one of: {known}")
            _opened[key] = _Entries(path, name)
            while len(_opened) > OPEN:
                _opened.popitem(last=False)
        _opened.move_to_end(key)
        return _opened[key]


def _only(path: Path) -> str:
    names = array_names(path)
    if len(names) != 1:
        raise DataError.at(path, f"has {len(names)} arrays", f"name one of: {', '.join(names) or 'none'}")
    return names[0]


def _channels(path: Path, pixels: Array) -> Array:
    if pixels.ndim < 2 or pixels.ndim > 4:
        raise DataError.at(
            path, f"an entry has shape {pixels.shape}", "an image has 2 or 3 axes, and maybe channels last"
        )
    if pixels.ndim == 4 or (pixels.ndim == 3 and pixels.shape[-1] in (1, 3, 4)):
        return np.moveaxis(pixels, -1, 0)
    return pixels[None]
