"""Which files of a folder make which images: DICOM files grouped to series, and slices to stacks.

File names say nothing in DICOM. Files belong together by SeriesInstanceUID; one series may still hold several
stacks (a localiser's three orientations, echoes, time points), which are told apart here.
"""

import hashlib
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from medfl.data.readers.base import reading
from medfl.data.readers.dicom_pixels import frame_count, frame_plane, not_image
from medfl.data.readers.geometry import AXIAL, SAME_PLACE, Plane, normal
from medfl.errors import DataError

OTHER_SUFFIXES = frozenset(
    (".csv", ".json", ".txt", ".xml", ".md", ".html", ".pdf", ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".nii", ".gz",
     ".npz", ".npy", ".zip", ".py", ".xlsx", ".tsv", ".log", ".db")
)  # fmt: skip
DICOM_SUFFIXES = frozenset((".dcm", ".dicom", ".ima"))
STACKED = frozenset(("CT", "MR", "PT"))
"""Modalities whose files without positions are slices of a volume and not pictures of their own."""
TELLING = ("EchoTime", "TemporalPositionIdentifier", "DiffusionBValue", "TriggerTime", "AcquisitionNumber", "ImageType",
           "ContentTime")  # fmt: skip
"""Elements that tell stacks at the same place apart, in the order in which they are tried."""
TAGS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "PatientID", "InstitutionName", "Rows",
        "Columns", "SamplesPerPixel", "NumberOfFrames", "InstanceNumber", "ImagePositionPatient",
        "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing",
        *TELLING)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Series:
    """Files that make one image.

    id: short name, stable over machines and free of identifiers: a hash of the series UID and of what tells the stack
        apart. files: in slice order where positions are known. patient, modality, institution: as the header says, ""
        when it does not. notes: what was left out or assumed. reason: why the files make no image, "" when they do.
    damaged: whether the reason is that the file cannot be read, and not that it is no image.
    """

    id: str
    files: tuple[Path, ...]
    patient: str = ""
    modality: str = ""
    institution: str = ""
    notes: tuple[str, ...] = ()
    reason: str = ""
    damaged: bool = False

    @property
    def path(self) -> Path:
        """The file of a series of one, else the folder that holds all files."""
        if len(self.files) == 1:
            return self.files[0]
        return Path(os.path.commonpath([file.parent for file in self.files]))


@dataclass(frozen=True, slots=True)
class _Header:
    path: Path
    uid: str
    instance: str
    number: int | None
    patient: str
    modality: str
    institution: str
    form: tuple[int, ...]
    plane: Plane
    telling: tuple[str, ...]
    reason: str = ""
    damaged: bool = False


def list_series(folder: Path) -> list[Series]:
    """The series in a folder and below it, by path. Files that are no images are listed with their `reason`.

    Files that are not DICOM are passed over, unless their name says that they should be. DataError when the folder
    cannot be read.
    """
    with reading(folder, "a folder"):
        if not folder.is_dir():
            raise DataError.at(folder, "is not a folder", "give the folder of a DICOM series")
        files = tuple(sorted(_candidates(folder)))
        stamp = tuple((status.st_size, status.st_mtime_ns) for status in (file.stat() for file in files))
    return list(_listed(files, stamp))


@lru_cache(maxsize=16)
def _listed(files: tuple[Path, ...], _stamp: tuple[tuple[int, int], ...]) -> tuple[Series, ...]:
    headers = [header for file in files if (header := _header(file)) is not None]
    broken = [Series(_id(header.path.name), (header.path,), header.patient, header.modality, header.institution,
                     (), header.reason, header.damaged) for header in headers if header.reason]  # fmt: skip
    usable = [header for header in headers if not header.reason]
    found = [one for stack in _stacks(usable) for one in _series(stack)]
    return tuple(sorted(found + broken, key=lambda series: series.files))


def _candidates(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(place, name)
            if not name.startswith(".") and name != "DICOMDIR" and path.suffix.lower() not in OTHER_SUFFIXES:
                yield path


def _header(path: Path) -> _Header | None:
    """What a file says of itself; None when it is not DICOM and does not claim to be."""
    try:
        with reading(path, "DICOM"):
            dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=list(TAGS))
            reason = not_image(dataset)
            if reason.startswith("is not DICOM"):
                return _unreadable(path, reason) if _claims(path) else None
            return _parsed(path, dataset, reason)
    except DataError as error:
        return _unreadable(path, error.faults[0].what) if _claims(path) else None


