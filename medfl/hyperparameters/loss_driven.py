"""Local work that follows the loss: much early, less as the loss falls, never none and never stalling.

    tau = ceil(start * (F / F_0) ** power), within [minimum, start], never above its last value

and one less after `patience` rounds in which the smoothed loss did not reach a new low, since a plateau at constant
tau is the floor of client drift. The lesion-detection design that medfl follows asks for this behaviour without
giving a rule.
"""

import math
from typing import Any, Literal

from pydantic import Field

from medfl.hyperparameters.base import Progress
from medfl.hyperparameters.falling import Falling, FallingConfig


class LossDrivenConfig(FallingConfig):
    kind: Literal["loss_driven"] = "loss_driven"
    power: float = Field(0.5, gt=0)
    patience: int = Field(3, ge=1, description="rounds without a new lowest loss before one step down")


class LossDriven(Falling):
    Config = LossDrivenConfig
    config: LossDrivenConfig

    def __init__(self, config: LossDrivenConfig) -> None:
        super().__init__(config)
        self._lowest = math.inf
        self._waited = 0

    def update(self, progress: Progress) -> None:
        if not self._loss.add(progress.loss):
            return
        tau = math.ceil(self.config.start * self._loss.ratio() ** self.config.power)
        if self._plateau():
            tau = min(tau, self._tau - 1)
        self._tau = max(self.config.minimum, min(tau, self._tau))

    def _plateau(self) -> bool:
        ratio = self._loss.ratio()
        if ratio < self._lowest:
            self._lowest, self._waited = ratio, 0
            return False
        self._waited += 1
        if self._waited < self.config.patience:
            return False
        self._waited = 0
        return True

    def state(self) -> dict[str, Any]:
        lowest = None if math.isinf(self._lowest) else self._lowest
        return {**super().state(), "lowest": lowest, "waited": self._waited}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._waited = state["waited"]
        self._lowest = math.inf if state["lowest"] is None else state["lowest"]
