"""The asynchronous federation as state in, state out. No network, no file, no clock but the simulation's own.

    federation = AsynchronousFederation(parts, seed, model, steps)
    step = federation.begin(cases)
    for site in federation.idle(cases):  flight = federation.dispatch(site, cases)     # sent to the site
    arrived = federation.receive(step, reply)       # in the order of arrival, until step.full
    outcome = federation.finish(step)               # moves model and state

Memory: the model, one vector for each version that a site in flight started from, and one sum.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from typing import Any

import numpy as np

from medfl.errors import RunError
from medfl.federation.aggregation.base import Aggregator
from medfl.federation.asynchronous.base import Asynchronous
from medfl.federation.asynchronous.influence import Influence
from medfl.federation.open_round import OpenRound
from medfl.federation.outcome import Contribution, RoundOutcome, RoundPlan
from medfl.federation.parts import FederationParts, Validate
from medfl.federation.regulator.base import Bench, Verdict
from medfl.federation.round import Federation
from medfl.learning.messages import SiteFailure, TrainOrder, TrainReply
from medfl.update.base import Payload, Update
from medfl.update.vector import FloatVector

PlannedSteps = Callable[[int, Mapping[str, float]], int]
"""(training cases, hyper-parameters) -> local steps of an order, for the simulation's clock."""

HELD = "held."
"""Begins the names of the models that orders in flight started from."""


@dataclass(frozen=True, slots=True)
class Flight:
    """An order on its way. number: the site's own count of orders, from 1. version: of the model that it starts from.
    due: when it arrives in a simulation."""

    site: str
    number: int
    version: int
    values: Mapping[str, float]
    due: float

    def order(self) -> TrainOrder:
        """What the site is told. It knows only its own count: that is its round."""
        return TrainOrder(self.site, self.number, self.values)


@dataclass(frozen=True, slots=True)
class Arrived:
    """An answer that came. share: what its change was multiplied by (0: not used). outcome: a verdict's, or "failed"
    or "no upload". digest: SHA-256 of the update as it was sent, as hex."""

    site: str
    number: int
    version: int
    staleness: int
    share: float
    outcome: str
    rule: str = ""
    digest: str = ""


@dataclass
class OpenStep:
    """A server step that updates arrive for."""

    plan: RoundPlan
    size: int
    sites: dict[str, Contribution] = field(default_factory=dict)
    arrived: list[Arrived] = field(default_factory=list)
    admitted: int = 0
    change: FloatVector | None = None

    @property
    def full(self) -> bool:
        return self.admitted >= self.size

    def outcome(self) -> RoundOutcome:
        """With the sites that have answered."""
        return RoundOutcome(replace(self.plan, cohort=tuple(self.sites)), self.sites)


@dataclass(slots=True)
class _Known:
    """A site's orders so far, and the version of the last."""

    orders: int = 0
    version: int = -1


class _Taken(Aggregator):
    """In place of an aggregator: keeps the one admitted update."""

    def __init__(self) -> None:
        self.update: Update | None = None

    def start(self, size: int) -> None:
        self.update = None

    def add(self, update: Update, weight: float) -> None:
        self.update = update

    def result(self) -> FloatVector | None:
        return None if self.update is None else self.update.dense()


