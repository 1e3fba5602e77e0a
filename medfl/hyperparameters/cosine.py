"""Cosine decay over rounds with a linear warm-up (Loshchilov & Hutter 2017), for learning rates."""

import math
from typing import Literal

from pydantic import Field

from medfl.hyperparameters.base import HyperparameterConfig
from medfl.hyperparameters.by_round import ByRound


class CosineConfig(HyperparameterConfig):
    kind: Literal["cosine"] = "cosine"
    start: float = Field(gt=0)
    end: float = Field(0.0, ge=0)
    rounds: int = Field(ge=1, description="rounds until `end` is reached")
    warmup: int = Field(0, ge=0, description="rounds of linear rise to `start`")

    def lowest(self) -> float:
        return min(self.end, self.start / max(1, self.warmup))


class Cosine(ByRound):
    Config = CosineConfig
    config: CosineConfig

    def value(self) -> float:
        c = self.config
        if self._done < c.warmup:
            return c.start * (self._done + 1) / c.warmup
        share = min(1.0, (self._done - c.warmup) / max(1, c.rounds - c.warmup))
        return c.end + (c.start - c.end) * (1 + math.cos(math.pi * share)) / 2
