"""A stream of classes, as in federated class-incremental learning (Dong et al., "Federated Class-Incremental Learning",
CVPR 2022): the classes come one group, called a task, after the other, and the images of a task are gone when the next
one begins.

    round r trains on   task t = (r - 1) // rounds_per_task, the last one to the end:
                        the site's samples of the classes of task t, and its exemplars of other classes

Exemplars are what a local rule chose to keep ("glfc.exemplars" in the site's private arrays); without such a rule
nothing of earlier tasks is left, and the model forgets them. A site without samples of the present task stays with the
last earlier task that it has some of. What a site trains on follows from its own labels, the round and its private
arrays alone. Costs no bytes.

Tasks name classes in `tasks`, or take `classes_per_task` at a time in the study's order. All outputs of the network are
there from the start, and metrics on validation and test images count all classes: those still to come are wrong.

When a task begins, honest updates are longer than before it by far, and the regulator's `norm_history` may refuse them
for a round or a few, until it has seen that all are: with short tasks use the rules finite and norm_limit. Epochs that
follow the loss (`adacomm`) see it rise again.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from medfl.data.base import Array, SampleSet
from medfl.data.plans.base import DataPlan, Indices
from medfl.errors import DataError, Fault, StudyError
from medfl.plugins import PluginConfig

EXEMPLARS = "glfc.exemplars"
"""A site's private array of exemplars, int64 [2, n]: their indices among its training samples, and their labels."""


class ClassStreamConfig(PluginConfig):
    kind: Literal["class_stream"] = "class_stream"
    tasks: tuple[tuple[str, ...], ...] | None = Field(
        None, min_length=1, description="classes by name, one list a task; null: classes_per_task at a time"
    )
    classes_per_task: int = Field(1, ge=1, description="where tasks is null; the last task may have fewer")
    rounds_per_task: int = Field(10, ge=1, description="rounds after which the next task begins")

    def traits(self) -> frozenset[str]:
        return frozenset({"streams-classes"})

    def tasks_of(self, classes: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """The tasks of a study with these classes."""
        each = self.classes_per_task
        return self.tasks or tuple(tuple(classes[at : at + each]) for at in range(0, len(classes), each))

    def faults(self, classes: Sequence[str]) -> Iterator[Fault]:
        """What is wrong with the tasks in a study with these classes."""
        named = [name for task in self.tasks_of(classes) for name in task]
        for name in dict.fromkeys([*named, *classes]):
            where, count = f"local.plan.tasks: {name}", named.count(name)
            if name not in classes:
                yield Fault(where, "is not a class of the task", f"name these: {', '.join(classes)}")
            elif count != 1:
                yield Fault(where, f"is in {count or 'no'} tasks", "put each class into one task")
        if not all(self.tasks_of(classes)):
            yield Fault("local.plan.tasks", "a task has no classes", "remove it")


class ClassStream(DataPlan[ClassStreamConfig]):
    """The class of a sample is its label, so the task is classification."""

    Config = ClassStreamConfig

    def __init__(self, config: ClassStreamConfig) -> None:
        super().__init__(config)
        self._task_of = np.zeros(0, np.int64)

    def bind(self, classes: Sequence[str], seed: int) -> None:
        faults = list(self.config.faults(classes))
        if faults:
            raise StudyError(*faults)
        numbers = {name: number for number, task in enumerate(self.config.tasks_of(classes)) for name in task}
        self._task_of = np.array([numbers[name] for name in classes])

    def indices(self, site: str, round: int, labels: Indices, state: Mapping[str, Array]) -> Indices:
        tasks = self._tasks(site, labels)
        present = np.flatnonzero(tasks == self.stage(site, round, labels))
        kept = exemplars(site, labels, state)
        return np.union1d(present, kept)

    def stage(self, site: str, round: int, labels: Indices) -> int:
        """The task that the site is at, from 0; that of the round where it has nothing up to then."""
        tasks, now = self._tasks(site, labels), (round - 1) // self.config.rounds_per_task
        return int(tasks[tasks <= now].max(initial=-1)) if (tasks <= now).any() else now

    def unique(self, site: str, round: int, samples: SampleSet, indices: Indices) -> int:
        return len({samples.info(int(index)).key for index in indices})

    def _tasks(self, site: str, labels: Indices) -> Indices:
        """The task [samples] of each sample."""
        wrong = np.unique(labels[(labels < 0) | (labels >= len(self._task_of))])
        if len(wrong):
            raise DataError.at(
                f"site {site}",
                f"has labels {', '.join(map(str, wrong[:5]))}, the study has {len(self._task_of)} classes",
                "labels run from 0 to one less than the number of classes",
            )
        return self._task_of[labels]


def exemplars(site: str, labels: Indices, state: Mapping[str, Array]) -> Indices:
    """The samples [n] that a site keeps as exemplars, the best of each class first; DataError when they are no longer
    those that were chosen. labels: of all its samples."""
    kept = state.get(EXEMPLARS, np.zeros((2, 0), np.int64))
    indices: Indices = kept[0]
    there = (indices >= 0) & (indices < len(labels))
    if not there.all() or not np.array_equal(labels[indices], kept[1]):
        raise DataError.at(
            f"site {site}",
            "the exemplars of earlier classes are no longer where they were: its training images changed",
            "restore the images that the run began with, or start another run",
        )
    return indices
