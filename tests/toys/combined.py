"""Runs of a study's real parts over tiny images that are never written: what a combination of plug-ins does, in a
tenth of a second."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from medfl.coordinator.observer import Observer
from medfl.coordinator.runner import Runner
from medfl.data.base import Array, Case, SampleInfo, SiteData, lent, origin_of
from medfl.data.plans.base import PLANS
from medfl.errors import StudyError
from medfl.learning.executor import SiteExecutor
from medfl.study.build import build_local
from medfl.study.load import study_from_json
from medfl.study.model import Study
from medfl.study.rules import conflicts
from medfl.study.shared_images import reads_shared
from medfl.study.sources import Assignment, RunInputs
from medfl.transport import host
from medfl.transport.in_process import InProcess

TRAINING = ("aachen", "bergen", "cluj")
PUBLIC = "evora"
SIDE = 8
# of a site, so that weights differ
CASES = dict(zip((*TRAINING, PUBLIC), (8, 6, 10, 0), strict=True))


class Pictures:
    """The samples of cases: a bright square on noise is class 1 (in a segmentation, its pixels are)."""

    def __init__(self, cases: Sequence[Case], masks: bool) -> None:
        self.keys = [case.key for case in cases]
        drawn = [_drawn(key) for key in self.keys]
        self.images = np.stack([image for image, _ in drawn])
        masked = np.stack([mask for _, mask in drawn])
        self.targets: Array = masked if masks else masked.any((1, 2)).astype(np.int64)

    @property
    def cases(self) -> int:
        return len(self.keys)

    def __len__(self) -> int:
        return len(self.keys)

    def batch(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Mapping[str, Any]:
        return {"image": self.images[indices], "label": self.targets[indices]}

    def info(self, index: int) -> SampleInfo:
        return SampleInfo(self.keys[index], self.keys[index], (1.0, 1.0))

    def labels(self) -> npt.NDArray[np.int64]:
        found: npt.NDArray[np.int64] = self.targets.reshape(len(self), -1).max(1).astype(np.int64)
        return found


def _drawn(key: str) -> tuple[Array, Array]:
    """An image [1, side, side] and its mask [side, side], which the last part of a key decides."""
    name = key.rpartition("/")[2]
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big"))
    mask = np.zeros((SIDE, SIDE), np.uint8)
    if int(name.rpartition("-")[2]) % 2:
        row, column = rng.integers(0, SIDE - 3, 2)
        mask[row : row + 4, column : column + 4] = 1
    image = 0.1 * rng.normal(size=(1, SIDE, SIDE)) + mask
    return image.astype(np.float32), mask


def cases_of(study: Study) -> dict[str, tuple[Case, ...]]:
    """What every site holds by the study's data plan, and its validation images."""
    own = {
        site: [
            Case(f"{site}-{split}-{number}", Path("-"), patient=f"{site}-{split}-{number}", site=site, split=split)
            for split, count in (("train", CASES[site]), ("val", 4))
            for number in range(count)
        ]
        for site in CASES
    }
    plan, everything = PLANS.build(study.local.plan), [case for cases in own.values() for case in cases]
    held = {}
    for site in TRAINING:
        common = [Case(f"common-{number}", Path("-"), split="train") for number in range(6)]
        more = ([lent(case, site, "shared-1") for case in common],) if reads_shared(study) else ()
        held[site] = plan.hold(site, everything, TRAINING, *more)
    return {site: (*held.get(site, ()), *(case for case in own[site] if case.split != "train")) for site in own}


