"""What travels: an Update is a change of the flat vector, a Payload is its bytes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from medfl.update.vector import FloatVector
from medfl.update.wire import Buffer


@dataclass(frozen=True, slots=True)
class Update:
    """A change of the global vector: dense when `indices` is None (values [size]), else the values [k] at strictly
    increasing positions `indices` [k] of a vector of `size` values."""

    values: FloatVector
    size: int
    indices: npt.NDArray[np.int64] | None = None

    def norm(self) -> float:
        """Euclidean norm in float64; inf or NaN exactly when a value is not finite."""
        values = self.values.astype(np.float64) if self.values.size < 4096 else self.values
        squared = float(np.dot(values, values))
        if np.isfinite(squared):
            return float(np.sqrt(squared))
        return float(np.linalg.norm(self.values.astype(np.float64)))

    def dense(self) -> FloatVector:
        """The update as a vector [size]; the values themselves when already dense."""
        if self.indices is None:
            return self.values
        vector = np.zeros(self.size, np.float32)
        vector[self.indices] = self.values
        return vector


@dataclass(frozen=True, slots=True)
class Payload:
    """Coded bytes of one vector. `meta` is JSON-able and travels in the message header."""

    codec: str
    size: int
    buffers: tuple[Buffer, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def header(self) -> dict[str, Any]:
        return {"codec": self.codec, "size": self.size, **({"meta": dict(self.meta)} if self.meta else {})}

    @classmethod
    def of(cls, header: Mapping[str, Any], buffers: list[memoryview]) -> "Payload":
        """The payload of a received message."""
        return cls(str(header["codec"]), int(header["size"]), tuple(buffers), header.get("meta", {}))
