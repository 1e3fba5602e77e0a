"""The DataPlan contract: which cases a site holds, and what it trains on in a round.

A plan may change what a site *holds* (redundancy: a site also holds cases of its neighbours) and what it *uses* in
a round (a stream of classes, exemplars of old ones). It never touches pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medfl.data.base import Case, SampleSet
from medfl.plugins import C, Plugin, PluginPoint

Indices = npt.NDArray[np.int64]


class DataPlan(Plugin[C], ABC):
    """See the module docstring. Every answer depends on the arguments and the configuration alone, so that a resumed
    run sees the same data."""

    def hold(self, site: str, cases: Sequence[Case], sites: Sequence[str]) -> tuple[Case, ...]:
        """The training cases that `site` loads, chosen from those of all sites. Default: its own.

        A case of another site is returned with `site` replaced; only simulation and consented overlap can do so.
        sites: all training sites, in the order that defines their neighbours.
        """
        return tuple(case for case in cases if case.site == site and case.split == "train")

    @abstractmethod
    def indices(self, site: str, round: int, n_samples: int) -> Indices:
        """Samples (0 .. n_samples - 1) that the site trains on in round `round` (from 1); an index may repeat. Their
        order means nothing: the loop shuffles."""

    def unique(self, site: str, round: int, samples: SampleSet) -> int:
        """Cases that count as the site's weight in this round: unique ones, without augmented variants and without
        copies that another site counts already, so that the sum over sites is the number of cases. Default: all."""
        return samples.cases


PLANS = PluginPoint(
    "data plan",
    "medfl.plans",
    {"shards": "medfl.data.plans.shards:Shards", "ring": "medfl.data.plans.ring:Ring"},
)
