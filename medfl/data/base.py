"""What data is in medfl: a Case names files, an Image is what a reader returns, a Sample is what a task trains on.

    files --importers--> Datalist of Case --readers--> Image --preprocess--> Sample --cache--> SampleSet

Conventions, everywhere:
- An image array is `[channel, *space]`. For PNG/JPEG space is (row, column); for volumes it is the voxel
  grid after orientation to RAS, so axis 0 runs to the patient's right, 1 to anterior, 2 to superior.
- A box is `(start_0, .., start_n, stop_0, .., stop_n)` in pixels of the array as the reader returns it: one
  start and one stop for each space axis in array order, stop exclusive (MONAI's order). For a PNG that is
  (row0, column0, row1, column1).
- Spacing is millimetres a pixel for each space axis, 1.0 where the file does not say.
- Splits are "train", "val" and "test".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

SPLITS = ("train", "val", "test")

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]
Sample = dict[str, Any]
"""One preprocessed case: "image" float32 [C, *space]; "label": int64 scalar (classification), uint8 mask [*space]
(segmentation) or int64 [N] (detection); "box" float32 [N, 2 * nd] (detection). A patch has "statistics" too: float32
[2], mean and standard deviation of the whole image."""


@dataclass(frozen=True, slots=True)
class Case:
    """One entry of a datalist: where an image lies and what is known of it. Nothing is read yet.

    key: unique in the datalist, stable over machines (the image path relative to the datalist).
    image: absolute path of the image file, or of the folder of one DICOM series. With `index` not None the path
        is an `.npz` and the case is entry `index` of its array `array`.
    label: class number (classification), absolute path of a mask (segmentation), tuple of class numbers, one a
        box (detection), or None when unknown.
    boxes: one tuple of 2 * nd numbers a box; None when the task has no boxes. An image without lesions has ().
    patient: patient identifier; one patient is in one split only.
    site: hospital; "" when the datalist does not say. split: "" until the split is made.
    """

    key: str
    image: Path
    label: int | Path | tuple[int, ...] | None = None
    boxes: tuple[tuple[float, ...], ...] | None = None
    patient: str = ""
    site: str = ""
    split: str = ""
    array: str = ""
    index: int | None = None


_LENT = "lent://"


def lent(case: Case, site: str, origin: str) -> Case:
    """A case of somebody else that `site` trains on and does not count as its own. It is told from own cases by its
    key, so that it is wherever samples are. origin: whose it is, without a slash."""
    return replace(case, site=site, key=f"{_LENT}{origin}/{case.key}")


def origin_of(key: str) -> str:
    """Whose case a key names; "" for the site's own."""
    return key.removeprefix(_LENT).split("/")[0] if key.startswith(_LENT) else ""


@dataclass(frozen=True, slots=True)
class Datalist:
    """A data set's manifest (MONAI / Medical Segmentation Decathlon `datalist.json`).

    task: "classification", "segmentation" or "detection". classes: names in the order of the label numbers; for
    segmentation class 0 is the background. root: the folder that paths in the file are relative to.
    """

    name: str
    task: str
    classes: tuple[str, ...]
    cases: tuple[Case, ...]
    root: Path
    modality: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """What a reader returns: an array `[channel, *space]` in the file's own value scale, with its geometry.

    spacing: mm for each space axis. affine: 4x4 voxel-to-RAS-world matrix; None for images without geometry.
    notes: what was repaired or looked odd while reading ("2 slices missing after slice 14"); never empty text.
    """

    array: Array
    spacing: tuple[float, ...]
    affine: npt.NDArray[np.float64] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """A case that was left out, and why."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class SampleInfo:
    """What evaluation and prediction need to know of a sample beside its arrays."""

    key: str
    patient: str
    spacing: tuple[float, ...]


class SampleSet(Protocol):
    """One split of one site, preprocessed and memory-mapped; augmented variants count as samples, not as cases."""

    @property
    def cases(self) -> int:
        """Unique cases (images before augmentation): the weight of the site."""

    def __len__(self) -> int:
        """Samples: cases times the augmentation factor."""

    def batch(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Mapping[str, Any]:
        """The samples of these indices. Each key of Sample: one stacked array [B, ..] where all shapes agree and the
        key is not ragged by nature ("box", detection "label": always a list of B arrays), else a list of B arrays."""

    def info(self, index: int) -> SampleInfo: ...

    def labels(self) -> npt.NDArray[np.int64]:
        """One class number a sample, for class balance (classification: the label; else the number of distinct
        foreground classes present)."""


@dataclass(frozen=True, slots=True)
class SiteData:
    """Everything one site brings to a study.

    skipped: cases left out at reading, with their reasons. facts: counts for the report, such as
    {"read": 40, "skipped": 1, "patients": 40}. lent: readable training cases of others by their origin (see `lent`).
    """

    site: str
    splits: Mapping[str, SampleSet]
    skipped: tuple[Skipped, ...] = ()
    facts: Mapping[str, int] = field(default_factory=dict)
    lent: Mapping[str, int] = field(default_factory=dict)

    @property
    def cases(self) -> dict[str, int]:
        """The site's own cases by split: those that count for it."""
        found = {split: samples.cases for split, samples in self.splits.items()}
        return found | ({"train": found["train"] - sum(self.lent.values())} if self.lent else {})
