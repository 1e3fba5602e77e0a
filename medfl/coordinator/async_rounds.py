"""One server step of an asynchronous run: idle sites are asked at once, answers are taken in as they come, the model
moves, the step is committed.

A step is committed with the orders that are then in flight. A coordinator that was killed sends exactly these again,
under the same names: what a site had answered it answers again, and nothing counts twice.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from medfl.coordinator.journal import Counted
from medfl.coordinator.rounds import Course, Rounds
from medfl.errors import RunError
from medfl.federation.asynchronous.federation import HELD, Arrived, AsynchronousFederation, Flight, OpenStep
from medfl.federation.outcome import RoundOutcome
from medfl.learning.messages import SiteFailure
from medfl.transport.base import Delivery
from medfl.update.base import Payload

_LOOK = 1.0
"""Seconds between two looks at who is there, while nothing arrives."""


@dataclass
class AsyncRounds(Rounds):
    """Rounds of which each is a server step."""

    _sent: set[str] = field(default_factory=set)
    _coded: dict[int, Payload] = field(default_factory=dict)
    _arrived: list[Arrived] = field(default_factory=list)

    @property
    def steps(self) -> AsynchronousFederation:
        if not isinstance(self.federation, AsynchronousFederation):
            raise RunError.at("federation", "knows no versions, and the study is asynchronous")
        return self.federation

    def play(self, cases: Mapping[str, int], course: Course) -> RoundOutcome:
        """The next server step; the federation has then moved."""
        step = self.steps.begin(cases)
        self.journal.note(step.plan.round, "plan", {"hyperparameters": dict(step.plan.values)})
        self.observer.round_started(step.plan)
        while not step.full:
            with course.clock.phase("down"):
                self._ask(step)
            if not self.steps.flights:
                if self.transport.present() != frozenset():
                    break  # all that are there have trained on this version
                self.transport.gather(1)
                continue
            with course.clock.phase("local"):
                delivery = self.transport.arrival(_LOOK)
            if delivery is not None:
                with course.clock.phase("review"):
                    self._take_in(step, delivery, course)
        return self._end(step, course)

    def _end(self, step: OpenStep, course: Course) -> RoundOutcome:
        with course.clock.phase("step"):
            self._arrived = step.arrived
            return self.steps.finish(step)

    def _ask(self, step: OpenStep) -> None:
        """Send what is in flight and was not sent by this process, and the model to every site that is idle."""
        for flight in self.steps.flights.values():
            if flight.site not in self._sent:
                self._send(flight)
        for site in self.steps.idle(step.plan.cases, self.transport.present()):
            flight = self.steps.dispatch(site, step.plan.cases)
            detail = {"order": flight.number, "version": flight.version, "hyperparameters": dict(flight.values)}
            self.journal.note(step.plan.round, "order", detail, site)
            self._send(flight)

    def _send(self, flight: Flight) -> None:
        flights = self.steps.flights.values()
        self._coded = {
            version: coded for version, coded in self._coded.items() if any(each.version == version for each in flights)
        }
        if flight.version not in self._coded:
            self._coded[flight.version] = self.code(self.steps.base(flight), flight.version + 1)
        self._sent.add(flight.site)
        model = self._coded[flight.version]
        self.transport.submit(flight.order(), model, flight.due, self.observer.local_progress)

    def _take_in(self, step: OpenStep, delivery: Delivery, course: Course) -> None:
        answer = delivery.answer
        self._sent.discard(answer.site)
        if isinstance(answer, SiteFailure):
            mine = self.steps.fail(step, answer)
        else:
            mine = self.steps.receive(step, answer, self.validate)
            spent = course.site_seconds.setdefault(answer.site, {})
            for phase, seconds in answer.seconds.items():
                spent[phase] = spent.get(phase, 0.0) + seconds
        course.count(answer.site, delivery.up_bytes, delivery.down_bytes)
        course.changed.update({f"{answer.site}/{name}": array for name, array in delivery.state.items()})
        self.observer.answered(answer.site, mine)

    def record(self, outcome: RoundOutcome, metrics: Mapping[str, Any] | None, course: Course) -> dict[str, Any]:
        """A round's record with the model's new `version`, the `arrivals` in their order, by site the `staleness` of
        its last update, and the sites `in_flight`."""
        return {
            **super().record(outcome, metrics, course),
            "version": outcome.plan.round,
            "arrivals": [asdict(arrived) for arrived in self._arrived],
            "staleness": {arrived.site: arrived.staleness for arrived in self._arrived},
            "in_flight": sorted(self.steps.flights),
        }

    def commit(self, record: dict[str, Any], course: Course) -> dict[str, Any]:
        """All of the step or nothing, with the orders in flight; of the models that these started from only those that
        the journal does not have."""
        with course.clock.phase("commit"):
            plain, arrays = self.steps.state()
            known = {name for name in arrays if name.startswith(HELD)} - self.steps.fresh()
            kept = {name: array for name, array in arrays.items() if name not in known}
            failed = {site: {"outcome": "failed", "reason": reason} for site, reason in record["failed"].items()}
            verdicts = {**record["verdicts"], **failed}
            self.journal.commit(record, plain, {**kept, **course.changed}, verdicts, self._counted())
        record["seconds"]["commit"] = round(course.clock.seconds["commit"], 6)
        return record

    def _counted(self) -> Iterator[Counted]:
        """The updates of this step, each of which counts once."""
        return (Counted(each.site, f"order-{each.number}", each.digest) for each in self._arrived if each.digest)


def asynchrony(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{"asynchronous": {"arrivals", "outcomes": {outcome: n}, "sites": {site: {"arrivals", "used", "staleness_mean",
    "staleness_max", "share"}}}} of a run; {} of a synchronous one. share: the part of all that updates were multiplied
    by."""
    arrived = [Arrived(**each) for record in records for each in record.get("arrivals", ())]
    if not any("arrivals" in record for record in records):
        return {}
    total, sites = sum(each.share for each in arrived), dict[str, Any]()
    for site in sorted({each.site for each in arrived}):
        own = [each for each in arrived if each.site == site]
        sites[site] = {
            "arrivals": len(own),
            "used": sum(each.share > 0 for each in own),
            "staleness_mean": round(fmean(each.staleness for each in own), 4),
            "staleness_max": max(each.staleness for each in own),
            "share": round(sum(each.share for each in own) / total, 4) if total else 0.0,
        }
    outcomes: dict[str, int] = {}
    for each in arrived:
        outcomes[each.outcome] = outcomes.get(each.outcome, 0) + 1
    return {"asynchronous": {"arrivals": len(arrived), "outcomes": outcomes, "sites": sites}}
