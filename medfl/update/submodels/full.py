"""The whole vector travels and trains."""

from typing import Literal

from medfl.plugins import PluginConfig
from medfl.update.submodels.base import SubModel


class FullConfig(PluginConfig):
    kind: Literal["full"] = "full"

    def traits(self) -> frozenset[str]:
        return frozenset({"fixed"})


class Full(SubModel):
    Config = FullConfig
