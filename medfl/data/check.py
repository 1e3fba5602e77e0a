"""The integrity check: every case is read, and everything that is wrong is named with its file.

Modelled on nnU-Net's verify_dataset_integrity (Isensee et al., Nature Methods 18:203, 2021), for all tasks and for
several sites at once. A *fault* means that the case will be skipped or the site refuses the data; a *warning* is
worth a look. One image is in memory at a time.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medfl.data.base import Case, Datalist, Image
from medfl.data.readers import read_image, read_mask
from medfl.errors import DataError

Severity = Literal["fault", "warning"]

SPACING_FACTOR = 3.0
"""A spacing this many times larger or smaller than the median of its axis is reported."""
FEWEST = 3
"""Images that it takes to say what is usual among them."""
BORDER = 1.0
"""Pixels by which a box may pass the border before it is a fault: annotators count from 0 or from 1."""
LABELLED = ("train", "val", "")
"""Splits whose cases need a label; test images may come without."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. case: key, "" when it concerns a site or all. file: where to look."""

    severity: Severity
    case: str
    site: str
    file: str
    what: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class SiteCount:
    """cases: listed. read: images that could be read. faulty: cases with at least one fault. patients: distinct."""

    cases: int
    read: int
    faulty: int
    patients: int


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What the check found; `sites` is by site name, "" for cases without one."""

    name: str
    task: str
    findings: tuple[Finding, ...]
    sites: Mapping[str, SiteCount]

    @property
    def faults(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "fault")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "warning")

    def to_json(self) -> dict[str, Any]:
        """JSON-able content: name, task, counts over all and by site, and the findings."""
        return {
            "name": self.name,
            "task": self.task,
            "faults": len(self.faults),
            "warnings": len(self.warnings),
            "sites": {site: asdict(count) for site, count in self.sites.items()},
            "findings": [asdict(finding) for finding in self.findings],
        }


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the comparison of cases needs to know of an image."""

    digest: bytes
    channels: int
    spacing: tuple[float, ...]
    constant: bool


def check_datalist(
    datalist: Datalist, *, minimum_cases: int = 1, on_case: Callable[[Case], None] | None = None
) -> CheckReport:
    """Read every case of a datalist and report all that is wrong with it.

    minimum_cases: fewest cases without fault that a site needs. on_case: called after each case, for progress.
    Raises nothing for the content of any file.
    """
    findings: list[Finding] = []
    facts: dict[str, _Facts] = {}
    for case in datalist.cases:
        image, found = check_case(case, datalist)
        findings += found
        if image is not None:
            facts[case.key] = _facts(image)
        if on_case is not None:
            on_case(case)
    findings += _compare(datalist, facts)
    findings += _duplicates(datalist.cases, facts)
    findings += _patients(datalist.cases)
    findings += _unused_classes(datalist)
    faulty = {finding.case for finding in findings if finding.severity == "fault"}
    sites = {site: _count(cases, facts, faulty) for site, cases in _by(datalist.cases, "site").items()}
    findings += _too_few(datalist, sites, minimum_cases)
    return CheckReport(datalist.name, datalist.task, tuple(findings), sites)


def check_case(case: Case, datalist: Datalist) -> tuple[Image | None, list[Finding]]:
    """One case by itself: its image (None when it cannot be read) and what is wrong with image and labels."""
    try:
        image = read_image(case)
    except DataError as error:
        return None, [_of(case, "fault", fault.what, fault.remedy, fault.where) for fault in error.faults]
    found = [_of(case, "warning", note) for note in image.notes]
    found += _pixels(case, image)
    judge = {"classification": _class, "segmentation": _mask, "detection": _boxes}.get(datalist.task)
    return image, found + (list(judge(case, image, datalist)) if judge is not None else [])


def _of(case: Case, severity: Severity, what: str, remedy: str = "", file: str | Path = "") -> Finding:
    return Finding(severity, case.key, case.site, str(file or case.image), what, remedy)


def _pixels(case: Case, image: Image) -> Iterator[Finding]:
    wrong = image.array.size - int(np.isfinite(image.array).sum())
    if wrong:
        what = f"{wrong} of {image.array.size} values are NaN or infinite"
        yield _of(case, "fault", what, "repair the image or leave it out")
    elif image.array.min() == image.array.max():
        what = f"every pixel has the value {float(image.array.flat[0]):g}"
        yield _of(case, "fault", what, "the image is empty: export it again or leave it out")


def _missing(case: Case, what: str) -> Finding:
    severity: Severity = "fault" if case.split in LABELLED else "warning"
    return _of(case, severity, f"has no {what}", "add it to the datalist or leave the image out")


