"""The file format of the sample cache: one split of one site as memory-mapped arrays.

A pack is a folder of `data.bin` (the arrays, one after another, each at a multiple of 64 bytes) and `index.json`
(where each lies, its shape, type and CRC-32). `data.bin` ends with the SHA-256 of `index.json`, so that the two
cannot be mixed. Arrays of one shape lie at one stride, so that a batch is a single indexed read.
"""

import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from medfl.data.base import Array, Sample, SampleInfo, Skipped

DATA, INDEX = "data.bin", "index.json"
ALIGN, DIGEST = 64, 32
MAGIC = b"medfl pack 1".ljust(ALIGN)

Indices = npt.NDArray[np.int64]


class PackError(Exception):
    """A pack is damaged, or is not one; it must be built again."""


class _Column(BaseModel):
    """All arrays of one sample key. offsets: bytes from the start of `data.bin`. shapes: a single one when all agree.
    ragged: a list in every batch, also when shapes agree."""

    model_config = ConfigDict(extra="forbid")

    dtype: str
    ragged: bool
    shapes: list[list[int]]
    offsets: list[int]
    crc32: list[int]


class _Index(BaseModel):
    model_config = ConfigDict(extra="forbid")

    key: str
    size: int
    factor: int
    keys: list[str]
    patients: list[str]
    spacings: list[list[float]]
    labels: list[int]
    skipped: list[tuple[str, str]]
    lost: int
    columns: dict[str, _Column]


class PackWriter:
    """Writes a pack into an existing empty folder, one case at a time.

    Large arrays go to the file at once; small ones (labels, boxes) are held back and follow at the end, so that the
    images lie at one stride.
    """

    def __init__(self, folder: Path, key: str, factor: int, ragged: Sequence[str]) -> None:
        self._folder = folder
        self._ragged = ragged
        self._file = (folder / DATA).open("wb")
        self._file.write(MAGIC)
        self._small: dict[str, list[Array]] = {}
        self._index = _Index(
            key=key, size=0, factor=factor, keys=[], patients=[], spacings=[], labels=[], skipped=[], lost=0, columns={}
        )

    def add(self, info: SampleInfo, samples: Sequence[Sample], lost: int) -> None:
        """One case with its variants."""
        self._index.keys.append(info.key)
        self._index.patients.append(info.patient)
        self._index.spacings.append(list(info.spacing))
        self._index.lost += lost
        for sample in samples:
            self._index.labels.append(class_present(sample))
            for name, value in sample.items():
                array = np.asarray(value)
                if array.ndim > 2 or (name == "label" and array.ndim == 2):
                    self._write(name, array)
                else:
                    self._small.setdefault(name, []).append(array)

    def skip(self, skipped: Skipped) -> None:
        self._index.skipped.append((skipped.key, skipped.reason))

    def close(self) -> None:
        """Write what was held back, the index, and the digest that binds the two files."""
        for name, arrays in self._small.items():
            for array in arrays:
                self._write(name, array)
        for column in self._index.columns.values():
            if all(shape == column.shapes[0] for shape in column.shapes):
                del column.shapes[1:]
        self._index.size = self._file.tell() + DIGEST
        content = self._index.model_dump_json().encode()
        self._file.write(hashlib.sha256(content).digest())
        self._file.close()
        (self._folder / INDEX).write_bytes(content)

    def abort(self) -> None:
        """Close the file without finishing the pack."""
        self._file.close()

    def _write(self, name: str, array: Array) -> None:
        column = self._index.columns.get(name)
        if column is None:
            column = _Column(
                dtype=array.dtype.newbyteorder("<").str, ragged=name in self._ragged, shapes=[], offsets=[], crc32=[]
            )
            self._index.columns[name] = column
        content = np.ascontiguousarray(array, np.dtype(column.dtype)).tobytes()
        column.shapes.append(list(array.shape))
        column.offsets.append(self._file.tell())
        column.crc32.append(zlib.crc32(content))
        self._file.write(content + bytes(-len(content) % ALIGN))


