"""The support of the last aggregate (SAFER, Beguier & Tramel, "SAFER: Sparse Secure Aggregation for Federated
Learning", 2020, arXiv 2007.14861): all sites send the coordinates that moved most in the round before, and some drawn
anew.

    places_t = the (1 - explore) k largest of |x_t - x_{t-1}|  and  explore k others, drawn at random        k = share d

The places are the same at all sites of a round and follow from what everybody knows, so that sparse updates may be
summed unseen: they say nothing of any site. Drawn places bring what other coordinates have gathered, or none but the
first would ever be sent: use `update.memory: error_feedback`. In the first round all places are drawn.

Costs: `share` of the bytes up; the whole model and about one byte a place down. State: the places at the coordinator.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from medfl.errors import StudyError
from medfl.plugins import PluginConfig
from medfl.update.codecs.selection import largest
from medfl.update.memories.base import SiteState
from medfl.update.parts import Coordinates
from medfl.update.submodels.base import Choice, Chooser, Measure, Start, SubModel
from medfl.update.submodels.places import MOST_BYTES, drawing, named, places_of
from medfl.update.vector import FloatVector


class LastAggregateConfig(PluginConfig):
    kind: Literal["last_aggregate"] = "last_aggregate"
    share: float = Field(0.01, gt=0, le=1, description="share of the coordinates that is sent")
    explore: float = Field(0.25, gt=0, le=1, description="share of these that is drawn at random")

    def traits(self) -> frozenset[str]:
        return frozenset({"per-round", "trains-all"})


class LastAggregate(SubModel):
    Config = LastAggregateConfig
    config: LastAggregateConfig
    whole_down = True

    @property
    def count(self) -> int:
        return max(1, round(self.config.share * self.setup.layout.size))

    def part(self, choice: Choice) -> Coordinates:
        """RunError when the content does not name as many places as the study says."""
        return places_of(choice, self.count, self.setup.layout.size)

    def begin(self, choice: Choice, received: FloatVector, state: SiteState, measure: Measure) -> Start:
        return Start(received, None, self.part(choice))

    def chooser(self) -> "LastAggregateChooser":
        return LastAggregateChooser(self)


class LastAggregateChooser(Chooser):
    submodel: LastAggregate

    def __init__(self, submodel: LastAggregate) -> None:
        super().__init__(submodel)
        self._moved = np.zeros(0, np.int64)
        self._told: tuple[int, dict[str, Any]] = (0, {})

    def choose(self, site: str, round_: int, rng: np.random.Generator) -> Choice:
        if self._told[0] != round_:
            content, length = named(self._places(round_))
            if length > MOST_BYTES:
                raise StudyError.at(
                    "update.submodel.share",
                    f"names {self.submodel.count} places, which take {length} bytes of an order",
                    "lower it, or use seeded_mask, which names none",
                )
            self._told = round_, content
        return Choice(site, round_, self._told[1])

    def _places(self, round_: int) -> npt.NDArray[np.int64]:
        """The same for all sites of a round, whoever is asked first."""
        setup, count = self.submodel.setup, self.submodel.count
        rng = drawing("last_aggregate", setup.seed, round_)
        # as many again as are needed, for some are chosen already; without a permutation of the whole vector
        drawn = np.setdiff1d(rng.choice(setup.layout.size, count, replace=False, shuffle=False), self._moved)
        more = rng.choice(drawn, count - self._moved.size, replace=False)
        return np.sort(np.concatenate([self._moved, more]))

    def moved(self, change: FloatVector) -> None:
        known = self.submodel.count - max(1, round(self.submodel.config.explore * self.submodel.count))
        self._moved = largest(change, known)

    def state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        return {}, {"moved": self._moved}

    def restore(self, plain: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        self._moved, self._told = np.array(arrays["moved"]), (0, {})
