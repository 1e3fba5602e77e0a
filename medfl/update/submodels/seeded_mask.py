"""Seeded random mask (Konecny et al., "Federated Learning: Strategies for Improving Communication Efficiency", 2016,
arXiv 1610.05492, section 2: structured updates).

A random share of the coordinates is sent in each round. Which ones follows from the study's seed, the round and, unless
`shared`, the site, at both ends: no positions travel.

    each coordinate is in with probability `share`;    update = change at these coordinates, nothing elsewhere

With `trains` the others keep the global model's value while the site trains (a structured update); without it all of
them train, and the change of the others is lost unless a memory keeps it. With `shared` all sites of a round have the
same coordinates, so that updates may be summed unseen (SAFER's seeded support); else use the aggregator `masked_mean`.

Costs: about `share` of the bytes up, the whole model down. No state. The seed is public to coordinator and sites: the
mask hides nothing.
"""

import zlib
from typing import Literal

import numpy as np
from pydantic import Field

from medfl.plugins import PluginConfig
from medfl.update.memories.base import SiteState
from medfl.update.parts import Coordinates
from medfl.update.submodels.base import Choice, Measure, Start, SubModel
from medfl.update.vector import FloatVector

# values a block: the bits of a block stay in the cache
_BLOCK = 1 << 16


class SeededMaskConfig(PluginConfig):
    kind: Literal["seeded_mask"] = "seeded_mask"
    share: float = Field(0.1, gt=0, le=1, description="share of the coordinates that is sent")
    shared: bool = Field(False, description="the same coordinates at all sites of a round")
    trains: bool = Field(True, description="whether only these coordinates train, or all of them")

    def traits(self) -> frozenset[str]:
        return frozenset({"per-round" if self.shared else "per-client"} | (set() if self.trains else {"trains-all"}))


class SeededMask(SubModel):
    Config = SeededMaskConfig
    config: SeededMaskConfig
    whole_down = True

    def part(self, choice: Choice) -> Coordinates:
        words = [self.setup.seed, zlib.crc32(b"seeded_mask"), choice.round]
        if not self.config.shared:
            words.append(zlib.crc32(choice.site.encode()))
        # NumPy keeps the stream of a bit generator from version to version, not that of a Generator's methods
        bits, size, found = np.random.PCG64(np.random.SeedSequence(words)), self.setup.layout.size, []
        below = np.uint64(min(int(self.config.share * 2**64), 2**64 - 1))
        for start in range(0, size, _BLOCK):
            drawn = bits.random_raw(min(_BLOCK, size - start))
            found.append(np.flatnonzero(drawn <= below) + start)
        return Coordinates(np.concatenate(found) if found else np.zeros(0, np.int64))

    def begin(self, choice: Choice, received: FloatVector, state: SiteState, measure: Measure) -> Start:
        sent = self.part(choice)
        return Start(received, sent if self.config.trains else None, sent)
