"""3D augmentation: one random affine map, resampled once by MONAI; boxes follow in closed form."""

import numpy as np
import numpy.typing as npt

from medfl.data.augment.base import MINIMUM_VISIBLE, AugmentConfig
from medfl.data.base import Array, FloatArray, Sample

Matrix = npt.NDArray[np.float64]


def augment_3d(sample: Sample, config: AugmentConfig, rng: np.random.Generator) -> Sample:
    """A random variant of a sample with image [C, *space]."""
    shape = sample["image"].shape[1:]
    linear, offset = draw_affine(config, shape, rng)
    image, mask = _resample(sample["image"], sample["label"] if np.ndim(sample["label"]) == 3 else None, linear, offset)
    result: Sample = {"image": image, "label": sample["label"] if mask is None else mask}
    if "box" in sample:
        result["box"], kept = move_boxes(sample["box"], shape, linear, offset)
        result["label"] = sample["label"][kept]
    return result


def draw_affine(config: AugmentConfig, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[Matrix, Matrix]:
    """A map of voxels about the image's centre: new - c = linear @ (old - c) + offset."""
    dims, size = len(shape), np.array(shape, np.float64)

    def within(limit: float, n: int) -> Matrix:
        return rng.uniform(-limit, limit, n)

    linear: Matrix = np.diag(1 + within(config.scale, dims))
    shear = np.eye(dims)
    shear[~np.eye(dims, dtype=bool)] = np.tan(np.radians(within(config.shear, dims * (dims - 1)))) / (dims - 1)
    linear = shear @ linear
    for first in range(dims):
        linear = _rotation(dims, first, np.radians(within(config.rotation, 1)[0])) @ linear
    left = 1 - rng.uniform(0, config.crop)
    offset = (within((1 - left) / 2, dims) + within(config.shift, dims)) * size / left
    flips = np.ones(dims)
    for axis in config.flip_axes(dims):
        flips[axis] = rng.choice((-1.0, 1.0))
    return linear @ np.diag(flips) / left, offset


def move_boxes(
    boxes: Array, shape: tuple[int, ...], linear: Matrix, offset: Matrix
) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Boxes [N, 2 * nd] after the map, and which were kept.

    A box stands for the ellipsoid inside it, as lesions are round: the bounding box of its image has the half widths
    h'_i = sqrt(sum_j (A_ij h_j)^2). Boxes with too little left inside the image are dropped.
    """
    edges = np.asarray(boxes, np.float64).reshape(-1, 2, len(shape))
    middle = np.array(shape) / 2
    centre = (edges.mean(axis=1) - middle) @ linear.T + offset + middle
    half = np.sqrt((((edges[:, 1] - edges[:, 0]) / 2) ** 2) @ (linear**2).T)
    moved = np.stack([centre - half, centre + half], axis=1)
    clipped = np.clip(moved, 0, np.array(shape))
    area, left = np.prod(2 * half, axis=1), np.prod(clipped[:, 1] - clipped[:, 0], axis=1)
    kept = np.flatnonzero((left >= MINIMUM_VISIBLE * area) & (left > 0))
    return clipped[kept].reshape(-1, 2 * len(shape)).astype(np.float32), kept


def _rotation(dims: int, first: int, angle: float) -> Matrix:
    """Rotation in the plane of two neighbouring axes."""
    rotation = np.eye(dims)
    plane = np.ix_((first, (first + 1) % dims), (first, (first + 1) % dims))
    rotation[plane] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return rotation


def _resample(
    image: FloatArray, mask: npt.NDArray[np.uint8] | None, linear: Matrix, offset: Matrix
) -> tuple[FloatArray, npt.NDArray[np.uint8] | None]:
    """Image (linear) and mask (nearest) after the map; zero where nothing was."""
    from monai.transforms import Affined

    data: dict[str, Array] = {"image": image}
    if mask is not None:
        data["mask"] = mask[None]
    # MONAI's matrix says where each output voxel comes from.
    inverse = np.linalg.inv(linear)
    pull = np.eye(len(offset) + 1)
    pull[:-1, :-1], pull[:-1, -1] = inverse, -inverse @ offset
    modes = ["bilinear", "nearest"][: len(data)]
    moved = Affined(list(data), affine=pull, mode=modes, padding_mode="zeros")(data)
    result = np.ascontiguousarray(moved["image"].numpy(), np.float32)
    return result, None if mask is None else np.ascontiguousarray(moved["mask"].numpy()[0]).round().astype(np.uint8)
