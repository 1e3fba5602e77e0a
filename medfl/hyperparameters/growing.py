"""Growing intervals between synchronisations (LUPA-SGD's adaptive form, Haddadpour et al., "Local SGD with Periodic
Averaging", NeurIPS 2019): little local work early, when the sites still move fast, and more and more later.

    tau_i = tau_0 (1 + alpha i),  i = 0 .. E - 1,   alpha = 2 (T / (E tau_0) - 1) / (E - 1)

rounded, and what is left to T comes on top of the last, so that E synchronisations cover T local steps exactly. The
published code takes alpha = 2 T / (E tau_0 (E + 1)), whose E + 1 intervals add up to T + tau_0 (E + 1). The paper takes
E = (p T)^(1/3) synchronisations for p sites, with steps that fall as c / (t + a).

For `local.steps` (or `local.epochs`, then T counts epochs), with `stop.rounds` = E: a later round keeps the last
interval. Costs nothing: no bytes, no state but the round's number. Does not look at losses.
"""

from functools import cached_property
from typing import Literal, Self

from pydantic import Field, model_validator

from medfl.hyperparameters.base import HyperparameterConfig
from medfl.hyperparameters.by_round import ByRound


class GrowingConfig(HyperparameterConfig):
    kind: Literal["growing"] = "growing"
    start: int = Field(ge=1, description="tau_0, the first interval")
    total: int = Field(ge=1, description="T, local steps of the whole run; at least syncs * start")
    syncs: int = Field(ge=1, le=1_000_000, description="E, synchronisations of the whole run: its rounds")

    @model_validator(mode="after")
    def _grows(self) -> Self:
        least = self.syncs * self.start
        if self.total < least:
            raise ValueError(f"total {self.total} is below syncs * start = {least}, so the intervals could not grow")
        return self

    def lowest(self) -> float:
        return min(self.intervals)

    @cached_property
    def intervals(self) -> tuple[int, ...]:
        """tau_0 .. tau_{E-1}; their sum is `total`."""
        if self.syncs == 1:
            return (self.total,)
        alpha = 2 * (self.total / (self.syncs * self.start) - 1) / (self.syncs - 1)
        found = [round(self.start * (1 + alpha * number)) for number in range(self.syncs - 1)]
        return (*found, self.total - sum(found))


class Growing(ByRound):
    Config = GrowingConfig
    config: GrowingConfig

    def value(self) -> float:
        intervals = self.config.intervals
        return intervals[min(self._done, len(intervals) - 1)]
