"""Local training with differential privacy for each patient (DP-SGD; Abadi et al., CCS 2016, algorithm 1).

A step, whoever was drawn, nobody included:

    y <- step(y, (sum_p clip_C(g_p) + N(0, z^2 C^2 I)) / (q N_pub) + the rules' corrections)

q N_pub is public and fixed: dividing by the number of patients that were drawn would release it and double the
sensitivity. What does not depend on patients (FedProx, weight decay) comes after the noise, where it costs nothing of
the clip. No loss is reported: it would be a release that nobody accounted for.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medfl.errors import Faults, RunError, StudyError
from medfl.learning.flat import FlatNetwork
from medfl.learning.flat_optimizers import FlatOptimizer
from medfl.learning.patients.base import ClippedSum, PatientEngine
from medfl.learning.patients.sampling import PatientSampler
from medfl.learning.rules.base import LocalContext, LocalRule
from medfl.update.vector import FloatVector

Noise = Callable[[int], npt.NDArray[np.floating[Any]]]
"""A fresh Gaussian vector [size] of standard deviation z C, from the system's cryptographic generator, drawn against
what was charged; raises when it may not be drawn. In steps of the sum's grid, or continuous; never in coarser steps,
between which the sum would show."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrivateSgd:
    """The private part of a local training.

    clip: C, the norm bound of a patient's gradient. patients: N_pub, a public number of patients of the site, such as
    what it declared when it enrolled; never counted afresh. step: the grid of sums, clip / FINE when None. StudyError
    with all faults.
    """

    engine: PatientEngine
    sampler: PatientSampler
    clip: float
    patients: float
    step: float | None = None

    def __post_init__(self) -> None:
        faults = Faults()
        for name, value in (("clip", self.clip), ("patients", self.patients)):
            if not 0 < value < math.inf:
                faults.add(f"privacy.{name}", f"is {value}", "give a positive number")
        faults.raise_if_any(StudyError)

    @property
    def denominator(self) -> float:
        """q N_pub, what a sum of gradients is divided by."""
        return self.sampler.sampling.rate * self.patients

    def train(
        self,
        context: LocalContext,
        rules: Sequence[LocalRule],
        optimizer: FlatOptimizer,
        noise: Noise,
        rng: np.random.Generator,
        step_done: Callable[[int, int], None] | None = None,
    ) -> None:
        """`context.steps` steps on `context.network`, which holds the global model and is in train mode.

        noise: called once a step, after the sum is known. What it raises goes through, and the network is then as the
        last finished step left it. rng: see `PatientSampler.draw`. StudyError for a rule that brings its own loss.
        """
        check_rules(rules)
        for step in range(context.steps):
            found = self._sum(context.network, rng)
            gradient = _noisy_mean(found, noise, self.denominator)
            context.network.gradient.copy_(gradient)
            for rule in rules:
                rule.direction(context)
            optimizer.step()
            if step_done is not None:
                step_done(step + 1, context.steps)

    def share(self, network: FlatNetwork, rng: np.random.Generator, step: float | None = None) -> FloatVector:
        """One step's clipped sum [size] on the CPU, not divided and not noised: what a site puts into a secure sum. It
        must not leave the site but through the integer grid and its noise share.

        step: of that grid. Every patient's contribution then lies on the grid itself, and moves the integer sum by at
        most clip / step; otherwise rounding the sum to the grid adds up to sqrt(size) to that.
        """
        vector: FloatVector = self._sum(network, rng, step).vector.cpu().numpy()
        return vector

    def _sum(self, network: FlatNetwork, rng: np.random.Generator, step: float | None = None) -> ClippedSum:
        batches = self.sampler.draw(rng)
        found = self.engine.clipped_sum(network, batches, self.clip, self.step if step is None else step)
        if found.rejected:
            log.warning("%d patients counted as 0: their gradients are not finite", found.rejected)
        return found


def check_rules(rules: Sequence[LocalRule]) -> None:
    """StudyError naming every rule that replaces the loss: what it learns from patients would be neither clipped nor
    noised."""
    faults = Faults()
    for rule in rules:
        if "own-loss" in rule.config.traits():
            faults.add(
                f"local.rules.{rule.config.kind}",
                "brings its own loss, which privacy of patients does not cover",
                "leave it out, or use site-level privacy",
            )
    faults.raise_if_any(StudyError)


def _noisy_mean(found: ClippedSum, noise: Noise, denominator: float) -> torch.Tensor:
    """(sum + noise) / denominator as float32 [size], added as integers on the sum's grid: what is rounded afterwards
    depends on sum and noise only together."""
    drawn = np.array(noise(found.units.numel()), np.float64)
    if drawn.shape != found.units.shape or not np.isfinite(drawn).all():
        raise RunError.at("noise", f"is not a finite vector of {found.units.numel()} values", "report this as a defect")
    steps = torch.from_numpy(np.rint(drawn / found.step)).to(found.units.device)
    return ((found.units + steps) * (found.step / denominator)).to(torch.float32)
