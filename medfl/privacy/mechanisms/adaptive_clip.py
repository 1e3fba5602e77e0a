"""A clip norm that follows a quantile of the updates' norms (Andrew et al., "Differentially private learning with
adaptive clipping", NeurIPS 2021).

Each site adds one number to its update: b - 1/2, with b = 1 when its update was NOT clipped. The sum of these gets
noise of standard deviation sigma_b, and with bbar the noisy share of sites that were not clipped

    C <- C * exp(-rate * (bbar - quantile)):     too many untouched, the clip falls; too many clipped, it rises.

The number costs something: 1 / z^2 = 1 / z_D^2 + 1 / (2 sigma_b)^2 for a release charged with z whose update gets noise
z_D. The noise of a round uses the C that clipped the round. With few sites bbar is mostly noise, and C wanders by
factors: below 20 sites it is refused unless forced.
"""

import math
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

FEWEST_SITES = 20
# less than a twentieth more noise on the update, whatever the number of sites
_BIT_NOISE = 1.64


class AdaptiveClipConfig(BaseModel):
    """quantile: share of sites whose updates should pass unclipped. `privacy.clip` is where the clip starts."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    quantile: float = Field(0.5, gt=0, lt=1)
    rate: float = Field(0.2, gt=0, le=1)
    forced: bool = Field(False, description=f"take it with fewer than {FEWEST_SITES} sites, too")


@dataclass(frozen=True, slots=True)
class SplitNoise:
    """How the noise of a release is shared out. update: z_D, over the clip. bit: sigma_b."""

    update: float
    bit: float

    @classmethod
    def of(cls, noise_multiplier: float, sites: int) -> "SplitNoise":
        bit = max(sites / 20, _BIT_NOISE * noise_multiplier)
        return cls(1 / math.sqrt(noise_multiplier**-2 - (2 * bit) ** -2), bit)


class AdaptiveClip:
    """The clip norm from round to round."""

    def __init__(self, config: AdaptiveClipConfig, start: float) -> None:
        self.config = config
        self.clip = start

    def update(self, unclipped: float) -> None:
        """Take in the noisy share of sites that were not clipped."""
        self.clip *= math.exp(-self.config.rate * (unclipped - self.config.quantile))
