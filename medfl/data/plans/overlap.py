"""RI-SGD's redundancy by consent (Haddadpour et al., "Trading Redundancy for Communication", ICML 2019): each site also
trains on images that its data steward names beside its own, so that local steps drift apart less and fewer rounds are
needed.

    in round t site j trains on   its shard  and  round(mu n_j) of S_j, drawn anew in each round (all of S_j if fewer)

with mu = `redundancy`, n_j its own samples and S_j what its file names under `shared`. In the paper S_j is a part of
the other sites' shards (the plan `ring`, which only a simulation can do). Among hospitals it is a public data set, a
synthetic one (`medfl data synth`), or cases that another hospital has handed over.

What is gained hangs on S_j: it must look like what all sites have, and be large against what is drawn of it. The shared
images weigh mu / (1 + mu) of what a site learns from, and if all sites have the same few, the model learns those by
heart. Test t05 (one class a site, 200 cases each), synchronisations to the target for mu = 0, 1/8, 1/4, 1/2, 1: with a
public set of 1,600 28, 21, 18, 16, 14; of 200 28, 22, 20, 20, 34.

    # the site's file
    shared: [{manifest: ../public/datalist.json, consent: "DUA 2026-11, ethics vote 12/26"}]

They are added to the training images alone. What a manifest holds for validation or test is left out; a patient or an
image that the site keeps for its own validation or test is refused, and so is a copy of one, byte for byte
(`medfl.data.copies`). A site's weight stays its own cases: shared ones
are counted apart, and told with their consent. A site without the entry is refused; other studies never open these
files. Costs the storage of S_j, and local epochs of 1 + mu times the cases; no bytes a round.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from medfl.data.base import Array, Case, SampleSet
from medfl.data.plans.base import DataPlan, Indices, own_and_lent
from medfl.plugins import PluginConfig


class OverlapConfig(PluginConfig):
    kind: Literal["overlap"] = "overlap"
    redundancy: float = Field(
        0.5, ge=0, le=10, description="mu: shared samples that a site trains on in a round, as a share of its own"
    )

    def traits(self) -> frozenset[str]:
        return frozenset({"shares-data", "reads-shared"})


class Overlap(DataPlan[OverlapConfig]):
    Config = OverlapConfig

    def __init__(self, config: OverlapConfig) -> None:
        super().__init__(config)
        self._seed = 0

    def bind(self, classes: Sequence[str], seed: int) -> None:
        self._seed = seed

    def hold(
        self, site: str, cases: Sequence[Case], sites: Sequence[str], shared: Sequence[Case] = ()
    ) -> tuple[Case, ...]:
        return (*super().hold(site, cases, sites), *shared)

    def indices(self, site: str, round: int, labels: Indices, state: Mapping[str, Array]) -> Indices:
        return np.arange(len(labels), dtype=np.int64)

    def drawn(self, site: str, round: int, own: Indices, lent: Indices) -> Indices:
        wanted = min(len(lent), int(self.config.redundancy * len(own) + 0.5))
        rng = np.random.default_rng([zlib.crc32(b"overlap"), zlib.crc32(site.encode()), round, self._seed])
        return np.sort(np.concatenate([own, rng.choice(lent, wanted, replace=False)]))

    def unique(self, site: str, round: int, samples: SampleSet, indices: Indices) -> int:
        return own_and_lent(samples, indices)[0]
