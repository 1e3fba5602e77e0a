"""The median of each coordinate (Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018).

    w_j <- w_j + median_k D_kj;   of an even number of updates the mean of the two in the middle

Fewer than half of the updates may be anything, and each coordinate still lies among the honest ones. The price is
accuracy where honest sites differ: the median leaves out what only some hospitals have. Weights are not used (a site's
number of cases is its own word), a coordinate that a sparse update does not hold counts as 0. Needs every update at
once: 4 bytes a coordinate and site at the coordinator; nothing more travels.
"""

from typing import Literal

from medfl.federation.aggregation.by_coordinate import ByCoordinate
from medfl.plugins import PluginConfig


class MedianConfig(PluginConfig):
    kind: Literal["median"] = "median"

    def traits(self) -> frozenset[str]:
        return frozenset({"nonlinear", "needs-each-update"})


class Median(ByCoordinate):
    Config = MedianConfig

    def cut(self, count: int) -> int:
        return (count - 1) // 2
