"""Server steps of an asynchronous run over sums: sites say that they have trained, and hand their updates over when
enough of them wait."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from medfl.coordinator.async_rounds import AsyncRounds
from medfl.coordinator.rounds import Course
from medfl.errors import RunError
from medfl.federation.asynchronous.federation import Arrived, OpenStep
from medfl.federation.asynchronous.summed import SummedFederation
from medfl.federation.outcome import RoundOutcome
from medfl.federation.summing import RoundSum
from medfl.learning.messages import SiteFailure
from medfl.privacy.channels.base import HAND_OVER, MINIMUM_SITES, IntVector, Message, part_digest
from medfl.update.base import Payload


@dataclass
class SummedRounds(AsyncRounds):
    """A step whose sum was opened, and that was killed before it was committed, is gone on with: its updates are in no
    other sum."""

    @property
    def steps(self) -> SummedFederation:
        if not isinstance(self.federation, SummedFederation):
            raise RunError.at("federation", "opens updates one by one, and the study sums them")
        return self.federation

    def play(self, cases: Mapping[str, int], course: Course) -> RoundOutcome:
        kept = self._kept()
        return super().play(cases, course) if kept is None else self._finish(*kept, course)

    def _finish(self, about: Mapping[str, Any], total: Any, course: Course) -> RoundOutcome:
        self._arrived = [Arrived(**each) for each in about["arrived"]]
        self.steps.catch_up(about["asynchronous"])
        return super()._finish(about, total, course)

    def _end(self, step: OpenStep, course: Course) -> RoundOutcome:
        outcome = step.outcome()
        try:
            with course.clock.phase("step"):
                total, factor = self._opened(step, course)
        except RunError as error:
            self._void(outcome, error)
            self.steps.settle(step, opened=False)
            self._arrived = step.arrived
            return self.steps.step(outcome, None)
        self.steps.settle(step, opened=True)
        self._arrived = step.arrived
        denominator = 1 / factor
        arrived = [asdict(each) for each in step.arrived]
        kept = self._keep(outcome, total, denominator, course, arrived=arrived, asynchronous=self.steps.flying())
        return self._step(outcome, kept, denominator)

    def _opened(self, step: OpenStep, course: Course) -> tuple[IntVector, float]:
        """The sum of what the waiting sites hand over, and what it is to be multiplied by. RunError when it stays
        closed."""
        plan, orders = step.plan, self.steps.orders()
        least = max(MINIMUM_SITES, self.federation.parts.quorum)
        if len(orders) < least:
            who = ", ".join(orders) or "no site"
            what = f"{who} waits for a sum, {least} are needed, and nobody is left to wait for"
            raise RunError.at(f"step {plan.round}", what)
        weights, factor = self.steps.weights(step)
        how, attempt = self.steps.how, self.journal.plans(plan.round)
        size, told = self.federation.model.size, part_digest({"weights": weights})
        context = how.context(self.run, plan.round, attempt, tuple(orders), size, plan.values, told)
        sum_ = how.open(context, self.roster, plan.values)
        exchange = partial(self._exchange, course=course)
        there = sum_.prepare(exchange)
        asked = {site: Message({"round": plan.round, "order": orders[site], "weights": weights}) for site in there}
        answers = exchange(HAND_OVER, asked)
        for site in orders:
            reason = self._added(sum_, site, answers.get(site), step)
            if reason:
                mine = self.steps.missing(step, SiteFailure(site, orders[site], reason))
                self.observer.answered(site, mine)
        if short := self.federation.short(len(sum_.weights)):
            raise RunError.at(f"step {plan.round}", short)
        return sum_.total(exchange, None), factor

    def _added(self, sum_: RoundSum, site: str, answer: Message | None, step: OpenStep) -> str:
        """Take what a site hands over into the sum; why that cannot be, or ""."""
        if answer is None:
            return "did not hand over the update that it kept for the sum"
        try:
            payload = Payload.of(answer.header.get("payload", {}), [memoryview(each) for each in answer.buffers])
            sum_.add(site, payload, step.sites[site].cases)
        except RunError as error:
            return str(error)
        return ""
