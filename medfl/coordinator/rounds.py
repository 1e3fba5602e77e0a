"""One round at the coordinator: orders out, updates in, the sum opened, the model moved, the round committed."""

import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medfl.coordinator import records
from medfl.coordinator.desk import NoiseDesk
from medfl.coordinator.journal import Arrays, Counted, Journal
from medfl.coordinator.observer import Observer
from medfl.errors import RunError
from medfl.federation.open_round import OpenRound
from medfl.federation.outcome import RoundOutcome, RoundPlan
from medfl.federation.parts import Validate
from medfl.federation.round import Federation
from medfl.federation.summing import RoundSum
from medfl.learning.messages import SINCE, SNAPSHOT, SiteFailure, TrainReply
from medfl.learning.randomness import generator
from medfl.privacy.channels.base import Message, Roster, hides, part_digest
from medfl.transport.base import Delivery, Models, Transport, model_for
from medfl.update.base import Payload, Update
from medfl.update.beside import joined
from medfl.update.parts import embedded
from medfl.update.vector import FloatVector, vector_digest
from medfl.update.wire import parts, size


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def no_traffic() -> dict[str, Any]:
    return {"up_bytes": 0, "down_bytes": 0, "sites": {}}


@dataclass
class Course:
    """What a round leaves besides the model. changed: the sites' private arrays, as "site/name". counted: the
    messages whose updates were admitted."""

    clock: Clock = field(default_factory=Clock)
    traffic: dict[str, Any] = field(default_factory=no_traffic)
    site_seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    changed: Arrays = field(default_factory=dict)
    counted: list[Counted] = field(default_factory=list)

    def count(self, site: str, up: int, down: int) -> None:
        self.traffic["up_bytes"] += up
        self.traffic["down_bytes"] += down
        own = self.traffic["sites"].setdefault(site, {"up": 0, "down": 0})
        own["up"] += up
        own["down"] += down


