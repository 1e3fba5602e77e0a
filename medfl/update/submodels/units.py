"""Units: filters that a network can do without, and where their values lie in the vector.

A unit is a set of channels that only go together: the filters of every layer that is added into the same stream, the
scale and shift of the norm behind them, and the matching input slices of every layer that reads them. With all its
values at zero the others compute exactly what the network with these tensors sliced away computes.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from medfl.update.vector import Layout

WHOLE = -1
"""In place of a unit's number: these channels are never dropped."""


@dataclass(frozen=True, slots=True)
class UnitLayer:
    """Units that are alike: the same layers make their channels. They are numbered from `start` to before `stop`."""

    name: str
    start: int
    stop: int

    @property
    def units(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Units:
    """The units of a network.

    layers: every unit is in exactly one; numbers count through them. axes: by tensor and axis, the unit that each
    index of that axis belongs to (int64 [shape[axis]]), or `WHOLE`; axes without any unit are left out. kept_whole: why
    layers have none, by name of their weight.
    """

    layout: Layout
    layers: tuple[UnitLayer, ...]
    axes: Mapping[tuple[str, int], npt.NDArray[np.int64]]
    kept_whole: Mapping[str, str]

    @property
    def count(self) -> int:
        return self.layers[-1].stop if self.layers else 0

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what belongs where, as hex: both ends must have the same."""
        found = [[name, axis, self.axes[name, axis].tolist()] for name, axis in sorted(self.axes)]
        return hashlib.sha256(json.dumps([self.layout.digest, found]).encode()).hexdigest()

    def coordinates(self, kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """All coordinates of the vector but those of units that are not kept, strictly increasing. kept: [count]."""
        return np.flatnonzero(self.mask(kept))

    def mask(self, kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Whether each value of the vector is kept [size]. kept: [count]."""
        inside = np.empty(self.layout.size, np.bool_)
        # the last entry is what WHOLE points at
        table = np.append(kept, True)
        for slot in self.layout.slots:
            found, last = np.ones(1, np.bool_), 0
            for axis in range(len(slot.shape)):
                units = self.axes.get((slot.name, axis))
                if units is not None:
                    between = math.prod(slot.shape[last:axis])
                    found = np.outer(np.repeat(found, between), table[units]).ravel()
                    last = axis + 1
            inside[slot.offset : slot.offset + slot.size] = np.repeat(found, slot.size // max(1, found.size))
        return inside
