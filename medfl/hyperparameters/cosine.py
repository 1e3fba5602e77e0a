"""Cosine decay over rounds with a linear warm-up (Loshchilov & Hutter 2017), for learning rates."""

import math
from typing import Any, Literal

from pydantic import Field

from medfl.hyperparameters.base import Hyperparameter, HyperparameterConfig, Progress


class CosineConfig(HyperparameterConfig):
    kind: Literal["cosine"] = "cosine"
    start: float = Field(gt=0)
    end: float = Field(0.0, ge=0)
    rounds: int = Field(ge=1, description="rounds until `end` is reached")
    warmup: int = Field(0, ge=0, description="rounds of linear rise to `start`")

    def lowest(self) -> float:
        return min(self.end, self.start / max(1, self.warmup))


class Cosine(Hyperparameter):
    Config = CosineConfig
    config: CosineConfig

    def __init__(self, config: CosineConfig) -> None:
        super().__init__(config)
        self._done = 0

    def value(self) -> float:
        c = self.config
        if self._done < c.warmup:
            return c.start * (self._done + 1) / c.warmup
        share = min(1.0, (self._done - c.warmup) / max(1, c.rounds - c.warmup))
        return c.end + (c.start - c.end) * (1 + math.cos(math.pi * share)) / 2

    def update(self, progress: Progress) -> None:
        self._done = progress.round

    def state(self) -> dict[str, Any]:
        return {"done": self._done}

    def restore(self, state: dict[str, Any]) -> None:
        self._done = state["done"]
