"""Pascal VOC: an XML file an image, with boxes as (xmin, ymin, xmax, ymax).

Corners are taken as they are, as start and exclusive stop: labelImg and most tools write them so, and a COCO
conversion of the same data gives the same boxes. (VOC 2012 itself counts pixels from 1 and includes the last one:
its boxes are larger by one pixel at the top left.)
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

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
)
from medfl.errors import DataError, Faults

Found = list[tuple[str, tuple[float, ...]]]


class VocImporter(Importer):
    wants = "a folder of .xml files with <annotation>, and images beside it"

    def detect(self, path: Path) -> bool:
        first = next(_annotations(path), None)
        return first is not None and b"<annotation" in first.read_bytes()[:4096]

    def read(self, path: Path, options: ImportOptions) -> Datalist:
        root, faults = folder_of(path), Faults()
        splits = _listed_splits(root)
        found = [(file, parsed) for file in _annotations(path) if (parsed := _parse(file, faults)) is not None]
        faults.raise_if_any(DataError)
        classes = numbered(path, (name for _, (_, boxes) in found for name, _ in boxes), options)
        pictures: dict[Path, dict[str, Path]] = {}
        cases = []
        for file, (name, boxes) in found:
            if file.parent not in pictures:
                pictures[file.parent] = _pictures(file.parent)
            index = pictures[file.parent]
            image = index.get(name) or index.get(Path(name).stem) or index.get(file.stem) or file.parent / name
            cases.append(_case(root, image, boxes, classes, splits.get(file.stem) or _folder_split(file)))
        return finish(path, "detection", classes, cases, options)


def _annotations(path: Path) -> Iterator[Path]:
    """XML files in the folder, in folders below it, or in Annotations below a split."""
    if path.is_file():
        return iter([path.absolute()] if path.suffix.lower() == ".xml" else [])
    patterns = ("*.xml", "*/*.xml", "*/[Aa]nnotations/*.xml")
    return (file for pattern in patterns for file in sorted(path.absolute().glob(pattern)) if file.name[0] != ".")


def _parse(file: Path, faults: Faults) -> tuple[str, Found] | None:
    """The image's file name and its (class, box (row0, column0, row1, column1)); None, with faults, when broken."""
    text = file.read_bytes()
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        faults.add(file, "declares XML entities, which an annotation does not need", "remove the declaration")
        return None
    try:
        tree = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        faults.add(file, f"is not XML: {error}", "export it again")
        return None
    boxes: Found = []
    for place, thing in enumerate(tree.iter("object")):
        try:
            corners = tuple(float(thing.findtext(f"bndbox/{name}") or "") for name in ("ymin", "xmin", "ymax", "xmax"))
            if not np.isfinite(corners).all():
                raise ValueError("a corner is not finite")
            boxes.append((_name(thing), corners))
        except ValueError as error:
            faults.add(f"{file}: object[{place}]", f"has no usable name and bndbox ({error})", "correct the file")
    return (tree.findtext("filename") or file.stem).strip().replace("\0", ""), boxes


def _name(thing: ElementTree.Element) -> str:
    name = (thing.findtext("name") or "").strip()
    if not name:
        raise ValueError("no name")
    return name


def _pictures(folder: Path) -> dict[str, Path]:
    """Pictures for a folder of XML files, by name and by stem: in it, beside it, in its sister folders."""
    places = [folder, folder.parent, *sorted(place for place in folder.parent.iterdir() if place.is_dir())]
    places += [place / folder.name for place in places[2:] if (place / folder.name).is_dir()]
    found: dict[str, Path] = {}
    for place in places:
        for picture in sorted(place.iterdir()):
            if is_image(picture, PICTURES):
                found.setdefault(picture.name, picture)
                found.setdefault(picture.stem, picture)
    return found


def _case(root: Path, image: Path, boxes: Found, classes: dict[str, int], split: str) -> Case:
    return make_case(
        root,
        image,
        label=tuple(classes[name] for name, _ in boxes),
        boxes=tuple(box for _, box in boxes),
        split=split,
    )


def _folder_split(file: Path) -> str:
    return SPLIT_NAMES.get(file.parent.name.lower(), "")


def _listed_splits(root: Path) -> dict[str, str]:
    """The split of each stem by VOC's ImageSets/Main/{train,val,test}.txt, the first that lists it."""
    found: dict[str, str] = {}
    for folder in (root, root.parent):
        for split in ("train", "val", "test"):
            file = folder / "ImageSets" / "Main" / f"{split}.txt"
            if file.is_file():
                for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
                    if line.strip():
                        found.setdefault(line.split()[0], split)
    return found
