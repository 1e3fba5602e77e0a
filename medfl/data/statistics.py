"""What each site of a datalist holds: counts by split and class, patients, boxes and image sizes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medfl.data.base import SPLITS, Case, Datalist
from medfl.data.readers import read_image, read_mask
from medfl.data.split import patient_of
from medfl.errors import DataError


@dataclass(frozen=True, slots=True)
class SiteRow:
    """One site.

    splits: cases of each split that occurs ("" while there is none). classes: cases of each class (classification),
    boxes (detection), or cases whose mask shows it (segmentation). smallest, largest: least and greatest pixels along
    each space axis; empty when no image was read. unlabelled: cases without a label. unreadable: images or masks that
    could not be read, with the reason.
    """

    site: str
    cases: int
    patients: int
    splits: Mapping[str, int]
    classes: Mapping[str, int]
    boxes: int
    unlabelled: int
    smallest: tuple[int, ...] = ()
    largest: tuple[int, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)


def site_statistics(datalist: Datalist, read: bool = True) -> list[SiteRow]:
    """One row a site, sorted by name. read: also open the images (sizes) and masks (classes)."""
    sites = sorted({case.site for case in datalist.cases})
    return [_row(site, [case for case in datalist.cases if case.site == site], datalist, read) for site in sites]


def plot(rows: Sequence[SiteRow], path: Path) -> None:
    """Write a PNG of stacked bars: cases by split, and the mix of classes, for each site."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, max(2.4, 0.5 * len(rows) + 1.6)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = [row.site or "(no site)" for row in rows]
    splits = [split for split in (*SPLITS, "") if any(row.splits.get(split) for row in rows)]
    classes = list(dict.fromkeys(name for row in rows for name in row.classes))
    _bars(left, names, {name or "no split": [row.splits.get(name, 0) for row in rows] for name in splits}, "cases")
    what = "boxes" if any(row.boxes for row in rows) else "cases"
    _bars(right, names, {name: [row.classes.get(name, 0) for row in rows] for name in classes}, what)
    left.invert_yaxis()
    left.set_title("split", loc="left")
    right.set_title("class", loc="left")
    figure.savefig(path, dpi=120)


def _row(site: str, cases: Sequence[Case], datalist: Datalist, read: bool) -> SiteRow:
    sizes, shown, faults = _contents(cases, datalist) if read else ([], Counter(), {})
    classes: Counter[int] = Counter(shown)
    for case in cases:
        classes.update(case.label if isinstance(case.label, tuple) else ())
        classes.update([case.label] if isinstance(case.label, int) else ())
    splits = Counter(case.split for case in cases)
    return SiteRow(
        site=site,
        cases=len(cases),
        patients=len({patient_of(case) for case in cases}),
        splits={split: splits[split] for split in (*SPLITS, "") if splits[split]},
        classes={name: classes[number] for number, name in enumerate(datalist.classes)},
        boxes=sum(len(case.boxes or ()) for case in cases),
        unlabelled=sum(case.label is None for case in cases),
        smallest=_extreme(sizes, np.minimum),
        largest=_extreme(sizes, np.maximum),
        unreadable=faults,
    )


def _contents(cases: Sequence[Case], datalist: Datalist) -> tuple[list[tuple[int, ...]], Counter[int], dict[str, str]]:
    """Image sizes, in how many masks each class shows, and what could not be read."""
    sizes: list[tuple[int, ...]] = []
    shown: Counter[int] = Counter()
    faults: dict[str, str] = {}
    for case in cases:
        try:
            sizes.append(read_image(case).array.shape[1:])
            if datalist.task == "segmentation" and isinstance(case.label, Path):
                shown.update(np.unique(read_mask(case.label).array).tolist())
        except DataError as error:
            faults[case.key] = str(error)
    return sizes, shown, faults


def _extreme(sizes: list[tuple[int, ...]], of: np.ufunc) -> tuple[int, ...]:
    """Least or greatest size along each axis; empty when there is no image or 2D and 3D are mixed."""
    if len({len(size) for size in sizes}) != 1:
        return ()
    return tuple(int(n) for n in of.reduce(np.array(sizes), axis=0))


def _bars(axes: Any, names: list[str], series: Mapping[str, list[int]], what: str) -> None:
    start = np.zeros(len(names))
    for name, counts in series.items():
        axes.barh(names, counts, left=start, label=name, height=0.7)
        start = start + counts
    axes.set_xlabel(what)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    if series:
        axes.legend(frameon=False, fontsize="small", ncols=4, loc="lower right", bbox_to_anchor=(1, 1))
