"""A folder for each class (`normal/*.png`, `pneumonia/*.png`), with or without a level train, val, test above."""

from pathlib import Path

from medfl.data.base import Case, Datalist
from medfl.data.importers.base import (
    SPLIT_NAMES,
    Importer,
    ImportOptions,
    finish,
    folder_of,
    images_in,
    make_case,
    numbered,
)
from medfl.errors import DataError

NOT_CLASSES = frozenset(
    ("images", "image", "imgs", "img", "masks", "mask", "labels", "label", "annotations", "segmentations",
     "jpegimages", "imagestr", "labelstr", "imagests", "labelsts", "imagesets")
)  # fmt: skip


class FoldersImporter(Importer):
    wants = "a folder of images for each class, perhaps below train, val and test"

    def detect(self, path: Path) -> bool:
        if not path.is_dir():
            return False
        names = {folder.name for _, folder in _class_folders(path)}
        return len(names) > 1 and not any(name.lower() in NOT_CLASSES for name in names)

    def read(self, path: Path, options: ImportOptions) -> Datalist:
        if not path.is_dir():
            raise DataError.at(path, "is not a folder", f"the kind folders looks for {self.wants}")
        root, cases = folder_of(path), list[Case]()
        found = _class_folders(root)
        numbers = numbered(path, (folder.name for _, folder in found), options)
        for split, folder in found:
            for image in images_in(folder):
                cases.append(make_case(root, image, label=numbers[folder.name], split=split))
        return finish(path, "classification", numbers, cases, options)


def _class_folders(root: Path) -> list[tuple[str, Path]]:
    """(split or "", folder) of every class folder that holds images."""
    folders = _folders(root)
    splits = [folder for folder in folders if folder.name.lower() in SPLIT_NAMES]
    pairs = [(SPLIT_NAMES[split.name.lower()], folder) for split in splits for folder in _folders(split)]
    pairs = pairs or [("", folder) for folder in folders]
    return [(split, folder) for split, folder in pairs if next(images_in(folder), None) is not None]


def _folders(root: Path) -> list[Path]:
    return sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
