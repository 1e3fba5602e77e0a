"""Where voxels lie: slices to a stack, a stack to an affine, and any affine to the closest RAS axes.

DICOM positions are LPS (patient left, posterior, superior) in millimetres (PS3.3 C.7.6.2); medfl's affines are RAS.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from medfl.data.base import Array, Image
from medfl.errors import DataError

Matrix = npt.NDArray[np.float64]
Orientation = tuple[float, float, float, float, float, float]
Position = tuple[float, float, float]

AXIAL: Orientation = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAME_PLACE = 0.01
"""Millimetres: slices nearer than this lie at the same position."""
UNEVEN = 0.02
"""Gaps that differ from the median by more than this fraction are reported."""


@dataclass(frozen=True, slots=True)
class Plane:
    """Where one slice lies. position: centre of its first pixel (LPS, mm). orientation: directions of a row (first
    three) and of a column. spacing: mm between rows, mm between columns. None where the file does not say."""

    position: Position | None
    orientation: Orientation | None
    spacing: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Stack:
    """Planes in order along their normal. affine: voxel [column, row, slice] to RAS, None without positions.
    spacing: mm for [column, row, slice]. positions: mm along the normal, in order, () without."""

    order: tuple[int, ...]
    affine: Matrix | None
    spacing: tuple[float, float, float]
    positions: tuple[float, ...]
    notes: tuple[str, ...]


def canonical(path: Path, array: Array, affine: Matrix, notes: Sequence[str] = ()) -> Image:
    """The image with axes flipped and swapped to closest RAS; array `[channel, x, y, z]`, affine to RAS world."""
    sizes = voxel_sizes(affine)
    if not np.isfinite(affine).all() or (sizes <= 0).any() or abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-3:
        raise DataError.at(path, f"has no usable orientation (voxel size {tuple(sizes)})", "correct the header")
    turn = io_orientation(affine)
    moved = np.moveaxis(apply_orientation(np.moveaxis(array, 0, -1), turn), -1, 0)
    affine = affine @ inv_ornt_aff(turn, array.shape[1:])
    spacing = tuple(float(round(size, 6)) for size in voxel_sizes(affine))
    return Image(np.ascontiguousarray(moved), spacing, affine, tuple(notes))


def normal(orientation: Orientation) -> Matrix:
    """Unit normal of a plane: rows cross columns."""
    cross = np.cross(orientation[:3], orientation[3:])
    return np.asarray(cross / np.linalg.norm(cross), dtype=np.float64)


def stack(path: Path, planes: Sequence[Plane], thickness: float | None) -> Stack:
    """Order planes by `dot(normal, position)` and describe the grid they make.

    path: file or folder for messages. planes: at least two, of one orientation and spacing. thickness: mm between
    slices where positions do not say. Raises DataError when two slices lie at the same place.
    """
    notes: list[str] = []
    first = planes[0]
    rows, columns = first.spacing or (1.0, 1.0)
    if first.spacing is None:
        notes.append("no pixel spacing: 1 mm is assumed")
    positions = [plane.position for plane in planes if plane.position is not None]
    if len(positions) < len(planes):
        notes.append("no slice positions: slices are in the order of their numbers, orientation is assumed axial")
        return Stack(tuple(range(len(planes))), None, (columns, rows, thickness or 1.0), (), tuple(notes))
    if first.orientation is None:
        notes.append("no slice orientation: axial is assumed")
    orientation = first.orientation or AXIAL
    points = np.asarray(positions, dtype=np.float64)
    along = points @ normal(orientation)
    order = np.argsort(along, kind="stable")
    _refuse_doubles(path, along[order])
    step, found = _step(points[order], along[order])
    affine = np.eye(4)
    affine[:3, 0] = np.asarray(orientation[:3]) * columns
    affine[:3, 1] = np.asarray(orientation[3:]) * rows
    affine[:3, 2] = step
    affine[:3, 3] = points[order[0]]
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = (columns, rows, float(np.linalg.norm(step)))
    return Stack(tuple(map(int, order)), affine, spacing, tuple(map(float, along[order])), (*notes, *found))


def _refuse_doubles(path: Path, along: Matrix) -> None:
    doubles = along[1:][np.diff(along) < SAME_PLACE]
    if len(doubles):
        where = ", ".join(f"{value:.2f}" for value in doubles[:5]) + (", .." if len(doubles) > 5 else "")
        raise DataError.at(
            path,
            f"has {len(doubles)} slices at a position that another slice has (at {where} mm)",
            "remove the copies, or keep one time point, echo or reconstruction a series",
        )


def _step(points: Matrix, along: Matrix) -> tuple[Matrix, list[str]]:
    """The vector from a slice to the next (LPS, mm), and what is odd about the gaps."""
    gaps = np.diff(along)
    median = float(np.median(gaps))
    uneven = np.flatnonzero(np.abs(gaps - median) > max(UNEVEN * median, SAME_PLACE))
    mean = (points[-1] - points[0]) / (len(points) - 1)
    notes = [_gap(along, gaps, median, int(index)) for index in uneven[:10]]
    if len(uneven) > 10:
        notes.append(f"{len(uneven) - 10} more uneven gaps between slices")
    straight = points[0] + np.arange(len(points))[:, None] * mean
    if not len(uneven) and np.abs(points - straight).max() > max(0.1 * median, 0.1):
        notes.append("the slices do not lie on a straight line: their offsets in the plane are ignored")
    if len(uneven):
        mean = mean / np.linalg.norm(mean) * median * np.linalg.norm(points[-1] - points[0]) / (along[-1] - along[0])
    return mean, notes


def _gap(along: Matrix, gaps: Matrix, median: float, index: int) -> str:
    """One uneven gap in words; positions in mm along the slice normal."""
    low, high, count = along[index], along[index + 1], round(gaps[index] / median) - 1
    place = f"after slice {index + 1} of {len(along)}, between {low:.2f} and {high:.2f} mm"
    if count >= 1 and abs(gaps[index] - (count + 1) * median) < 0.2 * median:
        return f"{count} slice{'s' if count > 1 else ''} missing {place}"
    return f"uneven slice spacing: {gaps[index]:.2f} mm instead of {median:.2f} mm {place}"
