"""Asynchronous updates that the coordinator sees the sum of, and nothing else.

A site that has trained says so and keeps its update. When enough sites wait, they are the cohort of one sum: keys are
agreed on, each site weighs its update, seals it and sends it, and the sum is opened. Additive encryption without rounds
is Y. Aono et al. (IEEE TIFS 2018, arXiv 1706.00394), in which all sites share one key for good and the coordinator's
model stays encrypted; here each sum has keys of its own, no update is ever in two sums, and masks work as well
(buffered secure aggregation: J. Nguyen et al., AISTATS 2022, arXiv 2106.06639).

A weight follows from how old an update is, so it is known only when the sum is made: the site applies it. All weights
of a sum are told to every site in it and are part of what they agree on, and none is below LEAST of the largest: a
coordinator could else make the others vanish from a sum, and see one.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from medfl.errors import RunError
from medfl.federation.asynchronous.federation import HELD, AsynchronousFederation, Flight, OpenStep, PlannedSteps
from medfl.federation.open_round import miscounted
from medfl.federation.outcome import Contribution
from medfl.federation.parts import FederationParts, Validate
from medfl.federation.regulator.base import ADMIT, Verdict
from medfl.learning.messages import SiteFailure, TrainReply
from medfl.privacy.codec import LEAST
from medfl.update.vector import FloatVector


class SummedFederation(AsynchronousFederation):
    """An AsynchronousFederation whose updates stay at the sites until their sum is made.

    step = federation.begin(cases)
    ...                                             # as ever, until step.full or nobody is left to wait for
    weights, factor = federation.weights(step)
    federation.missing(step, failure)               # for a site that does not hand over what it kept
    federation.settle(step, opened)
    federation.step(step.outcome(), change)         # change: factor times the opened sum
    """

    def __init__(self, parts: FederationParts, seed: int, model: FloatVector, steps: PlannedSteps) -> None:
        super().__init__(parts, seed, model, steps)
        if parts.summation is None:
            raise RunError.at("federation", "is to open sums, and the study has none", "set update.clip")
        self.how = parts.summation
        self._waiting: dict[str, int] = {}
        self._shares: dict[str, float] = {}
        self._tallies: dict[str, Any] | None = None

    def _values(self) -> dict[str, float]:
        """With the grid, which is the same for the whole run: an update may be summed many steps after its order."""
        return super()._values() | self.how.later(self.schedule.size)

    def idle(self, cases: Mapping[str, int], present: Collection[str] | None = None) -> list[str]:
        """Without the sites that keep an update for the next sum: they would have two in it."""
        free = {site: count for site, count in cases.items() if site not in self._waiting}
        return super().idle(free, present)

    def _reviewed(
        self, step: OpenStep, flight: Flight, reply: TrainReply, validate: Validate | None
    ) -> tuple[Contribution, float]:
        mine = Contribution.of(reply)
        mine.verdict = miscounted(reply, step.plan.cases)
        if reply.payload is not None:
            mine.verdict = Verdict("refuse", "shape", "came before its sum was made", 0.0)
        if mine.verdict is not None:
            return mine, 0.0
        mine.verdict = ADMIT
        self._waiting[reply.site] = flight.number
        step.admitted += 1
        # what it counts is known when the sum is made
        return mine, 0.0

    def orders(self) -> dict[str, int]:
        """The sites that keep an update for the sum, in combining order, each with the number of its order."""
        return dict(sorted(self._waiting.items()))

    def weights(self, step: OpenStep) -> tuple[dict[str, float], float]:
        """What the sites of the sum multiply their updates by, in [LEAST, 1], and what the sum is then to be multiplied
        by. A share that is too small for a sum is raised."""
        self._tallies = self._influence.state()
        shares = self._counted(step)
        most = max(shares.values())
        weights = {site: max(share / most, LEAST) for site, share in sorted(shares.items())}
        self._shares = {site: weight * most for site, weight in weights.items()}
        return weights, most

    def _counted(self, step: OpenStep) -> dict[str, float]:
        """The shares of the sites that keep an update for the sum; they have moved the model then."""
        shares = {}
        for each in step.arrived:
            if self._waiting.get(each.site) == each.number:
                weight = self.schedule.config.staleness.of(each.staleness)
                factor = self._influence.factor(each.site, step.sites[each.site].cases, weight)
                shares[each.site] = self.schedule.share(each.staleness) * factor
        return shares

    def missing(self, step: OpenStep, failure: SiteFailure) -> Contribution:
        """Note that a site did not hand over the update that it kept: it is in no sum."""
        mine = step.sites[failure.site] = Contribution(failure=failure.reason)
        self._record(step, {failure.site: self._waiting.pop(failure.site)}, outcome="failed")
        return mine

    def _record(self, step: OpenStep, orders: Mapping[str, int], **changed: Any) -> None:
        for place, each in enumerate(step.arrived):
            if orders.get(each.site) == each.number:
                step.arrived[place] = replace(each, **changed)

    def settle(self, step: OpenStep, opened: bool) -> None:
        """The sum was opened, or will not be: no site waits for it any more. Recorded is what counted."""
        if self._tallies is not None:
            # as if the sites that are not in the sum had never been asked for it
            self._influence.restore(self._tallies)
        if opened:
            self._counted(step)
            for site, number in self._waiting.items():
                self._record(step, {site: number}, share=self._shares[site])
        else:
            self._record(step, self._waiting, outcome="void")
        self._tallies = None
        self._waiting.clear()

    def flying(self) -> dict[str, Any]:
        """What `catch_up` needs, between the opening of a step's sum and its commit."""
        plain, _ = self.state()
        ours: dict[str, Any] = plain["asynchronous"]
        return ours

    def catch_up(self, ours: Mapping[str, Any]) -> None:
        """From the last commit to a step's opened sum: what was sent since began from the model of that commit."""
        held = {version: vector for version, (_, vector) in self._held.items()}
        self._go_on(
            ours, {f"{HELD}{slot}": held.get(int(version), self.model) for version, slot in ours["held"].items()}
        )
        self._new = {f"{HELD}{slot}" for version, (slot, _) in self._held.items() if version not in held}
