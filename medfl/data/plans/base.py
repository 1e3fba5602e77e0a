"""The DataPlan contract: which cases a site holds, and what it trains on in a round.

A plan may change what a site *holds* (redundancy: a site also holds cases of its neighbours) and what it *uses* in
a round (a stream of classes, exemplars of old ones). It never touches pixels.

Traits: "shares-data" (sites train on each other's images, or on the same ones); "lends-images" (by copies that only a
simulation can make); "reads-shared" (it is handed what the site's file names under `shared`); "streams-classes".
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from medfl.data.base import Array, Case, SampleSet, origin_of
from medfl.plugins import C, Plugin, PluginPoint

Indices = npt.NDArray[np.int64]


class DataPlan(Plugin[C], ABC):
    """See the module docstring. Every answer depends on the arguments and the configuration alone, so that a resumed
    run sees the same data."""

    def hold(
        self, site: str, cases: Sequence[Case], sites: Sequence[str], shared: Sequence[Case] = ()
    ) -> tuple[Case, ...]:
        """The training cases that `site` loads, chosen from those of all sites. Default: its own.

        A case of somebody else is returned as `medfl.data.base.lent` makes it. sites: all training sites, in the order
        that defines their neighbours. shared: lent cases that the site's steward lets it train on beside its own; empty
        unless the plan has the trait "reads-shared".
        """
        return tuple(case for case in cases if case.site == site and case.split == "train")

    def bind(self, classes: Sequence[str], seed: int) -> None:
        """Told once, ahead of `indices`, of the task's classes, in the order of the label numbers, and of the study's
        seed, which what a plan draws must hang on; StudyError when the plan names other classes."""

    @abstractmethod
    def indices(self, site: str, round: int, labels: Indices, state: Mapping[str, Array]) -> Indices:
        """Samples that the site trains on in round `round` (from 1); an index may repeat. Their order means nothing:
        the loop shuffles. labels: of all its samples (`SampleSet.labels`). state: its private arrays, only to read."""

    def drawn(self, site: str, round: int, own: Indices, lent: Indices) -> Indices:
        """Of the samples that `indices` gave, those that the site trains on. own, lent: which of them are the site's
        and which others'; only asked where some are lent. Default: all."""
        return np.sort(np.concatenate([own, lent]))

    def stage(self, site: str, round: int, labels: Indices) -> int:
        """Which part of a stream of data the site is at: another number than in its last round announces that its data
        changed. Default: always 0."""
        return 0

    def unique(self, site: str, round: int, samples: SampleSet, indices: Indices) -> int:
        """Cases that count as the site's weight in this round, in which it trains on the samples `indices`: unique
        ones, without augmented variants and without copies that another site counts already, so that the sum over sites
        is the number of cases trained on. Default: all."""
        return samples.cases


def own_and_lent(samples: SampleSet, indices: Indices) -> tuple[int, int]:
    """How many cases of its own, and how many of others, a site trains on with the samples `indices`."""
    origins = [origin_of(key) for key in {samples.info(int(index)).key for index in indices}]
    return origins.count(""), len(origins) - origins.count("")


PLANS = PluginPoint(
    "data plan",
    "medfl.plans",
    {
        "shards": "medfl.data.plans.shards:Shards",
        "ring": "medfl.data.plans.ring:Ring",
        "overlap": "medfl.data.plans.overlap:Overlap",
        "class_stream": "medfl.data.plans.class_stream:ClassStream",
    },
)
