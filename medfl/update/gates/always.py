"""Every update is sent."""

from typing import Literal

from medfl.plugins import PluginConfig
from medfl.update.base import Update
from medfl.update.gates.base import UploadGate


class AlwaysConfig(PluginConfig):
    kind: Literal["always"] = "always"


class Always(UploadGate):
    Config = AlwaysConfig

    def allow(self, update: Update, round_: int) -> bool:
        return True
