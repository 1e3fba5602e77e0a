"""FedAvg's mean (McMahan et al. 2017): sum w_k D_k / sum w_k, with w_k the unique cases of a site times its
verdict's factor."""

from typing import Literal

import numpy as np

from medfl.federation.aggregation.base import Aggregator
from medfl.plugins import PluginConfig
from medfl.update.base import Update
from medfl.update.vector import FloatVector

# values a block: the product of a block stays in the cache, so memory is read once and written once
_BLOCK = 1 << 18
_FAR = 1e6
"""Times the unit: a weight beyond it becomes the unit, so that no product leaves single precision."""


class WeightedMeanConfig(PluginConfig):
    kind: Literal["weighted_mean"] = "weighted_mean"

    def traits(self) -> frozenset[str]:
        return frozenset({"linear"})


class WeightedMean(Aggregator):
    Config = WeightedMeanConfig

    def __init__(self, config: WeightedMeanConfig) -> None:
        super().__init__(config)
        self._sum = np.zeros(0, np.float32)
        self._product = np.empty(_BLOCK, np.float32)
        self._unit = self._weight = 0.0

    def start(self, size: int) -> None:
        if self._sum.size != size:
            self._sum = np.empty(size, np.float32)
        self._unit = self._weight = 0.0

    def add(self, update: Update, weight: float) -> None:
        if not weight:
            return
        if not self._weight:
            # weights count in units of the first: sites of equal weight need no multiplication
            self._unit = weight
            self._first(update)
        else:
            if weight > _FAR * self._unit:
                self._sum *= np.float32(self._unit / weight)
                self._unit = weight
            self._more(update, np.float32(weight / self._unit))
        self._weight += weight

    def _first(self, update: Update) -> None:
        if update.indices is None:
            np.copyto(self._sum, update.values)
        else:
            self._sum.fill(0)
            self._sum[update.indices] = update.values

    def _more(self, update: Update, share: np.float32) -> None:
        if update.indices is not None:
            self._sum[update.indices] += share * update.values
        elif share == 1:
            self._sum += update.values
        else:
            for start in range(0, update.size, _BLOCK):
                block = update.values[start : start + _BLOCK]
                product = np.multiply(block, share, out=self._product[: block.size])
                self._sum[start : start + _BLOCK] += product

    def result(self) -> FloatVector | None:
        if not self._weight:
            return None
        self._sum *= np.float32(self._unit / self._weight)
        self._unit = self._weight = 1.0
        return self._sum
