"""A saved model, ready to use."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medfl.coordinator.files import load_model
from medfl.coordinator.journal import journal_in
from medfl.errors import InputError
from medfl.study.build import build_task, choose_device
from medfl.study.load import load_study
from medfl.study.model import Study
from medfl.tasks.base import Task

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class SavedModel:
    """folder: holds `model.safetensors` and `study.yaml`."""

    folder: Path
    study: Study
    task: Task
    network: "nn.Module"
    device: "torch.device"


def model_folder(path: Path) -> Path:
    """The model folder of a run folder, or the folder itself; InputError when there is no model in either."""
    for folder in (path, path / "model"):
        if (folder / "model.safetensors").is_file():
            return folder
    raise InputError.at(path, "holds no model.safetensors", "give the folder of a finished run, or its model folder")


def run_folder(path: Path) -> Path | None:
    """The run folder that a run or model folder belongs to; None for a model without its run."""
    folders = (path, path.resolve().parent)
    return next((folder for folder in folders if journal_in(folder) is not None), None)


def load_saved(path: Path) -> SavedModel:
    """The model of a run or model folder; InputError when it is not there or does not fit its study."""
    from medfl.learning.flat import FlatNetwork, seeded

    folder = model_folder(path)
    study = load_study(folder / "study.yaml")
    # whatever it was trained on, this may be another machine
    task, device = build_task(study), choose_device(study.model_copy(update={"device": "auto"}))
    flat = FlatNetwork(seeded(task.build, study.seed), device)
    flat.load(load_model(folder, flat.layout))
    return SavedModel(folder, study, task, flat.module, device)
