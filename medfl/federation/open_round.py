"""A round that updates arrive in: each is judged on arrival, and combined or kept for the whole cohort."""

import math
from collections.abc import Mapping
from dataclasses import replace

from medfl.errors import RunError
from medfl.federation.aggregation.weighted_mean import WeightedMean, WeightedMeanConfig
from medfl.federation.outcome import Contribution, RoundOutcome, RoundPlan
from medfl.federation.parts import FederationParts
from medfl.federation.proxy import Proposal
from medfl.federation.regulator.base import ADMIT, Arrival, Bench, Verdict, combine
from medfl.federation.summing import RoundSum
from medfl.learning.messages import SNAPSHOT, SiteFailure, TrainReply
from medfl.update.base import Payload, Update
from medfl.update.parts import Part, embedded
from medfl.update.submodels.base import Chooser, refuse_notice
from medfl.update.vector import FloatVector


class OpenRound:
    """A round that updates arrive in. Made by `Federation.open`."""

    def __init__(
        self,
        parts: FederationParts,
        plan: RoundPlan,
        bench: Bench,
        sum_: RoundSum | None,
        chooser: Chooser | None = None,
    ) -> None:
        self.outcome = RoundOutcome(plan)
        self.notices: dict[str, bytes] = {}
        """What admitted sites told of their part of the vector."""
        self._chooser = chooser
        self.sum = sum_
        self._parts = parts
        self._bench = bench
        self.proposals: dict[str, Proposal] = {}
        self._held: list[tuple[Arrival, Verdict]] = []
        self._early = WeightedMean(WeightedMeanConfig()) if SNAPSHOT in plan.values else None
        if self._early is not None:
            self._early.start(bench.model.size)
        parts.aggregator.start(bench.model.size)

    def receive(self, reply: TrainReply) -> Contribution:
        """Judge an update and combine it. RunError when the site is not in the round or answered already."""
        self._expect(reply.site, reply.round)
        mine = self.outcome.sites[reply.site] = Contribution.of(reply)
        if reply.payload is None:
            mine.skipped_upload = True
            return mine
        mine.verdict = miscounted(reply, self.outcome.plan.cases)
        if mine.verdict is not None:
            return mine
        try:
            mine.verdict = self._judge_and_take(reply, reply.payload, mine)
        except RunError as error:
            mine.verdict = Verdict("refuse", "shape", error.faults[0].what, 0.0)
        if mine.counts and reply.notice:
            self.notices[reply.site] = reply.notice
        return mine

    def _judge_and_take(self, reply: TrainReply, payload: Payload, mine: Contribution) -> Verdict:
        seen = payload if self.sum is None else self.sum.end.look(reply.site, payload)
        if self.sum is not None and (seen is None or self.sum.how.gradients):
            self._hear(reply)
            self.sum.add(reply.site, payload, reply.cases)
            return ADMIT
        part = self._part(reply)
        codec = self._parts.codec if self.sum is None else self.sum.codec
        size = self._bench.model.size
        update = codec.decode(payload, size if part is None else part.size)
        if part is not None:
            # dense within its part: what a sparse codec left out there is zero, not somebody else's
            update = embedded(Update(update.dense(), update.size), part, size)
        mine.norm = update.rough_norm()
        early, proposal = self._snapshot(reply), self._proposal(reply)
        # it left the site, whatever becomes of the update
        mine.prototypes = 0 if proposal is None else len(proposal)
        arrival = Arrival(reply.site, reply.round, update, mine.norm, reply.cases, reply.loss_start)
        verdict = combine([rule.judge(arrival, self._bench) for rule in self._parts.regulator])
        if early is not None:
            verdict = combine([verdict, *self._judged_early(arrival, early)])
        if self._parts.stand_in is not None and verdict.outcome != "refuse" and verdict.factor != 1.0:
            reason = f"{verdict.reason}: what stands in for a silent site cannot count for less than all"
            verdict = Verdict("refuse", verdict.rule, reason, 0.0)
        if verdict.outcome != "refuse":
            if proposal is not None:
                self.proposals[reply.site] = proposal
            self._take(arrival, verdict, payload)
            if early is not None and self._early is not None:
                self._early.add(early, self._weight(arrival, verdict))
        return verdict

    def _hear(self, reply: TrainReply) -> None:
        """Take in what a reply tells of its part; RunError when it may not."""
        choice = self.outcome.plan.choice(reply.site)
        if self._chooser is None:
            refuse_notice(choice, reply.notice)
        else:
            self._chooser.hear(choice, reply.notice)

    def _part(self, reply: TrainReply) -> Part | None:
        """Which part the values of a reply are; RunError when it names one that it may not."""
        if self._chooser is None:
            self._hear(reply)
            return None
        return self._chooser.up(self.outcome.plan.choice(reply.site), reply.notice)

    def _judged_early(self, arrival: Arrival, early: Update) -> list[Verdict]:
        """What the rules say of a snapshot, which is an update of fewer steps."""
        seen = replace(arrival, update=early, norm=early.norm())
        rules = [rule for rule in self._parts.regulator if "needs-public-data" not in rule.config.traits()]
        return [rule.judge(seen, self._bench) for rule in rules]

    def _snapshot(self, reply: TrainReply) -> Update | None:
        if self._early is None:
            return None
        if reply.snapshot is None:
            raise RunError.at(f"site {reply.site}", "sent no snapshot, which the round asks for")
        early = self._parts.codec.decode(reply.snapshot, self._bench.model.size)
        if not math.isfinite(early.norm()):
            raise RunError.at(f"site {reply.site}", "sent a snapshot that is not finite")
        return early

    def _proposal(self, reply: TrainReply) -> Proposal | None:
        if self._parts.proxy is not None:
            return self._parts.proxy.checked(reply.site, reply.prototypes)
        if reply.prototypes is not None:
            raise RunError.at(f"site {reply.site}", "sent prototypes, which the study does not ask for")
        return None

    def _weight(self, arrival: Arrival, verdict: Verdict) -> float:
        weights, stand_in = self.outcome.plan.weights, self._parts.stand_in
        if stand_in is not None:
            return stand_in.weight(arrival.site, arrival.cases)
        return (arrival.cases if weights is None else weights.get(arrival.site, 0.0)) * verdict.factor

    def snapshot(self) -> FloatVector | None:
        """The mean of the admitted snapshots, as a change of the model [size]; None when there are none."""
        return None if self._early is None else self._early.result()

    def fail(self, failure: SiteFailure) -> None:
        """Note that a site did not deliver."""
        self._expect(failure.site, failure.round)
        self.outcome.sites[failure.site] = Contribution(failure=failure.reason, late=failure.late)

    def _expect(self, site: str, round_: int) -> None:
        plan = self.outcome.plan
        if site not in plan.cohort or round_ != plan.round:
            raise RunError.at(f"site {site}, round {round_}", f"is not awaited in round {plan.round}")
        if site in self.outcome.sites:
            raise RunError.at(f"site {site}, round {round_}", "has answered already")

    def _take(self, arrival: Arrival, verdict: Verdict, payload: Payload) -> None:
        if self.sum is not None:
            self.sum.add(arrival.site, payload, arrival.cases, verdict.factor)
        elif self._parts.compares_sites:
            self._held.append((arrival, verdict))
        else:
            self._parts.aggregator.add(arrival.update, self._weight(arrival, verdict))

    def settle(self) -> FloatVector | None:
        """Judge what had to wait for the whole cohort, and combine it in order; the mean of the admitted updates."""
        arrivals = [arrival for arrival, _ in self._held]
        cohort = [rule.judge_cohort(arrivals, self._bench) for rule in self._parts.regulator]
        for arrival, verdict in self._held:
            later = [verdicts[arrival.site] for verdicts in cohort if arrival.site in verdicts]
            final = combine([verdict, *later])
            self.outcome.sites[arrival.site].verdict = final
            if final.outcome != "refuse":
                self._parts.aggregator.add(arrival.update, self._weight(arrival, final))
        self._held = []
        return self._parts.aggregator.result()


def miscounted(reply: TrainReply, cases: Mapping[str, int]) -> Verdict | None:
    """The refusal of a reply that counts other cases than the site joined with; None when it may count so many."""
    known = cases.get(reply.site, 0)
    if 1 <= reply.cases <= known:
        return None
    return Verdict("refuse", "cases", f"counts {reply.cases} training cases, it joined with {known}", 0.0)
