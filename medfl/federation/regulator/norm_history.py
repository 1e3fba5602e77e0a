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


class NormHistoryConfig(PluginConfig):
    kind: Literal["norm_history"] = "norm_history"
    factor: float = Field(4.0, gt=1, description="largest norm, in medians of the site's own last norms")
    window: int = Field(10, ge=1, description="rounds that make the history")
    first: float = Field(3.0, gt=0, description="largest norm before there is a history, in norms of the global vector")


class NormHistory(RegulatorRule):
    Config = NormHistoryConfig
    config: NormHistoryConfig

    def __init__(self, config: NormHistoryConfig) -> None:
        super().__init__(config)
        self._norms: dict[str, list[float]] = {}

    def judge(self, arrival: Arrival, bench: Bench) -> Verdict:
        history = self._norms.get(arrival.site)
        if history:
            limit, what = self.config.factor * float(np.median(history)), "times its own median norm"
            ratio = arrival.norm / max(float(np.median(history)), 1e-30)
        else:
            scale = float(np.linalg.norm(bench.model))
            limit, what, ratio = (
                self.config.first * scale,
                "times the norm of the model",
                arrival.norm / max(scale, 1e-30),
            )
        if arrival.norm <= limit:
            return ADMIT
        return self.refuse(f"norm {arrival.norm:.3g} is {ratio:.3g} {what}")

    def learn(self, admitted: Sequence[tuple[str, float]]) -> None:
        for site, norm in admitted:
            self._norms[site] = [*self._norms.get(site, []), norm][-self.config.window :]

    def state(self) -> dict[str, Any]:
        return {"norms": self._norms}

    def restore(self, state: dict[str, Any]) -> None:
        self._norms = {site: list(norms) for site, norms in state["norms"].items()}
