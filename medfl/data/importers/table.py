"""A table (csv) of images: a column for the file, and any of mask, label, patient, site and split.

Column names are taken in several common spellings, see COLUMNS. Paths are relative to the table.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medfl.data.base import Case, Datalist
from medfl.data.importers.base import (
    IMAGES,
    Importer,
    ImportOptions,
    finish,
    folder_of,
    make_case,
    mask_classes,
    numbered,
    split_of,
)
from medfl.errors import DataError, Faults

COLUMNS = {
    "image": ("image", "file", "filename", "file_name", "path", "image_path", "img", "volume", "scan"),
    "mask": ("mask", "segmentation", "seg", "mask_path", "label_path"),
    "label": ("label", "class", "diagnosis", "target", "finding"),
    "patient": ("patient", "patient_id", "patientid", "subject", "subject_id"),
    "site": ("site", "hospital", "center", "centre", "institution"),
    "split": ("split", "subset", "fold", "set", "partition"),
}
PREFERRED = ("volumes.csv", "files.csv", "images.csv", "manifest.csv", "metadata.csv", "labels.csv")


@dataclass(frozen=True, slots=True)
class Table:
    """A csv with an image column. rows: by COLUMNS' names, "" for an empty cell. lines: line number of each row."""

    path: Path
    columns: frozenset[str]
    rows: tuple[Mapping[str, str], ...]
    lines: tuple[int, ...] = field(repr=False)


class TableImporter(Importer):
    wants = "a .csv with a column file or image, and maybe mask, label, patient, site, split"

    def detect(self, path: Path) -> bool:
        return find_table(path) is not None

    def read(self, path: Path, options: ImportOptions) -> Datalist:
        table = find_table(path)
        if table is None:
            raise DataError.at(path, "has no table of images", f"the kind table looks for {self.wants}")
        faults = Faults()
        pairs = list(zip(table.rows, table.lines, strict=True))
        for row, line in pairs:
            if not row.get("image"):
                faults.add(f"{table.path}: line {line}", "names no image", "fill in the file or remove the line")
        faults.raise_if_any(DataError)
        column = "mask" if "mask" in table.columns else "label" if "label" in table.columns else ""
        if column == "label" and any(_is_path(row["label"]) for row in table.rows):
            column, pairs = "mask", [({**row, "mask": row["label"]}, line) for row, line in pairs]
        numbers = (
            numbered(table.path, (row["label"] for row, _ in pairs if row["label"]), options)
            if column == "label"
            else {}
        )
        cases = [_case(table, row, line, column, numbers, faults) for row, line in pairs]
        faults.raise_if_any(DataError)
        task = {"mask": "segmentation", "label": "classification", "": ""}[column]
        classes = numbers if column == "label" else ()
        if task == "segmentation" and not options.classes:
            classes = dict.fromkeys(mask_classes(cases, options), 0)
        return finish(table.path, task, classes, cases, options)


def find_table(path: Path) -> Table | None:
    """The table at a path: the file, or the folder's csv with an image column whose files are there."""
    if path.is_file():
        return _table(path.absolute()) if path.suffix.lower() in (".csv", ".tsv") else None
    files = sorted(path.absolute().glob("*.csv"), key=lambda file: (_rank(file), file.name))
    return next((table for file in files if (table := _table(file)) is not None and _present(table)), None)


def _rank(file: Path) -> int:
    return PREFERRED.index(file.name.lower()) if file.name.lower() in PREFERRED else len(PREFERRED)


def _present(table: Table) -> bool:
    """Whether one of the first rows names something that exists."""
    return any((table.path.parent / row["image"]).exists() for row in table.rows[:20] if row["image"])


def _table(path: Path) -> Table | None:
    try:
        text = path.read_text(encoding="utf-8-sig")
        head = text.split("\n", 1)[0]
        delimiter = max(",;\t", key=head.count)
        reader = csv.reader(text.splitlines(), delimiter=delimiter, strict=True)
        names = [name.strip().lower() for name in next(reader, [])]
        places = {column: next((names.index(name) for name in spellings if name in names), None)
                  for column, spellings in COLUMNS.items()}  # fmt: skip
        if places["image"] is None:
            return None
        rows, lines = [], []
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append({column: _cell(cells, place) for column, place in places.items()})
                lines.append(reader.line_num)
    except (UnicodeDecodeError, csv.Error, OSError):
        return None
    columns = frozenset(column for column, place in places.items() if place is not None)
    return Table(path, columns, tuple(rows), tuple(lines))


def _cell(cells: list[str], place: int | None) -> str:
    return cells[place].strip() if place is not None and place < len(cells) else ""


def _is_path(value: str) -> bool:
    return value.lower().endswith(IMAGES)


def _case(
    table: Table, row: Mapping[str, str], line: int, column: str, numbers: Mapping[str, int], faults: Faults
) -> Case:
    folder = folder_of(table.path)
    label: int | Path | None = None
    if column == "mask" and row["mask"]:
        label = folder / row["mask"]
    elif column == "label" and row["label"]:
        label = numbers[row["label"]]
    return make_case(
        folder,
        folder / row["image"],
        label=label,
        patient=row["patient"],
        site=row["site"],
        split=split_of(row["split"], f"{table.path}: line {line}", faults),
    )
