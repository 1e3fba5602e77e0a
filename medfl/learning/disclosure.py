"""A site's own door: whatever leaves it under differential privacy is charged to its ledger first.

The site's ledger decides by itself, whatever the coordinator says: BudgetError keeps the update back.
"""

import hashlib
import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from medfl.errors import RunError
from medfl.privacy.channels.base import RoundContext
from medfl.privacy.grid import Grid
from medfl.privacy.ledger.base import Charge, Ledger, Permit
from medfl.privacy.mechanisms.base import Mechanism, NoisePlan, Release
from medfl.privacy.mechanisms.patient import PatientSamplingConfig
from medfl.privacy.noise import NoiseSource, draw, system
from medfl.update.base import Payload
from medfl.update.vector import FloatVector

_FINE = 1 << 22
"""Grid units a clip norm where nothing has to fit a sum of sites."""


@dataclass
class Disclosure:
    """What one site needs to charge and to draw noise. dataset: the ledger's name for the site's patients."""

    site: str
    study: str
    run: str
    mechanism: Mechanism
    plan: NoisePlan
    ledger: Ledger
    dataset: str
    source: NoiseSource = system
    _permit: Permit | None = field(default=None, init=False)

    def permit(self, round_: int) -> Permit:
        """Charge a round as planned, durably."""
        self._permit = self.ledger.charge(self._charge(round_, None), self.mechanism.config.budget)
        return self._permit

    def done(self, payload: Payload) -> None:
        """Note what is about to leave under the round's charge."""
        if self._permit is not None:
            digest = hashlib.sha256()
            for buffer in payload.buffers:
                digest.update(buffer)
            self.ledger.done(self._permit, digest.hexdigest())
            self._permit = None

    def guard(self, context: RoundContext, survivors: tuple[str, ...]) -> None:
        """Before the sum of a round is opened: charge for noise that was counted on and is missing."""
        if self.mechanism.event(self.plan, len(survivors)).noise_multiplier < self.plan.noise_multiplier:
            self.ledger.charge(self._charge(context.round, len(survivors)), self.mechanism.config.budget)

    def _charge(self, round_: int, alive: int | None) -> Charge:
        release = Release(self.study, self.run, round_, self.dataset, self.source.randomness)
        return self.mechanism.charge(self.plan, release, alive)

    @property
    def sampling(self) -> PatientSamplingConfig:
        """How patients are drawn. RunError under site-level privacy, which draws none."""
        if not isinstance(self.mechanism.config, PatientSamplingConfig):
            raise RunError.at(f"site {self.site}", "draws no patients under site-level privacy")
        return self.mechanism.config

    @property
    def fine(self) -> Grid:
        """The grid of sums that stay at the site."""
        return Grid(self.plan.clip, _FINE)

    def share(self, total: FloatVector, grid: Grid, permit: Permit) -> npt.NDArray[np.int32]:
        """The site's sum of clipped gradients [size] with its share of the noise, in units of `grid`, on which every
        patient's contribution lies already."""
        if grid.clip != self.plan.clip:
            raise RunError.at(
                f"site {self.site}",
                f"was told a clip of {grid.clip:g}, the plan that it is charged for has {self.plan.clip:g}",
                "nothing was sent: the noise would not be what was charged",
            )
        whole = self.plan.noise_multiplier * math.sqrt(len(self.plan.sites) / self.plan.shares)
        values = grid.quantise(total, grid.share(len(self.plan.sites), whole))
        sigma = self.plan.noise_multiplier * grid.bound / math.sqrt(self.plan.shares)
        return (values + draw(permit, sigma, values.size, self.source)).astype(np.int32)

    def noise(self, permit: Permit, size: int) -> npt.NDArray[np.float64]:
        """All the noise [size] that a sum of clipped gradients on the grid `fine` needs."""
        units = draw(permit, self.plan.noise_multiplier * self.fine.bound, size, self.source)
        return np.multiply(units, self.fine.step, dtype=np.float64)
