"""FedAvg's mean (McMahan et al. 2017): sum w_k D_k / sum w_k, with w_k the unique cases of a site times its
verdict's factor."""

from typing import Literal

import numpy as np

from medfl.federation.aggregation.base import Aggregator
from medfl.plugins import PluginConfig
from medfl.update.base import Update
from medfl.update.vector import FloatVector

# values a block: the product of a block stays in the cache, so memory is read once and written once
_BLOCK = 1 << 17


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
        self._weight = 0.0

    def start(self, size: int) -> None:
        if self._sum.size == size:
            self._sum.fill(0)
        else:
            self._sum = np.zeros(size, np.float32)
        self._weight = 0.0

    def add(self, update: Update, weight: float) -> None:
        self._weight += weight
        if update.indices is not None:
            self._sum[update.indices] += np.float32(weight) * update.values
            return
        for start in range(0, update.size, _BLOCK):
            block = update.values[start : start + _BLOCK]
            product = self._product[: block.size]
            np.multiply(block, np.float32(weight), out=product)
            self._sum[start : start + _BLOCK] += product

    def result(self) -> FloatVector | None:
        if not self._weight:
            return None
        self._sum *= np.float32(1 / self._weight)
        self._weight = 1.0
        return self._sum
