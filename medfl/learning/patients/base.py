"""PatientEngine contract: the sum of patients' clipped gradients, the one thing noise is added to.

A patient's gradient g_p is the gradient of the task's loss over all images of the patient in the step; the sum is

    sum_p g_p min(1, C / |g_p|)

(DP-SGD, Abadi et al. 2016, with the patient as the unit). An engine only computes the g_p; bounding them is done here,
once for all engines:

- a gradient that is not finite counts as 0, and is found before the clip: min(1, C / inf) * inf is NaN;
- norms are in float64 over the whole flat vector, and the bound is C (1 - 2^-20), which outweighs their rounding;
- contributions are cut to a grid, toward zero, and summed without rounding. Floating-point sums may move by more than
  C when a patient is added (Casacuberta et al., "Widespread underestimation of sensitivity in differentially private
  libraries", CCS 2022); these cannot, in any order of the patients.

What is exact is the bound on each contribution. That the contributions of the others stay the same when a patient is
added is exact for the loop, which shows the network one patient at a time; engines that show it many at once keep it
up to the rounding of their float32 kernels.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from medfl.errors import RunError, StudyError
from medfl.learning.flat import FlatNetwork
from medfl.tasks.base import Task

MARGIN = 2.0**-20
GRID_BITS = 32
MOST_PATIENTS = 1 << 20
"""Up to here a sum of grid values below 2^33 is exact in float64."""


@dataclass(frozen=True, slots=True)
class PatientBatch:
    """All samples of one patient in one step, as `SampleSet.batch` returns them, without loss weights: weights that
    come from all labels of a site would let patients reach each other's gradients.

    seed: of torch's generator while this patient's loss is computed. It must depend on nothing but the step and this
    patient, or adding a patient would change what others contribute.
    """

    arrays: Mapping[str, Any]
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ClippedSum:
    """total: float64 [size], exact; on the network's device where that has float64, else on the CPU.

    patients: how many were summed. clipped: of these, how many were over the bound. rejected: how many counted as 0
    because their gradient was not finite. The three counts are about patients and not private: they stay at the site.
    """

    total: Tensor
    patients: int
    clipped: int
    rejected: int

    @property
    def vector(self) -> Tensor:
        """The sum as float32 [size]."""
        return self.total.to(torch.float32)


class PatientEngine(ABC):
    """A way to compute patients' gradients."""

    name: ClassVar[str]

    def __init__(self, task: Task, device: torch.device) -> None:
        self.task = task
        self.device = device

    @abstractmethod
    def gradients(self, network: FlatNetwork, batches: Iterable[PatientBatch]) -> Iterator[Tensor]:
        """The patients' gradients in order, some at a time: float32 [p, size], valid until the next is asked for.
        Where a patient has none, the row is not finite. Uses up the network's own gradient."""

    def clipped_sum(self, network: FlatNetwork, batches: Iterable[PatientBatch], clip: float) -> ClippedSum:
        """The sum over all patients of `batches` of their gradients, each clipped to the norm `clip`; zeros for no
        patients. StudyError when `clip` is not positive and finite."""
        total = BoundedSum(network.layout.size, clip, self.device)
        for rows in self.gradients(network, batches):
            total.add(rows)
        return total.result()


class BoundedSum:
    """A sum of vectors [size] in which each takes at most the norm `clip`, whatever it holds."""

    def __init__(self, size: int, clip: float, device: torch.device) -> None:
        if not 0 < clip < math.inf:
            raise StudyError.at("privacy.clip", f"is {clip}, which bounds nothing", "give a positive number")
        # Apple's MPS has no float64
        where = torch.device("cpu") if device.type == "mps" else device
        self._bound = clip * (1 - MARGIN)
        # a power of two, so that nothing is rounded on the way to the grid and back
        self._step = math.ldexp(1.0, math.frexp(clip)[1] - 1 - GRID_BITS)
        self._total = torch.zeros(size, dtype=torch.float64, device=where)
        self._row = torch.empty_like(self._total)
        self._patients = self._clipped = self._rejected = 0

    def add(self, rows: Tensor) -> None:
        """Take in a contribution [size] for each of the rows [p, size]."""
        rows = rows.detach().to(self._total.device)
        for row, norm in zip(rows, torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).tolist(), strict=True):
            if not math.isfinite(norm):
                self._rejected += 1
                continue
            self._count(norm > self._bound)
            self._row.copy_(row)
            self._row.mul_(min(1.0, self._bound / norm if norm else 1.0) / self._step).trunc_()
            self._total.add_(self._row)

    def _count(self, clipped: bool) -> None:
        self._patients += 1
        self._clipped += clipped
        if self._patients > MOST_PATIENTS:
            raise RunError.at(
                "step", f"more than {MOST_PATIENTS} patients cannot be summed exactly", "lower the sampling rate"
            )

    def result(self) -> ClippedSum:
        return ClippedSum(self._total * self._step, self._patients, self._clipped, self._rejected)
