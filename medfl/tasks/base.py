"""The Task contract: samples in, network, loss and metrics out. The only layer that sees networks.

A task is stateless apart from its configuration: networks are built by it and handed back to it. Everything a
task reports is *additive*: `evaluate` returns sums (counts, histograms, confusion tables) that may be added over
batches, sites and, later, under a secure sum; `metrics` turns a sum into numbers. So the metric of all sites
together is exact, never a mean of means, and every number comes with its support `n`.

Networks hold no running statistics (GroupNorm or InstanceNorm): nothing but parameters travels. A configuration whose
network has some says so by the trait "running-statistics", and is refused before anything is built.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from medfl.data.base import Array, Sample, SampleInfo, SampleSet
from medfl.plugins import Plugin, PluginConfig, PluginPoint

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Statistics = dict[str, npt.NDArray[np.float64]]
"""Additive sums by name. Shapes depend only on the configuration, never on the data."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One number with its support. class_name "" means over all classes. value is NaN when n is 0."""

    name: str
    value: float
    n: int
    class_name: str = ""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the network says about one image, in the pixels of the image as the reader returned it.

    data: JSON-able content (classification: {"probabilities": {class: p}}; detection: {"boxes": [..], "labels": [..],
    "scores": [..]}; segmentation: {"voxels": {class: count}}). mask: uint8 [*space] for segmentation, else None.
    """

    data: Mapping[str, Any]
    mask: npt.NDArray[np.uint8] | None = None


class TaskConfig(PluginConfig):
    """What every task knows: its dimension, its input channels and its classes."""

    spatial_dims: int = 2
    in_channels: int = 1
    classes: tuple[str, ...]


class Task(Plugin[TaskConfig], ABC):
    """See the module docstring. Batches are what `SampleSet.batch` returns, moved by `to_device`."""

    primary: ClassVar[str]
    """Name of the metric that target, patience and the report's headline use; larger is better."""

    @abstractmethod
    def build(self) -> "nn.Module":
        """The network whose parameters are shared. Initialised from torch's global generator: seed it first."""

    def build_local(self) -> "nn.Module | None":
        """The network that stays at the site (a teacher), or None."""
        return None

    @abstractmethod
    def to_device(self, batch: Mapping[str, Any], device: "torch.device") -> Any:
        """Collate: turn numpy arrays into the tensors that `loss` takes."""

    @abstractmethod
    def loss(self, network: "nn.Module", batch: Any) -> "Tensor":
        """Mean training loss of a batch, a scalar with gradient. The network is in train mode."""

    def weights(self, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float32] | None:
        """One loss weight a sample, from the labels [N] of all training samples of a site (`SampleSet.labels()`), with
        mean 1; None when every sample counts the same. Who assembles batches puts the weights of a batch's samples
        under "weight" before `to_device`; the labels themselves never leave the site."""
        return None

    def logits(self, network: "nn.Module", batch: Any) -> "Tensor":
        """Raw outputs [B, classes, ..] for distillation; tasks without logits refuse."""
        raise NotImplementedError(f"{self.config.kind} has no logits")

    def supervised(self, logits: "Tensor", batch: Any) -> "Tensor":
        """The training loss from `logits`, so that distillation runs the network once."""
        raise NotImplementedError(f"{self.config.kind} has no logits")

    @abstractmethod
    def evaluate(
        self, network: "nn.Module", samples: SampleSet, device: "torch.device", indices: Sequence[int] | None = None
    ) -> Statistics:
        """Additive statistics over the given samples (all when None), without gradient. Always contains "loss" as
        [sum, count]. Leaves the network in the mode it was in."""

    @abstractmethod
    def empty(self) -> Statistics:
        """The statistics of no sample: zeros of the right shapes."""

    @abstractmethod
    def metrics(self, statistics: Statistics) -> list[Metric]:
        """The metrics of a sum of statistics; includes "loss" and `primary`. Overall metrics first, then by class."""

    @abstractmethod
    def predict(self, network: "nn.Module", sample: Sample, info: SampleInfo, device: "torch.device") -> Prediction:
        """The prediction for one preprocessed image; coordinates are those of `sample["image"]`."""

    @abstractmethod
    def overlay(self, image: Array, prediction: Prediction, truth: Sample | None, path: Path) -> None:
        """Write a PNG of the image [C, *space] with the prediction (and truth, if given) drawn over it; for volumes
        the slice that shows most. Uses matplotlib."""


def fits(part: Statistics, empty: Statistics) -> bool:
    """Whether statistics that somebody sent are a task's: `empty`'s names and shapes, and finite counts."""
    return part.keys() == empty.keys() and all(
        values.shape == empty[name].shape and bool(np.isfinite(values).all()) and bool((values >= 0).all())
        for name, values in part.items()
    )


def add(total: Statistics, part: Statistics) -> None:
    """Add `part` to `total` in place; KeyError or ValueError when they are not of the same task."""
    if total.keys() != part.keys():
        raise KeyError(f"statistics differ: {sorted(total.keys() ^ part.keys())}")
    for name, values in part.items():
        total[name] += values


TASKS = PluginPoint(
    "task",
    "medfl.tasks",
    {
        "classification": "medfl.tasks.classification:Classification",
        "detection": "medfl.tasks.detection:Detection",
        "segmentation": "medfl.tasks.segmentation:Segmentation",
    },
)
