"""The mean over those who own a coordinate (LotteryFL, Li et al. 2020; federated dropout, Caldas et al. 2018).

    w_j <- w_j + sum_{k owns j} w_k D_kj / sum_{k owns j} w_k;   a coordinate that nobody owns does not move

A site owns the coordinates that its update holds: all of a dense update, `indices` of a sparse one. The weighted mean
divides by everybody's weight instead, so a coordinate that one site of ten trains would move a tenth of its way. For
sub-models; with a codec that chooses coordinates itself (top-k), what one site alone sends counts in full. State: the
sum, and where updates are sparse a vector of the owners' weights; nothing more travels.
"""

from typing import Literal

import numpy as np

from medfl.federation.aggregation.base import Aggregator
from medfl.federation.aggregation.weighted_mean import WeightedMean, WeightedMeanConfig
from medfl.plugins import PluginConfig
from medfl.update.base import Update
from medfl.update.vector import FloatVector

_BLOCK = 1 << 16


class MaskedMeanConfig(PluginConfig):
    kind: Literal["masked_mean"] = "masked_mean"

    def traits(self) -> frozenset[str]:
        return frozenset({"nonlinear", "needs-support"})


class MaskedMean(Aggregator):
    Config = MaskedMeanConfig

    def __init__(self, config: MaskedMeanConfig) -> None:
        super().__init__(config)
        self._mean = WeightedMean(WeightedMeanConfig())
        self._total = self._dense = 0.0
        self._owners: FloatVector | None = None

    def start(self, size: int) -> None:
        self._mean.start(size)
        self._total = self._dense = 0.0
        self._owners = None

    def add(self, update: Update, weight: float) -> None:
        self._mean.add(update, weight)
        self._total += weight
        if update.indices is None:
            self._dense += weight
            return
        if self._owners is None:
            self._owners = np.zeros(update.size, np.float32)
        self._owners[update.indices] += np.float32(weight)

    def result(self) -> FloatVector | None:
        mean, owners = self._mean.result(), self._owners
        if mean is None or owners is None:
            return mean
        self._owners = None
        for start in range(0, mean.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            weight = owners[block] + np.float32(self._dense)
            share = np.divide(np.float32(self._total), weight, out=np.zeros_like(weight), where=weight > 0)
            mean[block] *= share
        return mean
