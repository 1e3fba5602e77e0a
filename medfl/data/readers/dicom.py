"""DICOM by pydicom: a file, or the folder of a series. Compressed pixels are decoded by pylibjpeg's plug-ins."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medfl.data.base import FloatArray, Image
from medfl.data.readers import dicom_pixels
from medfl.data.readers.base import Reader, limit_size, reading
from medfl.data.readers.dicom_series import OTHER_SUFFIXES, Series, list_series
from medfl.data.readers.geometry import Plane, Stack, canonical, stack
from medfl.errors import DataError


class DicomReader(Reader):
    """One slice gives space (row, column); several slices or frames give a volume in closest RAS axes.

    A folder must hold one series, or `array` names one by its `Series.id`.
    """

    def accepts(self, path: Path, head: bytes) -> bool:
        if path.is_dir():
            return True
        return bool(head) and (head[128:132] == b"DICM" or path.suffix.lower() not in OTHER_SUFFIXES)

    def read(self, path: Path, *, index: int | None = None, array: str = "") -> Image:
        with reading(path, "DICOM"):
            if path.is_dir():
                return read_series(path, _chosen(path, array))
            return _read_file(path)


def read_series(folder: Path, series: Series) -> Image:
    """The image that the files of a series make; `folder` is named in faults of the series as a whole."""
    if series.reason:
        raise DataError.at(series.files[0], series.reason, "leave it out")
    if len(series.files) == 1:
        image = _read_file(series.files[0])
        return Image(image.array, image.spacing, image.affine, (*image.notes, *series.notes))
    places, shape, notes, thickness = _places(series)
    pile = stack(folder, places, thickness)
    limit_size(folder, int(np.prod(shape)) * len(places))
    volume = np.empty((len(places), *shape), dtype=np.float32)
    for target, source in enumerate(pile.order):
        with reading(series.files[source], "DICOM"):
            dataset, _ = dicom_pixels.load(series.files[source])
            _put(series.files[source], volume[target], next(iter(dicom_pixels.frames(series.files[source], dataset))))
    return _volume(folder, volume, pile, (*series.notes, *notes))


def _chosen(folder: Path, name: str) -> Series:
    found = list_series(folder)
    usable = [series for series in found if not series.reason]
    if name:
        usable = [series for series in usable if series.id == name]
    if len(usable) == 1:
        return _with_broken(usable[0], [series for series in found if series.reason])
    if usable:
        choices = ", ".join(f"{one.id} ({one.modality}, {len(one.files)} slices)" for one in usable[:8])
        raise DataError.at(folder, f"holds {len(usable)} series", f"give each a folder, or name one of: {choices}")
    reasons = "; ".join(f"{series.files[0].name} {series.reason}" for series in found[:3])
    raise DataError.at(folder, f"holds no DICOM image{f': {reasons}' if reasons else ''}", "check the path")


def _with_broken(series: Series, broken: list[Series]) -> Series:
    """The series, with a note for each file beside it that could not be read: it may be one of its slices."""
    beside = [one for one in broken if one.files[0].parent == series.files[0].parent and one.damaged]
    notes = tuple(f"{one.files[0].name} left out: it {one.reason}" for one in beside)
    return Series(series.id, series.files, series.patient, series.modality, series.institution, series.notes + notes)


def _places(series: Series) -> tuple[list[Plane], tuple[int, int, int], list[str], float | None]:
    """Plane of each file, shape [channel, row, column] of the first, notes, and slice distance by the header."""
    places, notes, numbers = [], [], []
    shape, thickness = (1, 1, 1), None
    for file in series.files:
        with reading(file, "DICOM"):
            dataset, found = dicom_pixels.header(file)
            places.append(dicom_pixels.frame_plane(dataset, 0))
            numbers.append(str(dataset.get("InstanceNumber", "")))
            notes += [note for note in found if note not in notes]
            if len(places) == 1:
                shape = dicom_pixels.frame_shape(dataset)
                thickness = dicom_pixels.thickness(dataset)
    if any(plane.position is None for plane in places):
        notes += _missing_numbers(numbers)
    return places, shape, notes, thickness


def _missing_numbers(numbers: list[str]) -> list[str]:
    """A note when the instance numbers, the only order there is, have holes."""
    if not all(number.isdigit() for number in numbers):
        return ["no instance numbers: slices are in the order of their file names"]
    values = sorted(map(int, numbers))
    absent = values[-1] - values[0] + 1 - len(set(values))
    return [f"{absent} instance numbers missing between {values[0]} and {values[-1]}"] if absent else []


def _read_file(path: Path) -> Image:
    dataset, notes = dicom_pixels.load(path)
    count = dicom_pixels.frame_count(dataset)
    frames = dicom_pixels.frames(path, dataset)
    if count == 1:
        plane = dicom_pixels.frame_plane(dataset, 0)
        if plane.spacing is None and any(name in dataset for name in dicom_pixels.SPACINGS):
            notes.append("the pixel spacing is not usable: 1 mm is assumed")
        return Image(next(frames), plane.spacing or (1.0, 1.0), None, tuple(notes))
    pile = _pile(path, dicom_pixels.planes(dataset), dicom_pixels.thickness(dataset))
    return _volume(path, _filled(path, frames, pile, dicom_pixels.frame_shape(dataset)), pile, notes)


def _pile(path: Path, places: list[Plane], thickness: float | None) -> Stack:
    first = places[0]
    for plane in places:
        if plane.orientation != first.orientation and not np.allclose(
            plane.orientation or np.inf, first.orientation or np.nan, atol=1e-3
        ):
            raise DataError.at(path, "has frames of several orientations", "store each stack as a file of its own")
    return stack(path, places, thickness)


def _filled(path: Path, frames: Iterable[FloatArray], pile: Stack, shape: tuple[int, int, int]) -> FloatArray:
    """Frames at their places, [slice, channel, row, column]."""
    limit_size(path, int(np.prod(shape)) * len(pile.order))
    volume = np.empty((len(pile.order), *shape), dtype=np.float32)
    target = np.argsort(pile.order)
    found = 0
    for source, frame in enumerate(frames):
        _put(path, volume[target[source]], frame)
        found += 1
    if found < len(volume):
        raise DataError.at(path, f"ends after {found} of {len(volume)} frames", "export the image again")
    return volume


def _put(path: Path, place: npt.NDArray[np.float32], frame: FloatArray) -> None:
    if frame.shape != place.shape:
        raise DataError.at(path, f"has shape {frame.shape} beside slices of {place.shape}", "export the series again")
    place[...] = frame


def _volume(path: Path, volume: FloatArray, pile: Stack, notes: Iterable[str]) -> Image:
    array = volume.transpose(1, 3, 2, 0)
    said = (*pile.notes, *notes)
    if pile.affine is not None:
        return canonical(path, array, pile.affine, said)
    columns, rows, slices = pile.spacing
    turned = canonical(path, array, np.diag([-columns, -rows, slices, 1.0]), said)
    return Image(turned.array, turned.spacing, None, turned.notes)
