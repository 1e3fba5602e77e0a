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
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medfl.errors import RunError
from medfl.federation.open_round import OpenRound
from medfl.federation.outcome import RoundOutcome, RoundPlan
from medfl.federation.parts import FederationParts, Validate
from medfl.federation.proxy import ProxyServer
from medfl.federation.regulator.base import Bench
from medfl.federation.summing import RoundSum
from medfl.hyperparameters.base import Progress
from medfl.learning.randomness import generator
from medfl.update.down import Changes
from medfl.update.gates.base import StandIn
from medfl.update.parts import Part, taken
from medfl.update.submodels.base import Chooser
from medfl.update.vector import FloatVector


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
            self.chooser.hear(plan.choice(site), notice)

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
            # what a site told in an update that did not count it tells again
            heard = round_.proposals.items() if outcome.moved else ()
            admitted = {site: told for site, told in heard if outcome.sites[site].counts}
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
