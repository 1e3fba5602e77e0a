"""Least squares and a small classifier as tasks, with their sample sets in memory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfl.data.base import Array, Sample, SampleInfo, SampleSet, SiteData
from medfl.tasks.base import Metric, Prediction, Statistics, Task, TaskConfig


class Rows:
    """Rows of features [N, d] with targets [N]; `cases` may be smaller than the rows, as with augmentation."""

    def __init__(self, features: Array, targets: Array, cases: int | None = None) -> None:
        self.features = features.astype(np.float32)
        self.targets = targets
        self.cases = len(targets) if cases is None else cases
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Mapping[str, Any]:
        self.asked.append([int(index) for index in indices])
        return {"features": self.features[indices], "targets": self.targets[indices]}

    def info(self, index: int) -> SampleInfo:
        return SampleInfo(str(index), str(index), (1.0,))

    def labels(self) -> npt.NDArray[np.int64]:
        return self.targets.astype(np.int64)


def site(name: str, rows: SampleSet | None) -> SiteData:
    return SiteData(name, {} if rows is None else {"train": rows})


class ToyTask(Task):
    """What the toys have in common."""

    primary = "score"

    def __init__(self, size: int, classes: int = 2) -> None:
        names = tuple(f"class{number}" for number in range(classes))
        super().__init__(TaskConfig(kind="toy", in_channels=size, classes=names))
        self.size = size
        self.classes = classes

    def to_device(self, batch: Mapping[str, Any], device: torch.device) -> Any:
        return {name: torch.from_numpy(np.asarray(values)).to(device) for name, values in batch.items()}

    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        return self.supervised(self.logits(network, batch), batch)

    def logits(self, network: nn.Module, batch: Any) -> Tensor:
        found: Tensor = network(batch["features"])
        return found

    def evaluate(
        self, network: nn.Module, samples: SampleSet, device: torch.device, indices: Sequence[int] | None = None
    ) -> Statistics:
        chosen = np.arange(len(samples)) if indices is None else np.asarray(indices)
        with torch.no_grad():
            loss = float(self.loss(network, self.to_device(samples.batch(chosen), device)))
        return {"loss": np.array([loss * len(chosen), len(chosen)])}

    def empty(self) -> Statistics:
        return {"loss": np.zeros(2)}

    def metrics(self, statistics: Statistics) -> list[Metric]:
        total, count = statistics["loss"]
        return [Metric("loss", total / count, int(count)), Metric("score", -total / count, int(count))]

    def predict(self, network: nn.Module, sample: Sample, info: SampleInfo, device: torch.device) -> Prediction:
        return Prediction({})

    def overlay(self, image: Array, prediction: Prediction, truth: Sample | None, path: Path) -> None:
        pass


class LeastSquares(ToyTask):
    """|A x - b|^2 / 2m, from x = 0."""

    def build(self) -> nn.Module:
        network = nn.Linear(self.size, 1, bias=False)
        nn.init.zeros_(network.weight)
        return network

    def supervised(self, logits: Tensor, batch: Any) -> Tensor:
        squared = (logits[:, 0] - batch["targets"].float()) ** 2
        return (squared * batch.get("weight", 1.0)).mean() / 2


class Classifier(ToyTask):
    """Softmax regression, or one hidden layer, with a teacher of a wider hidden layer."""

    hidden: int | None = None
    teacher: int | None = None

    def build(self) -> nn.Module:
        return self._network(self.hidden)

    def build_local(self) -> nn.Module | None:
        return None if self.teacher is None else self._network(self.teacher)

    def _network(self, hidden: int | None) -> nn.Module:
        if hidden is None:
            return nn.Linear(self.size, self.classes)
        return nn.Sequential(nn.Linear(self.size, hidden), nn.Tanh(), nn.Linear(hidden, self.classes))

    def supervised(self, logits: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(logits, batch["targets"])
