"""The datalist on disk: JSON in the form of the Medical Segmentation Decathlon, which MONAI reads as it is.

    {
      "name": "blood", "task": "detection", "classes": ["RBC", "WBC"],
      "modality": {"0": "microscopy"}, "labels": {"0": "RBC", "1": "WBC"},
      "training":   [{"image": "a.jpg", "label": [0], "box": [[1, 2, 9, 9]], "patient": "p1", "site": "north"}],
      "validation": [{"image": "set.npz", "array": "val_images", "index": 7, "label": 1}],
      "test":       [{"image": "c.nii.gz", "label": "masks/c.nii.gz", "key": "c"}]
    }

`label` is a class number, the path of a mask, or a list with a class number for each box. An entry's `split` wins
over the list it is in; entries with no split yet are in "training" with `"split": ""`. `key` is written where it is
not the image's path. An image whose patient is not known is its own patient: the key.
`monai.data.load_decathlon_datalist(path, is_segmentation=..)` reads the lists. A plain Decathlon `dataset.json`
(labels as a table, test images as a list of paths) is read here, too.

Paths are relative to the datalist's folder. Absolute paths and `..` are followed as well: importers do not copy
images, so a datalist may lie beside them or elsewhere. A datalist is therefore *the site's own file* and is to be
trusted like a script: never take one from another party. It never travels in a study; no command sends it.
"""

import errno
import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, StrictInt, ValidationError

from medfl.data.base import SPLITS, Case, Datalist
from medfl.errors import DataError, Faults

TASKS = ("classification", "segmentation", "detection")
LISTS = {"training": "train", "validation": "val", "test": "test"}
MAX_CLASSES = 10_000

Label = int | str | list[int]


def _label(value: Any) -> Any:
    whole = [item for item in (value if isinstance(value, list) else [value]) if type(item) is int]
    numbers = len(whole) == (len(value) if isinstance(value, list) else 1)
    if value is not None and not isinstance(value, str) and not numbers:
        raise ValueError("is no class number, path of a mask or list of class numbers")
    if any(abs(item) >= 2**31 for item in whole):
        raise ValueError("has a class number beyond 32 bits")
    return value


def _entry(value: Any) -> Any:
    return {"image": value} if isinstance(value, str) else value


def _box(value: Any) -> Any:
    if not isinstance(value, list) or len(value) not in (4, 6):
        raise ValueError("is no list of 4 numbers (6 in a volume): starts, then stops")
    return value


Box = Annotated[list[FiniteFloat], BeforeValidator(_box)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="ignore")

    image: str = Field(min_length=1)
    label: Annotated[Any, BeforeValidator(_label)] = None
    box: list[Box] | None = None
    patient: str | StrictInt = ""
    site: str | StrictInt = ""
    split: str | None = None
    key: str = ""
    array: str = ""
    index: Annotated[StrictInt, Field(ge=0)] | None = None


Entries = list[Annotated[_Entry, BeforeValidator(_entry)]]


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: str = ""
    task: str = ""
    classes: list[str] | None = None
    labels: Any = None
    modality: Any = ""
    training: Entries
    validation: Entries = []
    test: Entries = []


def load_datalist(path: Path) -> Datalist:
    """The datalist in a JSON file, without reading any image.

    A missing `task` is guessed from the labels ("" when there are none), missing `classes` from `labels` or from the
    class numbers. Raises DataError with every fault at once, each with its key ("training[3].label").
    """
    path = Path(os.path.normpath(path.absolute()))
    file = _parse(path, _read(path))
    faults = Faults()
    task = _task(path, file, faults)
    classes = _classes(path, file, faults)
    entries = [(f"{path}: {name}[{place}]", LISTS[name], entry)
               for name in LISTS for place, entry in enumerate(getattr(file, name))]  # fmt: skip
    cases = [_case(where, split, entry, path.parent, task, classes, faults) for where, split, entry in entries]
    _refuse_repeats([where for where, _, _ in entries], cases, faults)
    classes = classes or _numbered(path, task, cases, faults)
    faults.raise_if_any(DataError)
    return Datalist(file.name or path.parent.name, task, classes, tuple(cases), path.parent, _modality(file.modality))


