"""Every site gets the same share of every class."""

from typing import Literal

import numpy as np
import numpy.typing as npt

from medfl.data.partition.base import SharePartition, Shares
from medfl.plugins import PluginConfig


class IidConfig(PluginConfig):
    """Equal shares."""

    kind: Literal["iid"] = "iid"


class Iid(SharePartition[IidConfig]):
    Config = IidConfig

    def shares(self, counts: npt.NDArray[np.int64], sites: int, rng: np.random.Generator) -> Shares:
        return np.full((len(counts), sites), 1 / sites)
