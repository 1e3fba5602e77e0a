"""Runs a study over a transport: the loop of rounds, the journal, the run folder. Knows neither networks nor
screens."""

import json
import math
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from medfl.coordinator import records
from medfl.coordinator.async_rounds import asynchrony
from medfl.coordinator.desk import NoiseDesk
from medfl.coordinator.evaluation import Evaluation, Opened
from medfl.coordinator.federations import federation_for
from medfl.coordinator.files import append_line, save_model, write_json, write_lines
from medfl.coordinator.journal import Arrays, Journal, Where, journal_in, point_to
from medfl.coordinator.observer import Observer
from medfl.coordinator.rounds import Clock, Course
from medfl.coordinator.stopping import stopped_by
from medfl.errors import Faults, InputError, MedflError, RunError, StudyError
from medfl.federation.round import Federation
from medfl.federation.schedule.base import SCHEDULES
from medfl.learning.messages import Beginning, SiteInfo
from medfl.learning.randomness import generator
from medfl.privacy.channels.base import MINIMUM_SITES, hides
from medfl.privacy.ledger.file import FileLedger
from medfl.privacy.mechanisms.base import NoisePlan
from medfl.study.build import (
    bind_federation,
    build_codec_down,
    build_federation,
    build_mechanism,
    build_noise_plan,
    build_summation,
    build_task,
)
from medfl.study.sources import Assignment, RunInputs, assign_cases
from medfl.study.statement import plain_statement
from medfl.transport.base import Transport
from medfl.transport.engines import Engine, make_transport
from medfl.update.base import Payload, Update
from medfl.update.vector import FloatVector, Layout


