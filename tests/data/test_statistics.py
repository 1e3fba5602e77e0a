from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from medfl.data.base import Case, Datalist
from medfl.data.statistics import plot, site_statistics


def save(path: Path, shape: tuple[int, int], value: int = 0) -> Path:
    array = np.zeros(shape, np.uint8)
    array[0, 0] = value
    Pillow.fromarray(array).save(path)
    return path


@pytest.fixture
def datalist(tmp_path):
    specs = [("north", "train", 0, "p1"), ("north", "train", 1, "p1"), ("north", "test", 1, "p2"), ("south", "", 0, "")]
    cases = tuple(
        Case(str(i), save(tmp_path / f"{i}.png", (10 + i, 20 - i)), label, None, patient, site, split)
        for i, (site, split, label, patient) in enumerate(specs)
    )
    return Datalist("d", "classification", ("normal", "ill"), cases, tmp_path)


def test_rows_count_what_is_there(datalist):
    north, south = site_statistics(datalist)
    assert (north.site, north.cases, north.patients, north.boxes) == ("north", 3, 2, 0)
    assert north.splits == {"train": 2, "test": 1} and south.splits == {"": 1}
    assert north.classes == {"normal": 1, "ill": 2} and south.patients == 1
    assert (north.smallest, north.largest) == ((10, 18), (12, 20))


def test_quick_opens_nothing(datalist):
    gone = replace(datalist, cases=tuple(replace(case, image=Path("/absent")) for case in datalist.cases))
    assert site_statistics(gone, read=False)[0].smallest == ()
    rows = site_statistics(gone)
    assert set(rows[0].unreadable) == {"0", "1", "2"} and rows[0].cases == 3


def test_boxes_and_masks_are_counted_by_class(datalist, tmp_path):
    box = (0.0, 0.0, 1.0, 1.0)
    boxed = tuple(replace(case, label=(0, 1, 1)[:i], boxes=(box,) * min(i, 3)) for i, case in enumerate(datalist.cases))
    north, south = site_statistics(replace(datalist, task="detection", cases=boxed))
    assert north.boxes == 3 and north.classes == {"normal": 2, "ill": 1} and south.classes == {"normal": 1, "ill": 2}
    masks = [save(tmp_path / f"m{i}.png", (10 + i, 20 - i), value=i % 2) for i in range(4)]
    masked = tuple(replace(case, label=mask) for case, mask in zip(datalist.cases, masks, strict=True))
    rows = site_statistics(replace(datalist, task="segmentation", cases=masked))
    assert rows[0].classes == {"normal": 3, "ill": 1} and rows[1].classes == {"normal": 1, "ill": 1}


def test_unlabelled_cases_are_counted(datalist):
    cases = tuple(replace(case, label=None) for case in datalist.cases)
    assert [row.unlabelled for row in site_statistics(replace(datalist, cases=cases))] == [3, 1]


def test_the_plot_shows_the_counts(datalist, tmp_path):
    plot(site_statistics(datalist), tmp_path / "p.png")
    picture = np.asarray(Pillow.open(tmp_path / "p.png").convert("RGB"))
    blue = (np.abs(picture.astype(int) - (31, 119, 180)).sum(axis=2) < 12).sum()
    assert picture.shape[1] == 1200 and blue > 5000
    plot([], tmp_path / "empty.png")
