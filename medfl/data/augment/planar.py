"""2D augmentation by albumentations."""

import os
from functools import lru_cache
from typing import Any

import numpy as np

from medfl.data.augment.base import MINIMUM_VISIBLE, AugmentConfig
from medfl.data.base import Sample

# Without this, importing albumentations asks a server on the internet for its newest version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

_BLANK = np.zeros((0, 4), np.float32)


def augment_2d(sample: Sample, config: AugmentConfig, seed: int) -> Sample:
    """A random variant of a sample with image [C, rows, columns]."""
    image = sample["image"]
    compose = _compose(config, image.shape[1:])
    compose.set_random_seed(seed)
    boxes = sample.get("box", _BLANK)
    arguments: dict[str, Any] = {
        "image": np.ascontiguousarray(image.transpose(1, 2, 0)),
        "bboxes": boxes[:, [1, 0, 3, 2]],
        "numbers": np.arange(len(boxes)),
    }
    if np.ndim(sample["label"]) == 2:
        arguments["mask"] = sample["label"]
    moved = compose(**arguments)
    pixels = moved["image"].reshape(*image.shape[1:], -1)
    result: Sample = {"image": np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32), "label": sample["label"]}
    if "mask" in arguments:
        result["label"] = np.ascontiguousarray(moved["mask"])
    if "box" in sample:
        kept = np.asarray(moved["numbers"], np.int64)
        result["box"] = np.asarray(moved["bboxes"], np.float32).reshape(-1, 4)[:, [1, 0, 3, 2]]
        result["label"] = sample["label"][kept]
    return result


@lru_cache(maxsize=64)
def _compose(config: AugmentConfig, shape: tuple[int, int]) -> Any:
    import albumentations as A
    import cv2

    flips = {0: A.VerticalFlip, 1: A.HorizontalFlip}
    steps: list[Any] = [flips[axis](p=0.5) for axis in config.flip_axes(2)]
    if config.crop:
        low = (1 - config.crop) ** 2
        aspect = shape[1] / shape[0]
        steps.append(
            A.RandomResizedCrop(
                size=shape,
                scale=(low, 1.0),
                ratio=(aspect * 0.95, aspect / 0.95),
                mask_interpolation=cv2.INTER_NEAREST_EXACT,
                p=1.0,
            )
        )
    if config.shift or config.rotation or config.scale or config.shear:
        steps.append(
            A.Affine(
                translate_percent=(-config.shift, config.shift),
                rotate=(-config.rotation, config.rotation),
                scale=(1 - config.scale, 1 + config.scale),
                shear=(-config.shear, config.shear),
                rotate_method="ellipse",
                border_mode=cv2.BORDER_CONSTANT,
                p=1.0,
            )
        )
    params = A.BboxParams(format="pascal_voc", min_visibility=MINIMUM_VISIBLE, label_fields=["numbers"], clip=True)
    return A.Compose(steps, bbox_params=params)
