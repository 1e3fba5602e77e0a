"""The grid of an image file itself: where the reader turned the axes, predictions are turned back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medfl.data.base import Image
from medfl.data.readers.base import HEAD, reading
from medfl.data.readers.nifti import NiftiReader
from medfl.errors import DataError

Matrix = npt.NDArray[np.float64]
Mask = npt.NDArray[np.uint8]

LABEL_INTENT = 1002
"""NIfTI's intent code for a label map."""


@dataclass(frozen=True)
class FileGrid:
    """shape: of the space axes in the file. axes: what they are, for readers of numbers. affine: 4x4 from voxels to RAS
    world as the file has it, None where unknown. turn: for each axis of the file, which axis of the reader's array it
    became and whether it kept its direction (1) or not (-1), as nibabel says it. header: of a NIfTI file, else None.
    stored: the file's own shape, with trailing axes of one. spacing: mm for each axis of the reader's array."""

    shape: tuple[int, ...]
    axes: str
    affine: Matrix | None
    turn: Matrix
    header: Any = None
    stored: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()

    @property
    def is_picture(self) -> bool:
        return self.header is None and len(self.shape) == 2

    def boxes(self, boxes: Matrix) -> Matrix:
        """Boxes [N, 2 * nd] of the reader's array as boxes of the file."""
        nd = len(self.shape)
        result = np.empty_like(boxes)
        for own, (read, direction) in enumerate(self.turn):
            start, stop = boxes[:, int(read)], boxes[:, int(read) + nd]
            if direction < 0:
                start, stop = self.shape[own] - stop, self.shape[own] - start
            result[:, own], result[:, own + nd] = start, stop
        return result

    def mask(self, mask: Mask) -> Mask:
        """A mask of the reader's array as one of the file [*shape]."""
        moved = mask.transpose(self.turn[:, 0].astype(int))
        flips = tuple(slice(None, None, int(direction)) for direction in self.turn[:, 1])
        return np.ascontiguousarray(moved[flips])

    def save_mask(self, mask: Mask, path: Path) -> None:
        """Write a mask of the reader's array in the file's shape and place: a PNG with class numbers as grey values for
        pictures, else NIfTI with the file's own affine."""
        if self.is_picture:
            from PIL import Image as Pillow

            Pillow.fromarray(mask).save(path, format="PNG")
            return
        import nibabel as nib

        turned = self.mask(mask).reshape(self.stored or self.shape)
        affine = self.affine if self.affine is not None else np.diag([*self.spacing, *[1.0] * (4 - len(self.spacing))])
        image = nib.Nifti1Image(turned, affine, self.header)
        image.set_data_dtype(np.uint8)
        image.header["cal_min"] = image.header["cal_max"] = 0
        image.header.set_intent(LABEL_INTENT)
        nib.save(image, path)


def file_grid(path: Path, image: Image) -> FileGrid:
    """The grid of the file at `path` that `image` was read from."""
    shape = image.array.shape[1:]
    same = np.array([[axis, 1] for axis in range(len(shape))], np.float64)
    if _is_nifti(path):
        return _nifti_grid(path, image)
    if len(shape) == 2:
        return FileGrid(shape, "row, column", image.affine, same, spacing=image.spacing)
    axes = "voxels, closest to right, anterior, superior" if image.affine is not None else "voxels"
    return FileGrid(shape, axes, image.affine, same, spacing=image.spacing)


def _is_nifti(path: Path) -> bool:
    if path.is_dir():
        return False
    with path.open("rb") as file:
        return NiftiReader().accepts(path, file.read(HEAD))


def _nifti_grid(path: Path, image: Image) -> FileGrid:
    import nibabel as nib

    with reading(path, "NIfTI"):
        stored = nib.load(path)
        affine = np.asarray(stored.affine, np.float64)
        nd = image.array.ndim - 1
        shape = tuple(int(length) for length in stored.shape[:nd])
        turn = np.array([[axis, 1] for axis in range(nd)], np.float64)
        if nd == 3:
            turn = np.asarray(nib.orientations.io_orientation(affine), np.float64)
        axes = f"voxels of the file ({', '.join('ijk'[:nd])})"
        grid = FileGrid(shape, axes, affine, turn, stored.header, tuple(stored.shape), image.spacing)
    if grid.mask(np.zeros(image.array.shape[1:], np.uint8)).shape != shape:
        raise DataError.at(path, f"changed while it was read: its shape is {shape} now", "predict it again")
    return grid
