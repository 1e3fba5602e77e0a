"""Server momentum: FedMom (Huo et al. 2020, Nesterov form) or FedAvgM (Hsu et al. 2019, heavy ball).

FedMom:  v' = w + lr D;  w' = v' + beta (v' - v)        FedAvgM:  m = beta m + D;  w += lr m
"""

from typing import Literal

import numpy as np
from pydantic import Field

from medfl.federation.server_steps.base import ServerStep
from medfl.plugins import PluginConfig
from medfl.update.vector import FloatVector


class ServerMomentumConfig(PluginConfig):
    kind: Literal["momentum"] = "momentum"
    learning_rate: float = Field(1.0, gt=0)
    beta: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = Field(True, description="FedMom; false is FedAvgM's heavy ball")

    def traits(self) -> frozenset[str]:
        return frozenset({"server-momentum"})


class ServerMomentum(ServerStep):
    Config = ServerMomentumConfig
    config: ServerMomentumConfig

    def __init__(self, config: ServerMomentumConfig) -> None:
        super().__init__(config)
        self._buffer: FloatVector | None = None

    def apply(self, model: FloatVector, update: FloatVector) -> None:
        update *= np.float32(self.config.learning_rate)
        beta = np.float32(self.config.beta)
        if not self.config.nesterov:
            if self._buffer is None:
                self._buffer = np.zeros_like(model)
            self._buffer *= beta
            self._buffer += update
            model += self._buffer
            return
        ahead = model + update
        before = model.copy() if self._buffer is None else self._buffer
        np.subtract(ahead, before, out=before)
        before *= beta
        np.add(ahead, before, out=model)
        self._buffer = ahead

    def state(self) -> dict[str, FloatVector]:
        return {} if self._buffer is None else {"buffer": self._buffer}

    def restore(self, state: dict[str, FloatVector]) -> None:
        self._buffer = state.get("buffer")
