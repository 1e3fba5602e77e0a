"""The steps of a local training: on which samples, and what they cost."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medfl.data.base import SampleSet


@dataclass(frozen=True)
class Feed:
    """A site's samples as batches of at most `size`. weights: of the samples [samples], or None."""

    samples: SampleSet
    weights: npt.NDArray[np.float32] | None
    size: int

    def batch(self, chosen: npt.NDArray[np.int64]) -> dict[str, Any]:
        batch = dict(self.samples.batch(chosen))
        if self.weights is not None:
            batch["weight"] = self.weights[chosen]
        return batch


@dataclass(frozen=True)
class Course:
    """The losses [steps] of a local training, mean over each batch, and the batches' sizes [steps]."""

    losses: npt.NDArray[np.float32]
    sizes: npt.NDArray[np.float64]
    per_epoch: int

    @classmethod
    def untold(cls, steps: int) -> "Course":
        """Steps whose losses stay at the site: under differential privacy they would be one more release."""
        return cls(np.full(steps, np.nan, np.float32), np.ones(steps), max(1, steps))

    def mean(self, steps: slice) -> float:
        """Mean over the samples of these steps; the last batch of an epoch may be smaller than the others."""
        return float(np.average(self.losses[steps], weights=self.sizes[steps])) if len(self.losses) else math.nan


def batches(
    indices: npt.NDArray[np.int64], size: int, steps: int, rng: np.random.Generator
) -> Iterator[npt.NDArray[np.int64]]:
    """`steps` batches; every epoch is a fresh permutation of all indices."""
    done = 0
    while done < steps:
        order = rng.permutation(indices)
        for start in range(0, len(order), size):
            if done == steps:
                return
            yield order[start : start + size]
            done += 1
