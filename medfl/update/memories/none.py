"""Nothing is remembered."""

from collections.abc import Callable
from typing import Literal

from medfl.plugins import PluginConfig
from medfl.update.base import Update
from medfl.update.memories.base import Memory, SiteState


class NoMemoryConfig(PluginConfig):
    kind: Literal["none"] = "none"


class NoMemory(Memory):
    Config = NoMemoryConfig

    def before(self, update: Update, state: SiteState) -> Update:
        return update

    def after(self, wanted: Update, sent: Callable[[], Update], state: SiteState) -> None:
        pass
