"""Segmentation: what an image adds to the statistics, and what the statistics say.

Policy for empty masks: where a class is neither in the truth nor in the prediction, the image does not count for that
class. Where it is in one of both, Dice is 0 and the Hausdorff distance is the diagonal of the image.
"""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medfl.tasks.base import Metric, Statistics

Mask = npt.NDArray[np.uint8]

_DISTANCE_PERCENTILE = 95


def empty(classes: int, hausdorff: bool) -> Statistics:
    """Zeros. "loss" [sum, count]; "cases" [1]: images with foreground in truth or prediction; for each foreground class
    "dice" and "hd95" [C - 1, sum|count] over the images that count for it, "voxels" [C - 1, both|predicted|true]."""
    foreground = classes - 1
    found = {
        "loss": np.zeros(2),
        "cases": np.zeros(1),
        "dice": np.zeros((foreground, 2)),
        "voxels": np.zeros((foreground, 3)),
    }
    return found | {"hd95": np.zeros((foreground, 2))} if hausdorff else found


def of_image(
    predicted: Mask, truth: Mask, loss: float, classes: int, hausdorff: bool, spacing: Sequence[float]
) -> Statistics:
    """Statistics of one image: masks [*space], its loss, and its spacing in mm a voxel."""
    found = empty(classes, hausdorff)
    found["loss"][:] = loss, 1.0
    found["cases"][0] = float(predicted.any() or truth.any())
    for number in range(1, classes):
        ours, theirs = predicted == number, truth == number
        both, ours_size, true_size = (ours & theirs).sum(), ours.sum(), theirs.sum()
        found["voxels"][number - 1] = both, ours_size, true_size
        if ours_size + true_size:
            found["dice"][number - 1] = 2.0 * both / (ours_size + true_size), 1.0
            if hausdorff:
                found["hd95"][number - 1] = hausdorff_95(ours, theirs, spacing), 1.0
    return found


def hausdorff_95(predicted: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_], spacing: Sequence[float]) -> float:
    """95th percentile of the Hausdorff distance in mm (MONAI); the diagonal of the image when a mask is empty."""
    if not predicted.any() or not truth.any():
        return math.dist([0.0] * truth.ndim, [n * mm for n, mm in zip(truth.shape, spacing, strict=True)])
    import torch
    from monai.metrics import compute_hausdorff_distance

    masks = [torch.from_numpy(np.stack([~mask, mask])[None].astype(np.float32)) for mask in (predicted, truth)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)  # MONAI 1.6 warns of its own call
        distance = compute_hausdorff_distance(*masks, percentile=_DISTANCE_PERCENTILE, spacing=list(spacing))
    return float(distance[0, 0])


def metrics(statistics: Statistics, classes: Sequence[str]) -> list[Metric]:
    """Metrics of all foreground classes together, then of each.

    "dice" is the mean over images (case-wise), "hd95" too, in mm; "iou" and "global_dice" come from the voxels of all
    images together. Overall values are means over the classes that have a value. n counts images; that of "iou" and
    "global_dice" too. What is undefined is NaN with n = 0.
    """
    columns = _columns(statistics)
    total, count = statistics["loss"]
    images = round(float(statistics["cases"][0]))
    overall = [Metric(name, _mean(values), images) for name, (values, _) in columns.items()]
    loss = Metric("loss", float(total / count) if count else math.nan, round(float(count)))
    by_class = [
        Metric(name, float(values[number]), round(float(support[number])), class_name)
        for number, class_name in enumerate(classes[1:])
        for name, (values, support) in columns.items()
    ]
    return [*overall, loss, *by_class]


_Column = npt.NDArray[np.float64]


def _columns(statistics: Statistics) -> dict[str, tuple[_Column, _Column]]:
    """name -> values [C - 1], NaN where undefined, and images that count [C - 1]."""
    images = statistics["dice"][:, 1]
    both, ours, theirs = statistics["voxels"].T
    values = {name: _ratio(*sums.T) for name, sums in statistics.items() if name in ("dice", "hd95")}
    values["iou"] = _ratio(both, ours + theirs - both)
    values["global_dice"] = _ratio(2.0 * both, ours + theirs)
    return {name: (column, images) for name, column in values.items()}


def _ratio(part: _Column, whole: _Column) -> _Column:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _mean(values: _Column) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else math.nan
