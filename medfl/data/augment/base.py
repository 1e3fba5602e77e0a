"""Augmentation of the training split: each case becomes itself and `factor - 1` variants.

A variant is drawn from (seed, case key, variant number) alone, so it is the same on every machine and in every
order. Boxes and masks move with the image. The array keeps its shape, unless patches are cut: then every variant, the
first one too, is a patch.
"""

import hashlib
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

from medfl.data.base import Sample

MINIMUM_VISIBLE = 0.3
"""A box with less than this share of its area left in the image is dropped."""


class AugmentConfig(BaseModel):
    """What may be done to a training image; a magnitude of 0 switches an operation off.

    factor: samples made of one case, the unchanged original first.
    flip: space axes that may be mirrored, in array order; "left-right" is the columns of a picture and axis 0 of a
    volume; anatomy is not symmetric, so think before allowing any.
    shift: largest translation, as a share of the image. rotation: largest angle in degrees (2D in the plane; 3D about
    each axis). scale: largest change of size. shear: largest angle in degrees; scale and shear make the affine
    operation. crop: largest share of each axis that is cut off before the rest is enlarged to the old shape.
    patch: pixels of each space axis of the window that is cut out first; null trains on whole images. foreground:
    share of the patches that are placed on a box or on a voxel of the mask; the others lie anywhere.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    factor: int = Field(5, ge=1)
    flip: Literal["left-right", "all", "none"] | tuple[NonNegativeInt, ...] = "left-right"
    shift: float = Field(0.08, ge=0, lt=1)
    rotation: float = Field(10.0, ge=0, le=180)
    scale: float = Field(0.1, ge=0, lt=1)
    shear: float = Field(5.0, ge=0, lt=45)
    crop: float = Field(0.1, ge=0, lt=1)
    patch: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(None, min_length=2, max_length=3)
    foreground: float = Field(0.67, ge=0, le=1)

    def flip_axes(self, dims: int) -> tuple[int, ...]:
        """The space axes that may be mirrored in an image of `dims` space axes."""
        if isinstance(self.flip, tuple):
            return tuple(axis for axis in self.flip if axis < dims)
        left_right = 1 if dims == 2 else 0
        return {"left-right": (left_right,), "all": tuple(range(dims)), "none": ()}[self.flip]


def augment(sample: Sample, config: AugmentConfig, seed: int, key: str, variant: int) -> Sample:
    """Variant `variant` (0 is the original, or a patch of it, itself) of a sample with 2 or 3 space axes; a new Sample.

    The kind of "label" follows the sample: boxes when it has "box", else a mask when "label" has space axes. Raises
    DataError where patches cannot be cut (see `medfl.data.augment.patches`).
    """
    draw = variant_seed(seed, key, variant)
    if config.patch is not None:
        from medfl.data.augment.patches import cut_patch

        # A stream of its own: the place of a patch says nothing of what is done to it.
        sample = cut_patch(sample, config.patch, config.foreground, np.random.default_rng((draw, 1)))
    if variant == 0:
        return sample
    if sample["image"].ndim == 3:
        from medfl.data.augment.planar import augment_2d

        return sample | augment_2d(sample, config, draw)
    from medfl.data.augment.volume import augment_3d

    return sample | augment_3d(sample, config, np.random.default_rng(draw))


def variant_seed(seed: int, key: str, variant: int) -> int:
    """32 bits that only these three decide."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}/{variant}".encode()).digest()[:4], "big")
