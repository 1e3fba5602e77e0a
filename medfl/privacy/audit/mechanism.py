"""Is the noise of a mechanism as large as its ledger says?

The mechanism is called many times on two neighbouring inputs, with and without the worst-case unit (a site or patient
whose contribution is as large as the clip allows, in one direction u). Each release is projected on u. With Gaussian
noise the two samples are N(m, s^2) and N(m + mu s, s^2), and mu is all there is to know about their privacy (Dong, Roth
& Su 2022, Gaussian differential privacy); a correct mechanism of noise multiplier z has mu = 1 / z.

The less noise a call has, the more it tells about the noise: the relative error of mu after n calls in each world is
about sqrt(2 / mu^2 + 1 / 4) / sqrt(n). An audit at z = 0.1 needs a ninth of the calls of one at z = 1.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from medfl.errors import InputError

Observations = npt.NDArray[np.floating]
Finding = Literal["as claimed", "privacy bug", "utility bug"]

CONFIDENCE = 0.99
UTILITY = 0.97
"""A mechanism whose mu is certainly below this share of its claim adds noise that nobody asked for."""
_FEWEST = 30


@dataclass(frozen=True, slots=True)
class Estimate:
    """A Gaussian-DP parameter and the interval that holds it with `confidence`; all infinite when the noise does not
    hide the unit at all."""

    mu: float
    low: float
    high: float
    confidence: float = CONFIDENCE

    def __str__(self) -> str:
        return f"mu {self.mu:.4g} [{self.low:.4g}, {self.high:.4g}] at {self.confidence:g}"


def mechanism_mu(
    present: Observations, absent: Observations, *, paired: bool = False, confidence: float = CONFIDENCE
) -> Estimate:
    """The mu of a mechanism, by releases projected on the unit's direction: [n] with the unit there, [m] without it.

    paired: present[i] and absent[i] come of the same call in two worlds, with everything that is public or may become
    known equal: run, round, seeds. Noise that repeats between the worlds (because a seed decides it) hides nothing from
    whoever knows the seed, and only shows in the pairs: where these tell more than the samples, they are the estimate.

    The interval is for Gaussian noise, with sample sizes that make normal approximations of mean and standard deviation
    good; InputError below 30 a sample, when a value is not finite, and when pairs do not match.
    """
    there, away = _checked("present", present), _checked("absent", absent)
    difference = abs(float(there.mean() - away.mean()))
    freedom = there.size + away.size - 2
    spread = math.sqrt((there.var() * there.size + away.var() * away.size) / freedom)
    error = 1 / there.size + 1 / away.size
    if not paired:
        return _estimate(difference, spread, error, freedom, confidence, 1)
    if there.size != away.size:
        raise InputError.at("audit", f"{there.size} and {away.size} observations do not pair", "give as many of each")
    pairs = float((there - away).std(ddof=1)) / math.sqrt(2)
    # two looks at one claim: each gets half of the error
    pooled = _estimate(difference, spread, error, freedom, confidence, 2)
    repeating = _estimate(difference, pairs, error, there.size - 1, confidence, 2)
    return repeating if repeating.low > pooled.high else pooled


def finding(estimate: Estimate, claim: float) -> Finding:
    """What an estimate says about a claimed mu: a privacy bug when mu is certainly above it, a utility bug when it is
    certainly below UTILITY of it."""
    if estimate.low > claim:
        return "privacy bug"
    return "utility bug" if estimate.high < UTILITY * claim else "as claimed"


def normal_quantile(confidence: float, looks: int = 1) -> float:
    """Half the width, in standard deviations, of `looks` two-sided intervals that hold together."""
    from scipy.special import ndtri

    if not 0 < confidence < 1:
        raise InputError.at("confidence", f"is {confidence:g}", "use a number between 0 and 1, such as 0.99")
    return float(-ndtri((1 - confidence) / (2 * looks)))


def _estimate(difference: float, spread: float, error: float, freedom: int, confidence: float, looks: int) -> Estimate:
    """error: the variance of the difference of means, in variances of one observation."""
    width = normal_quantile(confidence, looks)
    if spread == 0:
        mu = math.inf if difference else 0.0
        return Estimate(mu, mu, mu, confidence)
    mu = difference / spread
    margin = width * math.sqrt(error + mu**2 / (2 * freedom))
    return Estimate(mu, max(0.0, mu - margin), mu + margin, confidence)


def _checked(name: str, sample: Observations) -> npt.NDArray[np.float64]:
    values = np.asarray(sample, np.float64).ravel()
    if values.size < _FEWEST:
        raise InputError.at(f"audit, {name}", f"has {values.size} observations", f"give {_FEWEST} or more")
    if not np.isfinite(values).all():
        raise InputError.at(f"audit, {name}", "holds values that are not finite", "see what the mechanism released")
    return values
