"""What the tasks' overlays share: an image, or one slice of a volume, on a figure without a window."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medfl.data.base import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """A figure of this size in inches; needs no display and leaves no state behind."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: "Figure", path: Path) -> None:
    """Write a PNG, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, format="png")


def show(axes: Any, image: Array, level: int | None) -> None:
    """Draw an image [C, rows, columns], or slice `level` of a volume [C, *space] seen along its last axis with axis 0
    to the right and axis 1 upwards. Three channels are shown as colours, of any other number the first."""
    axes.set_axis_off()
    plane = flat(image, level)
    shown = np.moveaxis(plane, 0, -1) if len(plane) == 3 else plane[0]
    axes.imshow(_scaled(shown), cmap="gray", origin=origin(level), interpolation="nearest")


def flat(array: Array, level: int | None) -> Array:
    """[.., *space] -> what `show` draws of it: itself in 2D, else the transposed slice `level`."""
    return array if level is None else array[..., level].swapaxes(-1, -2)


def origin(level: int | None) -> str:
    """Where row 0 of an array from `flat` is drawn."""
    return "upper" if level is None else "lower"


def busiest_slice(weight: Array) -> int | None:
    """The slice of the last axis with the largest sum of `weight` [*space]; None for an image of two axes."""
    return int(weight.sum(axis=(0, 1)).argmax()) if weight.ndim == 3 else None


def _scaled(pixels: Array) -> npt.NDArray[np.float64]:
    """To 0..1; a constant image is black."""
    values = np.asarray(pixels, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
