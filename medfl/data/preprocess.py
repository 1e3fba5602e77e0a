"""Preprocessing: from what a reader returns to the array that a network sees, and back.

The grid of a preprocessed image is the image's own grid, scaled axis by axis and, where both a spacing and a size
are asked for, centre-cropped or zero-padded. `Grid` holds that map; predictions go back through it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from medfl.data.base import Array, Case, FloatArray, Image, Sample
from medfl.data.readers import read_image, read_mask
from medfl.errors import DataError, Faults

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in a grey value (ITU-R BT.601)."""

Positive = Annotated[float, Field(gt=0)]


class _Ordered(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    lower: float
    upper: float

    @model_validator(mode="after")
    def _rises(self) -> "_Ordered":
        if not self.lower < self.upper:
            raise ValueError(f"lower {self.lower} must be below upper {self.upper}")
        return self


class Percentile(_Ordered):
    """Clip to two percentiles of the image and scale them to 0..1; `by_channel` for images of several contrasts."""

    kind: Literal["percentile"] = "percentile"
    lower: float = Field(0.5, ge=0, le=100)
    upper: float = Field(99.5, ge=0, le=100)
    by_channel: bool = False


class Window(_Ordered):
    """Clip to a window of the file's own scale (HU for CT) and scale it to 0..1."""

    kind: Literal["window"] = "window"


class Scale(BaseModel):
    """Scale the image's minimum and maximum to 0..1."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["scale"] = "scale"


class Unchanged(BaseModel):
    """Leave the file's own values."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["none"] = "none"


Intensity = Annotated[Percentile | Window | Scale | Unchanged, Field(discriminator="kind")]


class PreprocessConfig(BaseModel):
    """How images become arrays of one kind.

    size: pixels of each space axis to resize to. spacing: mm a pixel to resample to. With both, the image is
    resampled to the spacing and then centre-cropped or zero-padded to the size, so that millimetres stay
    millimetres; labels outside the crop are lost and counted. Null leaves the file's grid.
    channels: 1 turns RGB into grey, 3 repeats a grey image; any other number must be the file's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    spacing: tuple[Positive, ...] | None = None
    channels: int = Field(1, ge=1)
    intensity: Intensity = Percentile()

    @model_validator(mode="after")
    def _same_dims(self) -> "PreprocessConfig":
        dims = {len(axes) for axes in (self.size, self.spacing) if axes is not None}
        if not dims <= {2, 3} or len(dims) > 1:
            raise ValueError("size and spacing need one number for each of the 2 or 3 space axes")
        return self


@dataclass(frozen=True, slots=True)
class Grid:
    """The map between an image's pixels and the preprocessed array's: new = old * scale + shift, edge coordinates.

    shape: the image's. scaled: after resampling. target: of the array. corner: where, for each axis, the resampled
    image starts in the array (negative where it is cropped).
    """

    shape: tuple[int, ...]
    scaled: tuple[int, ...]
    target: tuple[int, ...]

    @property
    def corner(self) -> tuple[int, ...]:
        return tuple((t - s) // 2 for t, s in zip(self.target, self.scaled, strict=True))

    @property
    def scale(self) -> npt.NDArray[np.float64]:
        scale: npt.NDArray[np.float64] = np.array(self.scaled) / np.array(self.shape)
        return scale


@dataclass(frozen=True, slots=True)
class Prepared:
    """A preprocessed case. spacing: mm a pixel of the sample. lost: boxes, or classes of the mask, that were cropped
    away or shrank to nothing."""

    sample: Sample
    spacing: tuple[float, ...]
    lost: int


def grid_of(image: Image, config: PreprocessConfig) -> Grid:
    """The grid that `config` gives this image; DataError when it has the wrong number of axes."""
    shape = image.array.shape[1:]
    for axes in (config.size, config.spacing):
        if axes is not None and len(axes) != len(shape):
            raise DataError.at("image", f"has {len(shape)} space axes, preprocessing has {len(axes)}")
    if config.spacing is None:
        scaled = config.size or shape
        return Grid(shape, scaled, scaled)
    scaled = tuple(
        max(1, round(n * old / new)) for n, old, new in zip(shape, image.spacing, config.spacing, strict=True)
    )
    return Grid(shape, scaled, config.size or scaled)


def preprocess_image(image: Image, config: PreprocessConfig) -> FloatArray:
    """The network's input: float32 [channels, *target], contiguous. DataError for NaN, infinity or no pixels."""
    grid = grid_of(image, config)
    pixels = _channels(np.asarray(image.array, np.float32), config.channels)
    if not pixels.size or not np.isfinite(pixels).all():
        bad = np.count_nonzero(~np.isfinite(pixels))
        raise DataError.at("image", f"{bad} of {pixels.size} values are not finite", "export the image again")
    resized = np.stack([_resize(channel, grid.scaled) for channel in pixels])
    return np.ascontiguousarray(_place(_scale_intensity(resized, pixels, config.intensity), grid), np.float32)


def preprocess(case: Case, config: PreprocessConfig, task: str, classes: Sequence[str]) -> Prepared:
    """Read one case and make its sample (see `medfl.data.base.Sample`).

    Raises DataError, naming the case, for an unreadable or unlabelled image, values that are not finite, a mask of
    another shape, unknown label values and boxes that are no boxes.
    """
    image = read_image(case)
    try:
        grid = grid_of(image, config)
        sample: Sample = {"image": preprocess_image(image, config)}
        lost = 0
        if task == "classification":
            sample["label"] = np.int64(_class_number(case.label, classes))
        elif task == "detection":
            sample["box"], sample["label"], lost = _boxes(case, grid, len(classes))
        else:
            sample["label"], lost = _mask(case, grid, len(classes))
    except DataError as error:
        faults = Faults()
        for fault in error.faults:
            faults.add(f"{case.key}, {fault.where}", fault.what, fault.remedy)
        raise DataError(*faults) from error
    ratio = np.array(grid.shape) / np.array(grid.scaled)
    return Prepared(sample, tuple(float(mm * r) for mm, r in zip(image.spacing, ratio, strict=True)), lost)


def restore_mask(mask: npt.NDArray[np.uint8], image: Image, config: PreprocessConfig) -> npt.NDArray[np.uint8]:
    """A label mask [*target] on the preprocessed grid as one on the image's own pixels [*space]; 0 outside."""
    grid = grid_of(image, config)
    _require_shape(mask.shape, grid.target)
    placed = np.zeros(grid.scaled, np.uint8)
    inside, outside = _overlap(grid)
    placed[outside] = mask[inside]
    return np.ascontiguousarray(_nearest(placed, grid.shape))


def restore_boxes(boxes: Array, image: Image, config: PreprocessConfig) -> FloatArray:
    """Boxes [N, 2 * nd] on the preprocessed grid as boxes in the image's own pixels, clipped to the image."""
    grid = grid_of(image, config)
    edges = np.asarray(boxes, np.float64).reshape(-1, 2, len(grid.shape))
    edges = np.clip((edges - np.array(grid.corner)) / grid.scale, 0, np.array(grid.shape))
    restored: FloatArray = edges.reshape(-1, 2 * len(grid.shape)).astype(np.float32)
    return restored


def _channels(pixels: FloatArray, wanted: int) -> FloatArray:
    have = pixels.shape[0]
    if have == wanted:
        return pixels
    if (have, wanted) == (3, 1):
        grey: FloatArray = np.tensordot(LUMINANCE, pixels, 1)[None]
        return grey
    if have == 1 and wanted == 3:
        return np.repeat(pixels, wanted, axis=0)
    raise DataError.at("image", f"has {have} channels, preprocessing has {wanted}", "set the task's channels")


def _resize(channel: FloatArray, target: tuple[int, ...]) -> FloatArray:
    """Linear interpolation, pixel edges on pixel edges, low-passed along axes that shrink."""
    if channel.shape == target:
        return channel
    from scipy import ndimage

    factor = np.array(channel.shape) / np.array(target)
    smoothed = ndimage.gaussian_filter(channel, np.maximum(0, (factor - 1) / 2), mode="nearest")
    result: FloatArray = ndimage.zoom(smoothed, 1 / factor, order=1, mode="nearest", grid_mode=True)
    _require_shape(result.shape, target)
    return result


def _nearest(mask: Array, target: tuple[int, ...]) -> Array:
    """Nearest neighbour: new pixel i takes the value under its centre."""
    if mask.shape == target:
        return mask
    picks = [
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.intp), old - 1)
        for old, new in zip(mask.shape, target, strict=True)
    ]
    return mask[np.ix_(*picks)]


