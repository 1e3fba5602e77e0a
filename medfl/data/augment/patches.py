"""Training patches: a window of a fixed size, cut where there is something to learn (nnU-Net: Isensee et al. 2021).

Done before any other operation, so that only the patch is resampled and not the whole volume.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medfl.data.augment.volume import move_boxes
from medfl.data.base import Array, Sample
from medfl.errors import DataError

Indices = npt.NDArray[np.int64]


def cut_patch(sample: Sample, patch: Sequence[int], foreground: float, rng: np.random.Generator) -> Sample:
    """A random window [C, *patch] of a detection or segmentation sample; zero where the image ends.

    With probability `foreground` it holds a whole box (all that fits, of a larger one), or a voxel of a class of the
    mask, each class as often as the others; else, and where there is no foreground, it lies anywhere. An axis
    shorter than the patch is centred. "statistics" are those of the whole image. Raises DataError for another number
    of axes, and for a label of the whole image, which need not hold for a patch.
    """
    shape = sample["image"].shape[1:]
    if len(shape) != len(patch):
        raise DataError.at("image", f"has {len(shape)} space axes, augment.patch has {len(patch)}", "give one for each")
    if np.ndim(sample["label"]) == 0:
        what = "has one label, which need not hold for a patch (augment.patch)"
        raise DataError.at("image", what, "leave patch out for classification")
    start = _start(np.array(shape), np.array(patch), _target(sample, rng) if rng.random() < foreground else None, rng)
    pixels = sample["image"]
    result: Sample = {"image": _window(pixels, start, patch)}
    result["statistics"] = np.array([pixels.mean(), pixels.std()], np.float32)
    if "box" in sample:
        result["box"], kept = move_boxes(sample["box"], tuple(patch), np.eye(len(patch)), -start.astype(np.float64))
        result["label"] = sample["label"][kept]
    else:
        result["label"] = _window(sample["label"], start, patch)
    return result


def _target(sample: Sample, rng: np.random.Generator) -> tuple[Array, Array] | None:
    """Start and stop of a random box, or of a random voxel of the mask; None without foreground."""
    if "box" in sample:
        if not len(sample["box"]):
            return None
        start, stop = np.split(sample["box"][rng.integers(len(sample["box"]))], 2)
        return start, stop
    mask = sample["label"].reshape(-1)
    places = np.flatnonzero(mask)
    if not places.size:
        return None
    # A class first: a small tumour would never be met among the voxels of a liver.
    values = mask[places]
    place = rng.choice(places[values == rng.choice(np.unique(values))])
    voxel = np.array(np.unravel_index(place, sample["label"].shape))
    return voxel, voxel + 1


def _start(shape: Indices, patch: Indices, target: tuple[Array, Array] | None, rng: np.random.Generator) -> Indices:
    """Where the patch starts on each axis; negative where the image is shorter."""
    room = shape - patch
    lowest = np.where(room < 0, -(-room // 2), 0)
    highest = np.maximum(room, lowest)
    if target is not None:
        ends = np.sort([np.ceil(target[1]) - patch, np.floor(target[0])], axis=0).astype(np.int64)
        lowest, highest = np.clip(ends, lowest, highest)
    return rng.integers(lowest, highest, endpoint=True)


def _window(array: Array, start: Indices, patch: Sequence[int]) -> Array:
    """`patch` pixels of the last axes from `start` on: a copy, so that the whole image can be freed."""
    space = array.shape[-len(patch) :]
    axes = list(zip(start.tolist(), patch, space, strict=True))
    channels = array.ndim - len(patch)
    inside = [slice(None)] * channels + [slice(max(first, 0), min(first + size, end)) for first, size, end in axes]
    missing = [(0, 0)] * channels + [(max(-first, 0), max(first + size - end, 0)) for first, size, end in axes]
    return np.pad(array[tuple(inside)], missing)
