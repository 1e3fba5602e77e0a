"""COCO detection JSON (Lin et al., 2014): `images`, `annotations`, `categories`; boxes are (x, y, width, height).

Beside COCO's own keys an image may have `patient`, `site` and `split`. Several files (`instances_train.json`,
`train/_annotations.coco.json`) are joined, with the split from their names.
"""

import json
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from medfl.data.base import Case, Datalist
from medfl.data.importers.base import (
    PICTURES,
    SPLIT_NAMES,
    Importer,
    ImportOptions,
    finish,
    folder_of,
    is_image,
    make_case,
    numbered,
    split_of,
)
from medfl.errors import DataError, Faults

FOLDERS = ("", "annotations", *SPLIT_NAMES)


class CocoImporter(Importer):
    wants = "a COCO .json with images, annotations and categories"

    def detect(self, path: Path) -> bool:
        return bool(_files(path))

    def read(self, path: Path, options: ImportOptions) -> Datalist:
        files = _files(path)
        if not files:
            raise DataError.at(path, "has no COCO file", f"the kind coco looks for {self.wants}")
        root, faults, cases = folder_of(path), Faults(), list[Case]()
        contents = {file: json.loads(file.read_bytes()) for file in files}
        classes = _classes(path, contents, options)
        for file, content in contents.items():
            cases += _cases(root, file, content, classes, faults, options)
        faults.raise_if_any(DataError)
        return finish(path, "detection", classes, cases, options)


def _files(path: Path) -> list[Path]:
    """COCO files at a path, in their usual places."""
    if path.is_file():
        candidates = [path.absolute()] if path.suffix.lower() == ".json" else []
    else:
        candidates = [file for folder in FOLDERS for file in sorted((path.absolute() / folder).glob("*.json"))]
    return [file for file in candidates if _is_coco(file)]


@lru_cache(maxsize=64)
def _is_coco_at(path: Path, _changed: int, _size: int) -> bool:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError):
        return False
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in ("images", "categories"))


def _is_coco(path: Path) -> bool:
    status = path.stat()
    return _is_coco_at(path, status.st_mtime_ns, status.st_size)


def _classes(path: Path, contents: dict[Path, Any], options: ImportOptions) -> dict[str, int]:
    """Number of each category's name: in the order of the files' ids, the same for all files."""
    faults, ids = Faults(), dict[int, str]()
    for file, content in contents.items():
        for place, category in enumerate(content["categories"]):
            try:
                number, name = int(category["id"]), str(category["name"])
            except (TypeError, KeyError, ValueError):
                faults.add(f"{file}: categories[{place}]", "has no id and name", "correct the file")
                continue
            if ids.setdefault(number, name) != name:
                faults.add(
                    f"{file}: categories[{place}]", f"id {number} is {name!r} here and {ids[number]!r} elsewhere"
                )
    faults.raise_if_any(DataError)
    if options.classes:
        return numbered(path, ids.values(), options)
    return {name: number for number, name in enumerate(dict.fromkeys(ids[key] for key in sorted(ids)))}


def _cases(
    root: Path, file: Path, content: Any, classes: dict[str, int], faults: Faults, options: ImportOptions
) -> list[Case]:
    names = {int(category["id"]): str(category["name"]) for category in content["categories"]}
    boxes = _annotations(file, content, names, classes, faults, options)
    cases = []
    for place, image in enumerate(content["images"]):
        where = f"{file}: images[{place}]"
        if not isinstance(image, dict) or not isinstance(image.get("file_name"), str) or "id" not in image:
            faults.add(where, "has no id and file_name", "correct the file")
            continue
        found = boxes.pop(str(image["id"]), [])
        cases.append(
            make_case(
                root,
                _image(root, file, image["file_name"]),
                label=tuple(number for number, _ in found),
                boxes=tuple(box for _, box in found),
                patient=str(image.get("patient") or ""),
                site=str(image.get("site") or ""),
                split=split_of(str(image.get("split") or _split(file)), f"{where}.split", faults),
            )
        )
    for identifier, found in boxes.items():
        faults.add(f"{file}: annotations", f"{len(found)} boxes name image {identifier}, which is not listed")
    return cases


def _annotations(
    file: Path, content: Any, names: dict[int, str], classes: dict[str, int], faults: Faults, options: ImportOptions
) -> dict[str, list[tuple[int, tuple[float, ...]]]]:
    """(class number, box) of each annotation, by image id. Crowds are left out, with a note."""
    found: dict[str, list[tuple[int, tuple[float, ...]]]] = defaultdict(list)
    crowds = 0
    for place, annotation in enumerate(content.get("annotations") or []):
        where = f"{file}: annotations[{place}]"
        try:
            if annotation.get("iscrowd"):
                crowds += 1
                continue
            x, y, width, height = map(float, annotation["bbox"])
            box = (y, x, y + height, x + width)
            if not np.isfinite(box).all():
                raise ValueError("not finite")
            found[str(annotation["image_id"])].append((classes[names[int(annotation["category_id"])]], box))
        except (AttributeError, TypeError, KeyError, ValueError, OverflowError) as error:
            faults.add(where, f"has no usable bbox, image_id and category_id ({error!r})", "correct the file")
    if crowds:
        options.notes.append(f"{file.name}: {crowds} annotations marked iscrowd left out, they outline groups")
    return found


def _split(file: Path) -> str:
    """The split that a file's name or folder gives, or ""."""
    words = [*file.stem.lower().replace("-", "_").split("_"), file.parent.name.lower()]
    words = [word.rstrip("0123456789") for word in words]
    return next((word for word in words if word in SPLIT_NAMES), "")


def _image(root: Path, file: Path, name: str) -> Path:
    """Where an image lies: beside the file, in the usual folders, or anywhere below by its name."""
    split = _split(file)
    places = (file.parent, root, root / "images", file.parent / "images", root / split, root / "images" / split)
    for place in places:
        if (place / name).is_file():
            return place / name
    return _index(root).get(Path(name).name, file.parent / name)


@lru_cache(maxsize=4)
def _index(root: Path) -> dict[str, Path]:
    """Pictures below a folder by name, without names that occur twice."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in root.rglob("*"):
        if is_image(path, PICTURES):
            found[path.name].append(path)
    return {name: paths[0] for name, paths in found.items() if len(paths) == 1}
