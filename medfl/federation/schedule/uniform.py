"""FedAvg's client sampling (McMahan et al. 2017): a fixed number of sites, uniformly without replacement.

Sampling sites buys no privacy amplification in medfl's accounting.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import Field

from medfl.federation.schedule.base import Schedule
from medfl.plugins import PluginConfig


class UniformConfig(PluginConfig):
    kind: Literal["uniform"] = "uniform"
    fraction: float = Field(0.5, gt=0, le=1)
    minimum: int = Field(1, ge=1)


class Uniform(Schedule):
    Config = UniformConfig
    config: UniformConfig

    def cohort(self, round_: int, cases: Mapping[str, int], rng: np.random.Generator) -> tuple[str, ...]:
        names = sorted(cases)
        count = min(len(names), max(self.config.minimum, round(self.config.fraction * len(names))))
        return tuple(sorted(str(name) for name in rng.choice(names, count, replace=False)))