def _claims(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix.lower() in DICOM_SUFFIXES or file.read(132)[128:] == b"DICM"


def _unreadable(path: Path, reason: str) -> _Header:
    return _Header(path, "", "", None, "", "", "", (), Plane(None, None, None), (), reason, True)


def _parsed(path: Path, dataset: pydicom.Dataset, reason: str) -> _Header:
    number = str(dataset.get("InstanceNumber", ""))
    form = () if reason else (int(dataset.Rows), int(dataset.Columns), int(dataset.get("SamplesPerPixel") or 1))
    return _Header(
        path=path,
        uid=str(dataset.get("SeriesInstanceUID", "")),
        instance=str(dataset.get("SOPInstanceUID", "")),
        number=int(number) if number.lstrip("-").isdigit() else None,
        patient=_text(dataset, "PatientID"),
        modality=_text(dataset, "Modality"),
        institution=_text(dataset, "InstitutionName"),
        form=form if reason else (*form, frame_count(dataset)),
        plane=frame_plane(dataset, 0),
        telling=tuple(str(dataset.get(name, "")) for name in TELLING),
        reason=reason,
    )


def _text(dataset: pydicom.Dataset, name: str) -> str:
    value = dataset.get(name)
    return "" if value is None else " ".join(str(value).replace("\0", " ").split())


def _stacks(headers: Iterable[_Header]) -> Iterator[list[_Header]]:
    """Files of one series, one size and one orientation."""
    ordered = sorted(headers, key=lambda header: (header.uid, header.form, str(header.path)))
    for _, members in groupby(ordered, key=lambda header: (header.uid, header.form)):
        parts: list[list[_Header]] = []
        for header in members:
            part = next((part for part in parts if _parallel(part[0].plane, header.plane)), None)
            if part is None:
                parts.append([header])
            else:
                part.append(header)
        yield from parts


def _parallel(one: Plane, other: Plane) -> bool:
    pairs = ((one.orientation, other.orientation), (one.spacing, other.spacing))
    if (one.position is None) != (other.position is None):
        return False
    return all(a == b or (a is not None and b is not None and np.allclose(a, b, atol=1e-3)) for a, b in pairs)


def _series(stack: list[_Header]) -> Iterator[Series]:
    """The images that parallel files of one series make."""
    if _separate(stack):
        yield from (_made([header], [header.path.name]) for header in stack)
        return
    if not _doubles(stack):
        yield _made(stack, [])
        return
    unique, notes = _without_copies(stack)
    if not _doubles(unique):
        yield _made(unique, [], notes)
        return
    for parts in _divisions(unique):
        if len(parts) > 1 and not any(map(_doubles, parts.values())):
            yield from (_made(part, [name], notes) for name, part in parts.items())
            return
    yield _made(unique, [], notes)


def _separate(stack: list[_Header]) -> bool:
    """Whether each file is an image of its own: multi-frame, no series, one place, or pictures without a place."""
    first = stack[0]
    if len(stack) == 1 or not first.uid or first.form[-1] > 1:
        return True
    if first.plane.position is None:
        return first.modality not in STACKED
    places = _along(stack)
    return float(np.ptp(places)) < SAME_PLACE


def _along(stack: Sequence[_Header]) -> Any:
    direction = normal(stack[0].plane.orientation or AXIAL)
    return np.asarray([header.plane.position for header in stack], dtype=np.float64) @ direction


def _doubles(stack: Sequence[_Header]) -> bool:
    if len(stack) < 2 or stack[0].plane.position is None:
        return False
    return bool((np.diff(np.sort(_along(stack))) < SAME_PLACE).any())


def _without_copies(stack: list[_Header]) -> tuple[list[_Header], tuple[str, ...]]:
    """One file for each SOP instance, and a note on the copies."""
    unique: dict[str, _Header] = {}
    for header in stack:
        unique.setdefault(header.instance or str(header.path), header)
    copies = len(stack) - len(unique)
    return list(unique.values()), ((f"{copies} copies of the same instances ignored",) if copies else ())


def _divisions(stack: list[_Header]) -> Iterator[dict[str, list[_Header]]]:
    """Ways to tell stacks at the same place apart: by folder, then by each telling element."""
    ways: list[Callable[[_Header], Hashable]] = [lambda header: header.path.parent.name]
    ways += [lambda header, place=place: header.telling[place] for place in range(len(TELLING))]  # type: ignore[misc]
    for way in ways:
        parts: dict[str, list[_Header]] = {}
        for header in stack:
            parts.setdefault(str(way(header)), []).append(header)
        yield parts


def _made(stack: list[_Header], apart: list[str], notes: tuple[str, ...] = ()) -> Series:
    first = stack[0]
    if first.plane.position is not None:
        places = _along(stack)
        ordered = [stack[index] for index in np.argsort(places, kind="stable")]
    else:
        ordered = sorted(stack, key=lambda header: (header.number is None, header.number or 0, str(header.path)))
    shape = [str(first.form), str(np.round(first.plane.orientation or AXIAL, 2).tolist())]
    return Series(
        id=_id(first.uid, *shape, *apart),
        files=tuple(header.path for header in ordered),
        patient=first.patient,
        modality=first.modality,
        institution=first.institution,
        notes=notes,
    )


def _id(*parts: str) -> str:
    return hashlib.sha256("|".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:12]
