"""ServerStep contract: move the global model by the combined update, in place. State goes in and out by name."""

from abc import ABC, abstractmethod

from medfl.plugins import Plugin, PluginConfig, PluginPoint
from medfl.update.vector import FloatVector


class ServerStep(Plugin[PluginConfig], ABC):
    @abstractmethod
    def apply(self, model: FloatVector, update: FloatVector) -> None:
        """Move `model` [size] in place; `update` [size] (direction of descent, w_sites - w) may be overwritten."""

    def state(self) -> dict[str, FloatVector]:
        """Arrays that live on between rounds."""
        return {}

    def restore(self, state: dict[str, FloatVector]) -> None:
        """Continue from `state()`."""


SERVER_STEPS = PluginPoint(
    "server step",
    "medfl.server_steps",
    {
        "sgd": "medfl.federation.server_steps.sgd:ServerSgd",
        "momentum": "medfl.federation.server_steps.momentum:ServerMomentum",
        "adam": "medfl.federation.server_steps.adam:ServerAdam",
    },
)
