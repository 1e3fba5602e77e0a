"""The federation as state in, state out: plan a round, review and combine what arrives, step. No network, no file,
no clock.

    federation = Federation(parts, seed, model)
    plan = federation.plan(cases)                   # who, and with which hyper-parameters
    round_ = federation.open(plan, validate)
    for reply in ...:  round_.receive(reply)        # judged and combined on arrival, in the plan's order
    outcome = federation.close(round_)              # moves model and state

Simulation and service run this same code.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medfl.errors import RunError
from medfl.federation.aggregation.base import Aggregator
from medfl.federation.aggregation.weighted_mean import WeightedMean, WeightedMeanConfig
from medfl.federation.outcome import Contribution, RoundOutcome, RoundPlan
from medfl.federation.proxy import Proposal, ProxyServer
from medfl.federation.regulator.base import ADMIT, Arrival, Bench, RegulatorRule, Score, Verdict, combine
from medfl.federation.schedule.base import Schedule
from medfl.federation.server_steps.base import ServerStep
from medfl.federation.summing import RoundSum, Summation
from medfl.hyperparameters.base import Hyperparameter, Progress
from medfl.learning.messages import SNAPSHOT, SiteFailure, TrainReply
from medfl.learning.randomness import generator
from medfl.update.base import Payload, Update
from medfl.update.codecs.base import Codec
from medfl.update.down import Changes
from medfl.update.gates.base import StandIn
from medfl.update.parts import Part, embedded, taken
from medfl.update.submodels.base import Chooser, SubModel, refuse_notice
from medfl.update.vector import FloatVector

Validate = Callable[[FloatVector], Score]


@dataclass(frozen=True)
class FederationParts:
    """Everything a study says about what happens at the coordinator. values: hyper-parameters by dotted name.
    summation: set when updates are only ever added, as integers. quorum: updates that a round needs. stand_in: what an
    upload gate puts in the place of sites that sent nothing. submodel: bound, where sites get a part of the vector;
    None: all of it. down: where changes are sent down in place of the model. proxy: where the coordinator chooses the
    sites' old models."""

    schedule: Schedule
    codec: Codec
    regulator: Sequence[RegulatorRule]
    aggregator: Aggregator
    server: ServerStep
    values: Mapping[str, Hyperparameter]
    summation: Summation | None = None
    quorum: int = 1
    stand_in: StandIn | None = None
    submodel: SubModel | None = None
    down: Changes | None = None
    proxy: ProxyServer | None = None

    @property
    def per_client(self) -> bool:
        """Whether the sites of a round may be sent different values of the model."""
        return self.submodel is not None and "per-client" in self.submodel.config.traits()

    @property
    def compares_sites(self) -> bool:
        return any("compares-sites" in rule.config.traits() for rule in self.regulator)


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
        part = self._part(reply)
        seen = payload if self.sum is None else self.sum.end.look(reply.site, payload)
        if self.sum is not None and (seen is None or self.sum.how.gradients):
            self.sum.add(reply.site, payload, reply.cases)
            return ADMIT
        codec = self._parts.codec if self.sum is None else self.sum.codec
        size = self._bench.model.size
        update = codec.decode(payload, size if part is None else part.size)
        if part is not None:
            # dense within its part: what a sparse codec left out there is zero, not somebody else's
            update = embedded(Update(update.dense(), update.size), part, size)
        mine.norm = update.norm()
        early, proposal = self._snapshot(reply), self._proposal(reply)
        arrival = Arrival(reply.site, reply.round, update, mine.norm, reply.cases, reply.loss_start)
        verdict = combine([rule.judge(arrival, self._bench) for rule in self._parts.regulator])
        if early is not None:
            verdict = combine([verdict, *self._judged_early(arrival, early)])
        if self._parts.stand_in is not None and verdict.outcome != "refuse" and verdict.factor != 1.0:
            reason = f"{verdict.reason}: what stands in for a silent site cannot count for less than all"
            verdict = Verdict("refuse", verdict.rule, reason, 0.0)
        if verdict.outcome != "refuse":
            if proposal is not None:
                self.proposals[reply.site], mine.prototypes = proposal, len(proposal)
            self._take(arrival, verdict, payload)
            if early is not None and self._early is not None:
                self._early.add(early, self._weight(arrival, verdict))
        return verdict

    def _part(self, reply: TrainReply) -> Part | None:
        """Which part the values of a reply are; RunError when it names one that it may not."""
        choice = self.outcome.plan.choice(reply.site)
        if self._chooser is None:
            refuse_notice(choice, reply.notice)
            return None
        return self._chooser.up(choice, reply.notice)

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


