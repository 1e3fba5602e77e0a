"""The exact cost of Gaussian noise under full participation.

Releases with noise multipliers z_t are together one Gaussian mechanism with mu = sqrt(sum 1 / z_t^2), and it costs

    delta(epsilon) = Phi(mu/2 - epsilon/mu) - exp(epsilon) Phi(-mu/2 - epsilon/mu)

(Balle & Wang 2018, Theorem 8; Dong, Roth & Su 2022, Corollary 1). Stopping before sum 1 / z_t^2 passes the mu^2 of the
budget holds also when every z_t was chosen after seeing earlier releases (Smith & Thakurta 2022, arXiv 2210.17520).
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import ClassVar

from medfl.privacy.accounting.base import Accountant, GaussianEvent, check_delta, merge


class GaussianAccountant(Accountant):
    """Exact for q = 1; covers nothing else."""

    name: ClassVar[str] = "exact"
    adaptive: ClassVar[bool] = True

    def epsilon(self, events: Sequence[GaussianEvent], delta: float) -> float | None:
        merged = merge(events)
        if any(event.sampling_rate != 1 for event in merged):
            check_delta(delta)
            return None
        return epsilon_of(gaussian_mu(merged), delta)


def gaussian_mu(events: Sequence[GaussianEvent]) -> float:
    """sqrt(sum steps / z^2), the Gaussian-DP parameter of events with q = 1; infinite when one has no noise."""
    if any(event.noise_multiplier == 0 and event.steps for event in events):
        return math.inf
    return math.hypot(*(math.sqrt(event.steps) / event.noise_multiplier for event in events if event.steps))


def log_delta(mu: float, epsilon: float) -> float:
    """log delta(epsilon) for mu > 0 and epsilon >= 0, without overflow or cancellation of large terms.

    With x = epsilon/mu - mu/2 and y = x + mu, exp(epsilon) phi(y) = phi(x), so that
    delta = exp(-x^2/2) (erfcx(x/sqrt 2) - erfcx(y/sqrt 2)) / 2.
    """
    from scipy.special import erfcx, ndtr

    x = epsilon / mu - mu / 2
    second = erfcx((x + mu) / math.sqrt(2))
    if x < 0:
        return _log(float(ndtr(-x) - math.exp(-x * x / 2) * second / 2))
    return _log(float(erfcx(x / math.sqrt(2)) - second) / 2) - x * x / 2


@lru_cache(maxsize=4096)
def epsilon_of(mu: float, delta: float) -> float:
    """The smallest epsilon >= 0 at which a mechanism of this mu is (epsilon, delta)-DP; never rounded down."""
    check_delta(delta)
    if mu == 0:
        return 0.0
    if mu == math.inf:
        return math.inf
    from scipy.special import ndtri

    target = math.log(delta)
    if log_delta(mu, 0.0) <= target:
        return 0.0
    # delta <= Phi(mu/2 - epsilon/mu), which bounds epsilon from above
    high = mu * (mu / 2 - float(ndtri(delta))) * (1 + 1e-12)
    return _bisect(lambda epsilon: log_delta(mu, epsilon) <= target, 0.0, max(high, 0.0))


@lru_cache(maxsize=256)
def mu_of(epsilon: float, delta: float) -> float:
    """The largest mu that is (epsilon, delta)-DP; never rounded up."""
    check_delta(delta)
    target = math.log(delta)
    high = 1.0
    while log_delta(high, epsilon) <= target:
        high *= 2
    low = -_bisect(lambda mu: log_delta(-mu, epsilon) <= target, -high, -math.ulp(0.0))
    while epsilon_of(low, delta) > epsilon:
        low *= 1 - 1e-13
    return low


def _bisect(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The smallest number between `low`, where `holds` is false, and `high`, where it is true, down to rounding."""
    while low < (middle := low + (high - low) / 2) < high:
        if holds(middle):
            high = middle
        else:
            low = middle
    return high


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
