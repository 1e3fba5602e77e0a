"""Every update is sent."""

from collections.abc import Callable
from typing import Literal

from medfl.plugins import PluginConfig
from medfl.update.base import Update, Upload
from medfl.update.gates.base import UploadGate
from medfl.update.memories.base import SiteState


class AlwaysConfig(PluginConfig):
    kind: Literal["always"] = "always"


class Always(UploadGate):
    Config = AlwaysConfig

    def allow(self, news: Update, sent: Callable[[], Update], upload: Upload, state: SiteState) -> bool:
        return True