def _place(array: Array, grid: Grid) -> Array:
    """Crop or zero-pad [C, *scaled] to [C, *target]."""
    if grid.scaled == grid.target:
        return array
    result = np.zeros((len(array), *grid.target), array.dtype)
    inside, outside = _overlap(grid)
    result[(slice(None), *inside)] = array[(slice(None), *outside)]
    return result


def _overlap(grid: Grid) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where the resampled image lies in the target, and which part of it."""
    inside, outside = [], []
    for corner, scaled, target in zip(grid.corner, grid.scaled, grid.target, strict=True):
        start, stop = max(0, corner), min(target, corner + scaled)
        inside.append(slice(start, stop))
        outside.append(slice(start - corner, stop - corner))
    return tuple(inside), tuple(outside)


def _scale_intensity(resized: FloatArray, pixels: FloatArray, how: Intensity) -> FloatArray:
    """The limits come from the original pixels, so that they do not depend on the target grid."""
    if isinstance(how, Unchanged):
        return resized
    if isinstance(how, Window):
        low, high = np.float32(how.lower), np.float32(how.upper)
    elif isinstance(how, Scale):
        low, high = pixels.min(), pixels.max()
    else:
        axes = tuple(range(1, pixels.ndim)) if how.by_channel else None
        low, high = np.percentile(pixels, (how.lower, how.upper), axis=axes, keepdims=how.by_channel)
    span = np.maximum(high - low, np.finfo(np.float32).tiny)
    result: FloatArray = np.clip((resized - low) / span, 0, 1).astype(np.float32)
    return result


def _class_number(label: object, classes: Sequence[str]) -> int:
    if not isinstance(label, int | np.integer) or isinstance(label, bool):
        raise DataError.at("label", "is missing or no class number", "give the image a label or leave it out")
    if not 0 <= label < len(classes):
        raise DataError.at("label", f"{label} is none of the {len(classes)} classes", "correct the label")
    return int(label)


def _boxes(case: Case, grid: Grid, classes: int) -> tuple[FloatArray, npt.NDArray[np.int64], int]:
    """Boxes [N, 2 * nd] and labels [N] on the new grid, and how many boxes vanished."""
    if case.boxes is None or not isinstance(case.label, tuple):
        raise DataError.at("boxes", "are missing", "give an image without lesions an empty list")
    dims = len(grid.shape)
    faults = Faults()
    if len(case.boxes) != len(case.label):
        faults.add("boxes", f"there are {len(case.boxes)} boxes and {len(case.label)} labels", "give each box a label")
    for number, box in enumerate(case.boxes):
        if len(box) != 2 * dims or not np.isfinite(box).all():
            faults.add(f"box {number}", f"{list(box)} is not {2 * dims} finite numbers", "correct the box")
        elif any(start > stop for start, stop in zip(box[:dims], box[dims:], strict=True)):
            faults.add(f"box {number}", f"{list(box)} ends before it starts", "give starts, then stops")
    for value in sorted({value for value in case.label if not 0 <= value < classes}):
        faults.add("label", f"{value} is none of the {classes} classes", "correct the label")
    faults.raise_if_any(DataError)
    edges = np.array(case.boxes, np.float64).reshape(-1, 2, dims) * grid.scale + np.array(grid.corner)
    edges = np.clip(edges, 0, np.array(grid.target))
    keep = (edges[:, 1] > edges[:, 0]).all(axis=1)
    boxes: FloatArray = edges[keep].reshape(-1, 2 * dims).astype(np.float32)
    return boxes, np.array(case.label, np.int64)[keep], int((~keep).sum())


def _mask(case: Case, grid: Grid, classes: int) -> tuple[npt.NDArray[np.uint8], int]:
    """The mask uint8 [*target], and how many classes of the image vanished from it."""
    if not isinstance(case.label, Path):
        raise DataError.at("mask", "is missing", "give the image a mask or leave it out")
    mask = read_mask(case.label).array[0]
    if mask.shape != grid.shape:
        raise DataError.at("mask", f"has shape {mask.shape}, the image {grid.shape}", "draw it on the same grid")
    present = np.unique(mask)
    unknown = present[(present < 0) | (present >= classes)]
    if unknown.size:
        known = f"the classes are 0 to {classes - 1}"
        raise DataError.at("mask", f"has unknown label values {unknown[:10].tolist()}", known)
    result = np.ascontiguousarray(_place(_nearest(mask.astype(np.uint8), grid.scaled)[None], grid)[0])
    return result, len(present) - len(np.intersect1d(present, result))


def _require_shape(shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if shape != wanted:
        raise DataError.at("image", f"has shape {shape} where {wanted} is needed")
