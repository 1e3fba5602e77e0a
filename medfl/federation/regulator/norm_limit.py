"""Refuse an update longer than a fixed, public limit."""

from typing import Literal

from pydantic import Field

from medfl.federation.regulator.base import ADMIT, Arrival, Bench, RegulatorRule, Verdict
from medfl.plugins import PluginConfig


class NormLimitConfig(PluginConfig):
    kind: Literal["norm_limit"] = "norm_limit"
    limit: float = Field(gt=0, description="largest Euclidean norm of an update")

    def traits(self) -> frozenset[str]:
        return frozenset({"needs-each-update"})


class NormLimit(RegulatorRule):
    Config = NormLimitConfig
    config: NormLimitConfig

    def judge(self, arrival: Arrival, bench: Bench) -> Verdict:
        if arrival.norm <= self.config.limit:
            return ADMIT
        return self.refuse(f"norm {arrival.norm:.3g} is above the limit {self.config.limit:.3g}")
