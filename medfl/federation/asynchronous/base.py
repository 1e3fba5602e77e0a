"""Asynchronous federations: no rounds that wait for anybody.

Every idle site is given the current model at once. When its update arrives, the model may have moved on by some
versions: the update's staleness. A server step, which is what `stop.rounds` and `rounds.jsonl` count, follows after
`size` admitted updates. A site never trains twice on the same version, so it is asked at most once a step; a step in
which nobody is left to wait for is made of the updates that are there.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from medfl.federation.asynchronous.staleness import Polynomial, StalenessWeight
from medfl.federation.schedule.base import Schedule
from medfl.plugins import PluginConfig

Speed = Annotated[float, Field(gt=0)]


class AsynchronousConfig(PluginConfig):
    staleness: StalenessWeight = Field(
        default=Polynomial(), description="weight of an old update: constant, polynomial {a}, or hinge {a, b}"
    )
    max_staleness: int | None = Field(None, ge=0, description="older updates are dropped and counted; null keeps all")
    max_in_flight: int | None = Field(
        None, ge=1, description="sites that train at the same time, each with a vector at the coordinator; null: all"
    )
    correction: Literal["none", "staleness", "influence"] = Field(
        "influence",
        description="what is made up for between sites: that old updates weigh less (staleness), and also that fast "
        "sites send more (influence: each site's pull follows its cases); none, as published, favours fast sites",
    )
    speeds: Mapping[str, Speed] = Field(
        default_factory=dict, description="in a simulation, how long a local step takes at a site; 1 where not named"
    )

    def traits(self) -> frozenset[str]:
        return frozenset({"event-driven"})


class Asynchronous(Schedule, ABC):
    """mixes: whether an update pulls the model towards where its site ended, base and all, or only adds its change.
    size: admitted updates that make a server step."""

    config: AsynchronousConfig
    mixes: bool = False
    size: int = 1

    @abstractmethod
    def share(self, staleness: int) -> float:
        """What an update of this staleness is multiplied by, before any correction."""

    def cohort(self, round_: int, cases: Mapping[str, int], rng: np.random.Generator) -> tuple[str, ...]:
        """Every site may be asked."""
        return tuple(sorted(cases))
