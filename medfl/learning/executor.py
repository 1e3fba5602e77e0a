"""One site's share of a round: local training, then the update's way up. Also evaluates and predicts.

One executor has one network and serves any number of sites one after another: the state is swapped in place,
nothing is built again.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medfl.data.base import Sample, SampleInfo, SampleSet, SiteData
from medfl.data.plans.base import DataPlan, own_and_lent
from medfl.data.reasons import outward
from medfl.errors import RunError
from medfl.learning.allocation import keep_freed_memory
from medfl.learning.checkpoint import EpochStore, order_key
from medfl.learning.course import Course, Feed, batches
from medfl.learning.disclosure import Disclosure
from medfl.learning.flat import FlatNetwork, seeded
from medfl.learning.flat_optimizers import FlatOptimizer
from medfl.learning.leaving import check_finite, not_finite, prototypes_of
from medfl.learning.messages import SNAPSHOT, STEPS, TrainOrder, TrainReply, planned_steps
from medfl.learning.optimizers import AdamOptimizer, SgdOptimizer, clip_gradient
from medfl.learning.partial import PartialTraining, setup_of
from medfl.learning.patients.sites import PrivateSites
from medfl.learning.randomness import generator, torch_seed
from medfl.learning.resume import Bookmark, LocalTraining, setup_digest
from medfl.learning.rules.base import LocalContext, LocalRule, no_gradient
from medfl.privacy.codec import GridCodec
from medfl.privacy.grid import BIT, CAP, CLIP, Grid, weight_of
from medfl.tasks.base import Prediction, Statistics, Task
from medfl.update.base import Payload, Update, Upload
from medfl.update.memories.base import SiteState
from medfl.update.parts import embedded
from medfl.update.pipeline import UploadPipeline
from medfl.update.submodels.base import Choice, Start, SubModel
from medfl.update.vector import FloatVector
from medfl.update.wire import as_bytes

StepDone = Callable[[int, int], None]
"""Called after local steps with (done, planned)."""

Tamper = Callable[[FloatVector], FloatVector]
"""What a simulated hostile site makes of its update [size]."""


_UNUSED = np.random.default_rng(0)
"""For codecs that lose nothing, which draw nothing: a generator takes as long to make as a vector to be measured."""


@dataclass(frozen=True)
class LocalParts:
    """Everything a study says about what happens at a site. submodel: not bound yet. asked: values beside the
    hyper-parameters that its orders may hold ("local.steps", "local.snapshot"), and whether old models may come beside
    the model ("local.old_models"). An order alone may not ask for them, or a coordinator could have updates sent past
    the channel, or gradients of single batches."""

    task: Task
    plan: DataPlan[Any]
    rules: Sequence[LocalRule]
    optimizer: SgdOptimizer | AdamOptimizer
    submodel: SubModel
    pipeline: UploadPipeline
    batch_size: int
    gradient_clip: float | None
    max_steps: int | None
    seed: int
    asked: frozenset[str] = frozenset()


class SiteExecutor:
    def __init__(self, parts: LocalParts, device: torch.device) -> None:
        keep_freed_memory()
        self.parts = parts
        self.device = device
        self.network = FlatNetwork(seeded(parts.task.build, parts.seed), device)
        local = seeded(lambda: parts.task.build_local() or torch.nn.Identity(), parts.seed)
        self.local = FlatNetwork(local, device) if any(True for _ in local.parameters()) else None
        self._fresh_local = self.local.store() if self.local else None
        self._anchor: torch.Tensor | None = None
        self._draws = "lossy" in parts.pipeline.codec.config.traits()
        parts.pipeline.codec.bind(self.network.layout)
        parts.plan.bind(parts.task.config.classes, parts.seed)
        parts.submodel.bind(setup_of(parts.task, parts.seed, self.network.layout))
        self._private = PrivateSites(self.network, parts.task)

    def train(
        self,
        data: SiteData,
        order: TrainOrder,
        model: FloatVector,
        state: SiteState,
        step_done: StepDone | None = None,
        disclosure: Disclosure | None = None,
        tamper: Tamper | None = None,
        checkpoints: EpochStore | None = None,
    ) -> TrainReply:
        """Train from the global vector `model` [size] and return the update, not sealed yet; `state` is updated in
        place, and only when all went well. disclosure: the site's ledger and noise, under differential privacy.
        tamper: what a simulated hostile site does to what it sends.

        checkpoints: where every local epoch but the last is kept, and where a training that was interrupted goes on;
        the update has the same bits. The caller clears it once the reply is durable. Under privacy of patients it is
        not used: a noised step that is charged for must never be taken again.

        DataError when the site has nothing to train on; RunError when the loss, the update or the site's private
        state stops being finite; BudgetError when the site's ledger refuses.
        """
        started = time.perf_counter()
        private = dict(state)
        feed = Feed.of(self.parts, data, order.round, private)
        torch.manual_seed(torch_seed(self.parts.seed, "local", order.round, order.site))
        choice = Choice(order.site, order.round, order.part)
        start = self.parts.submodel.begin(choice, model, private, partial(self._measure, data))
        cases = self.parts.plan.unique(data.site, order.round, feed.samples, feed.indices)
        snapshot, prototypes, notice = None, None, b""
        if disclosure is not None and disclosure.plan.kind != "site":
            steps, payload = self._privately(feed.samples, order, model, private, cases, disclosure, tamper)
            course = Course.untold(steps)
            trained = time.perf_counter()
        else:
            key = "" if checkpoints is None else order_key(checkpoints.run, order, model, cases)
            mark = None if checkpoints is None else partial(Bookmark, checkpoints, key)
            course, context = self._run(feed, order, start, private, step_done, mark)
            trained = time.perf_counter()
            if disclosure is not None:
                disclosure.permit(order.round)
                course = Course.untold(len(course.losses))
            payload, notice = self._upload(model, order, private, cases, tamper, context, start)
            if SNAPSHOT in context.scratch:
                early = context.scratch[SNAPSHOT].numpy()
                check_finite({"snapshot": early}, order)
                codec = self.parts.pipeline.codec.at(order.values)
                snapshot = codec.encode(Update(early, early.size), self._rng("snapshot", order))
            prototypes = prototypes_of(context.scratch, order)
        check_finite(private, order)
        state.clear()
        state.update(private)
        finished = time.perf_counter()
        return TrainReply(
            site=order.site,
            round=order.round,
            payload=payload,
            cases=cases,
            steps=len(course.losses),
            epochs=math.ceil(len(course.losses) / course.per_epoch),
            loss_start=course.mean(slice(None, course.per_epoch)),
            loss=course.mean(slice(-course.per_epoch, None)),
            seconds={"train": trained - started, "total": finished - started},
            skipped=Counter(outward(case.reason) for case in data.skipped),
            snapshot=snapshot,
            notice=notice,
            shared=own_and_lent(feed.samples, feed.indices)[1] if data.lent else 0,
            prototypes=prototypes,
        )

    def _run(
        self,
        feed: Feed,
        order: TrainOrder,
        start: Start,
        state: SiteState,
        step_done: StepDone | None,
        mark: Callable[[LocalTraining], Bookmark] | None,
    ) -> tuple[Course, LocalContext]:
        per_epoch = math.ceil(len(feed.indices) / feed.size)
        values = self._asked(order)
        steps = planned_steps(values, per_epoch, self.parts.max_steps)
        before = dict(state)
        context = self._begin(order, start.values, state, steps, feed)
        part = PartialTraining(self.network, context.anchor, start.trains)
        optimizer = self.parts.optimizer.build(self.network.parameters, order.values["local.learning_rate"])
        losses = torch.zeros(steps, device=self.device)
        bookmark = None
        if mark is not None:
            inputs = before | {"indices": feed.indices, "labels": feed.labels}
            setup = setup_digest(self.parts, self.device, steps, inputs)
            bookmark = mark(LocalTraining(context, optimizer, losses, before, setup))
        done = 0 if bookmark is None else bookmark.resume()
        rng = generator(self.parts.seed, "shuffle", order.round, order.site)
        sizes = np.zeros(steps)
        early = int(values.get(SNAPSHOT, 1.0) * steps)
        for step, chosen in enumerate(batches(feed.indices, feed.size, steps, rng)):
            sizes[step] = len(chosen)
            if step < done:
                continue
            if step == early:
                context.scratch[SNAPSHOT] = (self.network.parameters.detach() - context.anchor).cpu()
            losses[step] = self._step(context, self._batch(context, feed, chosen), optimizer, part)
            if step_done is not None:
                step_done(step + 1, steps)
            if bookmark is not None and (step + 1) % per_epoch == 0 and step + 1 < steps:
                bookmark.keep(step + 1)
        found = losses.cpu().numpy()
        if not np.isfinite(found).all():
            raise RunError.at(
                f"site {order.site}, round {order.round}",
                f"the training loss is not finite from step {int(np.argmin(np.isfinite(found))) + 1} on",
                "lower local.learning_rate or set local.gradient_clip",
            )
        for rule in self.parts.rules:
            rule.finish(context)
        return Course(found, sizes, per_epoch), context

    def _asked(self, order: TrainOrder) -> dict[str, float]:
        """An order's values, without those that the study does not have."""
        unasked = {STEPS, SNAPSHOT} - self.parts.asked
        return {name: value for name, value in order.values.items() if name not in unasked}

    def _begin(
        self,
        order: TrainOrder,
        model: FloatVector,
        state: SiteState,
        steps: int,
        feed: Feed | None = None,
    ) -> LocalContext:
        self.network.load(model)
        self.network.module.train()
        if self.local is not None and self._fresh_local is not None:
            self.local.load(self._fresh_local)
        here = self.network.parameters.detach()
        self._anchor = here.clone() if self._anchor is None else self._anchor.copy_(here)
        context = LocalContext(
            site=order.site,
            round=order.round,
            task=self.parts.task,
            network=self.network,
            anchor=self._anchor,
            local=self.local,
            state=state,
            values=order.values,
            steps=steps,
            device=self.device,
            seed=self.parts.seed,
            counted=order.counted,
            omega=self.parts.pipeline.codec.at(order.values).omega(model.size),
            feed=feed,
        )
        if feed is not None:
            context.full_gradient = partial(self._full_gradient, context, feed)
        for rule in self.parts.rules:
            rule.begin(context)
        # it holds the context: left there, the context's vectors would stay until the garbage collector came by
        context.full_gradient = no_gradient
        return context

    def _batch(self, context: LocalContext, feed: Feed, chosen: npt.NDArray[np.int64]) -> Any:
        context.chosen = chosen
        return self.parts.task.to_device(feed.batch(chosen), self.device)

    def _step(self, context: LocalContext, batch: Any, optimizer: FlatOptimizer, part: PartialTraining) -> torch.Tensor:
        self.network.gradient.zero_()
        loss = self._loss(context, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        context.gradient_at = partial(self._gradient_at, context, batch)
        for rule in self.parts.rules:
            rule.direction(context)
        context.gradient_at = no_gradient
        part.direction()
        if self.parts.gradient_clip is not None:
            clip_gradient(self.network.gradient, self.parts.gradient_clip)
        optimizer.step()
        part.hold()
        return loss.detach()

    def _loss(self, context: LocalContext, batch: Any) -> torch.Tensor:
        for rule in self.parts.rules:
            loss = rule.loss(context, self.network.module, batch)
            if loss is not None:
                return loss
        return self.parts.task.loss(self.network.module, batch)

    def _gradient_at(self, context: LocalContext, batch: Any, point: torch.Tensor) -> torch.Tensor:
        """The batch's gradient [size] at `point` [size]; parameters and gradient are as before afterwards."""
        network = self.network
        here, gradient = network.parameters.detach().clone(), network.gradient.clone()
        with torch.no_grad():
            network.parameters.copy_(point)
        network.gradient.zero_()
        self._loss(context, batch).backward()  # type: ignore[no-untyped-call]
        found = network.gradient.clone()
        with torch.no_grad():
            network.parameters.copy_(here)
        network.gradient.copy_(gradient)
        return found

    def _full_gradient(self, context: LocalContext, feed: Feed) -> torch.Tensor:
        """The mean gradient [size] over all samples, in batches."""
        self.network.gradient.zero_()
        for start in range(0, len(feed.indices), feed.size):
            chosen = feed.indices[start : start + feed.size]
            loss = self._loss(context, self._batch(context, feed, chosen)) * (len(chosen) / len(feed.indices))
            loss.backward()  # type: ignore[no-untyped-call]
        found = self.network.gradient.clone()
        self.network.gradient.zero_()
        return found

    def _privately(
        self,
        samples: SampleSet,
        order: TrainOrder,
        model: FloatVector,
        state: SiteState,
        cases: int,
        disclosure: Disclosure,
        tamper: Tamper | None,
    ) -> tuple[int, Payload | None]:
        """Steps and payload of a round under patient-level privacy. The charge comes before the patients are drawn."""
        plan = disclosure.plan
        context = self._begin(order, model, state, plan.steps)
        private = self._private.of(samples, disclosure)
        permit = disclosure.permit(order.round)
        if plan.kind == "patient":
            grid = Grid.of(order.values)
            total = private.share(self.network, self._rng("views", order), grid.step)
            noisy = disclosure.share(tamper(total) if tamper else total, grid, permit)
            return plan.steps, Payload("grid", noisy.size, (as_bytes(noisy),))
        optimizer = self.parts.optimizer.build(self.network.parameters, order.values["local.learning_rate"])
        noise = partial(disclosure.noise, permit)
        private.train(context, self.parts.rules, optimizer, noise, self._rng("views", order))
        for rule in self.parts.rules:
            rule.finish(context)
        return plan.steps, self._upload(model, order, state, cases, tamper, context, Start(model))[0]

    def _rng(self, purpose: str, order: TrainOrder) -> np.random.Generator:
        return generator(self.parts.seed, purpose, order.round, order.site)

    def _upload(
        self,
        model: FloatVector,
        order: TrainOrder,
        state: SiteState,
        cases: int,
        tamper: Tamper | None,
        context: LocalContext,
        start: Start,
    ) -> tuple[Payload | None, bytes]:
        """The change since `model` through the pipeline; on the round's grid where updates are only added. With what
        the coordinator is told beside it."""
        delta = np.empty_like(model)
        if not self.network.change(model, delta):
            raise not_finite(["update"], order)
        if tamper is not None:
            delta = tamper(delta)
        codec = self.parts.pipeline.codec.at(order.values)
        if CLIP in order.values:
            codec = GridCodec(Grid.of(order.values), weight_of(cases, order.values[CAP]), int(order.values[BIT]))
        pipeline = replace(self.parts.pipeline, codec=codec)
        sends = start.sends
        upload = Upload(order.site, order.round, order.counted, model, sends, start.trains)
        rng = self._rng("codec", order) if self._draws else _UNUSED
        payload = pipeline.run(delta, upload, state, rng)
        if payload is None:
            return None, b""
        size = delta.size if sends is None else sends.size
        for rule in self.parts.rules:
            rule.sent(context, lambda: embedded(pipeline.codec.decode(payload, size), sends, delta.size))
        choice = Choice(order.site, order.round, order.part)
        return payload, self.parts.submodel.notice(choice, start, lambda: pipeline.ahead(delta, upload, state))

    def _measure(self, data: SiteData, model: FloatVector) -> float:
        """The task's primary metric, larger being better, on the validation images; NaN without any."""
        samples = data.splits.get("val")
        if samples is None or not len(samples):
            return math.nan
        found = {metric.name: metric.value for metric in self.parts.task.metrics(self.evaluate(samples, model))}
        return found[self.parts.task.primary]

    def evaluate(self, samples: SampleSet, model: FloatVector, indices: Sequence[int] | None = None) -> Statistics:
        """The task's additive statistics of the global vector on these samples, or on those of `indices`."""
        self.network.load(model)
        return self.parts.task.evaluate(self.network.module, samples, self.device, indices)

    def predict(self, sample: Sample, info: SampleInfo, model: FloatVector) -> Prediction:
        self.network.load(model)
        return self.parts.task.predict(self.network.module, sample, info, self.device)
