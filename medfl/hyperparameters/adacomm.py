"""AdaComm's adaptive local work (Wang & Joshi, "Adaptive Communication Strategies", MLSys 2019).

    tau_l = ceil(sqrt(F_l / F_0) * tau_0);  if that is not smaller than tau_{l-1}:  tau_l = tau_{l-1} / 2

after each block of rounds, within [minimum, start]. Much local work early saves rounds; little local work late lowers
the floor that client drift sets. F_l is the loss of the whole cohort, smoothed, or tau would flap.
"""

import math
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from medfl.hyperparameters.base import Hyperparameter, HyperparameterConfig, Progress
from medfl.hyperparameters.smoothing import SmoothedLoss


class AdaCommConfig(HyperparameterConfig):
    kind: Literal["adacomm"] = "adacomm"
    start: int = Field(8, ge=1, description="tau_0, the value of the first block")
    minimum: int = Field(1, ge=1, description="not above start")
    block: int = Field(3, ge=1, description="rounds between two changes")
    smoothing: float = Field(0.5, ge=0, lt=1, description="weight of the past in the moving average of the loss")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.minimum > self.start:
            raise ValueError(f"minimum {self.minimum} is above start {self.start}")
        return self

    def lowest(self) -> float:
        return self.minimum


class AdaComm(Hyperparameter):
    Config = AdaCommConfig
    config: AdaCommConfig

    def __init__(self, config: AdaCommConfig) -> None:
        super().__init__(config)
        self._tau = config.start
        self._loss = SmoothedLoss(config.smoothing)

    def value(self) -> float:
        return self._tau

    def update(self, progress: Progress) -> None:
        if not self._loss.add(progress.loss) or progress.round % self.config.block:
            return
        tau = math.ceil(math.sqrt(self._loss.ratio()) * self.config.start)
        if tau >= self._tau:
            tau = self._tau // 2
        self._tau = max(self.config.minimum, tau)

    def state(self) -> dict[str, Any]:
        return {"tau": self._tau, "loss": self._loss.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self._tau = state["tau"]
        self._loss.restore(state["loss"])
