"""One DICOM file: data set, frames as float32, and where each frame lies.

Values are what the modality meant: stored value, inverted for MONOCHROME1 so that larger is brighter, through the
modality LUT or rescale slope and intercept (PS3.3 C.11.1, and the pixel value transformation of enhanced objects,
C.7.6.16.2.9). Window centre and width are for display and are not applied.
"""

import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.pixels import apply_color_lut, apply_modality_lut, iter_pixels
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from medfl.data.base import FloatArray
from medfl.data.readers.base import limit_size
from medfl.data.readers.geometry import AXIAL, Orientation, Plane, Position, normal
from medfl.errors import DataError

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")

# pydicom tells of every deviation from the standard; what matters becomes a DataError or a note.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")


def load(path: Path) -> tuple[pydicom.Dataset, list[str]]:
    """The data set with its pixels, and notes; DataError when it holds no image."""
    dataset = pydicom.dcmread(path, force=True)
    reason = not_image(dataset) or ("" if any(name in dataset for name in PIXELS) else "holds no pixel data")
    if reason:
        raise DataError.at(path, reason, "leave it out")
    notes = _complete_meta(dataset)
    _swap_palettes(dataset)
    return dataset, notes


def header(path: Path) -> tuple[pydicom.Dataset, list[str]]:
    """The data set without its pixels, and notes; DataError when it is no image."""
    dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True)
    if reason := not_image(dataset):
        raise DataError.at(path, reason, "leave it out")
    return dataset, _complete_meta(dataset)


def frame_shape(dataset: pydicom.Dataset) -> tuple[int, int, int]:
    """[channel, row, column] of a frame as `frames` yields it."""
    colour = str(dataset.get("PhotometricInterpretation", "")) == "PALETTE COLOR"
    return 3 if colour else int(dataset.get("SamplesPerPixel") or 1), int(dataset.Rows), int(dataset.Columns)


def not_image(dataset: pydicom.Dataset) -> str:
    """Why a data set (its header is enough) is no image, or ""."""
    kind = dataset.get("SOPClassUID")
    if kind is None and dataset.get("Rows") is None:
        return "is not DICOM, or has neither SOP class nor image size"
    name = getattr(kind, "name", None) or str(kind)
    if str(dataset.get("Modality", "")) == "SEG":
        return f"is a label map and not an image ({name})"
    if dataset.get("Rows") is None or dataset.get("Columns") is None:
        return f"holds no pixel data ({name})"
    return ""


def _complete_meta(dataset: pydicom.Dataset) -> list[str]:
    """Fill in a transfer syntax that the file does not give, from how its elements are coded."""
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
    if "TransferSyntaxUID" in dataset.file_meta:
        return []
    implicit, little = dataset.original_encoding
    syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = syntax
    return [f"transfer syntax missing: {syntax.name} is assumed"]


def _swap_palettes(dataset: pydicom.Dataset) -> None:
    """Bring 16-bit palettes of big-endian files to little endian, which pydicom 3.0 takes them for."""
    if dataset.original_encoding[1] is not False:
        return
    for colour in ("Red", "Green", "Blue"):
        name = f"{colour}PaletteColorLookupTableData"
        shape = numbers(dataset, f"{colour}PaletteColorLookupTableDescriptor", 3)
        if shape is not None and name in dataset and len(dataset[name].value) == 2 * (shape[0] or 2**16):
            dataset[name].value = np.frombuffer(dataset[name].value, dtype=">u2").astype("<u2").tobytes()


def frame_count(dataset: pydicom.Dataset) -> int:
    """Frames in the file; ValueError when the header's number is none."""
    return int(dataset.get("NumberOfFrames") or 1)


def frames(path: Path, dataset: pydicom.Dataset) -> Iterator[FloatArray]:
    """Frames `[channel, row, column]` in stored order; one is in memory at a time."""
    count = frame_count(dataset)
    limit_size(path, int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("SamplesPerPixel") or 1) * count)
    # pylibjpeg's RLE decoder aborts with a Rust panic on damaged data; pydicom's own raises.
    plugin = "pydicom" if dataset.file_meta.TransferSyntaxUID == RLELossless else ""
    for index, frame in enumerate(iter_pixels(dataset, decoding_plugin=plugin)):
        if index < count:
            yield _values(path, dataset, index, frame)


