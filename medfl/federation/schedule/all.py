"""Every site takes part in every round."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from medfl.federation.schedule.base import Schedule
from medfl.plugins import PluginConfig


class AllSitesConfig(PluginConfig):
    kind: Literal["all"] = "all"


class AllSites(Schedule):
    Config = AllSitesConfig

    def cohort(self, round_: int, cases: Mapping[str, int], rng: np.random.Generator) -> tuple[str, ...]:
        return tuple(sorted(cases))
