"""A folder of DICOM files: a case for each series (or stack, or single image) that its headers make.

Of the patient module only PatientID is used, as the patient; it stays in the site's own datalist. A csv beside the
files may give patient, site, split and label of each file (see `table`); without it the site is InstitutionName.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medfl.data.base import Case, Datalist
from medfl.data.importers.base import (
    PICTURES,
    Importer,
    ImportOptions,
    finish,
    folder_of,
    is_image,
    make_case,
    numbered,
    split_of,
)
from medfl.data.importers.table import find_table
from medfl.data.readers.dicom_series import DICOM_SUFFIXES, OTHER_SUFFIXES, Series, list_series
from medfl.errors import DataError, Faults

LOOKED_AT = 500
"""Files whose first bytes are looked at before a folder counts as not DICOM."""


class DicomImporter(Importer):
    wants = "a folder with DICOM files"

    def detect(self, path: Path) -> bool:
        table = find_table(path)
        if table is not None and "mask" in table.columns:
            return False
        return path.is_dir() and _holds_dicom(path)

    def read(self, path: Path, options: ImportOptions) -> Datalist:
        root, faults = folder_of(path), Faults()
        rows = _rows(path)
        usable = []
        for series in list_series(root):
            if series.reason and not series.damaged:
                place = Path(os.path.relpath(series.files[0], root)).as_posix()
                options.notes.append(f"{place} left out: it {series.reason}")
            else:
                usable.append(series)
        _note_others(root, options)
        told = [_told(series, rows) for series in usable]
        labels = [row.get("label", "") for row in told]
        # A column that says the same of every file ("slice") describes files, not patients.
        telling = len(set(filter(None, labels))) > 1 or (bool(options.classes) and any(labels))
        numbers = numbered(path, filter(None, labels), options) if telling else {}
        cases = [_case(root, series, usable, row, numbers, faults) for series, row in zip(usable, told, strict=True)]
        faults.raise_if_any(DataError)
        modality = ", ".join(sorted({series.modality for series in usable} - {""}))
        return finish(path, "classification" if telling else "", numbers, cases, options, modality)


def _note_others(root: Path, options: ImportOptions) -> None:
    """Say how many images of other formats lie below the folder: perhaps several data sets do."""
    others = Counter(path.suffix.lower() for path in root.rglob("*") if is_image(path, (*PICTURES, ".nii", ".nii.gz")))
    if others:
        kinds = ", ".join(sorted(others))
        options.notes.append(f"{others.total()} images that are not DICOM were not looked at ({kinds})")


def _holds_dicom(folder: Path) -> bool:
    seen = 0
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            suffix = Path(name).suffix.lower()
            if name.startswith(".") or suffix in OTHER_SUFFIXES:
                continue
            if suffix in DICOM_SUFFIXES or _signed(Path(place, name)):
                return True
            seen += 1
            if seen >= LOOKED_AT:
                return False
    return False


def _signed(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _rows(path: Path) -> dict[Path, Mapping[str, str]]:
    """The table's row of each file or folder, by absolute path."""
    table = find_table(path)
    if table is None:
        return {}
    return {Path(os.path.normpath(table.path.parent / row["image"])): row for row in table.rows if row["image"]}


def _told(series: Series, rows: Mapping[Path, Mapping[str, str]]) -> Mapping[str, str]:
    """What the table says of a series: the row of its first file, or of its folder."""
    return rows.get(series.files[0]) or rows.get(series.path) or {}


def _case(
    root: Path,
    series: Series,
    usable: Sequence[Series],
    row: Mapping[str, str],
    numbers: Mapping[str, int],
    faults: Faults,
) -> Case:
    fields: dict[str, Any] = {"array": "" if _alone(series, usable) else series.id}
    if row.get("label") in numbers:
        fields["label"] = numbers[row["label"]]
    return make_case(
        root,
        series.path,
        patient=series.patient or row.get("patient", ""),
        site=row.get("site") or series.institution,
        split=split_of(row.get("split", ""), series.path, faults),
        **fields,
    )


def _alone(series: Series, usable: Sequence[Series]) -> bool:
    """Whether the path of a series leads to nothing but it."""
    if len(series.files) == 1:
        return True
    return not any(
        other is not series and not other.damaged and any(series.path in file.parents for file in other.files)
        for other in usable
    )
