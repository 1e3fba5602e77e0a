"""What travels: an Update is a change of the flat vector, a Payload is its bytes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medfl.errors import RunError
from medfl.update.vector import FloatVector, rough_square
from medfl.update.wire import Buffer

if TYPE_CHECKING:
    from medfl.update.parts import Part

# values a block: its float64 copy stays in the cache, and is too short for BLAS to start threads
_BLOCK = 1 << 13
_SAFE = 1e-20, 1e30
"""Sums of squares in between are far from the ends of single precision."""


@dataclass(frozen=True, slots=True)
class Update:
    """A change of the global vector: dense when `indices` is None (values [size]), else the values [k] at strictly
    increasing positions `indices` [k] of a vector of `size` values."""

    values: FloatVector
    size: int
    indices: npt.NDArray[np.int64] | None = None

    def norm(self) -> float:
        """Euclidean norm, summed in float64; inf or NaN exactly when a value is not finite."""
        total = 0.0
        for start in range(0, self.values.size, _BLOCK):
            block = self.values[start : start + _BLOCK].astype(np.float64)
            total += float(np.dot(block, block))
        return math.sqrt(total)

    def rough_norm(self) -> float:
        """The norm to about seven digits, in a fifth of the time. Not finite exactly when a value is not."""
        squared = rough_square(self.values)
        return math.sqrt(squared) if _SAFE[0] < squared < _SAFE[1] else self.norm()

    def dense(self) -> FloatVector:
        """The update as a vector [size]; the values themselves when already dense."""
        if self.indices is None:
            return self.values
        vector = np.zeros(self.size, np.float32)
        vector[self.indices] = self.values
        return vector


@dataclass(frozen=True, slots=True)
class Upload:
    """Whose update, and of which round.

    counted: the last round in which an update of the site moved the model, 0 before there was one. model: the global
    vector [size] that the site trained from. sends: the part of the change that is sent; None for all of it. trains:
    the part that trained.
    """

    site: str
    round: int
    counted: int
    model: FloatVector
    sends: "Part | None" = None
    trains: "Part | None" = None


@dataclass(frozen=True, slots=True)
class Payload:
    """Coded bytes of one vector. `meta` is JSON-able and travels in the message header."""

    codec: str
    size: int
    buffers: tuple[Buffer, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def header(self) -> dict[str, Any]:
        return {"codec": self.codec, "size": self.size, **({"meta": dict(self.meta)} if self.meta else {})}

    def described(self) -> dict[str, Any]:
        """The header with the number of buffers, for messages that carry several payloads."""
        return {**self.header(), "buffers": len(self.buffers)}

    @classmethod
    def of(cls, header: Mapping[str, Any], buffers: list[memoryview]) -> "Payload":
        """The payload of a received message; RunError when its header does not describe one."""
        described = header if isinstance(header, Mapping) else {}
        codec, size, meta = described.get("codec"), described.get("size"), described.get("meta", {})
        if not isinstance(codec, str) or type(size) is not int or size < 0 or not isinstance(meta, Mapping):
            raise RunError.at("message", "does not describe a coded vector by codec, size and meta")
        return cls(codec, size, tuple(buffers), meta)

    @classmethod
    def first_of(
        cls, described: Any, buffers: list[memoryview], where: str, what: str
    ) -> tuple["Payload", list[memoryview]]:
        """The payload that a `described` header of a received message stands for, which the first buffers carry, and
        the buffers after it; RunError, naming the message (`where`) and `what` it describes, when it carries none."""
        count = described.get("buffers") if isinstance(described, Mapping) else 0
        if type(count) is not int or not 0 <= count <= len(buffers):
            raise RunError.at(where, f"describes {what} that it does not carry")
        return cls.of(described, buffers[:count]), buffers[count:]