def save_datalist(datalist: Datalist, path: Path) -> None:
    """Write a datalist so that `load_datalist` gives it back: train, val, test in turn, paths relative to the new file.

    Absolute paths are written only where file and images have no folder in common but the root. The file appears
    whole or not at all. DataError when it cannot be written.
    """
    path = Path(os.path.normpath(path.absolute()))
    lists: dict[str, list[dict[str, Any]]] = {name: [] for name in LISTS}
    names = {split: name for name, split in LISTS.items()} | {"": "training"}
    for case in datalist.cases:
        lists[names[case.split]].append(_written(case, path.parent))
    content = {
        "name": datalist.name,
        "task": datalist.task,
        "modality": {"0": datalist.modality},
        "classes": list(datalist.classes),
        "labels": {str(number): name for number, name in enumerate(datalist.classes)},
        "numTraining": len(lists["training"]),
        "numTest": len(lists["test"]),
        **lists,
    }
    _write(path, json.dumps(content, indent=1, ensure_ascii=True))


def case_key(image: str, array: str = "", index: int | None = None) -> str:
    """The default key of a case: its path as written in the datalist, and what is meant inside the file."""
    place = f"[{index}]" if index is not None else ""
    return f"{image}#{array}{place}" if array or place else image


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError.at(path, "there is no such datalist", "make one with: medfl data import") from error
    except OSError as error:
        raise DataError.at(path, f"cannot be read: {error.strerror}", "check the path and the file's rights") from error
    except (ValueError, RecursionError) as error:
        raise DataError.at(path, f"is not JSON: {error}", "correct it, or make one with: medfl data import") from error


def _parse(path: Path, content: Any) -> _File:
    if not isinstance(content, dict) or "training" not in content:
        raise DataError.at(path, 'is no datalist: it has no list "training"', "make one with: medfl data import")
    try:
        return _File.model_validate(content)
    except ValidationError as error:
        faults = Faults()
        for fault in error.errors(include_url=False, include_input=False):
            where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in fault["loc"])
            faults.add(
                f"{path}: {where.lstrip('.')}", fault["msg"].removeprefix("Value error, "), "correct the datalist"
            )
        faults.raise_if_any(DataError)
        raise


def _task(path: Path, file: _File, faults: Faults) -> str:
    entries = file.training + file.validation + file.test
    if file.task:
        if file.task not in TASKS:
            faults.add(f"{path}: task", f"there is no task {file.task!r}", f"use one of: {', '.join(TASKS)}")
        return file.task
    if any(entry.box is not None for entry in entries):
        return "detection"
    if any(isinstance(entry.label, str) for entry in entries):
        return "segmentation"
    return "classification" if any(entry.label is not None for entry in entries) else ""


def _classes(path: Path, file: _File, faults: Faults) -> tuple[str, ...]:
    """Class names by number, from `classes`, Decathlon's {"1": "liver"} or nnU-Net's {"liver": 1}."""
    if file.classes is not None:
        names = tuple(file.classes)
    elif isinstance(file.labels, list):
        names = tuple(map(str, file.labels))
    else:
        names = _table(path, file.labels or {}, faults)
    for name, count in Counter(names).items():
        if count > 1:
            faults.add(f"{path}: classes", f"{name!r} is listed {count} times", "give each class its own name")
    return names


def _table(path: Path, labels: Any, faults: Faults) -> tuple[str, ...]:
    try:
        pairs = [(int(key), str(value)) if not isinstance(value, int) else (value, str(key))
                 for key, value in labels.items()]  # fmt: skip
    except (AttributeError, TypeError, ValueError):
        faults.add(f"{path}: labels", "is no table of class numbers and names", 'write {"0": "background", ..}')
        return ()
    if any(not 0 <= number < MAX_CLASSES for number, _ in pairs):
        faults.add(f"{path}: labels", f"has class numbers outside 0 to {MAX_CLASSES - 1}", "number classes from 0")
        return ()
    found = dict(pairs)
    return tuple(found.get(number, f"class {number}") for number in range(max(found, default=-1) + 1))


