"""Refuse an update that holds NaN or infinity, or values so large that the mean becomes infinite: one would destroy the
global model."""

import math
from typing import Literal

from medfl.federation.regulator.base import ADMIT, Arrival, Bench, RegulatorRule, Verdict
from medfl.plugins import PluginConfig

_MOST = 1e25
"""Single precision ends at 3e38, and updates are multiplied by cases and, by Adam, with themselves."""


class FiniteConfig(PluginConfig):
    kind: Literal["finite"] = "finite"


class Finite(RegulatorRule):
    Config = FiniteConfig

    def judge(self, arrival: Arrival, bench: Bench) -> Verdict:
        if not math.isfinite(arrival.norm):
            return self.refuse("the update holds values that are not finite")
        return ADMIT if arrival.norm < _MOST else self.refuse(f"the update's norm is {arrival.norm:.1e}")