class Runner:
    """One run in one folder. `start` a new one or `resume` an old one, then `run`. journal: where a new one's journal
    is to be, if not in the folder; durable: whether it outlives a power cut."""

    def __init__(
        self,
        inputs: RunInputs,
        out: Path,
        transport: Transport,
        assignment: Assignment,
        observer: Observer,
        journal: Where | None = None,
        durable: bool = False,
    ) -> None:
        self.inputs = inputs
        self._where = journal or out / "journal.db"
        self._durable = durable
        self.out = out
        self.study = inputs.study
        self._transport = transport
        self._observer = observer
        self._task = build_task(self.study)
        self._codec_down = build_codec_down(self.study)
        self._evaluation = Evaluation(self.study, self._task, transport, observer, self._coded)
        self._federation: Federation
        self._journal: Journal
        self._layout: Layout
        self._initial: FloatVector | None = None
        self._desk: NoiseDesk | None = None
        self._beginning: Beginning | None = None
        self._started = time.perf_counter()
        infos = tuple(sorted(transport.open(), key=lambda info: info.name))
        self._opened = Opened(infos, assignment.unseen)
        self._check_stop()
        holder = getattr(self.study.update.channel, "key_holder", None)
        if self.study.sums_later and holder in self._opened.training:
            raise StudyError.at(
                "update.channel.key_holder",
                f"is {holder}, which trains and cannot answer meanwhile, so that sums without rounds would stay closed",
                "leave it out (a site that waits for the sum holds the key), or name a party that does not train",
            )
        if not self._opened.training:
            raise StudyError.at("study", "no site has training images", "check the data with `medfl data stats`")

    def _check_stop(self) -> None:
        """StudyError when the study's target names a metric that the task does not have, or nothing can meet it."""
        known = sorted({metric.name for metric in self._task.metrics(self._task.empty())})
        target, patience = self.study.stop.target, self.study.stop.patience
        if (target or patience) and not self._opened.holding("val"):
            raise StudyError.at(
                "stop", "has a target or patience, and no site has validation images", "change data.split, or drop them"
            )
        if target is not None and target.metric not in known:
            raise StudyError.at(
                "stop.target.metric", f"{target.metric!r} is not known", f"use one of: {', '.join(known)}"
            )

    def start(self) -> None:
        """Make the run folder and its journal; InputError when the folder holds a run already, or when a site will not
        take part."""
        _refuse_used(self.out)
        model, self._layout = self._transport.initial_model()
        self._codec_down.bind(self._layout)
        run = secrets.token_hex(16)
        noise = self._plan_noise(model.size)
        try:
            self._begin(run, noise)
        except MedflError:
            if self.inputs.ledgers.resolve().is_relative_to(self.out.resolve()):
                # the folder was empty, and nothing was charged yet: these ledgers are new
                shutil.rmtree(self.inputs.ledgers, ignore_errors=True)
            raise
        self.out.mkdir(parents=True, exist_ok=True)
        facts = {
            "run": run,
            "noise": None if noise is None else noise.to_json(),
            "inputs": self.inputs.model_dump(mode="json"),
            "layout": self._layout.to_json(),
            "versions": records.versions(),
            "sites": [asdict(info) for info in self._opened.sites],
        }
        self._journal = Journal.create(self._where, facts, durable=self._durable)
        point_to(self.out, self._journal)
        self._begin_with(model, run, noise)

    def resume(self) -> None:
        """Go on from the last committed round of the folder's journal."""
        self._journal = Journal.open(journal_in(self.out) or self._where)
        model, self._layout = self._transport.initial_model()
        if self._layout.to_json() != self._journal.fact("layout"):
            raise RunError.at(self.out, "holds a run of another network", "use the versions in its summary")
        self._codec_down.bind(self._layout)
        self._remember()
        kept = self._journal.fact("noise")
        noise = None if kept is None else NoisePlan.from_json(kept)
        run = self._journal.fact("run")
        self._begin(run, noise)
        self._begin_with(model, run, noise)
        self._transport.restore(_site_states(self._go_back()))

    def _remember(self) -> None:
        """The sites that the run began with, also those that are away now."""
        try:
            known = self._journal.fact("sites")
        except KeyError:
            # a journal of an earlier version, whose sites were all there
            known = []
        before = {info.name: info for info in map(_info, known)}
        now = before | {info.name: info for info in self._opened.sites}
        self._opened = Opened(tuple(now[name] for name in sorted(now)), self._opened.unseen)

    def _plan_noise(self, parameters: int) -> NoisePlan | None:
        """The run's noise; StudyError with everything that stands against it."""
        training, faults, noise = self._opened.training, Faults(), None
        blind = hides(self.study.update.channel)
        if blind and len(training) < MINIMUM_SITES:
            faults.add(
                "update.channel",
                f"{self.study.update.channel.kind} hides nothing among {len(training)} sites: each can take its own "
                "update off the sum",
                f"take in {MINIMUM_SITES} sites or more, or use channel: clear",
            )
        elif blind and (drawn := self._drawn(training)) < MINIMUM_SITES:
            faults.add(
                "federation.schedule",
                f"draws {drawn} of {len(training)} sites a round, and {self.study.update.channel.kind} opens no sum of "
                f"fewer than {MINIMUM_SITES}",
                f"let a round have {MINIMUM_SITES} sites or more, or use federation.schedule: all",
            )
        holder = getattr(self.study.update.channel, "key_holder", None)
        there = [info.name for info in self._opened.sites]
        if holder is not None and holder not in there:
            faults.add("update.channel.key_holder", f"{holder!r} is not there", f"use one of: {', '.join(there)}")
        try:
            noise = build_noise_plan(self.study, training, parameters)
            summation = build_summation(self.study, noise)
            if summation is not None and summation.grid(len(training)).bound <= math.sqrt(parameters):
                faults.add(
                    "privacy" if noise else "update.clip",
                    f"{parameters} parameters do not fit the grid that {len(training)} sites and the noise leave",
                    "train fewer parameters, or use fewer sites or less noise",
                )
        except StudyError as error:
            faults.extend(error.faults)
        faults.raise_if_any(StudyError)
        return noise

    def _drawn(self, training: Mapping[str, int]) -> int:
        """How many of these sites the first round has; later ones have as many."""
        schedule = SCHEDULES.build(self.study.federation.schedule)
        return len(schedule.draw(1, training, generator(self.study.seed, "schedule", 1)).cohort)

    def _begin(self, run: str, noise: NoisePlan | None) -> None:
        """Tell the sites about the run, and compare ledgers: RunError when one was put back to an older copy."""
        self._transport.admit()
        roster = {info.name: info.identity for info in self._opened.sites}
        mechanism = build_mechanism(self.study)
        if noise is None or mechanism is None:
            self._transport.begin(Beginning(run, roster))
            return
        ledger = FileLedger.open(self.inputs.ledgers / "coordinator.ledger", "coordinator")
        beginning = Beginning(run, roster, noise.to_json(), ledger.head, ledger.witnessed())
        heads = self._transport.begin(beginning)
        kept = {site: found.kept for site, found in heads.items() if found.kept}
        ledger.compare(kept, {site: found.head for site, found in heads.items()})
        self._beginning = beginning
        self._desk = NoiseDesk(self.study, run, mechanism, noise, ledger, ledger.register(noise.sites))

    def _begin_with(self, model: FloatVector, run: str, noise: NoisePlan | None) -> None:
        """Make everything that the rounds need."""
        self._initial = model.copy()
        parts = build_federation(self.study, noise)
        bind_federation(parts, self.study, self._layout)
        self._federation, kind = federation_for(self.study, parts, model)
        self._rounds = kind(
            run=run,
            federation=self._federation,
            transport=self._transport,
            journal=self._journal,
            observer=self._observer,
            roster={info.name: bytes.fromhex(info.identity) for info in self._opened.sites},
            desk=self._desk,
            validate=self._evaluation.on_public if self.study.evaluation.public else None,
            code=self._coded,
            decode=self._codec_down.decode,
            losses=self._evaluation.losses,
        )

    def _go_back(self) -> Arrays:
        """Take the federation to the last committed round; all arrays of that round."""
        kept = self._journal.state()
        if kept is None:
            if self._initial is not None:
                self._federation.model[:] = self._initial
            return self._journal.arrays()
        plain, arrays = kept
        self._federation.restore(plain, {name: array for name, array in arrays.items() if "/" not in name})
        return arrays

    def run(self) -> dict[str, Any]:
        """Rounds until the study's stop; the summary that was written."""
        done = list(self._journal.rounds())
        write_lines(self.out / "rounds.jsonl", done)
        self._observer.opened(self._opened.sites, self.study.stop.rounds, len(done))
        start_up = time.perf_counter() - self._started
        try:
            reason = stopped_by(self.study.stop, self._task.primary, done)
            while reason is None:
                if refusal := self._rounds.refusal():
                    self._journal.note(len(done) + 1, "budget", {"reason": refusal})
                    reason = "budget"
                    break
                record = self._round()
                done.append(record)
                append_line(self.out / "rounds.jsonl", record)
                self._observer.round_finished(record)
                reason = stopped_by(self.study.stop, self._task.primary, done)
        except KeyboardInterrupt:
            reason = "operator"
            # the round that was cut short may have moved the model already
            self._go_back()
        summary = self._finish(done, reason, start_up)
        self._observer.ended(summary)
        return summary

    def close(self) -> None:
        self._transport.close()
        self._observer.close()
        if hasattr(self, "_journal"):
            self._journal.close()

    def _gather(self) -> None:
        """Wait for a quorum. Sites that come later take part, unless noise or keys were agreed on without them."""
        if self._beginning is not None and self._desk is not None:
            ledger = self._desk.ledger
            self._transport.retell(replace(self._beginning, ledger=ledger.head, kept=ledger.witnessed()))
        found = self._transport.gather(self.study.federation.quorum)
        if found is not None and self._federation.parts.summation is None and self._desk is None:
            self._opened = Opened(tuple(found), self._opened.unseen)

    def _round(self) -> dict[str, Any]:
        self._gather()
        course = Course()
        outcome = self._rounds.play(self._opened.training, course)
        number, stop = outcome.plan.round, self.study.stop
        metrics = None
        if number % self.study.evaluation.every == 0 or number >= stop.rounds:
            with course.clock.phase("evaluate"):
                metrics = self._metrics("val", course.traffic)
        record = self._rounds.commit(self._rounds.record(outcome, metrics, course), course)
        self._initial = None
        return record

    def _coded(self, model: FloatVector, round_: int = 0) -> Payload:
        return self._codec_down.encode(Update(model, model.size), generator(self.study.seed, "codec-down", round_))

    def _metrics(self, split: str, traffic: dict[str, Any]) -> dict[str, Any]:
        return self._evaluation.metrics(self._opened, self._federation.model, split, traffic)

    def _statement(self) -> dict[str, Any]:
        if self._desk is None:
            return plain_statement(self.study)
        return self._desk.statement(self.study.update.channel.kind)

    def _finish(self, done: Sequence[Mapping[str, Any]], reason: str, start_up: float) -> dict[str, Any]:
        clock, traffic = Clock(), dict[str, Any]()
        self._transport.recall()
        with clock.phase("final_evaluation"):
            split = "test" if self._opened.holding("test") else "val"
            metrics = self._metrics(split, traffic)
        if self._desk is not None:
            self._desk.part(self._transport.exchange)
        save_model(self.out / "model", self._layout, self._federation.model, self.study)
        summary = {
            "study": self.study.name,
            "task": self.study.task.kind,
            "seed": self.study.seed,
            "baseline": "pooled" if self.inputs.pooled else self.inputs.only,
            "rounds_completed": len(done),
            "stopped_by": reason,
            "primary": self._task.primary,
            "parameters": self._layout.size,
            "metrics": metrics,
            "privacy": self._statement(),
            "traffic": records.traffic_total(done, traffic),
            "regulator": records.regulator_counts(done),
            **asynchrony(done),
            "data": records.data_json(self._opened.sites),
            "seconds": records.seconds_total(done, {"start_up": start_up, **clock.seconds}),
            "versions": records.versions(),
        }
        write_json(self.out / "summary.json", summary)
        self._journal.set_fact("summary", json.loads((self.out / "summary.json").read_text(encoding="utf-8")))
        return summary


