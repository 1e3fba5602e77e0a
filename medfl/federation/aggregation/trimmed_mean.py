"""The trimmed mean of each coordinate (Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018).

    w_j <- w_j + mean of D_1j .. D_nj without the b smallest and the b largest,   b = ceil(share * n), below n / 2

Up to b updates may be anything. Keeps more of what honest sites say than the median, and needs a guess of how many
may be wrong. Weights are not used (a site's number of cases is its own word), a coordinate that a sparse update does
not hold counts as 0. Needs every update at once: 4 bytes a coordinate and site at the coordinator; nothing more
travels.
"""

import math
from typing import Literal

from pydantic import Field

from medfl.federation.aggregation.by_coordinate import ByCoordinate
from medfl.plugins import PluginConfig


class TrimmedMeanConfig(PluginConfig):
    kind: Literal["trimmed_mean"] = "trimmed_mean"
    share: float = Field(
        0.1, ge=0, lt=0.5, description="of the updates, cut off at each end; rounded up, so that few sites trim too"
    )

    def traits(self) -> frozenset[str]:
        return frozenset({"nonlinear", "needs-each-update"})


class TrimmedMean(ByCoordinate):
    Config = TrimmedMeanConfig
    config: TrimmedMeanConfig

    def cut(self, count: int) -> int:
        # 0.07 * 100 is a little more than 7
        return min(math.ceil(self.config.share * count - 1e-9), (count - 1) // 2)
