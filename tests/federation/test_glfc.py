"""GLFC (algorithms' test t12): three tasks of four classes come to eight hospitals that have three of four each. The
model keeps what it learned first, and sites find by themselves when the task switched."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from toys.parts import Federated, federation_parts, plugin
from toys.tasks import Classifier, Rows, site

from medfl.data.base import SiteData
from medfl.data.plans.base import PLANS
from medfl.federation.schedule.base import SCHEDULES
from medfl.learning.rules.base import LocalContext, LocalRule
from medfl.learning.rules.glfc import Glfc, GlfcConfig
from medfl.learning.rules.sgd import Sgd, SgdConfig

SIZE, TASKS, EACH, SITES, ROUNDS = 24, 3, 4, 8, 12
CLASSES = TASKS * EACH
MEMORY = 90
"""Ten exemplars of each of a site's nine classes."""


class Mlp(Classifier):
    def _network(self, hidden: int | None) -> nn.Module:
        sizes = [nn.Linear(SIZE, 96), nn.ReLU(), nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, CLASSES)]
        return nn.Sequential(*sizes)


class Finetuning(Sgd):
    """The first fake: learns what is there, and that is all."""


class Forgets(Glfc):
    """The second: drops its exemplars."""

    def finish(self, context: LocalContext) -> None:
        pass


class KeepsTheFirst(Glfc):
    """The third: the old model is that of the first task for ever."""

    def begin(self, context: LocalContext) -> None:
        first = context.state.get("glfc.old_model")
        super().begin(context)
        if first is not None:
            context.state["glfc.old_model"] = first
            self._prepare(context)


class Watched(Glfc):
    """Notes when a site's task switched and when the site said so."""

    def __init__(self, config: GlfcConfig) -> None:
        super().__init__(config)
        self.stages: dict[str, int] = {}
        self.notes: list[tuple[bool, bool]] = []

    def _switched(self, context: LocalContext) -> bool:
        said = super()._switched(context)
        now = context.feed.stage if context.feed is not None else -1
        self.notes.append((self.stages.get(context.site, now) != now, said))
        self.stages[context.site] = now
        return said


@dataclass(frozen=True)
class Course:
    """accuracies [task learned, task tested] of the global model."""

    accuracies: npt.NDArray[np.float64]

    @property
    def accuracy(self) -> float:
        return float(self.accuracies[-1].mean())

    @property
    def forgetting(self) -> float:
        """How far earlier tasks fell below their best."""
        return float((self.accuracies.max(axis=0) - self.accuracies[-1])[:-1].mean())


def hospitals(seed: int) -> tuple[list[SiteData], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The sites with 40 samples of each of their classes, and 50 test samples of every class."""
    rng = np.random.default_rng(seed)
    means = 1.25 * rng.normal(size=(CLASSES, SIZE))
    found = []
    for number in range(SITES):
        own = [task * EACH + rng.choice(EACH, 3, replace=False) for task in range(TASKS)]
        labels = np.repeat(np.concatenate(own), 40)
        found.append(site(f"s{number}", Rows(means[labels] + rng.normal(size=(len(labels), SIZE)), labels)))
    tested = np.repeat(np.arange(CLASSES), 50)
    return found, (means[tested] + rng.normal(size=(len(tested), SIZE))).astype(np.float32), tested


def course(rule: LocalRule, seed: int = 0) -> Course:
    sites, features, labels = hospitals(seed)
    plan = plugin(PLANS, "class_stream", classes_per_task=EACH, rounds_per_task=ROUNDS)
    schedule = plugin(SCHEDULES, "uniform", fraction=0.75)
    local: dict[str, Any] = {"plan": plan, "rules": [rule], "batch_size": 60, "seed": seed}
    made = Federated(Mlp(SIZE, CLASSES), sites, federation_parts(0.5, 4, schedule=schedule), **local)
    table = np.zeros((TASKS, TASKS))
    for task in range(TASKS):
        made.run(ROUNDS)
        made.executor.network.load(made.model)
        with torch.no_grad():
            right = made.executor.network.module(torch.from_numpy(features)).argmax(1).numpy() == labels
        table[task] = right.reshape(TASKS, -1).mean(axis=1)
    return Course(table)


@cache
def finetuned() -> Course:
    return course(Finetuning(SgdConfig()))


def remembers(found: Course) -> bool:
    return found.forgetting <= 0.02 and found.accuracy > 0.95 and found.accuracy > finetuned().accuracy + 0.4


def test_classes_that_are_gone_are_remembered_and_switches_are_found() -> None:
    rule = Watched(GlfcConfig(memory=MEMORY, detect="entropy"))
    found = course(rule)
    assert remembers(found), found
    # as long as a task is there, nothing of the next one is known
    assert np.triu(found.accuracies, 1).max() < 0.05
    switches = [said for switched, said in rule.notes if switched]
    others = [said for switched, said in rule.notes if not switched]
    assert len(switches) == 2 * SITES and all(switches)
    assert not any(others)


def test_finetuning_forgets() -> None:
    assert not remembers(finetuned())
    assert finetuned().forgetting > 0.8


@pytest.mark.parametrize("fake", [Forgets, KeepsTheFirst])
def test_without_exemplars_or_with_an_old_model_that_stays_classes_are_forgotten(fake: type[Glfc]) -> None:
    found = course(fake(GlfcConfig(memory=MEMORY)))
    assert not remembers(found), found
    assert found.forgetting > 0.04
