"""Medical Segmentation Decathlon (`dataset.json` with lists) and nnU-Net v2 (`dataset.json` without lists).

nnU-Net v2: `imagesTr/CASE_0000.EXT`, `labelsTr/CASE.EXT`, `imagesTs/CASE_0000.EXT`, with one channel.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from medfl.data.base import Case, Datalist
from medfl.data.importers.base import Importer, ImportOptions, finish, folder_of, is_image, make_case, mask_classes
from medfl.data.manifest import load_datalist
from medfl.errors import DataError, Faults

NAMES = ("dataset.json", "datalist.json")


class DecathlonImporter(Importer):
    wants = "dataset.json with a list of training images, or imagesTr and labelsTr beside it"

    def detect(self, path: Path) -> bool:
        file = _file(path)
        if file is None:
            return False
        content = _content(file)
        return "training" in content or (file.parent / "imagesTr").is_dir()

    def read(self, path: Path, options: ImportOptions) -> Datalist:
        file = _file(path)
        if file is None:
            raise DataError.at(path, "has no dataset.json", f"the kind decathlon looks for {self.wants}")
        content = _content(file)
        if "training" not in content and (file.parent / "imagesTr").is_dir():
            return _nnunet(file, content, options)
        found = load_datalist(file)
        classes = found.classes
        if not classes and found.task == "segmentation" and not options.classes:
            classes = mask_classes(found.cases, options)
        made = finish(file, found.task, classes, found.cases, options, found.modality)
        return replace(made, name=found.name)


def _file(path: Path) -> Path | None:
    if path.is_file():
        return path.absolute() if path.suffix.lower() == ".json" else None
    return next((path.absolute() / name for name in NAMES if (path / name).is_file()), None)


def _content(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError, OSError):
        return {}
    return content if isinstance(content, dict) else {}


def _nnunet(file: Path, content: dict[str, Any], options: ImportOptions) -> Datalist:
    root, faults = folder_of(file), Faults()
    cases = [case for folder, split in (("imagesTr", ""), ("imagesTs", "test"))
             for case in _channel_cases(root, folder, split, faults)]  # fmt: skip
    faults.raise_if_any(DataError)
    labels = content.get("labels")
    named = (
        {value: str(name) for name, value in labels.items() if type(value) is int} if isinstance(labels, dict) else {}
    )
    classes = tuple(named.get(number, f"label {number}") for number in range(max(named, default=-1) + 1))
    modality = content.get("channel_names", content.get("modality", {}))
    words = modality.values() if isinstance(modality, dict) else ()
    made = finish(
        file, "segmentation", classes or mask_classes(cases, options), cases, options, ", ".join(map(str, words))
    )
    return replace(made, name=str(content.get("name") or root.name))


def _channel_cases(root: Path, folder: str, split: str, faults: Faults) -> list[Case]:
    cases = []
    labels = root / folder.replace("images", "labels")
    for image in sorted((root / folder).glob("*")):
        if not is_image(image):
            continue
        stem, dot, suffix = image.name.partition(".")
        identifier, _, channel = stem.rpartition("_")
        if channel != "0000":
            faults.add(image, f"is channel {channel}; medfl reads images of one channel a file", "keep one channel")
            continue
        mask = labels / f"{identifier}{dot}{suffix}"
        present = mask.is_file() or split != "test"
        cases.append(make_case(root, image, label=mask if present else None, patient=identifier, split=split))
    return cases
