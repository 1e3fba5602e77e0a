"""w += lr * D; with lr = 1 this is FedAvg."""

from typing import Literal

import numpy as np
from pydantic import Field

from medfl.federation.server_steps.base import ServerStep
from medfl.plugins import PluginConfig
from medfl.update.vector import FloatVector


class ServerSgdConfig(PluginConfig):
    kind: Literal["sgd"] = "sgd"
    learning_rate: float = Field(1.0, gt=0)


class ServerSgd(ServerStep):
    Config = ServerSgdConfig
    config: ServerSgdConfig

    def apply(self, model: FloatVector, update: FloatVector) -> None:
        if self.config.learning_rate != 1.0:
            update *= np.float32(self.config.learning_rate)
        model += update
