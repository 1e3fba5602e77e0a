"""Listed values, one after the other; then the last one stays. The default is Deep Gradient Compression's warm-up of
the density (Lin et al., ICLR 2018): 0.25, 0.063, 0.015, 0.004, 0.001 over the first rounds."""

from typing import Literal

from pydantic import Field

from medfl.hyperparameters.base import HyperparameterConfig
from medfl.hyperparameters.by_round import ByRound


class WarmupConfig(HyperparameterConfig):
    kind: Literal["warmup"] = "warmup"
    values: tuple[float, ...] = Field((0.25, 0.063, 0.015, 0.004, 0.001), min_length=1)
    rounds: int = Field(1, ge=1, description="rounds that each value lasts")

    def lowest(self) -> float:
        return min(self.values)


class Warmup(ByRound):
    Config = WarmupConfig
    config: WarmupConfig

    def value(self) -> float:
        c = self.config
        return c.values[min(self._done // c.rounds, len(c.values) - 1)]
