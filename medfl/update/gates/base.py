"""UploadGate contract: send this round's update or skip it. What stands in for a skipped update is the coordinator's
matter; a gate whose stand-in mirrors the site there has the trait "mirrors-site"."""

from abc import ABC, abstractmethod

from medfl.plugins import Plugin, PluginConfig, PluginPoint
from medfl.update.base import Update


class UploadGate(Plugin[PluginConfig], ABC):
    @abstractmethod
    def allow(self, update: Update, round_: int) -> bool:
        """Whether the update is worth sending."""


GATES = PluginPoint("upload gate", "medfl.gates", {"always": "medfl.update.gates.always:Always"})
