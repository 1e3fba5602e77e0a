"""SubModel contract: which coordinates of the vector travel and train in a round.

Traits: "fixed", "per-round" or "per-client". A sub-model is chosen from public facts only (round, site name, seed).
"""

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

from medfl.plugins import Plugin, PluginConfig, PluginPoint


class SubModel(Plugin[PluginConfig], ABC):
    @abstractmethod
    def select(self, site: str, round_: int, size: int) -> npt.NDArray[np.int64] | None:
        """The coordinates of this site and round, strictly increasing; None means all of them."""


SUBMODELS = PluginPoint("sub-model", "medfl.submodels", {"full": "medfl.update.submodels.full:Full"})