@dataclass
class Rounds:
    """What stays the same from round to round."""

    run: str
    federation: Federation
    transport: Transport
    journal: Journal
    observer: Observer
    roster: Roster
    desk: NoiseDesk | None
    validate: Validate | None
    code: Callable[[FloatVector, int], Payload]
    decode: Callable[[Payload, int], Update]
    losses: Callable[[FloatVector, Sequence[str], dict[str, Any]], dict[str, float]]

    def play(self, cases: Mapping[str, int], course: Course) -> RoundOutcome:
        """The next round, or the rest of one whose sum was opened already; the federation has then moved."""
        kept = self._kept()
        if kept is not None:
            return self._finish(*kept, course)
        with course.clock.phase("plan"):
            plan = self.federation.plan(cases)
            detail = {"cohort": list(plan.cohort), "hyperparameters": dict(plan.values)}
            self.journal.note(plan.round, "plan", detail)
        self.observer.round_started(plan)
        with course.clock.phase("down"):
            sent = self._down(plan)
            model = self._with_old_models(plan, sent)
            sum_ = self._sum(plan, sent)
        round_ = self.federation.open(plan, self.validate, sum_)
        if sum_ is not None and not self._prepared(sum_, round_, course):
            return self.federation.step(round_.outcome, None)
        self._receive(round_, model, course)
        # the step moves the model in place
        before = self.federation.model.copy() if SNAPSHOT in plan.values else None
        with course.clock.phase("step"):
            outcome = self._close(round_) if sum_ is None else self._open(sum_, round_, course)
        if before is not None and not outcome.void:
            with course.clock.phase("probe"):
                self._probe(round_, before, course)
        return outcome

    def _down(self, plan: RoundPlan) -> Models:
        """What the sites of a round are sent."""
        federation = self.federation
        if federation.parts.down is not None:
            rng = generator(federation.seed, "codec-down", plan.round)
            federation.parts.down.advance(federation.model, plan.round, rng)
            return {site: federation.parts.down.payload(site) for site in plan.cohort}
        if not federation.parts.per_client:
            return self.code(federation.sent(plan, plan.cohort[0]), plan.round)
        models: dict[str, Payload] = {}
        whole: Payload | None = None
        for site in plan.cohort:
            values = federation.sent(plan, site)
            if values is federation.model:
                models[site] = whole = whole or self.code(values, plan.round)
            else:
                models[site] = self.code(values, plan.round)
        return models

    def _with_old_models(self, plan: RoundPlan, models: Models) -> Models:
        """The same, with the proxy server's old models beside those of the sites that wait for them."""
        proxy = self.federation.parts.proxy
        if proxy is None or not any(proxy.old_models(site) for site in plan.cohort):
            return models
        coded = {name: self.code(model, plan.round) for name, model in proxy.models.items()}
        about = {SINCE: proxy.since}
        found = {site: model_for(models, site) for site in plan.cohort}
        return {site: joined(mine, coded, about) if proxy.old_models(site) else mine for site, mine in found.items()}

    def _probe(self, round_: OpenRound, before: FloatVector, course: Course) -> None:
        """Ask sites for their loss of the round's mean snapshot, where the schedule wants to know."""
        asked = self.federation.probed(round_, before)
        if asked is not None:
            self.federation.learn(round_.outcome, self.losses(*asked, course.traffic))

    def refusal(self) -> str:
        """Why the next round may not be made; "" when it may, or was paid for already."""
        return "" if self.desk is None or self._kept() else self.desk.refusal(self.federation.round + 1)

    def _kept(self) -> tuple[dict[str, Any], Any] | None:
        """The next round's sum, if it was opened already."""
        if self.federation.parts.summation is None:
            return None
        kept = self.journal.release()
        ours = kept is not None and kept[0]["outcome"]["plan"]["round"] == self.federation.round + 1
        return kept if ours else None

    def _sum(self, plan: RoundPlan, models: Models) -> RoundSum | None:
        how = self.federation.parts.summation
        if how is None:
            return None
        attempt = self.journal.plans(plan.round)
        shared = self.federation.shared(plan)
        parameters = self.federation.model.size if shared is None else shared.size
        model = vector_digest(self._trained_from(plan, models)) if hides(how.channel.config) else ""
        told = part_digest(plan.parts.get(plan.cohort[0], {}), plan.values, model)
        context = how.context(self.run, plan.round, attempt, plan.cohort, parameters, plan.values, told)
        return how.open(context, self.roster, plan.values)

    def _trained_from(self, plan: RoundPlan, models: Models) -> FloatVector:
        """The vector [size] that every site of a sum makes of what it is sent."""
        federation, site = self.federation, plan.cohort[0]
        if federation.parts.down is not None and federation.parts.down.known is not None:
            return federation.parts.down.known
        part = None if federation.chooser is None else federation.chooser.down(plan.choice(site))
        whole = federation.model.size
        values = self.decode(model_for(models, site), whole if part is None else part.size)
        return embedded(values, part, whole).dense()

    def _prepared(self, sum_: RoundSum, round_: OpenRound, course: Course) -> bool:
        """Let the sites agree on keys; whether enough of them did. Those that did not have failed."""
        with course.clock.phase("keys"):
            try:
                there = sum_.prepare(lambda stage, messages: self._exchange(stage, messages, course))
            except RunError as error:
                self._void(round_.outcome, error)
                there = ()
        for site in round_.outcome.plan.cohort:
            if site not in there:
                round_.fail(SiteFailure(site, round_.outcome.plan.round, "took no part in the agreement on keys"))
                self.observer.answered(site, round_.outcome.sites[site])
        return bool(there)

    def _exchange(self, stage: str, messages: Mapping[str, Message], course: Course) -> dict[str, Message]:
        answers = self.transport.exchange(stage, messages)
        for site, message in messages.items():
            answer = answers.get(site)
            up = 0 if answer is None else size(parts(dict(answer.header), answer.buffers))
            course.count(site, up, size(parts(dict(message.header), message.buffers)))
        return answers

    def _receive(self, round_: OpenRound, model: Models, course: Course) -> None:
        head = "" if self.desk is None else self.desk.ledger.head
        orders = [order for order in round_.outcome.plan.orders(head) if order.site not in round_.outcome.sites]
        with closing(self.transport.train(orders, model, self.observer.local_progress)) as deliveries:
            while True:
                with course.clock.phase("local"):
                    delivery = next(deliveries, None)
                if delivery is None:
                    return
                with course.clock.phase("review"):
                    self._take(round_, delivery, course)
                site = delivery.answer.site
                self.observer.answered(site, round_.outcome.sites[site])

    def _take(self, round_: OpenRound, delivery: Delivery, course: Course) -> None:
        answer = delivery.answer
        if isinstance(answer, TrainReply) and self.desk is not None:
            answer = self.desk.witnessed(answer)
        if isinstance(answer, SiteFailure):
            round_.fail(answer)
        else:
            mine = round_.receive(answer)
            if delivery.message and mine.counts:
                course.counted.append(Counted(answer.site, delivery.message, delivery.digest))
            course.site_seconds[answer.site] = dict(answer.seconds)
        if self.federation.parts.down is not None:
            self.federation.parts.down.heard(answer.site, isinstance(delivery.answer, TrainReply))
        course.count(answer.site, delivery.up_bytes, delivery.down_bytes)
        course.changed.update({f"{answer.site}/{name}": array for name, array in delivery.state.items()})

    def _close(self, round_: OpenRound) -> RoundOutcome:
        if self.desk is not None:
            self.desk.release(round_.outcome.plan.round, len(self.desk.plan.sites))
        return self.federation.close(round_)

    def _open(self, sum_: RoundSum, round_: OpenRound, course: Course) -> RoundOutcome:
        """Charge, draw the noise, open the sum, persist it, and only then go on."""
        outcome, alive, noise = round_.outcome, len(sum_.weights), None
        # a site that was refused has answered: whether a round is released must not hang on that
        answered = sum(not mine.failure for mine in outcome.sites.values())
        try:
            sum_.check(answered)
            if short := self.federation.short(answered):
                raise RunError.at(f"round {outcome.plan.round}", short)
            if self.desk is not None:
                noise = self.desk.release(outcome.plan.round, alive, sum_.codec.grid, sum_.context.size)
            total = sum_.total(lambda stage, messages: self._exchange(stage, messages, course), noise)
        except RunError as error:
            self._void(outcome, error)
            return self.federation.step(outcome, None)
        entry = "" if self.desk is None else self.desk.entry
        notices = {site: b64encode(notice).decode() for site, notice in round_.notices.items()}
        total = self._keep(outcome, total, sum_.denominator, course, entry=entry, notices=notices)
        if self.desk is not None:
            self.desk.done(total)
        return self._step(outcome, total, sum_.denominator)

    def _keep(self, outcome: RoundOutcome, total: Any, denominator: float, course: Course, **more: Any) -> Any:
        """Persist an opened sum with what `_finish` needs to go on with it; the sum as it is kept [size], int32."""
        kept = total.astype(np.int32)
        about = {
            "outcome": outcome.to_json(),
            "denominator": denominator,
            "traffic": course.traffic,
            "site_seconds": course.site_seconds,
            **more,
        }
        self.journal.keep_release(about, kept, course.changed, course.counted)
        return kept

    def _finish(self, about: Mapping[str, Any], total: Any, course: Course) -> RoundOutcome:
        """Go on with an opened sum that a killed process left: it is neither opened nor charged again."""
        course.traffic = dict(about["traffic"])
        course.site_seconds = dict(about["site_seconds"])
        outcome = RoundOutcome.from_json(about["outcome"])
        notices = about.get("notices", {})
        self.federation.hear(outcome.plan, {site: b64decode(notice) for site, notice in notices.items()})
        if self.desk is not None:
            self.desk.done_before(about["entry"], total)
        self.observer.round_started(outcome.plan)
        return self._step(outcome, total, about["denominator"])

    def _step(self, outcome: RoundOutcome, total: Any, denominator: float) -> RoundOutcome:
        how = self.federation.parts.summation
        if how is None:
            raise RunError.at(f"round {outcome.plan.round}", "has an opened sum in a study that opens none")
        values = outcome.plan.values
        combined = how.combined(total, denominator, values)
        shared = self.federation.shared(outcome.plan)
        if combined is not None and shared is not None:
            combined = embedded(Update(combined, combined.size), shared, self.federation.model.size).dense()
        return self.federation.step(outcome, combined, how.unclipped(total, values))

    def _void(self, outcome: RoundOutcome, error: RunError) -> None:
        outcome.void = str(error)
        self.journal.note(outcome.plan.round, "void", {"reason": outcome.void})

    def commit(self, record: dict[str, Any], course: Course) -> dict[str, Any]:
        """All of the round or nothing; the record with the time that took."""
        with course.clock.phase("commit"):
            plain, arrays = self.federation.state()
            failed = {site: {"outcome": "failed", "reason": reason} for site, reason in record["failed"].items()}
            arrays = {**arrays, **course.changed}
            self.journal.commit(record, plain, arrays, {**record["verdicts"], **failed}, course.counted)
        if self.desk is not None and self.federation.parts.summation is None:
            self.desk.done(self.federation.model)
        record["seconds"]["commit"] = round(course.clock.seconds["commit"], 6)
        return record

    def record(self, outcome: RoundOutcome, metrics: Mapping[str, Any] | None, course: Course) -> dict[str, Any]:
        epsilon = None if self.desk is None else self.desk.epsilon()
        return records.round_record(
            outcome, metrics, course.traffic, course.clock.seconds, course.site_seconds, epsilon, self.desk is not None
        )
