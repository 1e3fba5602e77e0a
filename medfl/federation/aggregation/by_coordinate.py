"""What the robust aggregators share: all updates side by side, and the middle of each coordinate's values."""

from abc import abstractmethod

import numpy as np

from medfl.federation.aggregation.base import Aggregator
from medfl.plugins import PluginConfig
from medfl.update.base import Update
from medfl.update.vector import FloatVector

# coordinates a block: with some tens of sites, their values stay in the cache while they are sorted
_BLOCK = 1 << 13


class ByCoordinate(Aggregator):
    """The mean of what is left of each coordinate's n values when the same number is cut off at both ends.

    Weights are not used, since a site's number of cases is its own word; an update of weight 0 is left out. A
    coordinate that a sparse update does not hold counts as 0, a vote for no change. NaN sorts above every number, and
    is cut off like one. The order of the updates does not matter, to the bit.

    Memory: 4 n bytes a coordinate, kept from round to round.
    """

    def __init__(self, config: PluginConfig) -> None:
        super().__init__(config)
        # a row a site and not one array, because nobody says at the start how many come
        self._rows: list[FloatVector] = []
        self._count = 0
        self._result = np.empty(0, np.float32)

    @abstractmethod
    def cut(self, count: int) -> int:
        """How many of `count` values are cut off at each end; less than half."""

    def start(self, size: int) -> None:
        if self._result.size != size:
            self._rows, self._result = [], np.empty(size, np.float32)
        self._count = 0

    def add(self, update: Update, weight: float) -> None:
        if not weight:
            return
        if self._count == len(self._rows):
            self._rows.append(np.empty_like(self._result))
        row = self._rows[self._count]
        if update.indices is None:
            row[:] = update.values
        else:
            row.fill(0)
            row[update.indices] = update.values
        self._count += 1

    def result(self) -> FloatVector | None:
        if not self._count:
            return None
        rows, drop = self._rows[: self._count], self.cut(self._count)
        for start in range(0, self._result.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            values = np.stack([row[block] for row in rows], axis=1)
            values.sort(axis=1)
            total = np.zeros(len(values))
            for place in range(drop, self._count - drop):
                total += values[:, place]
            self._result[block] = total / (self._count - 2 * drop)
        # -0 and 0 sort as equals, in the order of the updates
        self._result += np.float32(0)
        return self._result
