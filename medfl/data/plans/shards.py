"""Every site trains on all of its own samples in every round (McMahan et al., arXiv 1602.05629)."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from medfl.data.base import Array
from medfl.data.plans.base import DataPlan, Indices
from medfl.plugins import PluginConfig


class ShardsConfig(PluginConfig):
    """No settings."""

    kind: Literal["shards"] = "shards"


class Shards(DataPlan[ShardsConfig]):
    Config = ShardsConfig

    def indices(self, site: str, round: int, labels: Indices, state: Mapping[str, Array]) -> Indices:
        return np.arange(len(labels), dtype=np.int64)
