"""MedMNIST archives (Yang et al., Scientific Data 10:41, 2023): `{split}_images` and `{split}_labels` in an npz.

An optional `{split}_sites` gives the hospital of each image: text, or a number k for "site<k>" and 0 for "common".
An optional `{split}_patients` gives its patient.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medfl.data.base import SPLITS, Case, Datalist
from medfl.data.importers.base import Importer, ImportOptions, finish, folder_of, make_case
from medfl.data.readers.npz import array_names, array_shape, load_array
from medfl.errors import DataError, Faults

CLASSES = {"pneumoniamnist": ("normal", "pneumonia"), "breastmnist": ("malignant", "normal or benign")}
"""Names that the archives themselves do not hold (medmnist.INFO)."""


class MedmnistImporter(Importer):
    wants = "an .npz with train_images and train_labels"

    def detect(self, path: Path) -> bool:
        try:
            return any(name.endswith("_images") for name in array_names(_archive(path)))
        except DataError:
            return False

    def read(self, path: Path, options: ImportOptions) -> Datalist:
        archive = _archive(path)
        names, faults, cases = array_names(archive), Faults(), list[Case]()
        for split in SPLITS:
            if f"{split}_images" in names:
                cases += _cases(archive, split, names, faults)
        faults.raise_if_any(DataError)
        highest = max((case.label for case in cases if isinstance(case.label, int)), default=-1)
        known = CLASSES.get(archive.stem.split("_")[0].lower(), ())
        classes = known if len(known) > highest >= 0 else tuple(map(str, range(highest + 1)))
        task = "classification" if highest >= 0 else ""
        return finish(archive, task, classes, cases, options)


def _archive(path: Path) -> Path:
    """The archive that is meant: the file, or the folder's only one."""
    path = Path(path).absolute()
    if path.is_file():
        return path
    found = sorted(path.glob("*.npz"))
    if len(found) != 1:
        raise DataError.at(path, f"holds {len(found)} .npz files", "name the one to import")
    return found[0]


def _cases(archive: Path, split: str, names: tuple[str, ...], faults: Faults) -> list[Case]:
    images = f"{split}_images"
    shape = array_shape(archive, images)
    if len(shape) < 3:
        faults.add(f"{archive}: {images}", f"has shape {shape}", "store [image, row, column]")
        return []
    columns = {what: _column(archive, split, what, names, shape[0], faults) for what in ("labels", "sites", "patients")}
    root = folder_of(archive)
    return [
        make_case(
            root,
            archive,
            label=None if columns["labels"] is None else int(columns["labels"][index]),
            site=_site(columns["sites"], index),
            patient="" if columns["patients"] is None else str(columns["patients"][index]),
            split=split,
            array=images,
            index=index,
        )
        for index in range(shape[0])
    ]


def _column(
    archive: Path, split: str, what: str, names: tuple[str, ...], count: int, faults: Faults
) -> npt.NDArray[Any] | None:
    """One value for each image, or None where the archive has no such array or, with a fault, a wrong one."""
    name = f"{split}_{what}"
    if name not in names:
        return None
    values = load_array(archive, name)
    if values.ndim == 2 and values.shape[1] > 1:
        faults.add(f"{archive}: {name}", f"has {values.shape[1]} values an image", "give one class an image")
        return None
    values = values.reshape(-1)
    if len(values) != count:
        faults.add(f"{archive}: {name}", f"has {len(values)} entries for {count} images", "export the archive again")
        return None
    if what == "labels" and not (values.dtype.kind in "iub" or np.array_equal(values, np.rint(values))):
        faults.add(f"{archive}: {name}", "holds labels that are not whole numbers", "number the classes from 0")
        return None
    return values


def _site(sites: npt.NDArray[Any] | None, index: int) -> str:
    if sites is None:
        return ""
    if sites.dtype.kind in "US":
        return str(np.str_(sites[index]))
    return f"site{int(sites[index])}" if sites[index] > 0 else "common"
