"""Segmentation: a U-Net that travels, a wider one that may stay at the site, Dice and cross entropy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from medfl.data.base import Array, Sample, SampleInfo, SampleSet
from medfl.errors import DataError
from medfl.tasks import pictures
from medfl.tasks.base import Metric, Prediction, Statistics, Task, add
from medfl.tasks.networks.config import UNetConfig
from medfl.tasks.segmentation import metrics
from medfl.tasks.segmentation.config import SegmentationConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_COLOURS = ("#ff7f0e", "#17becf", "#e377c2", "#bcbd22", "#2ca02c", "#9467bd", "#d62728", "#1f77b4")


@dataclass(frozen=True, slots=True)
class Batch:
    """image: float32 [B, C, *space]. label: int64 [B, *space]."""

    image: "Tensor"
    label: "Tensor"


class Segmentation(Task):
    """See `SegmentationConfig` for what can be chosen and `metrics.metrics` for what is reported."""

    Config = SegmentationConfig
    config: SegmentationConfig
    primary: ClassVar[str] = "dice"

    def build(self) -> "nn.Module":
        return self._unet(self.config.network)

    def build_local(self) -> "nn.Module | None":
        return None if self.config.teacher is None else self._unet(self.config.teacher)

    def _unet(self, shape: UNetConfig) -> "nn.Module":
        from medfl.tasks.networks.unet import UNet

        return UNet(
            spatial_dims=self.config.spatial_dims,
            in_channels=self.config.in_channels,
            num_classes=len(self.config.classes),
            width=shape.width,
            depth=shape.depth,
            norm_name=shape.norm,
        )

    def to_device(self, batch: Mapping[str, Any], device: "torch.device") -> Batch:
        """Images [B, C, *space] and masks [B, *space]; lists are padded at the far end to one size, with the
        mean of the image and background, as the network pads. DataError for a mask value that names no class."""
        import torch

        from medfl.tasks.images import network_input

        label = _padded(batch["label"], np.int64)
        known = len(self.config.classes)
        if label.size and not 0 <= label.min() <= label.max() < known:
            raise DataError.at(
                "mask", f"values from {label.min()} to {label.max()}", f"the {known} classes are 0 to {known - 1}"
            )
        image = _padded(batch["image"], np.float32, mean=True)
        return Batch(network_input(image, device, batch.get("statistics")), torch.from_numpy(label).to(device))

    def loss(self, network: "nn.Module", batch: Batch) -> "Tensor":
        return self.supervised(self.logits(network, batch), batch)

    def logits(self, network: "nn.Module", batch: Batch) -> "Tensor":
        logits: Tensor = network(batch.image)
        return logits

    def supervised(self, logits: "Tensor", batch: Batch) -> "Tensor":
        """Cross entropy + 1 - soft Dice of the foreground classes, for logits [B, classes, *space]."""
        loss: Tensor = self._criterion(logits, batch.label[:, None])
        return loss

    @cached_property
    def _criterion(self) -> "nn.Module":
        from monai.losses import DiceCELoss

        criterion: nn.Module = DiceCELoss(
            include_background=False, to_onehot_y=True, softmax=True, batch=self.config.batch_dice
        )
        return criterion

    def evaluate(
        self, network: "nn.Module", samples: SampleSet, device: "torch.device", indices: Sequence[int] | None = None
    ) -> Statistics:
        """Image by image, in the voxels of the preprocessed image and with its spacing."""
        from medfl.tasks.networks.inference import evaluating

        classes = len(self.config.classes)
        total = self.empty()
        with evaluating(network):
            for index in range(len(samples)) if indices is None else indices:
                batch = self.to_device(samples.batch([index]), device)
                logits = self._infer(network, batch.image)
                mask, truth = _mask(logits), batch.label[0].cpu().numpy().astype(np.uint8)
                loss = float(self.supervised(logits, batch))
                spacing = samples.info(index).spacing
                add(total, metrics.of_image(mask, truth, loss, classes, self.config.hausdorff, spacing))
        return total

    def _infer(self, network: "nn.Module", image: "Tensor") -> "Tensor":
        """Logits of an image [1, C, *space], window by window where it is larger than the patch."""
        patch, how = self.config.inference.patch, self.config.inference
        if patch is None or all(n <= p for n, p in zip(image.shape[2:], patch, strict=True)):
            whole: Tensor = network(image)
            return whole
        from monai.inferers import sliding_window_inference

        blended: Tensor = sliding_window_inference(
            image, patch, how.batch, network, overlap=how.overlap, mode="gaussian"
        )
        return blended

    def empty(self) -> Statistics:
        return metrics.empty(len(self.config.classes), self.config.hausdorff)

    def metrics(self, statistics: Statistics) -> list[Metric]:
        return metrics.metrics(statistics, self.config.classes)

    def predict(self, network: "nn.Module", sample: Sample, info: SampleInfo, device: "torch.device") -> Prediction:
        """The mask in the voxels of `sample["image"]`, and {"voxels": {class: count}}."""
        from medfl.tasks.images import network_input
        from medfl.tasks.networks.inference import evaluating

        image = network_input(sample["image"][None], device)
        with evaluating(network):
            mask = _mask(self._infer(network, image))
        counts = np.bincount(mask.ravel(), minlength=len(self.config.classes)).tolist()
        return Prediction({"voxels": dict(zip(self.config.classes, counts, strict=True))}, mask)

    def overlay(self, image: Array, prediction: Prediction, truth: Sample | None, path: Path) -> None:
        """Predicted classes as colours over the image, true outlines dashed; of a volume the axial slice with most
        foreground in truth and prediction."""
        if prediction.mask is None:
            raise DataError.at("prediction", "has no mask", "give a prediction of the segmentation task")
        mask, true = prediction.mask, None if truth is None else np.asarray(truth["label"])
        level = pictures.busiest_slice((mask > 0) + (0 if true is None else (true > 0)))
        figure = pictures.new_figure(6, 6)
        axes = figure.add_subplot()
        pictures.show(axes, image, level)
        for number, name in list(enumerate(self.config.classes))[1:]:
            colour = _COLOURS[(number - 1) % len(_COLOURS)]
            _draw_class(axes, pictures.flat(mask == number, level), colour, filled=True)
            if true is not None:
                _draw_class(axes, pictures.flat(true == number, level), colour, filled=False)
            axes.plot([], [], color=colour, label=name)
        axes.legend(loc="lower right", fontsize=8)
        pictures.save(figure, path)


def _draw_class(axes: Any, shown: Array, colour: str, *, filled: bool) -> None:
    if not shown.any():
        return
    if filled:
        axes.contourf(shown.astype(float), levels=[0.5, 1.5], colors=[colour], alpha=0.4)
    else:
        axes.contour(shown.astype(float), levels=[0.5], colors=[colour], linestyles="dashed", linewidths=1.2)


def _mask(logits: "Tensor") -> npt.NDArray[np.uint8]:
    """[1, C, *space] -> most likely class [*space]."""
    import torch

    mask: npt.NDArray[np.uint8] = logits[0].argmax(dim=0).to(torch.uint8).cpu().numpy()
    return mask


def _padded(arrays: Any, dtype: type[np.generic], mean: bool = False) -> npt.NDArray[Any]:
    """One array [B, ..] of a stacked array, or of a list whose members are padded at the far end: with zeros, or each
    with its own mean."""
    if isinstance(arrays, np.ndarray):
        return np.ascontiguousarray(arrays, dtype=dtype)
    largest = np.max([array.shape for array in arrays], axis=0)
    out = np.zeros((len(arrays), *largest), dtype=dtype)
    for place, array in zip(out, arrays, strict=True):
        if mean:
            place[...] = array.mean()
        place[tuple(slice(n) for n in array.shape)] = array
    return out
