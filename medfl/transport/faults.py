"""Simulated faults: what a broken or hostile site would do, to try a regulator in `medfl simulate`.

Not reachable outside a simulation: the services never read `Site.fault`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from medfl.data.base import SampleInfo, SampleSet, SiteData
from medfl.learning.executor import Tamper
from medfl.learning.randomness import generator
from medfl.study.model import SimulatedFault, Study


def tampering(fault: SimulatedFault, round_: int) -> Tamper | None:
    """What a site with this fault does to its update in a round before it is coded; None when it leaves it alone."""
    if round_ < fault.from_round or fault.kind == "flip_labels":
        return None
    factor = np.float32(fault.factor if fault.kind == "scale" else np.nan)
    return lambda update: update * factor


def corrupted_data(data: SiteData, fault: SimulatedFault, study: Study) -> SiteData:
    """The site's data with the training labels of a share of its cases moved to another class, in every augmented
    variant of the case alike."""
    if fault.kind != "flip_labels" or "train" not in data.splits:
        return data
    train = data.splits["train"]
    keys = [train.info(index).key for index in range(len(train))]
    chosen = dict.fromkeys(keys)
    draws = generator(study.seed, "flip", data.site).random(len(chosen))
    moved = {key for key, draw in zip(chosen, draws, strict=True) if draw < fault.share}
    wrong = np.array([key in moved for key in keys])
    flipped = _FlippedLabels(train, wrong, len(study.task.classes))
    return replace(data, splits={**data.splits, "train": flipped})


class _FlippedLabels:
    """A SampleSet whose marked samples carry the next class (for masks: every voxel's next class)."""

    def __init__(self, samples: SampleSet, wrong: npt.NDArray[np.bool_], classes: int) -> None:
        self._samples = samples
        self._wrong = wrong
        self._classes = classes

    @property
    def cases(self) -> int:
        return self._samples.cases

    def __len__(self) -> int:
        return len(self._samples)

    def batch(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Mapping[str, Any]:
        batch = dict(self._samples.batch(indices))
        labels = [self._moved(label, i) for label, i in zip(batch["label"], indices, strict=True)]
        batch["label"] = np.stack(labels) if isinstance(batch["label"], np.ndarray) else labels
        return batch

    def _moved(self, label: Any, index: int) -> Any:
        return ((label + 1) % self._classes).astype(label.dtype) if self._wrong[index] else label

    def info(self, index: int) -> SampleInfo:
        return self._samples.info(index)

    def labels(self) -> npt.NDArray[np.int64]:
        return self._samples.labels()
