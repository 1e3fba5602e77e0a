"""Classification of whole images: SE-ResNet, balanced cross entropy, additive metrics."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from medfl.data.base import Array, Sample, SampleInfo, SampleSet
from medfl.errors import DataError
from medfl.tasks import pictures
from medfl.tasks.base import Metric, Prediction, Statistics, Task, add
from medfl.tasks.classification import metrics
from medfl.tasks.classification.balance import sample_weights
from medfl.tasks.classification.config import ClassificationConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Batch:
    """image: float32 [B, C, *space]. label: int64 [B]. weight: float32 [B], or None when all count the same."""

    image: "Tensor"
    label: "Tensor"
    weight: "Tensor | None" = None


class Classification(Task):
    """See `ClassificationConfig` for what can be chosen and `metrics.metrics` for what is reported."""

    Config = ClassificationConfig
    config: ClassificationConfig
    primary: ClassVar[str] = "auroc"

    def build(self) -> "nn.Module":
        from medfl.tasks.networks.seresnet import SEResNet

        shape = self.config.network
        layers, bottleneck = shape.blocks()
        return SEResNet(
            spatial_dims=self.config.spatial_dims,
            in_channels=self.config.in_channels,
            layers=layers,
            width=shape.width,
            bottleneck=bottleneck,
            se=shape.se,
            stem=shape.stem,
            stem_pool=shape.stem_pool,
            num_classes=len(self.config.classes),
        )

    def weights(self, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float32] | None:
        """One loss weight a sample, see `ClassificationConfig.class_balance`; DataError for an unknown label."""
        self._check_labels(labels)
        scheme = self.config.class_balance
        return None if scheme == "none" else sample_weights(labels, len(self.config.classes), scheme)

    def to_device(self, batch: Mapping[str, Any], device: "torch.device") -> Batch:
        """Images [B, C, *space], labels [B] and, where given, weights [B]; DataError when image shapes differ
        or a label is unknown."""
        import torch

        from medfl.tasks.images import network_input

        label = np.asarray(batch["label"], dtype=np.int64)
        self._check_labels(label)
        weight = batch.get("weight")
        return Batch(
            network_input(_stacked(batch["image"]), device),
            torch.from_numpy(label).to(device),
            None if weight is None else torch.from_numpy(np.asarray(weight, dtype=np.float32)).to(device),
        )

    def _check_labels(self, labels: npt.NDArray[np.int64]) -> None:
        known = len(self.config.classes)
        wrong = labels[(labels < 0) | (labels >= known)]
        if len(wrong):
            numbers = ", ".join(str(n) for n in np.unique(wrong)[:5])
            raise DataError.at("label", f"class {numbers} of {known} classes", f"labels run from 0 to {known - 1}")

    def loss(self, network: "nn.Module", batch: Batch) -> "Tensor":
        return self.supervised(self.logits(network, batch), batch)

    def logits(self, network: "nn.Module", batch: Batch) -> "Tensor":
        logits: Tensor = network(batch.image)
        return logits

    def supervised(self, logits: "Tensor", batch: Batch) -> "Tensor":
        """mean of weight * cross entropy over the batch, for logits [B, classes]."""
        from torch.nn import functional as F

        smoothing = self.config.label_smoothing
        losses = F.cross_entropy(logits, batch.label, reduction="none", label_smoothing=smoothing)
        return losses.mean() if batch.weight is None else (losses * batch.weight).mean()

    def evaluate(
        self, network: "nn.Module", samples: SampleSet, device: "torch.device", indices: Sequence[int] | None = None
    ) -> Statistics:
        from medfl.tasks.networks.inference import evaluating

        chosen = range(len(samples)) if indices is None else indices
        total = self.empty()
        with evaluating(network):
            for batch in self._batches(samples, chosen, device):
                logits = network(batch.image).cpu().double().numpy()  # Apple's MPS has no float64
                add(total, metrics.of_batch(logits, batch.label.cpu().numpy()))
        return total

    def _batches(self, samples: SampleSet, chosen: Sequence[int], device: "torch.device") -> Iterator[Batch]:
        size = self.config.evaluation_batch
        for start in range(0, len(chosen), size):
            yield self.to_device(samples.batch(chosen[start : start + size]), device)

    def empty(self) -> Statistics:
        return metrics.empty(len(self.config.classes))

    def metrics(self, statistics: Statistics) -> list[Metric]:
        return metrics.metrics(statistics, self.config.classes)

    def predict(self, network: "nn.Module", sample: Sample, info: SampleInfo, device: "torch.device") -> Prediction:
        """{"probabilities": {class: p}}."""
        from medfl.tasks.images import network_input
        from medfl.tasks.networks.inference import evaluating

        with evaluating(network):
            logits = network(network_input(_stacked([sample["image"]]), device))
        probabilities = logits.cpu().double().softmax(dim=1)[0].tolist()
        return Prediction({"probabilities": dict(zip(self.config.classes, probabilities, strict=True))})

    def overlay(self, image: Array, prediction: Prediction, truth: Sample | None, path: Path) -> None:
        """The image (of a volume the slice that varies most) beside a bar a class; the true class is green."""
        figure = pictures.new_figure(7, 3.5)
        left, right = figure.subplots(1, 2)
        pictures.show(left, image, _most_varied_slice(image))
        true = None if truth is None else int(truth["label"])
        names = list(prediction.data["probabilities"])
        values = list(prediction.data["probabilities"].values())
        right.barh(names, values, color=["#2ca02c" if number == true else "#1f77b4" for number in range(len(names))])
        right.set(xlim=(0, 1), xlabel="probability")
        right.invert_yaxis()
        if true is not None:
            left.set_title(f"truth: {self.config.classes[true]}", fontsize=9)
        pictures.save(figure, path)


def _stacked(images: Any) -> npt.NDArray[np.float32]:
    if isinstance(images, np.ndarray):
        return np.ascontiguousarray(images, dtype=np.float32)
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) > 1:
        raise DataError.at(
            "image",
            f"{len(shapes)} shapes in one batch, such as {shapes[0]} and {shapes[1]}",
            "resize images to one size",
        )
    return np.stack([np.asarray(image, dtype=np.float32) for image in images])


def _most_varied_slice(image: Array) -> int | None:
    return int(image.std(axis=(0, 1, 2)).argmax()) if image.ndim == 4 else None
