"""Schedule contract: who takes part in a round. Pure: the answer depends on the arguments alone."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from medfl.plugins import Plugin, PluginConfig, PluginPoint


class Schedule(Plugin[PluginConfig], ABC):
    @abstractmethod
    def cohort(self, round_: int, cases: Mapping[str, int], rng: np.random.Generator) -> tuple[str, ...]:
        """The sites of this round, in the order in which their updates are combined.

        cases: training cases of every available site. rng: the round's own generator.
        """


SCHEDULES = PluginPoint(
    "schedule",
    "medfl.schedules",
    {
        "all": "medfl.federation.schedule.all:AllSites",
        "uniform": "medfl.federation.schedule.uniform:Uniform",
        "fedasync": "medfl.federation.asynchronous.fedasync:FedAsync",
        "buffered": "medfl.federation.asynchronous.buffered:Buffered",
    },
)
