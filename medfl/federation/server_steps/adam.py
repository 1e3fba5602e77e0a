"""FedAdam (Reddi et al., "Adaptive Federated Optimization", ICLR 2021): Adam on the coordinator with D as gradient.

m = b1 m + (1-b1) D;  v = b2 v + (1-b2) D^2;  w += lr m / (sqrt(v) + tau)      (no bias correction, as published)
"""

from typing import Literal

import numpy as np
from pydantic import Field

from medfl.federation.server_steps.base import ServerStep
from medfl.plugins import PluginConfig
from medfl.update.vector import FloatVector


class ServerAdamConfig(PluginConfig):
    kind: Literal["adam"] = "adam"
    learning_rate: float = Field(0.01, gt=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)
    tau: float = Field(1e-3, gt=0, description="adaptivity: larger is closer to plain momentum")

    def traits(self) -> frozenset[str]:
        return frozenset({"server-momentum"})


class ServerAdam(ServerStep):
    Config = ServerAdamConfig
    config: ServerAdamConfig

    def __init__(self, config: ServerAdamConfig) -> None:
        super().__init__(config)
        self._moments: dict[str, FloatVector] = {}

    def apply(self, model: FloatVector, update: FloatVector) -> None:
        if not self._moments:
            self._moments = {"first": np.zeros_like(model), "second": np.zeros_like(model)}
        first, second = self._moments["first"], self._moments["second"]
        b1, b2 = np.float32(self.config.beta1), np.float32(self.config.beta2)
        first *= b1
        first += (1 - b1) * update
        np.multiply(update, update, out=update)
        second *= b2
        second += (1 - b2) * update
        np.sqrt(second, out=update)
        update += np.float32(self.config.tau)
        np.divide(first, update, out=update)
        update *= np.float32(self.config.learning_rate)
        model += update

    def state(self) -> dict[str, FloatVector]:
        return self._moments

    def restore(self, state: dict[str, FloatVector]) -> None:
        self._moments = dict(state)
