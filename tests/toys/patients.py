"""Sample sets whose images belong to patients, and the sums that a privacy proof needs, by brute force."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medfl.data.base import SampleInfo
from medfl.learning.flat import FlatNetwork, seeded
from medfl.learning.patients.base import PatientBatch
from medfl.tasks.base import TASKS, Task
from toys.parts import CPU


class PatientImages:
    """Samples in memory: arrays by name [N, ..] or lists of N, with the patient and the image key of each."""

    def __init__(self, arrays: Mapping[str, Any], patients: Sequence[str], keys: Sequence[str] | None = None) -> None:
        self.arrays = arrays
        self.patients = list(patients)
        self.keys = list(keys) if keys is not None else [f"image{number}" for number in range(len(patients))]
        self.asked: list[list[int]] = []

    @property
    def cases(self) -> int:
        return len(set(self.keys))

    def __len__(self) -> int:
        return len(self.patients)

    def batch(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Mapping[str, Any]:
        chosen = [int(index) for index in indices]
        self.asked.append(chosen)
        return {
            name: values[chosen] if isinstance(values, np.ndarray) else [values[index] for index in chosen]
            for name, values in self.arrays.items()
        }

    def info(self, index: int) -> SampleInfo:
        return SampleInfo(self.keys[index], self.patients[index], (1.0, 1.0))

    def labels(self) -> npt.NDArray[np.int64]:
        return np.zeros(len(self), np.int64)


def task(kind: str, **settings: Any) -> Task:
    made: Task = TASKS.build(TASKS.load(kind).Config.model_validate({"kind": kind, **settings}))
    return made


def se_resnet() -> Task:
    return task("classification", classes=["a", "b"], network={"layers": [1, 1], "width": 8, "stem": "small"})


def unet(dims: int = 2, **settings: Any) -> Task:
    shape = {"width": 4, "depth": 1, **settings.pop("network", {})}
    return task("segmentation", spatial_dims=dims, classes=["a", "b"], network=shape, **settings)


def retina_net(**settings: Any) -> Task:
    return task(
        "detection",
        classes=["lesion"],
        backbone={"layers": [1, 1], "width": 8, "stem": "small"},
        pyramid_channels=8,
        **settings,
    )


def built(made: Task) -> FlatNetwork:
    network = FlatNetwork(seeded(made.build, 0), CPU)
    network.module.train()
    return network


def images(made: Task, counts: Sequence[int], size: int = 12, seed: int = 0) -> list[PatientBatch]:
    """Random patients with that many images each."""
    rng = np.random.default_rng(seed)
    space = (size,) * made.config.spatial_dims
    batches = []
    for number, count in enumerate(counts):
        found: dict[str, Any] = {"image": rng.random((count, made.config.in_channels, *space), dtype=np.float32)}
        if made.config.kind == "classification":
            found["label"] = rng.integers(0, 2, count)
        elif made.config.kind == "segmentation":
            found["label"] = (rng.random((count, *space)) < 0.1 * (1 + number)).astype(np.uint8)
        else:
            boxes = [1 + (number + image) % 3 for image in range(count)]
            corners = [rng.integers(0, size // 2, (n, len(space))) for n in boxes]
            found["box"] = [np.hstack([c, c + size // 3]).astype(np.float32) for c in corners]
            found["label"] = [np.zeros(n, np.int64) for n in boxes]
        batches.append(PatientBatch(found, seed=number))
    return batches


def spoiled(batch: PatientBatch, value: float) -> PatientBatch:
    """The batch with one bad pixel."""
    image = batch.arrays["image"].copy()
    image.flat[0] = value
    return PatientBatch({**batch.arrays, "image": image}, batch.seed)


def autograd(made: Task, network: FlatNetwork, batch: PatientBatch) -> npt.NDArray[np.float64]:
    """One patient's gradient [size], by autograd and nothing else."""
    torch.manual_seed(batch.seed)
    loss = made.loss(network.module, made.to_device(batch.arrays, CPU))
    found = torch.autograd.grad(loss, list(network.module.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in found]).double().numpy()


def exact_norm_squared(vector: torch.Tensor) -> Fraction:
    """The squared Euclidean norm without any rounding."""
    return sum((Fraction(float(value)) ** 2 for value in vector.double() if value), Fraction(0))