def _info(value: Mapping[str, Any]) -> SiteInfo:
    return SiteInfo(**value)


def _refuse_used(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError.at(out, "is not empty", "choose another --out, or --resume it")


def _site_states(arrays: Arrays) -> dict[str, Arrays]:
    states: dict[str, Arrays] = {}
    for name, array in arrays.items():
        site, slash, key = name.partition("/")
        if slash:
            states.setdefault(site, {})[key] = array.copy()
    return states


def simulate(
    inputs: RunInputs,
    out: Path,
    observer: Observer,
    *,
    workers: int | None = None,
    resume: bool = False,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Run (or go on with) a whole federation on this machine; the summary."""
    if not resume:
        _refuse_used(out)
    assignment = assign_cases(inputs)
    transport = make_transport(inputs, assignment, engine or Engine(workers))
    try:
        runner = Runner(inputs, out, transport, assignment, observer)
        try:
            runner.resume() if resume else runner.start()
            return runner.run()
        finally:
            runner.close()
    finally:
        transport.close()


def inputs_of(run: Path) -> RunInputs:
    """The inputs that a run folder was started with."""
    journal = Journal.open(journal_in(run) or run / "journal.db", read_only=True)
    try:
        return RunInputs.model_validate(journal.fact("inputs"))
    except (KeyError, ValidationError) as error:
        raise InputError.at(run, "was started with inputs that this version cannot read", "use that version") from error
    finally:
        journal.close()
