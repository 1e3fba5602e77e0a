"""Refuse an update whose norm leaves its site's own history by far; in the first rounds, the scale of the model itself.

The history is the admitted norms of the site's last `window` rounds. Before a site has a history, the bound is
`first` times the norm of the global vector: a training round moves weights by a fraction of their size, a scaled
upload by many times. Uses no other site's update, so it is allowed under differential privacy.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from medfl.federation.regulator.base import ADMIT, Arrival, Bench, RegulatorRule, Verdict
from medfl.plugins import PluginConfig
from medfl.update.base import Update


class NormHistoryConfig(PluginConfig):
    kind: Literal["norm_history"] = "norm_history"
    factor: float = Field(4.0, gt=1, description="largest norm, in medians of the site's own last norms")
    window: int = Field(10, ge=1, description="rounds that make the history")
    first: float = Field(3.0, gt=0, description="largest norm before there is a history, in norms of the global vector")

    def traits(self) -> frozenset[str]:
        return frozenset({"needs-each-update"})


class NormHistory(RegulatorRule):
    Config = NormHistoryConfig
    config: NormHistoryConfig

    def __init__(self, config: NormHistoryConfig) -> None:
        super().__init__(config)
        self._norms: dict[str, list[float]] = {}

    def judge(self, arrival: Arrival, bench: Bench) -> Verdict:
        median = float(np.median(self._norms.get(arrival.site, [0.0])))
        if median:
            limit, what = self.config.factor * median, f"{self.config.factor:g} times its own median"
        else:
            # no history, or one of updates that changed nothing
            scale = Update(bench.model, bench.model.size).norm()
            limit, what = self.config.first * scale, f"{self.config.first:g} times the norm of the model"
        if arrival.norm <= limit:
            return ADMIT
        return self.refuse(f"norm {arrival.norm:.3g} is above {limit:.3g}, {what}")

    def learn(self, admitted: Sequence[tuple[str, float]]) -> None:
        for site, norm in admitted:
            self._norms[site] = [*self._norms.get(site, []), norm][-self.config.window :]

    def state(self) -> dict[str, Any]:
        return {"norms": {site: list(norms) for site, norms in self._norms.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        self._norms = {site: list(norms) for site, norms in state["norms"].items()}
