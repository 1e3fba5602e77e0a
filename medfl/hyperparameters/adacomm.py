"""AdaComm's adaptive local work (Wang & Joshi, "Adaptive Communication Strategies", MLSys 2019).

    tau_l = ceil(sqrt(F_l / F_0) * tau_0);  if that is not smaller than tau_{l-1}:  tau_l = tau_{l-1} / 2

after each block of rounds, within [minimum, start]. Much local work early saves rounds; little local work late lowers
the floor that client drift sets. F_l is the loss of the whole cohort, smoothed, or tau would flap.
"""

import math
from typing import Literal

from pydantic import Field

from medfl.hyperparameters.base import Progress
from medfl.hyperparameters.falling import Falling, FallingConfig


class AdaCommConfig(FallingConfig):
    kind: Literal["adacomm"] = "adacomm"
    start: int = Field(8, ge=1, description="tau_0, the value of the first block")
    block: int = Field(3, ge=1, description="rounds between two changes")


class AdaComm(Falling):
    Config = AdaCommConfig
    config: AdaCommConfig

    def update(self, progress: Progress) -> None:
        if not self._loss.add(progress.loss) or progress.round % self.config.block:
            return
        tau = math.ceil(math.sqrt(self._loss.ratio()) * self.config.start)
        if tau >= self._tau:
            tau = self._tau // 2
        self._tau = max(self.config.minimum, tau)