def _values(path: Path, dataset: pydicom.Dataset, index: int, frame: npt.NDArray[Any]) -> FloatArray:
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        frame = apply_color_lut(frame, dataset)
        if frame.dtype == np.uint16:
            # Palettes of 16 bits are shown with their high byte; writers differ in what they put into the low one.
            frame = frame / np.float32(256)
    if frame.ndim == 3:
        return np.ascontiguousarray(np.moveaxis(frame, -1, 0), dtype=np.float32)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        frame = _inverted(dataset, frame)
    if dataset.get("ModalityLUTSequence"):
        return np.asarray(apply_modality_lut(frame, dataset), dtype=np.float32)[None]
    slope, intercept = _rescale(dataset, index)
    if not (math.isfinite(slope) and math.isfinite(intercept)) or slope == 0:
        raise DataError.at(path, f"has rescale slope {slope} and intercept {intercept}", "correct the header")
    if (slope, intercept) == (1.0, 0.0):
        return frame.astype(np.float32)[None]
    return (frame.astype(np.float64) * slope + intercept).astype(np.float32)[None]


def _inverted(dataset: pydicom.Dataset, frame: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if frame.dtype.kind == "f":
        return -frame
    highest = -1 if dataset.PixelRepresentation == 1 else 2 ** int(dataset.BitsStored) - 1
    return highest - frame.astype(np.int64)


def _rescale(dataset: pydicom.Dataset, index: int) -> tuple[float, float]:
    group = _group(dataset, index, "PixelValueTransformationSequence") or dataset
    slope, intercept = group.get("RescaleSlope"), group.get("RescaleIntercept")
    if slope is None and str(dataset.get("Modality", "")) == "RTDOSE":
        slope = dataset.get("DoseGridScaling")
    return 1.0 if slope in (None, "") else float(slope), 0.0 if intercept in (None, "") else float(intercept)


def planes(dataset: pydicom.Dataset) -> list[Plane]:
    """Where each frame of a file lies (positions of enhanced objects and of dose grids; else none, or one for all)."""
    count = frame_count(dataset)
    if count == 1 or "PerFrameFunctionalGroupsSequence" in dataset:
        return [frame_plane(dataset, index) for index in range(count)]
    first = frame_plane(dataset, 0)
    offsets = numbers(dataset, "GridFrameOffsetVector", count)
    if offsets is None or first.position is None:
        return [Plane(None, first.orientation, first.spacing)] * count
    along = normal(first.orientation or AXIAL)
    places = [np.asarray(first.position) + along * (offset - offsets[0]) for offset in offsets]
    return [Plane((float(x), float(y), float(z)), first.orientation, first.spacing) for x, y, z in places]


def frame_plane(dataset: pydicom.Dataset, index: int) -> Plane:
    """Where one frame lies; fields that are absent or nonsense are None."""
    position = numbers(_group(dataset, index, "PlanePositionSequence") or dataset, "ImagePositionPatient", 3)
    direction = numbers(_group(dataset, index, "PlaneOrientationSequence") or dataset, "ImageOrientationPatient", 6)
    measures = _group(dataset, index, "PixelMeasuresSequence") or dataset
    found = next((pair for name in SPACINGS if (pair := numbers(measures, name, 2)) and min(pair) > 0), None)
    return Plane(
        None if position is None else _position(position),
        None if direction is None or not _orthonormal(direction) else _orientation(direction),
        None if found is None else (found[0], found[1]),
    )


def thickness(dataset: pydicom.Dataset) -> float | None:
    """Millimetres from slice to slice by the header, None when it does not say."""
    for source in (dataset, _group(dataset, 0, "PixelMeasuresSequence") or dataset):
        for name in ("SpacingBetweenSlices", "SliceThickness"):
            found = numbers(source, name, 1)
            if found and found[0] > 0:
                return found[0]
    return None


def numbers(dataset: pydicom.Dataset, name: str, count: int) -> tuple[float, ...] | None:
    """An element as `count` finite numbers, or None when it is absent or anything else."""
    try:
        value = dataset.get(name)
        values = tuple(map(float, value if isinstance(value, pydicom.multival.MultiValue | list) else [value]))
    except (TypeError, ValueError, OverflowError):
        return None
    return values if len(values) == count and all(map(math.isfinite, values)) else None


def _group(dataset: pydicom.Dataset, index: int, name: str) -> pydicom.Dataset | None:
    """The functional group macro of a frame, its own before the shared one (PS3.3 C.7.6.16)."""
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for holder in [*own[index : index + 1], *shared[:1]]:
        if holder.get(name):
            item: pydicom.Dataset = holder[name][0]
            return item
    return None


def _position(values: tuple[float, ...]) -> Position:
    return values[0], values[1], values[2]


def _orientation(values: tuple[float, ...]) -> Orientation:
    return values[0], values[1], values[2], values[3], values[4], values[5]


def _orthonormal(values: tuple[float, ...]) -> bool:
    row, column = np.asarray(values[:3]), np.asarray(values[3:])
    lengths = np.linalg.norm([row, column], axis=1)
    return bool(np.abs(lengths - 1).max() < 0.01 and abs(row @ column) < 0.01)