def _class(case: Case, _image: Image, datalist: Datalist) -> Iterator[Finding]:
    if case.label is None:
        yield _missing(case, "label")
    elif not isinstance(case.label, int) or not 0 <= case.label < len(datalist.classes):
        what = f"label {case.label!r} is no class: there are {_classes(datalist)}"
        yield _of(case, "fault", what, "correct the label or the classes")


def _mask(case: Case, image: Image, datalist: Datalist) -> Iterator[Finding]:
    if not isinstance(case.label, Path):
        yield _missing(case, "mask")
        return
    try:
        mask = read_mask(case.label)
    except DataError as error:
        yield from (_of(case, "fault", f"mask: {fault.what}", fault.remedy, fault.where) for fault in error.faults)
        return
    values = np.unique(mask.array)
    outside = [int(value) for value in values if not 0 <= value < len(datalist.classes)]
    if outside and datalist.classes:
        shown = ", ".join(map(str, outside[:8])) + (", .." if len(outside) > 8 else "")
        what = f"mask has labels {shown}, which are no classes: there are {_classes(datalist)}"
        yield _of(case, "fault", what, "correct the mask or the classes", case.label)
    if not values.any():
        yield _of(case, "warning", "mask is empty: all background", "check that it belongs to the image", case.label)
    if mask.array.shape[1:] != image.array.shape[1:]:
        what = f"mask has shape {_shape(mask)}, the image {_shape(image)}"
        yield _of(case, "fault", what, "resample the mask to the image's grid", case.label)
    else:
        yield from _grid(case, image, mask)


def _grid(case: Case, image: Image, mask: Image) -> Iterator[Finding]:
    """Whether image and mask lie at the same place, by the largest distance of a corner in voxels."""
    if image.affine is None or mask.affine is None:
        return
    ends = [(0, size - 1) for size in image.array.shape[1:]]
    corners = np.stack([*np.meshgrid(*ends), np.ones((2, 2, 2))], axis=-1).reshape(-1, 4)
    distance = np.linalg.norm((corners @ (image.affine - mask.affine).T)[:, :3], axis=1).max() / min(image.spacing)
    if distance > 0.01:
        severity: Severity = "fault" if distance > 0.5 else "warning"
        what = f"mask lies elsewhere than the image: up to {distance:.2g} voxels apart by their affines"
        yield _of(case, severity, what, "resample the mask to the image's grid, or correct its header", case.label)  # type: ignore[arg-type]


def _boxes(case: Case, image: Image, datalist: Datalist) -> Iterator[Finding]:
    if case.boxes is None:
        yield _missing(case, "boxes")
        return
    labels = case.label if isinstance(case.label, tuple) else ()
    if len(labels) != len(case.boxes):
        what = f"has {len(case.boxes)} boxes and {len(labels)} labels"
        yield _of(case, "fault", what, "give one class for each box")
    for index, label in enumerate(labels):
        if not 0 <= label < len(datalist.classes):
            what = f"box {index}: label {label} is no class: there are {_classes(datalist)}"
            yield _of(case, "fault", what, "correct the label or the classes")
    for index, box in enumerate(case.boxes):
        yield from _box(case, index, np.asarray(box, dtype=np.float64), image)


def _box(case: Case, index: int, box: npt.NDArray[np.float64], image: Image) -> Iterator[Finding]:
    size = np.asarray(image.array.shape[1:])
    if len(box) != 2 * len(size):
        what = f"box {index} has {len(box)} numbers for an image of {len(size)} axes"
        yield _of(case, "fault", what, f"give {2 * len(size)} numbers: starts, then stops")
        return
    start, stop = box[: len(size)], box[len(size) :]
    place = f"box {index} {tuple(float(value) for value in box)}"
    if (stop < start).any():
        yield _of(case, "fault", f"{place} is inverted: a stop lies before its start", "swap the corners")
        return
    if (stop == start).any():
        yield _of(case, "fault", f"{place} has no area", "draw the box again or remove it")
    if not np.isfinite(box).all() or (start >= size).any() or (stop <= 0).any():
        yield _of(case, "fault", f"{place} lies outside of the image {_shape(image)}", "draw it again or remove it")
        return
    over = float(max((-start).max(), (stop - size).max()))
    if over > 0:
        severity: Severity = "fault" if over > BORDER else "warning"
        what = f"{place} passes the border of the image {_shape(image)} by {over:g} pixels"
        yield _of(case, severity, what, "clip the box to the image")


def _shape(image: Image) -> str:
    return " x ".join(map(str, image.array.shape[1:]))


def _classes(datalist: Datalist) -> str:
    return ", ".join(f"{number} {name}" for number, name in enumerate(datalist.classes[:20])) or "none"


