"""Label skew: each class is shared among the sites by a draw of Dir(alpha) (Hsu, Qi, Brown, arXiv 1909.06335)."""

from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from medfl.data.partition.base import SharePartition, Shares, quota
from medfl.errors import DataError
from medfl.plugins import PluginConfig

ATTEMPTS = 1000


class DirichletConfig(PluginConfig):
    """alpha: skew, 0.1 strong, 100 almost none. minimum: training patients that every site must have."""

    kind: Literal["dirichlet"] = "dirichlet"
    alpha: float = Field(0.5, gt=0)
    minimum: int = Field(1, ge=0)


class Dirichlet(SharePartition[DirichletConfig]):
    Config = DirichletConfig

    def shares(self, counts: npt.NDArray[np.int64], sites: int, rng: np.random.Generator) -> Shares:
        for _ in range(ATTEMPTS):
            drawn = rng.dirichlet(np.full(sites, self.config.alpha), size=len(counts))
            held = sum(quota(row, int(n), turn) for turn, (row, n) in enumerate(zip(drawn, counts, strict=True)))
            if np.min(held) >= self.config.minimum:
                return drawn
        raise DataError.at(
            "partition dirichlet",
            f"no draw of {ATTEMPTS} gave each of {sites} sites {self.config.minimum} of {counts.sum()} patients",
            "raise alpha, lower minimum or use fewer sites",
        )
