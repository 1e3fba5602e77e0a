"""Observer contract: who watches a run. Progress displays and metric sinks are observers; none can change the run."""

from collections.abc import Mapping, Sequence
from typing import Any

from medfl.federation.outcome import Contribution, RoundPlan
from medfl.learning.messages import SiteInfo


class Observer:
    """Every hook does nothing unless an observer overrides it. Records and summaries are those of the run's files."""

    def opened(self, sites: Sequence[SiteInfo], rounds: int, done: int) -> None:
        """The sites are ready; `done` of `rounds` rounds are behind (more than 0 on resume)."""

    def presence(self, site: str, state: str, detail: str = "") -> None:
        """A site's connection changed. state: "away", "connected", "held" (its steward is to decide), "rejected",
        "paused", "loading", "ready", "training", "lost", "pruned"; "ready" and "training" in every round. A site may
        send others. Called from any thread."""

    def round_started(self, plan: RoundPlan) -> None: ...

    def local_progress(self, site: str, done: int, steps: int) -> None: ...

    def answered(self, site: str, contribution: Contribution) -> None: ...

    def evaluating(self, split: str, site: str) -> None: ...

    def round_finished(self, record: Mapping[str, Any]) -> None: ...

    def ended(self, summary: Mapping[str, Any]) -> None: ...

    def close(self) -> None:
        """The run is over, whatever way."""


class Observers(Observer):
    """Several observers as one."""

    def __init__(self, members: Sequence[Observer]) -> None:
        self._members = tuple(members)

    def opened(self, sites: Sequence[SiteInfo], rounds: int, done: int) -> None:
        for member in self._members:
            member.opened(sites, rounds, done)

    def presence(self, site: str, state: str, detail: str = "") -> None:
        for member in self._members:
            member.presence(site, state, detail)

    def round_started(self, plan: RoundPlan) -> None:
        for member in self._members:
            member.round_started(plan)

    def local_progress(self, site: str, done: int, steps: int) -> None:
        for member in self._members:
            member.local_progress(site, done, steps)

    def answered(self, site: str, contribution: Contribution) -> None:
        for member in self._members:
            member.answered(site, contribution)

    def evaluating(self, split: str, site: str) -> None:
        for member in self._members:
            member.evaluating(split, site)

    def round_finished(self, record: Mapping[str, Any]) -> None:
        for member in self._members:
            member.round_finished(record)

    def ended(self, summary: Mapping[str, Any]) -> None:
        for member in self._members:
            member.ended(summary)

    def close(self) -> None:
        for member in self._members:
            member.close()