def _facts(image: Image) -> _Facts:
    array = np.ascontiguousarray(image.array)
    digest = hashlib.sha256(repr(array.shape).encode())
    digest.update(array.view(np.uint8).data)
    constant = bool(array.min() == array.max())
    return _Facts(digest.digest(), array.shape[0], image.spacing, constant)


def _compare(datalist: Datalist, facts: Mapping[str, _Facts]) -> Iterator[Finding]:
    """Cases that differ from most: number of axes, of channels, and spacing."""
    known = [(case, facts[case.key]) for case in datalist.cases if case.key in facts]
    if len(known) < FEWEST:
        return
    axes = Counter(len(fact.spacing) for _, fact in known).most_common(1)[0][0]
    channels = Counter(fact.channels for _, fact in known).most_common(1)[0][0]
    alike = [(case, fact) for case, fact in known if len(fact.spacing) == axes]
    median = np.median([fact.spacing for _, fact in alike], axis=0)
    for case, fact in known:
        if len(fact.spacing) != axes:
            yield _of(case, "warning", f"has {len(fact.spacing)} axes, most images have {axes}", "keep one kind")
        elif max(*(fact.spacing / median), *(median / fact.spacing)) > SPACING_FACTOR:
            mean = tuple(float(round(value, 4)) for value in median)
            what = f"spacing {fact.spacing} mm is far from the median {mean} mm"
            yield _of(case, "warning", what, "check the units in the header")
        if fact.channels != channels:
            yield _of(case, "warning", f"has {fact.channels} channels, most images have {channels}", "convert it")


def _duplicates(cases: Iterable[Case], facts: Mapping[str, _Facts]) -> Iterator[Finding]:
    """Images with the very same pixels, however their files are called."""
    groups: dict[bytes, list[Case]] = defaultdict(list)
    for case in cases:
        if case.key in facts and not facts[case.key].constant:
            groups[facts[case.key].digest].append(case)
    for first, *others in groups.values():
        for other in others:
            apart = [f"another {what} ({getattr(first, what) or 'none'}, here {getattr(other, what) or 'none'})"
                     for what in ("split", "site") if getattr(first, what) != getattr(other, what)]  # fmt: skip
            own = (first.patient, other.patient) != (first.key, other.key)
            if own and first.patient != other.patient:
                apart.append("another patient")
            if first.label != other.label and not isinstance(first.label, Path):
                apart.append("another label")
            what = f"has the same pixels as {first.key}" + (f", which has {' and '.join(apart)}" if apart else "")
            yield _of(other, "warning", what, "keep one of them")


def _patients(cases: Iterable[Case]) -> Iterator[Finding]:
    """Patients in several splits (the test would be of training data) or at several sites."""
    for patient, own in _by(cases, "patient").items():
        splits = sorted({case.split for case in own} - {""})
        sites = sorted({case.site for case in own})
        if patient and len(splits) > 1:
            what = f"patient {patient} is in {' and '.join(splits)} ({', '.join(case.key for case in own[:6])})"
            yield _of(own[0], "fault", what, "keep all images of a patient in one split")
        if patient and len(sites) > 1:
            what = f"patient {patient} is at the sites {' and '.join(site or '(none)' for site in sites)}"
            yield _of(own[0], "warning", what, "check that they are different people: identifiers may collide")


def _unused_classes(datalist: Datalist) -> Iterator[Finding]:
    if datalist.task == "segmentation" or not datalist.cases:
        return
    labels = [case.label if isinstance(case.label, tuple) else (case.label,) for case in datalist.cases]
    used = {label for own in labels for label in own}
    for number, name in enumerate(datalist.classes):
        if number not in used:
            what = f"class {number} {name} has no case"
            yield Finding("warning", "", "", str(datalist.root), what, "check the order of the classes")


def _too_few(datalist: Datalist, sites: Mapping[str, SiteCount], minimum: int) -> Iterator[Finding]:
    for site, count in sites.items() or {"": SiteCount(0, 0, 0, 0)}.items():
        good = count.cases - count.faulty
        if good < minimum:
            what = f"{good} cases without fault, fewer than the {minimum} that are needed"
            yield Finding("fault", "", site, str(datalist.root), what, "repair faulty cases or add more")


def _count(cases: Sequence[Case], facts: Mapping[str, _Facts], faulty: set[str]) -> SiteCount:
    return SiteCount(
        cases=len(cases),
        read=sum(case.key in facts for case in cases),
        faulty=sum(case.key in faulty for case in cases),
        patients=len({case.patient for case in cases}),
    )


def _by(cases: Iterable[Case], name: str) -> dict[str, list[Case]]:
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[getattr(case, name)].append(case)
    return dict(sorted(groups.items()))
