"""Small trainings of every task over several local epochs, stores that die, and the same training gone on with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medfl.data.base import Array, SampleInfo, SiteData
from medfl.learning.checkpoint import Checkpoint, EpochStore, FileEpochStore
from medfl.learning.executor import SiteExecutor
from medfl.learning.flat import initial_vector
from medfl.learning.messages import TrainOrder, TrainReply
from medfl.learning.optimizers import AdamOptimizer, SgdOptimizer
from medfl.learning.rules.base import RULES
from medfl.tasks.base import TASKS, Task
from medfl.update.memories.base import SiteState
from toys.parts import CPU, configured, local_parts, pipeline, plugin, values

EPOCHS, BATCH = 4, 4


class Images:
    """Noise with a bright square for what is to be found, as arrays in memory."""

    def __init__(self, kind: str, count: int = 10, edge: int = 24) -> None:
        rng = np.random.default_rng(5)
        self.kind, self.cases = kind, count
        self.image = rng.normal(0, 0.3, (count, 1, edge, edge)).astype(np.float32)
        self.present = (rng.random(count) < 0.6).astype(np.int64)
        self.start = rng.integers(2, edge - 10, (count, 2))
        self.mask = np.zeros((count, edge, edge), np.uint8)
        for number in np.flatnonzero(self.present):
            row, column = self.start[number]
            self.mask[number, row : row + 8, column : column + 8] = 1
        self.image += self.mask[:, None] * 2

    def __len__(self) -> int:
        return self.cases

    def batch(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Mapping[str, Any]:
        chosen = np.asarray(indices)
        found: dict[str, Any] = {"image": self.image[chosen], "label": self.present[chosen]}
        if self.kind == "segmentation":
            found["label"] = self.mask[chosen]
        if self.kind == "detection":
            found["box"] = [self._box(number) for number in chosen]
            found["label"] = [np.zeros(self.present[number], np.int64) for number in chosen]
        return found

    def _box(self, number: int) -> Array:
        corners = np.concatenate([self.start[number], self.start[number] + 8])
        return corners.astype(np.float32)[None][: self.present[number]]

    def info(self, index: int) -> SampleInfo:
        return SampleInfo(str(index), str(index), (1.0, 1.0))

    def labels(self) -> npt.NDArray[np.int64]:
        return self.present


TASK_SETTINGS: dict[str, dict[str, Any]] = {
    "classification": {
        "classes": ("normal", "pneumonia"),
        "network": {"layers": [1, 1], "width": 4, "stem": "small"},
    },
    # the loss that draws anchors from torch's generator
    "detection": {
        "classes": ("lesion",),
        "backbone": {"layers": (1, 1), "width": 8},
        "pyramid_channels": 16,
        "anchors": ((6.0, 6.0), (8.0, 8.0)),
        "class_loss": "bce_hard_negative",
        "sampler": {"samples": 16, "min_negatives": 4, "pool_size": 4.0},
    },
    "segmentation": {
        "classes": ("background", "liver"),
        "network": {"width": 4, "depth": 1},
        "teacher": {"width": 16, "depth": 1},
    },
}

LOCAL: dict[str, dict[str, Any]] = {
    "classification": {"optimizer": AdamOptimizer(), "gradient_clip": 1.0},
    "detection": {"optimizer": SgdOptimizer(momentum=0.9)},
    "segmentation": {
        "optimizer": SgdOptimizer(momentum=0.9, nesterov=True),
        "rules": [plugin(RULES, "distillation", teacher_learning_rate=0.02), plugin(RULES, "fedprox", mu=0.1)],
        "pipeline": pipeline("fp16", "error_feedback"),
    },
}


@dataclass
class Training:
    """One site's order, to be trained as often as wanted; every time by a new executor, as in a new process."""

    task: Task
    samples: Any
    local: dict[str, Any] = field(default_factory=dict)
    epochs: float = EPOCHS
    state: SiteState = field(default_factory=dict)
    rate: float = 0.01
    round: int = 2

    @classmethod
    def of(cls, kind: str) -> "Training":
        task = TASKS.build(configured(TASKS, kind, **TASK_SETTINGS[kind]))
        return cls(task, Images(kind), LOCAL[kind])

    def run(self, store: EpochStore | None = None, **more: Any) -> tuple[TrainReply, SiteState]:
        executor = SiteExecutor(local_parts(self.task, batch_size=BATCH, **self.local), CPU)
        model, _ = initial_vector(self.task, 1)
        state = {name: array.copy() for name, array in self.state.items()}
        order = TrainOrder("a", self.round, values(self.rate, self.epochs, fedprox__mu=0.1))
        data = SiteData("a", {"train": self.samples})
        return executor.train(data, order, model, state, checkpoints=store, **more), state


def same(one: tuple[TrainReply, SiteState], other: tuple[TrainReply, SiteState]) -> bool:
    """Whether two trainings cannot be told apart by update, report or what stays at the site."""

    def content(result: tuple[TrainReply, SiteState]) -> list[Any]:
        reply, state = result
        assert reply.payload is not None
        report = [reply.steps, reply.epochs, reply.cases, reply.loss_start, reply.loss]
        kept = {name: (array.dtype, array.shape, array.tobytes()) for name, array in state.items()}
        return [[bytes(buffer) for buffer in reply.payload.buffers], report, kept]

    return content(one) == content(other)


class Dying(FileEpochStore):
    """Ends the process right after its `last` save."""

    def __init__(self, path: Path, last: int) -> None:
        super().__init__(path, "run", min_seconds=0)
        self.left = last

    def save(self, key: str, checkpoint: Checkpoint) -> None:
        super().save(key, checkpoint)
        self.left -= 1
        if not self.left:
            raise SystemExit


class Forgetful(FileEpochStore):
    """The fake: gives back a checkpoint that `forget` has taken something from."""

    def __init__(self, path: Path, forget: Any) -> None:
        super().__init__(path, "run", min_seconds=0)
        self.forget = forget

    def load(self, key: str) -> Checkpoint | None:
        found = super().load(key)
        assert found is not None
        return Checkpoint(found.step, found.setup, self.forget(dict(found.arrays)))
