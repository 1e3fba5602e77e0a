"""The detection task: see `medfl.tasks.base.Task` for the contract. torch and MONAI are imported when used."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from medfl.data.base import Array, Sample, SampleInfo, SampleSet
from medfl.errors import DataError, Faults
from medfl.plugins import PluginConfig
from medfl.tasks.base import Metric, Prediction, Statistics, Task
from medfl.tasks.detection import metrics
from medfl.tasks.detection.config import DetectionConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class DetectionBatch:
    """images: [B, C, *s], or a list of [C, *s] when their shapes differ. targets: "box" float32 [N, 2 * nd] and
    "label" int64 [N] an image. dropped: boxes without area that were left out."""

    images: "Tensor | list[Tensor]"
    targets: "list[dict[str, Tensor]]"
    dropped: int


class Detection(Task):
    """RetinaNet lesion detection in 2D and 3D; `build` returns the network alone, which holds all parameters."""

    Config: ClassVar[type[PluginConfig]] = DetectionConfig
    primary: ClassVar[str] = "map_50"

    config: DetectionConfig

    def build(self) -> "nn.Module":
        from medfl.tasks.detection.network import build_network

        return build_network(self.config)

    def to_device(self, batch: Mapping[str, Any], device: "torch.device") -> DetectionBatch:
        """Tensors of a batch. Boxes without area are dropped and counted; DataError for labels that name no class."""
        from medfl.tasks.images import network_input

        images = batch["image"]
        targets, dropped = self._targets(batch["box"], batch["label"], device)
        stacked = isinstance(images, np.ndarray)
        tensors = (
            network_input(images, device, batch.get("statistics"))
            if stacked
            else [network_input(image[None], device)[0] for image in images]
        )
        return DetectionBatch(tensors, targets, dropped)

    def _targets(
        self, boxes: Sequence[Array], labels: Sequence[Array], device: "torch.device"
    ) -> tuple["list[dict[str, Tensor]]", int]:
        import torch

        nd, faults = self.config.spatial_dims, Faults()
        targets, dropped = [], 0
        for i, (box, label) in enumerate(zip(boxes, labels, strict=True)):
            box = np.asarray(box, dtype=np.float32).reshape(-1, 2 * nd)
            label = np.asarray(label, dtype=np.int64).reshape(-1)
            _check_labels(faults, f"image {i} of the batch", len(box), label, self.config.classes)
            solid = (box[:, nd:] > box[:, :nd]).all(axis=1)
            dropped += int((~solid).sum())
            if not len(faults):
                target = {"box": torch.from_numpy(box[solid]), "label": torch.from_numpy(label[solid])}
                targets.append({name: values.to(device) for name, values in target.items()})
        faults.raise_if_any(DataError)
        return targets, dropped

    def loss(self, network: "nn.Module", batch: DetectionBatch) -> "Tensor":
        from medfl.tasks.detection.detector import Detector

        return Detector(network, self.config).training_loss(batch.images, batch.targets)

    def evaluate(
        self, network: "nn.Module", samples: SampleSet, device: "torch.device", indices: Sequence[int] | None = None
    ) -> Statistics:
        """Image by image, so that what is counted for an image depends on no other. The random anchor sampling of the
        loss has a generator of its own: evaluation neither moves nor follows the training's."""
        import torch

        from medfl.tasks.detection.detector import Detector

        statistics = self.empty()
        detector = Detector(network, self.config)
        devices = [device] if device.type == "cuda" else []
        with _inference(network), torch.random.fork_rng(devices):
            for index in range(len(samples)) if indices is None else indices:
                torch.manual_seed(0)
                batch = self.to_device(samples.batch([index]), device)
                outputs = detector.outputs(batch.images, windows=True)
                statistics["loss"] += (float(detector.loss(outputs, batch.targets)), 1.0)
                statistics["dropped"] += batch.dropped
                found, truth = _arrays(detector.boxes(outputs)[0]), _arrays(batch.targets[0])
                metrics.count_image(
                    statistics, found["box"], found["label"], found["label_scores"], truth["box"], truth["label"]
                )
        return statistics

    def empty(self) -> Statistics:
        return metrics.empty(len(self.config.classes))

    def metrics(self, statistics: Statistics) -> list[Metric]:
        return metrics.metrics(statistics, self.config.classes)

    def predict(self, network: "nn.Module", sample: Sample, info: SampleInfo, device: "torch.device") -> Prediction:
        """Boxes [start.., stop..] with the names of their classes as "labels", highest score first."""
        from medfl.tasks.detection.detector import Detector
        from medfl.tasks.images import network_input

        detector = Detector(network, self.config)
        with _inference(network):
            images = network_input(sample["image"][None], device)
            found = _arrays(detector.boxes(detector.outputs(images, windows=True))[0])
        labels = [self.config.classes[label] for label in found["label"]]
        return Prediction({"boxes": found["box"].tolist(), "labels": labels, "scores": found["label_scores"].tolist()})

    def overlay(self, image: Array, prediction: Prediction, truth: Sample | None, path: Path) -> None:
        from medfl.tasks.detection.overlay import draw

        draw(image, prediction, truth, self.config.classes, path)


@contextmanager
def _inference(network: "nn.Module") -> Iterator[None]:
    """Evaluation mode without gradient; afterwards the network is in the mode it was in."""
    import torch

    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(training)


def _arrays(found: "Mapping[str, Tensor]") -> dict[str, npt.NDArray[Any]]:
    """float64 and int64 arrays of a detector's or a target's tensors."""
    return {
        name: values.cpu().numpy().astype(np.float64 if values.is_floating_point() else np.int64)
        for name, values in found.items()
    }


def _check_labels(
    faults: Faults, where: str, boxes: int, labels: npt.NDArray[np.int64], classes: tuple[str, ...]
) -> None:
    if len(labels) != boxes:
        faults.add(where, f"{boxes} boxes but {len(labels)} labels", "give one label a box")
    unknown = sorted({int(label) for label in labels if not 0 <= label < len(classes)})
    if unknown:
        known = ", ".join(f"{number} {name}" for number, name in enumerate(classes))
        faults.add(where, f"labels {unknown} name no class", f"the task's classes are {known}")
