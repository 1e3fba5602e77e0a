"""PatientEngine contract: the sum of patients' clipped gradients, the one thing noise is added to.

A patient's gradient g_p is the gradient of the task's loss over all images of the patient in the step; the sum is

    sum_p g_p min(1, C / |g_p|)

(DP-SGD, Abadi et al. 2016, with the patient as the unit). An engine only computes the g_p; bounding them is done here,
once for all engines:

- a gradient that is not finite counts as 0, and is found before the clip: min(1, C / inf) * inf is NaN;
- norms are in float64 over the whole flat vector, and the bound is C (1 - 2^-20), which outweighs their rounding;
- contributions are cut to a grid, toward zero, and summed as integers. Floating-point sums may move by more than C when
  a patient is added (Casacuberta et al., "Widespread underestimation of sensitivity in differentially private
  libraries", CCS 2022); these cannot, in any order of the patients. Integer noise on the same grid then hides all of
  the sum, where sums between the grid's points would show through it.

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
FINE = 1 << 22
"""Grid steps a clip norm, unless a coarser grid is asked for."""
MOST_STEPS, MOST_PATIENTS = 1 << 32, 1 << 20
"""Up to here sums are exact in float64."""
_BLOCK = 1 << 16
"""Values at a time on a CPU: what is done to them stays in the cache."""


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
    """units: whole numbers [size] in float64, the sum in grid steps; on the network's device where that has float64,
    else on the CPU. step: the value of one.

    patients: how many were summed. clipped: of these, how many were over the bound. rejected: how many counted as 0
    because their gradient was not finite. The three counts are about patients and not private: they stay at the site.
    """

    units: Tensor
    step: float
    patients: int
    clipped: int
    rejected: int

    @property
    def total(self) -> Tensor:
        """The sum as float64 [size]."""
        return self.units * self.step

    @property
    def vector(self) -> Tensor:
        """The sum as float32 [size]; grid points below 2^22 steps are still told apart."""
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

    def clipped_sum(
        self, network: FlatNetwork, batches: Iterable[PatientBatch], clip: float, step: float | None = None
    ) -> ClippedSum:
        """The sum over all patients of `batches` of their gradients, each clipped to the norm `clip` and cut to
        multiples of `step` (clip / FINE when None); zeros for no patients. StudyError when clip or step bound nothing.
        """
        total = BoundedSum(network.layout.size, clip, self.device, step)
        for rows in self.gradients(network, batches):
            total.add(rows)
        return total.result()


class BoundedSum:
    """A sum of vectors [size] in which each takes at most the norm `clip`, whatever it holds."""

    def __init__(self, size: int, clip: float, device: torch.device, step: float | None = None) -> None:
        if not 0 < clip < math.inf:
            raise StudyError.at("privacy.clip", f"is {clip}, which bounds nothing", "give a positive number")
        self._step = clip / FINE if step is None else step
        if not clip / MOST_STEPS <= self._step <= clip:
            raise StudyError.at("grid", f"has steps of {step} for a clip norm of {clip}", "use 1 to 2^32 steps a clip")
        # Apple's MPS has no float64
        where = torch.device("cpu") if device.type == "mps" else device
        self._block = _BLOCK if where.type == "cpu" else size
        self._bound = clip * (1 - MARGIN)
        self._units = torch.zeros(size, dtype=torch.float64, device=where)
        self._scratch = torch.empty(min(size, self._block), dtype=torch.float64, device=where)
        self._patients = self._clipped = self._rejected = 0

    def add(self, rows: Tensor) -> None:
        """Take in a contribution [size] for each of the rows [p, size]."""
        for row in rows.detach().to(self._units.device):
            norm = self._norm(row)
            if not math.isfinite(norm):
                self._rejected += 1
                continue
            self._count(norm > self._bound)
            scale = min(1.0, self._bound / norm if norm else 1.0) / self._step
            for total, part in zip(torch.split(self._units, self._block), self._parts(row), strict=True):
                total.add_(part.mul_(scale).trunc_())

    def _norm(self, row: Tensor) -> float:
        return math.sqrt(sum(float(torch.dot(part, part)) for part in self._parts(row)))

    def _parts(self, row: Tensor) -> Iterator[Tensor]:
        """The row in float64, piece by piece; each is gone when the next is asked for."""
        for part in torch.split(row, self._block):
            yield self._scratch[: len(part)].copy_(part)

    def _count(self, clipped: bool) -> None:
        self._patients += 1
        self._clipped += clipped
        if self._patients > MOST_PATIENTS:
            raise RunError.at(
                "step", f"more than {MOST_PATIENTS} patients cannot be summed exactly", "lower the sampling rate"
            )

    def result(self) -> ClippedSum:
        return ClippedSum(self._units, self._step, self._patients, self._clipped, self._rejected)