@dataclass(frozen=True)
class Played:
    """A run: the records of its rounds, the loss on all training images before and after, and the model [size].
    streams: whether classes came and went, so that the loss on all of them may rise without anything being wrong."""

    records: list[dict[str, Any]]
    start: float
    loss: float
    initial: npt.NDArray[np.float32]
    model: npt.NDArray[np.float32]
    streams: bool

    def wrong(self) -> str:
        """What is wrong with it: a round that was not made, a site that failed, a model that is worse than none."""
        for record in self.records:
            told = record["void"] or record["failed"] or ("" if record["moved"] else "the model did not move")
            if told:
                return f"round {record['round']}: {told}"
        limit = (2 if self.streams else 1.1) * self.start + 0.02
        if not np.isfinite(self.model).all() or not self.loss <= limit:
            return f"the loss went from {self.start:.4g} to {self.loss:.4g}"
        return ""


class Refused(Exception):
    """A study that the rules, or a look at the sites before the first round, refused: with reasons."""


class Stage:
    """Where studies are played; every one in a folder of its own."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self._count = folder, 0
        self._data: dict[tuple[str, tuple[str, ...], bool], SiteData] = {}
        self._executors: dict[str, SiteExecutor] = {}
        patch.setattr(host, "load_site_data", self._load)
        # the same numbers on a CPU, without a look for other devices at each call
        patch.setattr(torch, "manual_seed", torch.default_generator.manual_seed)

    def _load(self, inputs: RunInputs, site: str, cases: Sequence[Case]) -> SiteData:
        masks = inputs.study.task.kind == "segmentation"
        known = site, tuple(case.key for case in cases), masks
        if known not in self._data:
            chosen = {split: [case for case in cases if case.split == split] for split in ("train", "val")}
            splits = {split: Pictures(own, masks) for split, own in chosen.items() if own}
            origins = Counter(origin for case in cases if (origin := origin_of(case.key)))
            self._data[known] = SiteData(site, splits, lent=origins)
        return self._data[known]

    def play(self, written: Mapping[str, Any], rules: bool = True) -> Played:
        """All rounds of a study; Refused, or whatever goes wrong. rules: whether the rules have a say."""
        try:
            study = study_from_json(written)
        except StudyError as error:
            raise Refused(str(error)) from error
        faults = list(conflicts(study)) if rules else []
        if faults:
            assert all(fault.what and fault.remedy for fault in faults)
            raise Refused(str(StudyError(*faults)))
        return self._play(study)

    def trouble(self, written: Mapping[str, Any], rules: bool = True) -> str:
        """What goes wrong with a study that is not refused; "" when nothing does."""
        try:
            return self.play(written, rules).wrong()
        except Refused:
            return ""
        except Exception as error:  # whatever it is, it is what the test is about
            return f"{type(error).__name__}: {error}"

    def _play(self, study: Study) -> Played:
        self._count += 1
        out = self.folder / str(self._count)
        inputs = RunInputs(study=study, cache=self.folder, ledgers=self.folder / f"ledgers{self._count}")
        cases = cases_of(study)
        transport = InProcess(inputs, cases)
        runner = Runner(inputs, out, transport, Assignment(cases, frozenset({PUBLIC})), Observer())
        try:
            try:
                runner.start()
            except StudyError as error:
                raise Refused(str(error)) from error
            initial = runner._federation.model.copy()
            records = [runner._round() for _ in range(study.stop.rounds)]
        finally:
            runner.close()
        measure = self._measure(inputs, cases)
        model = runner._federation.model
        streams = "streams-classes" in study.local.plan.traits()
        return Played(records, measure(initial), measure(model), initial, model.copy(), streams)

    def _measure(self, inputs: RunInputs, cases: Mapping[str, Sequence[Case]]) -> Any:
        study = inputs.study
        if study.task.kind not in self._executors:
            self._executors[study.task.kind] = SiteExecutor(build_local(study), torch.device("cpu"))
        executor = self._executors[study.task.kind]
        trains = [self._load(inputs, site, cases[site]).splits["train"] for site in TRAINING]

        def loss(model: npt.NDArray[np.float32]) -> float:
            found = [executor.evaluate(samples, model)["loss"] for samples in trains]
            return float(sum(total for total, _ in found) / sum(count for _, count in found))

        return loss
