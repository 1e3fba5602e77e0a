"""The union of the sites' supports (SAFER, Beguier & Tramel, "SAFER: Sparse Secure Aggregation for Federated
Learning", 2020, arXiv 2007.14861, section 3): every site says which coordinates it would send, and all send their
values at the union of these, so that sparse updates may be summed unseen.

    site i asks for   P_i = the k largest of |e_i + u_i|        k = share d, in the reply of round t
    all send at       U_{t+1} = the union of the P_i            at most min(n k, limit d) places, in round t + 1

with u_i the site's change in round t and e_i what its memory keeps back after the upload of round t: what it would send
next if it made the same change once more. Asking a round ahead costs no exchange of its own; the paper asks within the
round. Only sites whose update was admitted are asked. Where the union passes `limit`, the places that most sites ask
for come first, and of equals a drawn part. In the first round, and after one without an admitted update, k places are
drawn. What is not sent waits in the memory: use `update.memory: error_feedback`.

WHAT THIS TELLS. The places that a site asks for leave it in the clear, also where masks or encryption hide the values:
the coordinator learns of each site, by name, where its update is large, which tells something of its images. It needs
them for a round and then forgets them; nothing but its word says so. The sites are told the union alone, not who asked
for what. A site of three or more cannot tell from it which of the others asked for a place, only that one of them did;
with two sites, or when all but one put theirs together, what is left is the other's. Under differential privacy this is
refused: no noise covers the choice. `last_aggregate` and a shared `seeded_mask` tell nothing of a site.

Costs: up the union's values and about one byte for each place asked for; down the whole model and about one byte for
each place of the union. State: the union at the coordinator.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from medfl.errors import RunError, StudyError
from medfl.plugins import PluginConfig
from medfl.update.codecs.indices import most_bytes, pack_indices, unpack_indices
from medfl.update.codecs.selection import largest
from medfl.update.memories.base import SiteState
from medfl.update.parts import Coordinates
from medfl.update.submodels.base import Choice, Chooser, Measure, Start, SubModel
from medfl.update.submodels.places import MOST_BYTES, drawing, named, places_of
from medfl.update.vector import FloatVector

Indices = npt.NDArray[np.int64]


class UnionConfig(PluginConfig):
    kind: Literal["union"] = "union"
    share: float = Field(0.01, gt=0, le=1, description="share of the coordinates that each site asks for")
    limit: float = Field(0.1, gt=0, le=1, description="largest share of the coordinates that is sent in a round")

    @model_validator(mode="after")
    def _room_for_one(self) -> Self:
        if self.limit < self.share:
            raise ValueError("limit must be at least share, or not even one site has what it asks for")
        return self

    def traits(self) -> frozenset[str]:
        return frozenset({"per-round", "trains-all", "tells-places"})


class Union(SubModel):
    Config = UnionConfig
    config: UnionConfig
    whole_down = True

    @property
    def count(self) -> int:
        """k, the places that a site asks for."""
        return max(1, round(self.config.share * self.setup.layout.size))

    @property
    def most(self) -> int:
        """The places of the largest union."""
        return max(self.count, round(self.config.limit * self.setup.layout.size))

    def part(self, choice: Choice) -> Coordinates:
        """RunError when the content does not name as many places as it says, or more than the study allows."""
        count = choice.content.get("count")
        if type(count) is not int or not 1 <= count <= self.most:
            raise RunError.at(
                f"site {choice.site}, round {choice.round}",
                f"was told to send other than 1 to {self.most} coordinates, which the study allows",
            )
        return places_of(choice, count, self.setup.layout.size)

    def begin(self, choice: Choice, received: FloatVector, state: SiteState, measure: Measure) -> Start:
        return Start(received, None, self.part(choice))

    def notice(self, choice: Choice, start: Start, ahead: Callable[[], FloatVector]) -> bytes:
        return pack_indices(largest(ahead(), self.count))

    def chooser(self) -> "UnionChooser":
        return UnionChooser(self)


class UnionChooser(Chooser):
    """Keeps what the sites of a round ask for until its end, and only the union after that."""

    submodel: Union

    def __init__(self, submodel: Union) -> None:
        super().__init__(submodel)
        self._union = np.zeros(0, np.int64)
        self._proposals: dict[str, bytes] = {}
        self._told: tuple[int, dict[str, Any]] = (0, {})

    def choose(self, site: str, round_: int, rng: np.random.Generator) -> Choice:
        if self._told[0] != round_:
            self._require_room()
            places = self._union if self._union.size else self._drawn(round_)
            self._told = round_, {**named(places)[0], "count": int(places.size)}
        return Choice(site, round_, self._told[1])

    def hear(self, choice: Choice, notice: bytes) -> None:
        size = self.submodel.setup.layout.size
        try:
            unpack_indices(notice, self.submodel.count, size)
        except RunError as error:
            raise RunError.at(
                f"site {choice.site}, round {choice.round}",
                f"does not ask for {self.submodel.count} of {size} coordinates: {error.faults[0].what}",
                "the site must run the same version of medfl",
            ) from error
        self._proposals[choice.site] = notice

    def learn(self, round_: int, losses: Mapping[str, float]) -> None:
        """Unite what the admitted sites asked for, and forget who asked."""
        count, size = self.submodel.count, self.submodel.setup.layout.size
        asked = [unpack_indices(self._proposals[site], count, size) for site in losses if site in self._proposals]
        self._proposals = {}
        self._union = self._united(asked, round_) if asked else np.zeros(0, np.int64)

    def state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        return {}, {"union": self._union}

    def restore(self, plain: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        self._union, self._told, self._proposals = np.array(arrays["union"]), (0, {}), {}

    def _united(self, asked: list[Indices], round_: int) -> Indices:
        places, votes = np.unique(np.concatenate(asked), return_counts=True)
        if places.size <= self.submodel.most:
            return places
        lot = drawing("union", self.submodel.setup.seed, round_).random(places.size)
        return np.sort(places[np.lexsort((lot, -votes))[: self.submodel.most]])

    def _drawn(self, round_: int) -> Indices:
        rng = drawing("union", self.submodel.setup.seed, round_)
        return np.sort(rng.choice(self.submodel.setup.layout.size, self.submodel.count, replace=False, shuffle=False))

    def _require_room(self) -> None:
        """StudyError when a union could be too long for an order, whatever the sites ask for."""
        worst = most_bytes(self.submodel.most, self.submodel.setup.layout.size)
        if worst > MOST_BYTES:
            raise StudyError.at(
                "update.submodel.limit",
                f"lets a round name {self.submodel.most} places, which may take {worst} bytes of an order",
                f"lower it: an order has room for {MOST_BYTES} bytes of places",
            )
