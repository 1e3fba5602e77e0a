"""One site's share of a round: local training, then the update's way up. Also evaluates and predicts.

One executor has one network and serves any number of sites one after another: the state is swapped in place,
nothing is built again.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medfl.data.base import Sample, SampleInfo, SampleSet, SiteData
from medfl.data.plans.base import DataPlan
from medfl.errors import DataError, RunError
from medfl.learning.flat import FlatNetwork, seeded
from medfl.learning.messages import TrainOrder, TrainReply
from medfl.learning.optimizers import AdamOptimizer, SgdOptimizer, clip_gradient
from medfl.learning.randomness import generator, torch_seed
from medfl.learning.rules.base import LocalContext, LocalRule
from medfl.privacy.channels.base import Channel
from medfl.tasks.base import Prediction, Statistics, Task
from medfl.update.memories.base import SiteState
from medfl.update.pipeline import UploadPipeline
from medfl.update.vector import FloatVector

StepDone = Callable[[int, int], None]
"""Called after local steps with (done, planned)."""


@dataclass(frozen=True)
class LocalParts:
    """Everything a study says about what happens at a site."""

    task: Task
    plan: DataPlan[Any]
    rules: Sequence[LocalRule]
    optimizer: SgdOptimizer | AdamOptimizer
    pipeline: UploadPipeline
    channel: Channel
    batch_size: int
    gradient_clip: float | None
    max_steps: int | None
    seed: int


class SiteExecutor:
    def __init__(self, parts: LocalParts, device: torch.device) -> None:
        self.parts = parts
        self.device = device
        self.network = FlatNetwork(seeded(parts.task.build, parts.seed), device)
        local = seeded(lambda: parts.task.build_local() or torch.nn.Identity(), parts.seed)
        self.local = FlatNetwork(local, device) if any(True for _ in local.parameters()) else None
        self._fresh_local = self.local.store() if self.local else None

    def train(
        self, data: SiteData, order: TrainOrder, model: FloatVector, state: SiteState, step_done: StepDone | None = None
    ) -> TrainReply:
        """Train from the global vector `model` [size] and return the update; `state` is updated in place, and only
        when all went well.

        DataError when the site has nothing to train on; RunError when the loss, the update or the site's private
        state stops being finite.
        """
        started = time.perf_counter()
        samples = data.splits.get("train")
        if samples is None or not len(samples):
            raise DataError.at(
                f"site {data.site}", "has no training samples", "check the site's data with `medfl site check`"
            )
        torch.manual_seed(torch_seed(self.parts.seed, "local", order.round, order.site))
        private = dict(state)
        context, course = self._run(samples, order, model, private, step_done)
        trained = time.perf_counter()
        delta = self.network.store()
        np.subtract(delta, model, out=delta)
        _check_finite({"update": delta}, order)
        payload = self._upload(delta, order, private)
        _check_finite(private, order)
        state.clear()
        state.update(private)
        finished = time.perf_counter()
        return TrainReply(
            site=order.site,
            round=order.round,
            payload=payload,
            cases=self.parts.plan.unique(data.site, order.round, samples),
            steps=context.steps,
            epochs=math.ceil(context.steps / course.per_epoch),
            loss_start=course.mean(slice(None, course.per_epoch)),
            loss=course.mean(slice(-course.per_epoch, None)),
            seconds={"train": trained - started, "total": finished - started},
        )

    def _run(
        self, samples: SampleSet, order: TrainOrder, model: FloatVector, state: SiteState, step_done: StepDone | None
    ) -> tuple[LocalContext, "_Course"]:
        indices = self.parts.plan.indices(order.site, order.round, len(samples))
        if not len(indices):
            raise DataError.at(f"site {order.site}, round {order.round}", "the data plan leaves nothing to train on")
        per_epoch = math.ceil(len(indices) / self.parts.batch_size)
        steps = per_epoch * max(1, round(order.values["local.epochs"]))
        steps = min(steps, self.parts.max_steps or steps)
        context = self._begin(order, model, state, steps)
        optimizer = self.parts.optimizer.build(self.network.parameters, order.values["local.learning_rate"])
        weights = self.parts.task.weights(samples.labels())
        losses = torch.zeros(steps, device=self.device)
        rng = generator(self.parts.seed, "shuffle", order.round, order.site)
        sizes = np.zeros(steps)
        for step, chosen in enumerate(_batches(indices, self.parts.batch_size, steps, rng)):
            sizes[step] = len(chosen)
            batch = dict(samples.batch(chosen))
            if weights is not None:
                batch["weight"] = weights[chosen]
            losses[step] = self._step(context, batch, optimizer)
            if step_done is not None:
                step_done(step + 1, steps)
        found = losses.cpu().numpy()
        if not np.isfinite(found).all():
            raise RunError.at(
                f"site {order.site}, round {order.round}",
                f"the training loss is not finite from step {int(np.argmin(np.isfinite(found))) + 1} on",
                "lower local.learning_rate or set local.gradient_clip",
            )
        for rule in self.parts.rules:
            rule.finish(context)
        return context, _Course(found, sizes, per_epoch)

    def _begin(self, order: TrainOrder, model: FloatVector, state: SiteState, steps: int) -> LocalContext:
        self.network.load(model)
        self.network.module.train()
        if self.local is not None and self._fresh_local is not None:
            self.local.load(self._fresh_local)
        context = LocalContext(
            site=order.site,
            round=order.round,
            task=self.parts.task,
            network=self.network,
            anchor=self.network.parameters.detach().clone(),
            local=self.local,
            state=state,
            values=order.values,
            steps=steps,
            device=self.device,
        )
        for rule in self.parts.rules:
            rule.begin(context)
        return context

    def _step(self, context: LocalContext, arrays: dict[str, Any], optimizer: torch.optim.Optimizer) -> torch.Tensor:
        self.network.gradient.zero_()
        batch = self.parts.task.to_device(arrays, self.device)
        loss = None
        for rule in self.parts.rules:
            loss = rule.loss(context, self.network.module, batch) if loss is None else loss
        if loss is None:
            loss = self.parts.task.loss(self.network.module, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        for rule in self.parts.rules:
            rule.direction(context)
        if self.parts.gradient_clip is not None:
            clip_gradient(self.network.gradient, self.parts.gradient_clip)
        optimizer.step()
        return loss.detach()

    def _upload(self, delta: FloatVector, order: TrainOrder, state: SiteState) -> Any:
        rng = generator(self.parts.seed, "codec", order.round, order.site)
        payload = self.parts.pipeline.run(delta, order.site, order.round, state, rng)
        return None if payload is None else self.parts.channel.seal(payload, order.site, order.round)

    def evaluate(self, samples: SampleSet, model: FloatVector) -> Statistics:
        """The task's additive statistics of the global vector on these samples."""
        self.network.load(model)
        return self.parts.task.evaluate(self.network.module, samples, self.device)

    def predict(self, sample: Sample, info: SampleInfo, model: FloatVector) -> Prediction:
        self.network.load(model)
        return self.parts.task.predict(self.network.module, sample, info, self.device)


@dataclass(frozen=True)
class _Course:
    """The losses [steps] of a local training, mean over each batch, and the batches' sizes [steps]."""

    losses: npt.NDArray[np.float32]
    sizes: npt.NDArray[np.float64]
    per_epoch: int

    def mean(self, steps: slice) -> float:
        """Mean over the samples of these steps; the last batch of an epoch may be smaller than the others."""
        return float(np.average(self.losses[steps], weights=self.sizes[steps]))


def _check_finite(arrays: Mapping[str, npt.NDArray[Any]], order: TrainOrder) -> None:
    wrong = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if wrong:
        raise RunError.at(
            f"site {order.site}, round {order.round}",
            f"training left values that are not finite in {', '.join(wrong)}",
            "lower the learning rates or set local.gradient_clip",
        )


def _batches(
    indices: npt.NDArray[np.int64], size: int, steps: int, rng: np.random.Generator
) -> Iterator[npt.NDArray[np.int64]]:
    """`steps` batches; every epoch is a fresh permutation of all indices."""
    done = 0
    while done < steps:
        order = rng.permutation(indices)
        for start in range(0, len(order), size):
            if done == steps:
                return
            yield order[start : start + size]
            done += 1
