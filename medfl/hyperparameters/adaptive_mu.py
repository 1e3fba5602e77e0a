"""FedProx's own heuristic for mu (Li et al. 2020, section 5.3.2): up by `step` when the loss rises, down by `step`
after `patience` rounds in a row of falling loss; never below 0."""

import math
from typing import Any, Literal

from pydantic import Field

from medfl.hyperparameters.base import Hyperparameter, HyperparameterConfig, Progress


class AdaptiveMuConfig(HyperparameterConfig):
    kind: Literal["adaptive_mu"] = "adaptive_mu"
    start: float = Field(0.0, ge=0)
    step: float = Field(0.1, gt=0)
    patience: int = Field(5, ge=1)

    def lowest(self) -> float:
        return 0.0

    def traits(self) -> frozenset[str]:
        return frozenset({"by-loss"})


class AdaptiveMu(Hyperparameter):
    Config = AdaptiveMuConfig
    config: AdaptiveMuConfig

    def __init__(self, config: AdaptiveMuConfig) -> None:
        super().__init__(config)
        self._mu = config.start
        self._last: float | None = None
        self._falling = 0

    def value(self) -> float:
        return self._mu

    def update(self, progress: Progress) -> None:
        if not math.isfinite(progress.loss):
            return
        if self._last is not None and progress.loss > self._last:
            self._mu, self._falling = self._mu + self.config.step, 0
        elif self._last is not None:
            self._falling += 1
            if self._falling >= self.config.patience:
                self._mu, self._falling = max(0.0, self._mu - self.config.step), 0
        self._last = progress.loss

    def state(self) -> dict[str, Any]:
        return {"mu": self._mu, "last": self._last, "falling": self._falling}

    def restore(self, state: dict[str, Any]) -> None:
        self._mu, self._last, self._falling = state["mu"], state["last"], state["falling"]
