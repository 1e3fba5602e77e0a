"""Local work that falls with the smoothed loss of the federation: what the rules for local epochs share."""

import math
from typing import Any, Self

from pydantic import Field, model_validator

from medfl.hyperparameters.base import Hyperparameter, HyperparameterConfig


class SmoothedLoss:
    """Exponential moving average F of the rounds' losses, and its first value F_0.

    decay: weight of the past in [0, 1); 0 takes each round as it is. Rounds without a finite loss change nothing.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.first: float | None = None
        self.current: float | None = None

    def add(self, loss: float) -> bool:
        """Take in a round's loss; False when it is not finite and positive and was left out."""
        if not (math.isfinite(loss) and loss > 0):
            return False
        if self.first is None or self.current is None:
            self.first = self.current = loss
        else:
            self.current = self.decay * self.current + (1 - self.decay) * loss
        return True

    def ratio(self) -> float:
        """F / F_0; 1 before the first round."""
        return 1.0 if self.first is None or self.current is None else self.current / self.first

    def state(self) -> dict[str, Any]:
        return {"first": self.first, "current": self.current}

    def restore(self, state: dict[str, Any]) -> None:
        self.first, self.current = state["first"], state["current"]


class FallingConfig(HyperparameterConfig):
    """start: the first value, and the largest. minimum: the smallest. smoothing: weight of the past in the moving
    average of the loss."""

    start: int = Field(4, ge=1)
    minimum: int = Field(1, ge=1, description="not above start")
    smoothing: float = Field(0.5, ge=0, lt=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.minimum > self.start:
            raise ValueError(f"minimum {self.minimum} is above start {self.start}")
        return self

    def lowest(self) -> float:
        return self.minimum

    def traits(self) -> frozenset[str]:
        return frozenset({"by-loss"})


class Falling(Hyperparameter):
    """A whole number in [minimum, start] that follows the smoothed loss; sub-classes say how, in `update`."""

    config: FallingConfig

    def __init__(self, config: FallingConfig) -> None:
        super().__init__(config)
        self._tau = config.start
        self._loss = SmoothedLoss(config.smoothing)

    def value(self) -> float:
        return self._tau

    def state(self) -> dict[str, Any]:
        return {"tau": self._tau, "loss": self._loss.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self._tau = state["tau"]
        self._loss.restore(state["loss"])
