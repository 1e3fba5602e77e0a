"""Sample predictions as pictures, for the report."""

import base64
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medfl.coordinator.runner import inputs_of
from medfl.data.base import Sample, SampleSet
from medfl.errors import MedflError
from medfl.report.run import RunRecord
from medfl.report.saved import SavedModel, load_saved
from medfl.study.sources import RunInputs, assign_cases, load_site_data
from medfl.tasks.base import Prediction

DRAWN_SCORE = 0.3
"""Boxes with a lower score are not drawn: a detector keeps many, for its metrics, that only hide the image."""


@dataclass(frozen=True, slots=True)
class Picture:
    """png: bytes of the picture. caption: site, case and what is shown. alt: the prediction in words."""

    png: bytes
    caption: str
    alt: str

    @property
    def uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True, slots=True)
class _Chosen:
    site: str
    samples: SampleSet
    index: int


def pictures_of(run: RunRecord) -> Mapping[str, Any]:
    """For the report's template: {"shown": pictures, "why": why there are none}."""
    try:
        inputs = inputs_of(run.folder)
        if _elsewhere(inputs):
            return {"shown": [], "why": "There are no sample predictions: the images are at the sites alone."}
        return {"shown": sample_predictions(inputs, run.folder), "why": "There are no test images."}
    except MedflError as error:
        # a report outlives the images it was made from; it says so instead of failing
        return {"shown": [], "why": f"There are no sample predictions, because {error.faults[0]}"}


def _elsewhere(inputs: RunInputs) -> bool:
    """Whether the run's images are on the sites' machines, as in a run over a network."""
    source = inputs.study.data.source
    here = inputs.data or any(site.data for site in inputs.sites)
    return not here and source.kind == "datalist" and source.path is None


def sample_predictions(inputs: RunInputs, run: Path, count: int = 6) -> list[Picture]:
    """Pictures of the saved model's predictions for up to `count` test images (validation images where no site has
    test images), from the sites in turn, those with foreground first. The same images on every call.

    InputError when the images or the model are not there any more.
    """
    model = load_saved(run)
    chosen = choose(_samples(inputs), model.study.task.kind, count)
    return [_picture(model, one) for one in chosen]


def _samples(inputs: RunInputs) -> dict[str, SampleSet]:
    """The test samples of each site that has some."""
    cases = assign_cases(inputs).cases
    split = "test" if any(case.split == "test" for own in cases.values() for case in own) else "val"
    found = {}
    for site, own in cases.items():
        members = [case for case in own if case.split == split]
        data = load_site_data(inputs, site, members).splits if members else {}
        if split in data:
            found[site] = data[split]
    return found


def choose(samples: Mapping[str, SampleSet], task: str, count: int) -> list[_Chosen]:
    """Up to `count` samples: one of each site by name, then the next one of each."""
    queues = [
        [_Chosen(site, own, index) for index in _order(own.labels(), task, turn)[:count]]
        for turn, (site, own) in enumerate(sorted(samples.items()))
    ]
    turns = [one for level in zip_longest(*queues) for one in level if one is not None]
    return turns[:count]


def _order(labels: npt.NDArray[np.int64], task: str, turn: int) -> list[int]:
    """Indices by foreground, then place. In classification the classes alternate, and each site starts with another."""
    if task != "classification":
        return sorted(range(len(labels)), key=lambda index: (labels[index] == 0, index))
    classes = sorted(set(labels.tolist()), reverse=True)
    queues = [np.flatnonzero(labels == wanted).tolist() for wanted in classes]
    start = turn % max(1, len(queues))
    turns = zip_longest(*queues[start:], *queues[:start])
    return [index for level in turns for index in level if index is not None]


def _picture(model: SavedModel, chosen: _Chosen) -> Picture:
    info = chosen.samples.info(chosen.index)
    sample: Sample = {name: values[0] for name, values in chosen.samples.batch([chosen.index]).items()}
    prediction = model.task.predict(model.network, sample, info, model.device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "overlay.png"
        drawn, left_out = for_picture(prediction)
        model.task.overlay(sample["image"], drawn, sample, path)
        png = path.read_bytes()
    said = "; ".join(in_words(prediction, model.study.task.classes))
    note = f" ({left_out} boxes with scores below {DRAWN_SCORE} not drawn)" if left_out else ""
    return Picture(png, f"{chosen.site}: {info.key}{note}", f"Prediction for an image of {chosen.site}: {said}")


def for_picture(prediction: Prediction) -> tuple[Prediction, int]:
    """What is drawn of a prediction, and how many boxes are left out because of their score."""
    data = prediction.data
    if "boxes" not in data:
        return prediction, 0
    kept = [number for number, score in enumerate(data["scores"]) if score >= DRAWN_SCORE]
    drawn = {name: [data[name][number] for number in kept] for name in ("boxes", "labels", "scores")}
    return Prediction({**data, **drawn}, prediction.mask), len(data["scores"]) - len(kept)


def in_words(prediction: Prediction, classes: Sequence[str]) -> Iterator[str]:
    """What a prediction says, for readers who cannot see it."""
    data = prediction.data
    if "probabilities" in data:
        yield from (f"{name} {value:.2f}" for name, value in data["probabilities"].items())
    elif "boxes" in data:
        for name in classes:
            scores = [s for label, s in zip(data["labels"], data["scores"], strict=True) if label == name]
            yield f"{len(scores)} × {name}" + (f", highest score {max(scores):.2f}" if scores else "")
    else:
        yield from (f"{name} {count:,} pixels" for name, count in data["voxels"].items())
