"""Schedule contract: who takes part in a round, and what else the round asks of the sites.

    draw(round, cases) -> cohort, weights, values      before the round
    probe(round, cases) -> sites                       asked for their loss of the mean snapshot, after the round
    learn(losses, steps)                               and what they said

A schedule without state answers from the arguments alone. Trait "own-weights": sites do not weigh by their cases;
"snapshots": sites send a second vector; "reads-losses": single sites' losses decide who comes next.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medfl.plugins import Plugin, PluginConfig, PluginPoint


@dataclass(frozen=True, slots=True)
class Draw:
    """cohort: the sites of a round, in the order in which their updates are combined. weights: what an update counts;
    None: its site's cases. values: what the sites' orders say beside the hyper-parameters."""

    cohort: tuple[str, ...]
    weights: Mapping[str, float] | None = None
    values: Mapping[str, float] = field(default_factory=dict)


class Schedule(Plugin[PluginConfig], ABC):
    @abstractmethod
    def cohort(self, round_: int, cases: Mapping[str, int], rng: np.random.Generator) -> tuple[str, ...]:
        """The sites of this round, in the order in which their updates are combined.

        cases: training cases of every available site. rng: the round's own generator.
        """

    def draw(self, round_: int, cases: Mapping[str, int], rng: np.random.Generator) -> Draw:
        """The whole round. Default: the cohort, weighed by its cases."""
        return Draw(self.cohort(round_, cases, rng))

    def probe(self, round_: int, cases: Mapping[str, int], rng: np.random.Generator) -> tuple[str, ...]:
        """The sites whose loss of the mean snapshot is asked for. Default: none."""
        return ()

    def learn(self, losses: Mapping[str, float], sites: int, steps: float) -> None:
        """Take in the losses of the probed sites. sites: how many there are; steps: local steps of the round."""

    def state(self) -> dict[str, Any]:
        """Everything that lives on between rounds, JSON-able; `restore` of it continues exactly."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()`."""


SCHEDULES = PluginPoint(
    "schedule",
    "medfl.schedules",
    {
        "all": "medfl.federation.schedule.all:AllSites",
        "uniform": "medfl.federation.schedule.uniform:Uniform",
        "drfa": "medfl.federation.schedule.drfa:Drfa",
        "fedasync": "medfl.federation.asynchronous.fedasync:FedAsync",
        "buffered": "medfl.federation.asynchronous.buffered:Buffered",
    },
)