def _numbered(path: Path, task: str, cases: Sequence[Case], faults: Faults) -> tuple[str, ...]:
    """Names for classes that the datalist does not name: their numbers."""
    numbers = [label for case in cases for label in (case.label if isinstance(case.label, tuple) else (case.label,))]
    highest = max((number for number in numbers if isinstance(number, int)), default=-1)
    if highest >= MAX_CLASSES:
        faults.add(f"{path}: classes", f"are missing, and labels go up to {highest}", "list the classes")
        return ()
    return tuple(map(str, range(highest + 1))) if task in ("classification", "detection") else ()


def _case(where: str, split: str, entry: _Entry, root: Path, task: str, classes: Sequence[str], faults: Faults) -> Case:
    if entry.split is not None:
        split = entry.split
        if split not in ("", *SPLITS):
            faults.add(f"{where}.split", f"there is no split {split!r}", f"use one of: {', '.join(SPLITS)}")
    label = _meant(where, entry, root, task, classes, faults)
    key = entry.key or case_key(entry.image.removeprefix("./"), entry.array, entry.index)
    return Case(
        key=key,
        image=_absolute(root, entry.image),
        label=label,
        boxes=None if entry.box is None else tuple(map(tuple, entry.box)),
        patient=str(entry.patient) or key,
        site=str(entry.site),
        split=split,
        array=entry.array,
        index=entry.index,
    )


def _meant(
    where: str, entry: _Entry, root: Path, task: str, classes: Sequence[str], faults: Faults
) -> int | Path | tuple[int, ...] | None:
    """The label as its task understands it; a fault when it does not fit the task."""
    label = entry.label
    if task == "classification" and isinstance(label, str) and label in classes:
        return list(classes).index(label)
    fits = {"classification": int, "segmentation": str, "detection": list}.get(task)
    if label is not None and fits is not None and not isinstance(label, fits):
        wanted = {int: "a class number", str: "the path of a mask", list: "a list of class numbers"}[fits]
        faults.add(f"{where}.label", f"is {label!r:.60}, but {task} needs {wanted}", "correct the label or the task")
        return None
    if isinstance(label, str):
        return _absolute(root, label) if label else None
    return tuple(label) if isinstance(label, list) else label


def _absolute(root: Path, path: str) -> Path:
    return Path(os.path.normpath(root / path))


def _refuse_repeats(places: Sequence[str], cases: Sequence[Case], faults: Faults) -> None:
    first: dict[str, str] = {}
    for where, case in zip(places, cases, strict=True):
        if case.key in first:
            before = first[case.key].rpartition(": ")[2]
            faults.add(where, f"{case.key} is already listed at {before}", "list each image once")
        first.setdefault(case.key, where)


def _modality(value: Any) -> str:
    if isinstance(value, Mapping):
        value = list(value.values())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _written(case: Case, root: Path) -> dict[str, Any]:
    image = _relative(case.image, root)
    entry: dict[str, Any] = {"image": image}
    if case.array:
        entry["array"] = case.array
    if case.index is not None:
        entry["index"] = case.index
    if case.label is not None:
        entry["label"] = _relative(case.label, root) if isinstance(case.label, Path) else case.label
    if case.boxes is not None:
        entry["box"] = case.boxes
    # Empty fields are left out: MONAI would take an empty text for the path of the datalist's folder.
    if case.patient not in ("", case.key):
        entry["patient"] = case.patient
    if case.site:
        entry["site"] = case.site
    if case.key != case_key(image.removeprefix("./"), case.array, case.index):
        entry["key"] = case.key
    return entry if case.split else entry | {"split": ""}


def _relative(path: Path, root: Path) -> str:
    path = Path(os.path.normpath(path))
    shared = os.path.commonpath([path, root]) if path.is_absolute() else str(root)
    return str(path) if shared == path.anchor else Path(os.path.relpath(path, root)).as_posix()


def _write(path: Path, text: str) -> None:
    try:
        # Root, as in most containers, may write anywhere: a folder that is read-only for all is left alone.
        if not path.parent.stat().st_mode & 0o222:
            raise PermissionError(errno.EACCES, "the folder is read-only")
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).chmod(0o644)
        Path(file.name).replace(path)
    except OSError as error:
        raise DataError.at(path, f"cannot be written: {error.strerror}", "give another place with --out") from error