class Federation:
    """The coordinator's state: the global model and everything that moves from round to round."""

    def __init__(self, parts: FederationParts, seed: int, model: FloatVector) -> None:
        self.parts = parts
        self.seed = seed
        self.model = model
        self.round = 0
        self.clip = None if parts.summation is None else parts.summation.adaptive_clip()
        self.counted: dict[str, int] = {}
        self.chooser = None if parts.submodel is None else parts.submodel.chooser()

    def plan(self, cases: Mapping[str, int]) -> RoundPlan:
        """The next round. cases: training cases of every site that is there."""
        number = self.round + 1
        draw = self.parts.schedule.draw(number, cases, generator(self.seed, "schedule", number))
        values = {name: moving.value() for name, moving in self.parts.values.items()} | dict(draw.values)
        how = self.parts.summation
        if how is not None:
            values |= how.values(cases, how.clip if self.clip is None else self.clip.clip)
        return RoundPlan(
            number,
            draw.cohort,
            values,
            dict(cases),
            draw.weights,
            dict(self.counted),
            self.choose(number, draw.cohort),
        )

    def choose(self, number: int, cohort: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        if self.chooser is None:
            return {}
        return {
            site: self.chooser.choose(site, number, generator(self.seed, "sub-model", number, site)).content
            for site in cohort
        }

    def shared(self, plan: RoundPlan) -> Part | None:
        """The part that the whole cohort sends, for sub-models that give every site of a round the same part."""
        return None if self.chooser is None else self.chooser.submodel.part(plan.choice(plan.cohort[0]))

    def hear(self, plan: RoundPlan, notices: Mapping[str, bytes]) -> None:
        """Take in again what admitted sites of a round told, in a process that has not heard them."""
        if self.chooser is None:
            return
        # as the round began: what was chosen is not kept, and follows from the round
        self.choose(plan.round, plan.cohort)
        for site, notice in notices.items():
            self.chooser.up(plan.choice(site), notice)

    def sent(self, plan: RoundPlan, site: str) -> FloatVector:
        """The values of the model that a site of the round is sent; the live model itself when that is all of it."""
        return self.model if self.chooser is None else taken(self.model, self.chooser.down(plan.choice(site)))

    def open(self, plan: RoundPlan, validate: Validate | None = None, sum_: RoundSum | None = None) -> OpenRound:
        """Begin a round. sum_: where the updates go when the study only adds them."""
        how = self.parts.summation
        alone = how is not None and how.noise is not None
        return OpenRound(self.parts, plan, Bench(self.model, validate, alone), sum_, self.chooser)

    def close(self, round_: OpenRound) -> RoundOutcome:
        """Combine, and step. RunError when it is not the next round, so that no round is counted twice."""
        combined, outcome = round_.settle(), round_.outcome
        # a site that keeps its update back has answered, and is stood in for
        stand_in = self.parts.stand_in
        silent = 0 if stand_in is None else sum(mine.skipped_upload for mine in outcome.sites.values())
        outcome.void = self.short(silent + sum(mine.counts for mine in outcome.sites.values()))
        self.step(outcome, None if outcome.void else self._completed(combined, outcome))
        if self.parts.proxy is not None:
            admitted = {site: told for site, told in round_.proposals.items() if outcome.sites[site].counts}
            answered = [site for site, mine in outcome.sites.items() if not mine.failure]
            self.parts.proxy.learn(self.round, self.model, admitted, answered)
        failed = [site for site, mine in outcome.sites.items() if mine.failure]
        if stand_in is not None and stand_in.lost(failed, outcome.plan.cohort):
            self.counted.clear()
        return outcome

    def _completed(self, combined: FloatVector | None, outcome: RoundOutcome) -> FloatVector | None:
        """The round's change, with what stands in for the sites that sent nothing."""
        stand_in, plan = self.parts.stand_in, outcome.plan
        if stand_in is None:
            return combined
        senders = {site: stand_in.weight(site, mine.cases) for site, mine in outcome.sites.items() if mine.counts}
        if combined is not None:
            combined *= np.float32(sum(senders.values()))
        total = sum(stand_in.weight(site, cases) for site, cases in plan.cases.items())
        return stand_in.complete(self.model, combined, plan.round, senders, total)

    def probed(self, round_: OpenRound, before: FloatVector) -> tuple[FloatVector, tuple[str, ...]] | None:
        """The mean snapshot of a closed round [size] and the sites to ask for their loss of it; None where nothing is
        asked. before: the model that the round began with."""
        early = round_.snapshot()
        if early is None:
            return None
        plan = round_.outcome.plan
        sites = self.parts.schedule.probe(plan.round, plan.cases, generator(self.seed, "probe", plan.round))
        return before + early, sites

    def learn(self, outcome: RoundOutcome, losses: Mapping[str, float]) -> None:
        """Let the schedule take in what the probed sites said."""
        # what one site says of its steps must not decide
        steps = sorted(mine.steps for mine in outcome.sites.values() if mine.counts)
        self.parts.schedule.learn(losses, len(outcome.plan.cases), steps[(len(steps) - 1) // 2] if steps else 0)

    def short(self, updates: int) -> str:
        """Why this many updates do not make a round; "" when they do, or when there is nothing that could count."""
        if 0 < updates < self.parts.quorum:
            return f"{updates} updates were admitted, the quorum is {self.parts.quorum}"
        return ""

    def step(self, outcome: RoundOutcome, combined: FloatVector | None, unclipped: float | None = None) -> RoundOutcome:
        """Move the model by the combined update (None: it stays), and let the hyper-parameters and the regulator take
        in the round. unclipped: the noisy share of sites whose update was not clipped, for an adaptive clip. RunError
        when the combined update is not finite: no later round could mend the model."""
        if outcome.plan.round != self.round + 1:
            raise RunError.at(f"round {outcome.plan.round}", f"cannot be closed after round {self.round}")
        if combined is not None:
            if not _finite(combined):
                raise RunError.at(
                    f"round {outcome.plan.round}",
                    "the combined update is not finite, and would end the model for good",
                    "put finite into federation.regulator, which refuses the site that sends such values",
                )
            if self.chooser is not None:
                self.chooser.moved(combined)
            self.parts.server.apply(self.model, combined)
            outcome.moved = True
        admitted = {site: mine for site, mine in outcome.sites.items() if mine.counts}
        outcome.loss_start = _mean([(mine.loss_start, mine.cases) for mine in admitted.values()])
        outcome.loss = _mean([(mine.loss, mine.cases) for mine in admitted.values()])
        self.round = outcome.plan.round
        if outcome.moved:
            self.counted |= dict.fromkeys(admitted, self.round)
        if self.chooser is not None:
            self.chooser.learn(self.round, {site: mine.loss for site, mine in admitted.items()})
        for rule in self.parts.regulator:
            refused = [(site, mine.norm) for site, mine in outcome.sites.items() if mine.refused_by(rule.config.kind)]
            rule.learn([(site, mine.norm) for site, mine in admitted.items()], refused)
        for moving in self.parts.values.values():
            moving.update(Progress(self.round, outcome.loss_start))
        if self.clip is not None and unclipped is not None:
            self.clip.update(unclipped)
        return outcome

    def state(self) -> tuple[dict[str, Any], dict[str, FloatVector]]:
        """Everything needed to go on: a JSON-able part and arrays. The arrays are the live ones, not copies: the next
        round changes them."""
        plain = {
            "round": self.round,
            "values": {name: moving.state() for name, moving in self.parts.values.items()},
            "regulator": {rule.config.kind: rule.state() for rule in self.parts.regulator},
            "clip": None if self.clip is None else self.clip.clip,
            "schedule": self.parts.schedule.state(),
            "counted": dict(self.counted),
        }
        arrays = {"model": self.model}
        arrays.update({f"server.{name}": array for name, array in self.parts.server.state().items()})
        for name, part in self._moving():
            plain[name], own = part.state()
            arrays.update({f"{name}.{key}": array for key, array in own.items()})
        return plain, arrays

    def _moving(self) -> list[tuple[str, StandIn | Chooser | Changes | ProxyServer]]:
        """The parts whose state is partly arrays, by name."""
        own = self.parts
        parts = [("gate", own.stand_in), ("submodel", self.chooser), ("down", own.down), ("proxy", own.proxy)]
        return [(name, part) for name, part in parts if part is not None]

    def restore(self, plain: Mapping[str, Any], arrays: Mapping[str, FloatVector]) -> None:
        """Go on from `state()`, exactly. The arrays are copied."""
        self.round = plain["round"]
        self.model = np.array(arrays["model"])
        if self.clip is not None:
            self.clip.clip = plain["clip"]
        for name, moving in self.parts.values.items():
            moving.restore(plain["values"][name])
        for rule in self.parts.regulator:
            rule.restore(plain["regulator"][rule.config.kind])
        self.parts.schedule.restore(plain.get("schedule", {}))
        self.counted = dict(plain.get("counted", {}))
        self.parts.server.restore(_below("server.", arrays))
        for name, part in self._moving():
            part.restore(plain[name], _below(f"{name}.", arrays))


def miscounted(reply: TrainReply, cases: Mapping[str, int]) -> Verdict | None:
    """The refusal of a reply that counts other cases than the site joined with; None when it may count so many."""
    known = cases.get(reply.site, 0)
    if 1 <= reply.cases <= known:
        return None
    return Verdict("refuse", "cases", f"counts {reply.cases} training cases, it joined with {known}", 0.0)


def _below(prefix: str, arrays: Mapping[str, FloatVector]) -> dict[str, FloatVector]:
    return {name.removeprefix(prefix): np.array(array) for name, array in arrays.items() if name.startswith(prefix)}


def _finite(vector: FloatVector) -> bool:
    # one pass without a temporary; squares of finite values may still pass the range
    return math.isfinite(float(np.dot(vector, vector))) or bool(np.isfinite(vector).all())


def _mean(values: Sequence[tuple[float, int]]) -> float:
    """Weighted mean of the finite values: one site's word cannot take the loss from all the others."""
    finite = [(value, weight) for value, weight in values if math.isfinite(value)]
    total = sum(weight for _, weight in finite)
    return sum(value * weight for value, weight in finite) / total if total else math.nan
