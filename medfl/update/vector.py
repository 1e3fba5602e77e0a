"""The flat vector: all shared parameters as one contiguous float32 array, and the layout that says what lies where.

Clip, noise, codecs, memories, aggregation and checkpoints act on the vector; only tasks see modules.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from medfl.errors import RunError

FloatVector = npt.NDArray[np.float32]
Sliceable = TypeVar("Sliceable")

# values: a block is too short for BLAS to start threads; of a piece that is not aligned NumPy makes copies
_BLOCK = 1 << 13
_PIECE = 1 << 18


def rough_square(vector: FloatVector) -> float:
    """The sum of squares to about seven digits: of a block in float32, of the blocks in float64. Not finite where a
    value is not, or where squares pass float32's range."""
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, vector.size, _PIECE):
            piece = vector[start : start + _PIECE]
            whole = piece.size // _BLOCK * _BLOCK
            blocks, rest = piece[:whole].reshape(-1, _BLOCK), piece[whole:]
            total += float(np.vecdot(blocks, blocks).sum(dtype=np.float64)) + float(np.vecdot(rest, rest))
    return total


def vector_digest(vector: FloatVector) -> str:
    """SHA-256 of the values, as hex."""
    return hashlib.sha256(np.ascontiguousarray(vector).data).hexdigest()


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor's place in the vector. offset and size count float32 values."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """Which tensor lies where. Two vectors may be added only if their layouts have the same digest."""

    slots: tuple[Slot, ...]

    @classmethod
    def of(cls, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> "Layout":
        """The layout that packs the tensors in the given order without gaps."""
        slots, offset = [], 0
        for name, shape in shapes:
            slots.append(Slot(name, tuple(shape), offset))
            offset += slots[-1].size
        return cls(tuple(slots))

    @cached_property
    def size(self) -> int:
        return sum(slot.size for slot in self.slots)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of names and shapes, as hex."""
        return hashlib.sha256(json.dumps(self.to_json()).encode()).hexdigest()

    def views(self, vector: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
        """The tensors by name, as views of `vector` [size]; RunError when the size differs."""
        if vector.shape != (self.size,):
            raise RunError.at("flat vector", f"has shape {vector.shape}, the layout holds {self.size} values")
        return {slot.name: vector[slot.offset : slot.offset + slot.size].reshape(slot.shape) for slot in self.slots}

    def pack(self, tensors: Mapping[str, npt.NDArray[np.float32]]) -> FloatVector:
        """The vector that holds these tensors; RunError names every tensor that is missing, unknown or misshapen."""
        expected = {slot.name: slot.shape for slot in self.slots}
        wrong = sorted(expected.keys() ^ tensors.keys())
        wrong += sorted(name for name in expected.keys() & tensors.keys() if tensors[name].shape != expected[name])
        if wrong:
            raise RunError.at(
                "weights", f"do not fit the network at {', '.join(wrong)}", "use the study they were trained with"
            )
        vector = np.empty(self.size, np.float32)
        for name, view in self.views(vector).items():
            view[...] = tensors[name]
        return vector

    def to_json(self) -> list[list[object]]:
        return [[slot.name, list(slot.shape)] for slot in self.slots]

    @classmethod
    def from_json(cls, value: list[tuple[str, list[int]]]) -> "Layout":
        return cls.of((name, tuple(shape)) for name, shape in value)
