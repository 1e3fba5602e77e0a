"""Aggregator contract: combine the updates of a round on arrival, in place, in one vector whatever the number of sites.

Traits: "linear" (a weighted sum, works under a sum-only channel) or "nonlinear"; "needs-each-update" (holds a vector a
site until the end of the round); "needs-support" (asks which coordinates a site holds).
"""

from abc import ABC, abstractmethod

from medfl.plugins import Plugin, PluginConfig, PluginPoint
from medfl.update.base import Update
from medfl.update.vector import FloatVector


class Aggregator(Plugin[PluginConfig], ABC):
    @abstractmethod
    def start(self, size: int) -> None:
        """Begin a round of updates of `size` values."""

    @abstractmethod
    def add(self, update: Update, weight: float) -> None:
        """Take in one admitted update. The order of calls is the round's; `update` may be freed afterwards."""

    @abstractmethod
    def result(self) -> FloatVector | None:
        """The combined update [size], valid until the next `start`; None when nothing was added."""


AGGREGATORS = PluginPoint(
    "aggregator",
    "medfl.aggregators",
    {
        "weighted_mean": "medfl.federation.aggregation.weighted_mean:WeightedMean",
        "masked_mean": "medfl.federation.aggregation.masked_mean:MaskedMean",
        "median": "medfl.federation.aggregation.median:Median",
        "trimmed_mean": "medfl.federation.aggregation.trimmed_mean:TrimmedMean",
        "majority_vote": "medfl.federation.aggregation.majority_vote:MajorityVote",
    },
)
