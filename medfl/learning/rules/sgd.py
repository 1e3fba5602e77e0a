"""FedAvg's local rule (McMahan et al. 2017): the task's loss, its gradient as it is."""

from typing import Literal

from medfl.learning.rules.base import LocalRule
from medfl.plugins import PluginConfig


class SgdConfig(PluginConfig):
    kind: Literal["sgd"] = "sgd"


class Sgd(LocalRule):
    Config = SgdConfig
