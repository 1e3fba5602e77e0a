"""RI-SGD (Haddadpour et al., "Trading Redundancy for Communication", ICML 2019): each site also trains on a part of the
others' cases, so that local steps drift apart less and fewer rounds are needed.

    site j of p holds shard j, all of the next floor(mu p) shards on the ring, and of one more the share that is left

with mu = `redundancy`. A site's weight stays its own cases: a copy counts once, at home. Costs storage and local epochs
of 1 + mu p times the cases; no bytes a round. The published code grows the batch by the same factor, which is left to
`local.batch_size`.

Here redundancy means that hospitals hold copies of each other's images. medfl moves no image, so this is for `medfl
simulate` alone; hospitals that may train on common images (public, synthetic, or handed over with consent) use the plan
`overlap`.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from medfl.data.base import Array, Case, SampleSet, lent
from medfl.data.plans.base import DataPlan, Indices, own_and_lent
from medfl.plugins import PluginConfig


class RingConfig(PluginConfig):
    kind: Literal["ring"] = "ring"
    redundancy: float = Field(
        0.25, ge=0, le=1, description="mu: shards of others that a site holds, as a share of all p; p - 1 at most"
    )

    def traits(self) -> frozenset[str]:
        return frozenset({"shares-data", "lends-images"})


class Ring(DataPlan[RingConfig]):
    Config = RingConfig

    def hold(
        self, site: str, cases: Sequence[Case], sites: Sequence[str], shared: Sequence[Case] = ()
    ) -> tuple[Case, ...]:
        place, held = list(sites).index(site), list(super().hold(site, cases, sites))
        wanted = min(self.config.redundancy * len(sites), len(sites) - 1)
        for step in range(1, math.ceil(wanted) + 1):
            neighbour = sites[(place + step) % len(sites)]
            shard = sorted(super().hold(neighbour, cases, sites), key=_rank)
            part = shard[: round(min(1.0, wanted - step + 1) * len(shard))]
            held += [lent(case, site, neighbour) for case in part]
        return tuple(held)

    def indices(self, site: str, round: int, labels: Indices, state: Mapping[str, Array]) -> Indices:
        return np.arange(len(labels), dtype=np.int64)

    def unique(self, site: str, round: int, samples: SampleSet, indices: Indices) -> int:
        return own_and_lent(samples, indices)[0]


def _rank(case: Case) -> bytes:
    """A random order that is the same everywhere, so that a part of a shard looks like the whole."""
    return hashlib.sha256(case.key.encode()).digest()