def class_present(sample: Sample) -> int:
    """The class of a sample; for boxes and masks the number of distinct foreground classes."""
    label = np.asarray(sample["label"])
    if "box" in sample:
        return len(np.unique(label))
    return int(label) if label.ndim == 0 else int(np.count_nonzero(np.bincount(label.ravel(), minlength=2)[1:]))


class _Arrays:
    """One column of an open pack: views into the mapped file."""

    def __init__(self, column: _Column, data: npt.NDArray[np.uint8]) -> None:
        self._column, self._data = column, data
        self._dtype = np.dtype(column.dtype)
        self._stacked = self._stack()

    def view(self, index: int) -> Array:
        """The array of one sample, in place."""
        shapes = self._column.shapes
        shape = shapes[0] if len(shapes) == 1 else shapes[index]
        return np.ndarray(tuple(shape), self._dtype, self._data, self._column.offsets[index])

    def is_whole(self, index: int) -> bool:
        return zlib.crc32(np.ascontiguousarray(self.view(index)).data) == self._column.crc32[index]

    def take(self, indices: Indices) -> Array | list[Array]:
        if self._stacked is not None:
            taken: Array = self._stacked[indices]
            return taken
        chosen = [self.view(index).copy() for index in indices]
        if self._column.ragged or len({array.shape for array in chosen}) != 1:
            return chosen
        return np.stack(chosen)

    def _stack(self) -> Array | None:
        """All arrays as one [N, ..] where they have one shape and lie at one stride."""
        offsets = np.array(self._column.offsets)
        steps = np.unique(np.diff(offsets))
        if self._column.ragged or len(self._column.shapes) > 1 or len(steps) > 1:
            return None
        first = self.view(0)
        stride = int(steps[0]) if len(steps) else first.nbytes
        return np.ndarray(
            (len(offsets), *first.shape),
            self._dtype,
            self._data,
            int(offsets[0]),
            strides=(stride, *first.strides),
        )


class Pack:
    """An open pack. Raises PackError when it is not whole; each array's CRC is checked when it is first taken."""

    def __init__(self, folder: Path, key: str) -> None:
        try:
            content = (folder / INDEX).read_bytes()
            self._index = _Index.model_validate_json(content)
            data = np.asarray(np.memmap(folder / DATA, np.uint8, mode="r"))
        except (OSError, ValueError, ValidationError) as error:
            raise PackError(f"{folder}: {error}") from error
        if self._index.key != key or data.size != self._index.size:
            raise PackError(f"{folder}: is of another key or has {data.size} of {self._index.size} bytes")
        if data[-DIGEST:].tobytes() != hashlib.sha256(content).digest():
            raise PackError(f"{folder}: index and data do not belong together")
        self._folder = folder
        self._columns = {name: _Arrays(column, data) for name, column in self._index.columns.items()}
        self._checked = np.zeros(len(self._index.labels), bool)
        self.labels = np.array(self._index.labels, np.int64)
        self.skipped = tuple(Skipped(name, reason) for name, reason in self._index.skipped)
        self.cases = len(self._index.keys)
        self.lost = self._index.lost
        self.patients = frozenset(self._index.patients)

    def take(self, indices: Indices) -> dict[str, Any]:
        """The samples of these indices (see `SampleSet.batch`); PackError when one is damaged."""
        if not self._checked[indices].all():
            self._check(indices)
        return {name: column.take(indices) for name, column in self._columns.items()}

    def info(self, index: int) -> SampleInfo:
        case = range(len(self.labels))[index] // self._index.factor
        return SampleInfo(self._index.keys[case], self._index.patients[case], tuple(self._index.spacings[case]))

    def __reduce__(self) -> tuple[Any, ...]:
        return Pack, (self._folder, self._index.key)

    def _check(self, indices: Indices) -> None:
        for index in np.unique(indices):
            for name, column in self._columns.items():
                if not column.is_whole(index):
                    raise PackError(f"{self._folder}: {name} of sample {index} is damaged")
        self._checked[indices] = True
