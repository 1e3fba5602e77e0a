"""Predicted and true boxes drawn over an image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from medfl.data.base import Array, Sample
from medfl.tasks.base import Prediction

_COLOURS = ("#ff7f0e", "#17becf", "#e377c2", "#bcbd22", "#2ca02c", "#9467bd", "#d62728", "#1f77b4")
_PLATE = {"facecolor": "black", "alpha": 0.6, "pad": 0.8, "linewidth": 0}


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A box [2 * nd] with the number of its class, its caption and its line style."""

    box: npt.NDArray[np.float64]
    label: int
    caption: str
    line: str


def draw(image: Array, prediction: Prediction, truth: Sample | None, classes: Sequence[str], path: Path) -> None:
    """Write a PNG of the image [C, *s]: predictions solid with their score, truth dashed, one colour a class.

    A volume is shown by the axial slice that most boxes cross, axis 0 to the right and axis 1 upwards. Three channels
    are shown as colours, of any other number the first.
    """
    drawn = [*_predicted(prediction.data, classes), *_true(truth, classes)]
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    if image.ndim == 4:
        level = most_crossed([item.box for item in drawn], image.shape[3])
        axes.set_title(f"slice {level} of {image.shape[3]}", fontsize=9)
        axes.imshow(_pixels(image[..., level]).swapaxes(0, 1), cmap="gray", origin="lower", interpolation="nearest")
        crossing = [item for item in drawn if item.box[2] <= level < item.box[5]]
        _add(axes, [(item, item.box[[0, 1, 3, 4]]) for item in crossing])
    else:
        axes.imshow(_pixels(image), cmap="gray", interpolation="nearest")
        _add(axes, [(item, item.box[[1, 0, 3, 2]]) for item in drawn])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, format="png")


def most_crossed(boxes: Sequence[npt.NDArray[np.float64]], depth: int) -> int:
    """The slice of the last axis that most boxes [6] cross, the middle one of several or when there is no box."""
    crossed = np.zeros(depth, dtype=np.int64)
    for box in boxes:
        crossed[max(0, int(np.ceil(box[2]))) : max(0, int(np.ceil(box[5])))] += 1
    most = np.flatnonzero(crossed == crossed.max())
    return int(most[len(most) // 2])


def _predicted(data: Any, classes: Sequence[str]) -> Iterator[_Drawn]:
    for box, label, score in zip(data["boxes"], data["labels"], data["scores"], strict=True):
        yield _Drawn(np.asarray(box, dtype=np.float64), classes.index(label), f"{label} {score:.2f}", "-")


def _true(truth: Sample | None, classes: Sequence[str]) -> Iterator[_Drawn]:
    if truth is not None:
        for box, label in zip(truth["box"], truth["label"], strict=True):
            yield _Drawn(np.asarray(box, dtype=np.float64), int(label), classes[int(label)], "--")


def _add(axes: Axes, drawn: Sequence[tuple[_Drawn, npt.NDArray[np.float64]]]) -> None:
    """Draw boxes given as (x0, y0, x1, y1); pixel centres lie at whole numbers, so edges are half a pixel less."""
    for item, (x0, y0, x1, y1) in drawn:
        colour = _COLOURS[item.label % len(_COLOURS)]
        frame = Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linestyle=item.line)
        axes.add_patch(frame)
        if item.line == "-":
            axes.text(x0, y0, item.caption, color=colour, fontsize=6, va="bottom", clip_on=True, bbox=_PLATE)


def _pixels(image: Array) -> npt.NDArray[np.float64]:
    """[C, *s] -> [*s] or, for three channels, [*s, 3], scaled to 0..1."""
    shown = np.moveaxis(image, 0, -1) if len(image) == 3 else image[0]
    shown = np.asarray(shown, dtype=np.float64)
    low, high = float(shown.min()), float(shown.max())
    return (shown - low) / (high - low) if high > low else np.zeros_like(shown)
