"""Refuse an update that holds NaN or infinity: one such value would destroy the global model."""

import math
from typing import Literal

from medfl.federation.regulator.base import ADMIT, Arrival, Bench, RegulatorRule, Verdict
from medfl.plugins import PluginConfig


class FiniteConfig(PluginConfig):
    kind: Literal["finite"] = "finite"


class Finite(RegulatorRule):
    Config = FiniteConfig

    def judge(self, arrival: Arrival, bench: Bench) -> Verdict:
        return ADMIT if math.isfinite(arrival.norm) else self.refuse("the update holds values that are not finite")