class AsynchronousFederation(Federation):
    """A Federation whose `round` is the model's version. steps: for the simulation's clock."""

    def __init__(self, parts: FederationParts, seed: int, model: FloatVector, steps: PlannedSteps) -> None:
        super().__init__(parts, seed, model)
        if not isinstance(parts.schedule, Asynchronous):
            raise RunError.at("federation.schedule", f"{parts.schedule.config.kind} knows no versions")
        self.schedule: Asynchronous = parts.schedule
        self.flights: dict[str, Flight] = {}
        self._steps = steps
        self._known: dict[str, _Known] = {}
        self._held: dict[int, tuple[int, FloatVector]] = {}
        self._new: set[str] = set()
        self._influence = Influence(self.schedule.config.correction)
        self._now = 0.0

    def begin(self, cases: Mapping[str, int]) -> OpenStep:
        """The next server step. cases: training cases of every site that ever joined."""
        return OpenStep(RoundPlan(self.round + 1, tuple(self.flights), self._values(), dict(cases)), self.schedule.size)

    def _values(self) -> dict[str, float]:
        return {name: moving.value() for name, moving in self.parts.values.items()}

    def idle(self, cases: Mapping[str, int], present: Collection[str] | None = None) -> list[str]:
        """The sites to be asked now: those that have waited for the most orders first. present: None for all."""
        there = [site for site in sorted(cases) if present is None or site in present]
        waiting = [site for site in there if site not in self.flights and self._before(site).version < self.round]
        room = len(waiting) if self.schedule.config.max_in_flight is None else self.schedule.config.max_in_flight
        room -= 0 if self.schedule.config.max_in_flight is None else len(self.flights)
        return sorted(waiting, key=lambda site: (self._before(site).orders, site))[: max(0, room)]

    def _before(self, site: str) -> _Known:
        return self._known.get(site, _Known())

    def dispatch(self, site: str, cases: Mapping[str, int]) -> Flight:
        """Give a site the current version. RunError when it has an order already, or trained on this version."""
        known = self._known.setdefault(site, _Known())
        if site in self.flights or known.version >= self.round:
            raise RunError.at(f"site {site}", f"was asked twice at version {self.round}")
        known.orders, known.version = known.orders + 1, self.round
        if self.round not in self._held:
            taken = {slot for slot, _ in self._held.values()}
            slot = min(set(range(len(taken) + 1)) - taken)
            self._held[self.round] = slot, self.model.copy()
            self._new.add(f"{HELD}{slot}")
        values = self._values()
        took = self.schedule.config.speeds.get(site, 1.0) * self._steps(cases[site], values)
        flight = self.flights[site] = Flight(site, known.orders, self.round, values, self._now + took)
        return flight

    def base(self, flight: Flight) -> FloatVector:
        """The model [size] that an order starts from; it does not change while the order is in flight."""
        return self._held[flight.version][1]

    def receive(self, step: OpenStep, reply: TrainReply, validate: Validate | None = None) -> Contribution:
        """Judge an update, and take it in when it is admitted. RunError when it was not asked for."""
        flight = self._landing(reply.site, reply.round)
        staleness = self.round - flight.version
        limit = self.schedule.config.max_staleness
        share = 0.0
        if limit is not None and staleness > limit:
            mine = Contribution.of(reply)
            reason = f"is {staleness} versions old, the limit is {limit}"
            mine.verdict = Verdict("refuse", "staleness", reason, 0.0)
        else:
            mine, share = self._reviewed(step, flight, reply, validate)
        outcome = "no upload" if mine.verdict is None else mine.verdict.outcome
        rule = "" if mine.verdict is None else mine.verdict.rule
        digest = "" if reply.payload is None else _digest(reply.payload)
        arrived = Arrived(reply.site, flight.number, flight.version, staleness, share, outcome, rule, digest)
        return self._landed(step, flight, mine, arrived)

    def _reviewed(
        self, step: OpenStep, flight: Flight, reply: TrainReply, validate: Validate | None
    ) -> tuple[Contribution, float]:
        """What became of an update, and its share (0: not used). It is judged by the same code as one in a round of its
        own, against the model that it started from."""
        taken = _Taken()
        plan = RoundPlan(flight.number, (flight.site,), flight.values, step.plan.cases)
        round_ = OpenRound(replace(self.parts, aggregator=taken), plan, Bench(self.base(flight), validate), None)
        mine = round_.receive(reply)
        if taken.update is None or mine.verdict is None:
            return mine, 0.0
        # a verdict is not made up for: it is there to be felt
        share = self._share(flight, mine.cases) * mine.verdict.factor
        self._take(step, flight, taken.update, share)
        return mine, share

    def _share(self, flight: Flight, cases: int) -> float:
        """What the change of an admitted update is multiplied by."""
        staleness, schedule = self.round - flight.version, self.schedule
        weight = schedule.config.staleness.of(staleness)
        return schedule.share(staleness) * self._influence.factor(flight.site, cases, weight)

    def _take(self, step: OpenStep, flight: Flight, update: Update, share: float) -> None:
        """Add an update to the step, times its share."""
        term = np.array(update.dense())
        if self.schedule.mixes and self.round != flight.version:
            term += self.base(flight)
            term -= self.model
        if share != 1.0:
            term *= np.float32(share)
        if step.change is None:
            step.change = term
        else:
            step.change += term
        step.admitted += 1

    def fail(self, step: OpenStep, failure: SiteFailure) -> Contribution:
        """Note that a site did not deliver. RunError when it was not asked."""
        flight = self._landing(failure.site, failure.round)
        staleness = self.round - flight.version
        mine = Contribution(failure=failure.reason, late=failure.late)
        arrived = Arrived(failure.site, flight.number, flight.version, staleness, 0.0, "failed")
        return self._landed(step, flight, mine, arrived)

    def _landing(self, site: str, number: int) -> Flight:
        flight = self.flights.get(site)
        if flight is None or flight.number != number:
            raise RunError.at(f"site {site}, order {number}", "is not awaited")
        return flight

    def _landed(self, step: OpenStep, flight: Flight, mine: Contribution, arrived: Arrived) -> Contribution:
        del self.flights[flight.site]
        if all(other.version != flight.version for other in self.flights.values()):
            del self._held[flight.version]
        self._now = max(self._now, flight.due)
        # of a site that answers twice in a step, the later answer last
        step.sites.pop(flight.site, None)
        step.sites[flight.site] = mine
        step.arrived.append(arrived)
        return mine

    def finish(self, step: OpenStep) -> RoundOutcome:
        """Move the model. A step without an admitted update leaves it as it is, and is a version too."""
        outcome = step.outcome()
        outcome.void = self.short(step.admitted)
        if step.change is None:
            outcome.void = "no update was admitted, and no site is left to wait for"
        return self.step(outcome, None if outcome.void else step.change)

    def fresh(self) -> frozenset[str]:
        """Names of the arrays of `state()` that no earlier call has named: what a store does not have yet."""
        names = {f"{HELD}{slot}" for slot, _ in self._held.values()} & self._new
        self._new.clear()
        return frozenset(names)

    def state(self) -> tuple[dict[str, Any], dict[str, FloatVector]]:
        plain, arrays = super().state()
        plain["asynchronous"] = {
            "now": self._now,
            "known": {site: asdict(known) for site, known in self._known.items()},
            "flights": [asdict(flight) for flight in self.flights.values()],
            "held": {str(version): slot for version, (slot, _) in self._held.items()},
            "influence": self._influence.state(),
        }
        return plain, arrays | {f"{HELD}{slot}": vector for slot, vector in self._held.values()}

    def restore(self, plain: Mapping[str, Any], arrays: Mapping[str, FloatVector]) -> None:
        super().restore(plain, arrays)
        self._go_on(plain["asynchronous"], arrays)

    def _go_on(self, ours: Mapping[str, Any], arrays: Mapping[str, FloatVector]) -> None:
        self._now = ours["now"]
        self._known = {site: _Known(**known) for site, known in ours["known"].items()}
        self.flights = {flight["site"]: Flight(**flight) for flight in ours["flights"]}
        self._held = {int(version): (slot, np.array(arrays[f"{HELD}{slot}"])) for version, slot in ours["held"].items()}
        self._new.clear()
        self._influence.restore(ours["influence"])


def _digest(payload: Payload) -> str:
    digest = sha256()
    for buffer in payload.buffers:
        digest.update(buffer)
    return digest.hexdigest()
