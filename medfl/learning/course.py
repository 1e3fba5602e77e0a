"""The steps of a local training: on which samples, and what they cost."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medfl.data.base import SampleSet, SiteData, origin_of
from medfl.errors import DataError
from medfl.update.memories.base import SiteState

if TYPE_CHECKING:
    from medfl.learning.executor import LocalParts


@dataclass(frozen=True)
class Feed:
    """A site's samples of a round, as batches of at most `size`.

    labels: of all that it has [samples]. indices: those that it trains on; one may repeat. stage: see `DataPlan.stage`.
    weights: loss weights [samples], 0 for samples of other rounds; None when all count the same.
    """

    samples: SampleSet
    labels: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int64]
    stage: int
    weights: npt.NDArray[np.float32] | None
    size: int

    @classmethod
    def of(cls, parts: "LocalParts", data: SiteData, round_: int, state: SiteState) -> "Feed":
        """What the study's plan gives a site with these private arrays in a round; DataError when that is nothing."""
        samples, site = data.splits.get("train"), data.site
        if samples is None or not len(samples):
            raise DataError.at(f"site {site}", "has no training samples", "check its data with `medfl site check`")
        labels = samples.labels()
        indices = parts.plan.indices(site, round_, labels, state)
        if data.lent:
            others = np.array([bool(origin_of(samples.info(int(index)).key)) for index in indices], np.bool_)
            indices = parts.plan.drawn(site, round_, indices[~others], indices[others])
        if not len(indices):
            raise DataError.at(f"site {site}, round {round_}", "the data plan leaves nothing to train on")
        weights, found = parts.task.weights(labels[indices]), None
        if weights is not None:
            found = np.zeros(len(labels), np.float32)
            found[indices] = weights
        return cls(samples, labels, indices, parts.plan.stage(site, round_, labels), found, parts.batch_size)

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
