"""The importer contract: a folder or file as a hospital has it in, a Datalist out. Images are not copied.

An importer reads lists, labels and headers, not pixels (except masks whose classes no file names). It keeps what it
finds, also boxes without area or images that are missing: `medfl data check` names those. What it leaves out, it
says in `ImportOptions.notes`. Case keys are paths relative to the source, with "/"; an image whose patient is not
known is its own patient.

Third parties add importers by the entry-point group `medfl.importers`.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from medfl.data.base import Case, Datalist
from medfl.data.manifest import case_key
from medfl.data.readers import read_mask
from medfl.errors import DataError, Faults
from medfl.plugins import PluginPoint

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
IMAGES = (*PICTURES, ".nii", ".nii.gz", ".dcm", ".ima")
SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """classes: class names in the order of their numbers, () to take them from the source: give them where several
    hospitals must agree on numbers. notes: filled with what was left out or assumed."""

    classes: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


class Importer(ABC):
    """One layout of a data set. wants: what it looks for, in words for the message when nothing fits."""

    wants: ClassVar[str]

    @abstractmethod
    def detect(self, path: Path) -> bool:
        """Whether the file or folder has this layout; quick, and never raises for its content."""

    @abstractmethod
    def read(self, path: Path, options: ImportOptions) -> Datalist:
        """The datalist; DataError with all faults of its lists and tables."""


IMPORTERS = PluginPoint(
    "data set kind",
    "medfl.importers",
    {
        "medmnist": "medfl.data.importers.medmnist:MedmnistImporter",
        "decathlon": "medfl.data.importers.decathlon:DecathlonImporter",
        "coco": "medfl.data.importers.coco:CocoImporter",
        "voc": "medfl.data.importers.voc:VocImporter",
        "dicom": "medfl.data.importers.dicom:DicomImporter",
        "table": "medfl.data.importers.table:TableImporter",
        "folders": "medfl.data.importers.folders:FoldersImporter",
    },
)
"""Tried in this order: layouts with a list of their own come before those that are guessed from names."""


def folder_of(path: Path) -> Path:
    """The folder that keys are relative to, absolute."""
    path = Path(os.path.normpath(path.absolute()))
    return path if path.is_dir() else path.parent


def is_image(path: Path, suffixes: tuple[str, ...] = IMAGES) -> bool:
    """Whether a file's name is an image's; macOS's "._" companions are not."""
    return path.name.lower().endswith(suffixes) and not path.name.startswith(".")


def images_in(folder: Path) -> Iterator[Path]:
    """Image files in a folder and below it, by name."""
    return (path for path in sorted(folder.rglob("*")) if is_image(path) and path.is_file())


def make_case(root: Path, image: Path, **fields: Any) -> Case:
    """A case with its key relative to `root`, its own patient when `patient` is empty."""
    place = Path(os.path.relpath(image, root)).as_posix()
    key = case_key(image.name if place == "." else place, fields.get("array", ""), fields.get("index"))
    return Case(key=key, image=image, **{**fields, "patient": fields.get("patient") or key})


def split_of(value: str, where: object, faults: Faults) -> str:
    """A split's name as medfl writes it; "" stays; a fault for any other word."""
    word = value.strip().lower()
    if word and word not in SPLIT_NAMES:
        faults.add(where, f"there is no split {value!r}", f"use one of: {', '.join(SPLIT_NAMES)}")
    return SPLIT_NAMES.get(word, "")


def finish(
    path: Path, task: str, classes: Iterable[str], cases: Iterable[Case], options: ImportOptions, modality: str = ""
) -> Datalist:
    """The datalist of a source; refuses a source without images or with one listed twice."""
    root, found, seen, faults = folder_of(path), tuple(cases), set[str](), Faults()
    names = tuple(classes)
    if not found:
        raise DataError.at(path, "holds no images", "check the path")
    for case in found:
        if case.key in seen:
            faults.add(path, f"{case.key} is listed more than once", "list each image once")
        seen.add(case.key)
    if options.classes and len(options.classes) < len(names):
        faults.add(path, f"has {len(names)} classes ({', '.join(names)}), not {len(options.classes)}", "name them all")
    faults.raise_if_any(DataError)
    name = path.name.removesuffix(".npz") if path.is_file() and path.suffix == ".npz" else root.name
    return Datalist(name, task, options.classes or names, found, root, modality)


def numbered(path: Path, values: Iterable[str], options: ImportOptions) -> dict[str, int]:
    """The number of each class name: by `options.classes`, by value for plain numbers, else alphabetical."""
    found = set(values)
    if options.classes:
        unknown = sorted(found - set(options.classes))
        if unknown:
            raise DataError.at(
                path, f"has classes {', '.join(unknown)} that are not among those given", "name them all"
            )
        return {name: number for number, name in enumerate(options.classes)}
    if found and all(value.isdigit() and int(value) < 1000 for value in found):
        return {str(number): number for number in range(max(map(int, found)) + 1)}
    return {name: number for number, name in enumerate(sorted(found))}


def mask_classes(cases: Iterable[Case], options: ImportOptions) -> tuple[str, ...]:
    """Class names for masks that no file names: from the values of all masks, read one at a time."""
    values: set[int] = set()
    for case in cases:
        if isinstance(case.label, Path):
            try:
                values.update(map(int, np.unique(read_mask(case.label).array)))
            except DataError:
                options.notes.append(f"{case.key}: its mask cannot be read; medfl data check says why")
    highest = max(values, default=0)
    if len(values - {0}) == 1:
        if highest != 1:
            options.notes.append(f"masks hold 0 and {highest}: one class is meant, which must be stored as 1")
        highest = 1
    if highest > 255:
        options.notes.append(f"masks hold values up to {highest}: class names are made for the first 255 only")
    return ("background", *(f"label {number}" for number in range(1, min(highest, 255) + 1)))
