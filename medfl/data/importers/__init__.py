"""Importers: what a hospital has, as a Datalist. `import_dataset` and `find_datalist`."""

import json
from pathlib import Path
from typing import cast

from medfl.data.base import Datalist
from medfl.data.importers.base import IMPORTERS, Importer, ImportOptions, folder_of
from medfl.data.manifest import load_datalist
from medfl.data.readers.base import reading
from medfl.errors import DataError, StudyError

__all__ = ["DATALIST", "IMPORTERS", "ImportOptions", "find_datalist", "import_dataset"]

DATALIST = "datalist.json"


def import_dataset(path: Path, kind: str | None = None, options: ImportOptions | None = None) -> Datalist:
    """The datalist of a folder or file.

    kind: a name of `IMPORTERS`; None tries each. options: see ImportOptions; its `notes` are filled.
    Raises DataError with all faults, or naming every kind that was tried.
    """
    options = options or ImportOptions()
    with reading(path, "a data set"):
        path.stat()
        if kind is not None and kind not in IMPORTERS.targets:
            raise DataError.at(
                "kind", f"there is no data set kind {kind!r}", f"use one of: {', '.join(IMPORTERS.targets)}"
            )
        for name in (kind,) if kind else IMPORTERS.targets:
            importer = _importer(name)
            if kind or importer.detect(path):
                return importer.read(path, options)
        raise _unknown(path)


def find_datalist(path: Path, options: ImportOptions | None = None) -> Datalist:
    """The datalist for `--data PATH`: the file itself, a `datalist.json` in the folder, or an import in memory.

    Raises DataError that names what was looked for.
    """
    with reading(path, "a data set"):
        path.stat()
        if path.is_dir() and (path / DATALIST).is_file():
            return load_datalist(path / DATALIST)
        if path.is_file() and path.suffix.lower() == ".json" and _is_datalist(path):
            return load_datalist(path)
        return import_dataset(path, options=options)


def _is_datalist(path: Path) -> bool:
    """Whether a JSON file is meant as a datalist; unreadable ones are, so that their own fault is reported."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return True
    return isinstance(content, dict) and "training" in content


def _importer(kind: str) -> Importer:
    try:
        return cast(type[Importer], IMPORTERS.load(kind))()
    except (ImportError, AttributeError) as error:
        raise StudyError.at(f"data set kind {kind}", f"cannot be loaded: {error}", "reinstall its package") from error


def _unknown(path: Path) -> DataError:
    tried = "; ".join(f"{kind} ({_importer(kind).wants})" for kind in IMPORTERS.targets)
    place = folder_of(path) / DATALIST if path.is_dir() else path
    error = DataError.at(
        path, "is no data set that medfl knows", f"looked for {place.name}, and tried the kinds: {tried}"
    )
    return cast(DataError, error)
