"""The moments accountant: Renyi differential privacy (RDP) of the Poisson-subsampled Gaussian.

Moments accountant: Abadi et al. 2016. RDP of the subsampled Gaussian: Mironov, Talwar & Zhang 2019 (arXiv 1908.10530).
From RDP to (epsilon, delta): Canonne, Kamath & Steinke 2020 (arXiv 2004.00010, Proposition 12).

With parameters chosen after seeing earlier releases, Feldman & Zrnic 2020 (arXiv 2008.11193) prove that one may go on
while the RDP of one order, fixed beforehand, stays within what the budget allows it: `within` is that test. The least
epsilon over many orders is what `epsilon` reports of events that are given.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from medfl.privacy.accounting.base import Accountant, Budget, GaussianEvent, check_delta, merge

FloatArray = npt.NDArray[np.float64]

ORDERS = (
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *(float(order) for order in (*range(11, 64), *range(64, 128, 8), *range(128, 512, 32), 512, 640, 768, 1024, 2048)),
)
"""The orders, fixed once and for all."""
NO_NOISE = 1e-6
"""Below this noise multiplier a release counts as one without noise: its squares would overflow."""
MOST_NOISE = 1e6
"""Above this one a release is charged as if it had this one, for the same reason."""
_POINTS = 1 << 18
_ROUNDING = 1e-14
"""More than the rounding of log A in a step, which could otherwise make a tiny cost look like none."""


class RdpAccountant(Accountant):
    """Covers everything; looser than `exact` for q = 1 and than `pld` for a fixed plan."""

    name: ClassVar[str] = "rdp"
    adaptive: ClassVar[bool] = True

    def epsilon(self, events: Sequence[GaussianEvent], delta: float) -> float | None:
        check_delta(delta)
        merged = merge(events)
        if not merged:
            return 0.0
        total = _total(merged)
        if not np.isfinite(total).any():
            return math.inf
        from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

        finite = np.isfinite(total)
        epsilon, _ = compute_epsilon(np.asarray(ORDERS)[finite], total[finite], delta)
        return max(0.0, float(epsilon))


def within(events: Sequence[GaussianEvent], budget: Budget) -> bool:
    """Whether the events, the last of them not yet made, are within the budget though parameters may adapt.

    The order is the one by which most releases like the first event fit the budget: it depends on nothing that was
    released, and for equal events the test is the same as epsilon <= budget.
    """
    merged = merge(events)
    if not merged:
        return True
    order = _best_order(merged[0].noise_multiplier, merged[0].sampling_rate, budget)
    spent = math.fsum(
        event.steps * float(rdp_vector(event.noise_multiplier, event.sampling_rate)[order]) for event in merged
    )
    return spent <= float(_allowance(budget)[order])


@lru_cache(maxsize=4096)
def rdp_vector(noise_multiplier: float, sampling_rate: float) -> FloatArray:
    """RDP of one step at each of ORDERS; infinite at an order for which it cannot be computed. Read-only."""
    orders = np.asarray(ORDERS)
    noise_multiplier = min(noise_multiplier, MOST_NOISE)
    if noise_multiplier < NO_NOISE:
        vector = np.full(orders.size, np.inf)
    elif sampling_rate == 1:
        vector = orders / (2 * noise_multiplier) / noise_multiplier
    else:
        vector = np.maximum(_subsampled(noise_multiplier, sampling_rate), 0.0) + _ROUNDING / (orders - 1)
    vector.setflags(write=False)
    return vector


def _subsampled(noise_multiplier: float, sampling_rate: float) -> FloatArray:
    """Whole orders by the library's finite sum. Its series for the others gives up from q = 0.064 on (orders below 2)
    and at ever more orders as q grows, so those are integrated."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant as Library

    orders = np.asarray(ORDERS)
    whole = orders == np.rint(orders)
    accountant = Library(orders[whole].tolist())
    accountant.compose(PoissonSampledDpEvent(sampling_rate, GaussianDpEvent(noise_multiplier)))
    vector = np.empty(orders.size)
    vector[whole] = accountant.rdp
    vector[~whole] = [_integrated(noise_multiplier, sampling_rate, order) for order in orders[~whole]]
    return vector


def _integrated(noise_multiplier: float, sampling_rate: float, order: float) -> float:
    """log E (1 - q + q exp((2x - 1) / 2 z^2))^order / (order - 1), x from N(0, z^2) (Mironov et al. 2019, section 3).

    The trapezoidal rule's error falls like exp(-2 pi d / h) with the distance d of the nearest branch point, pi z^2,
    and like exp(-2 pi^2 z^2 / h^2) for the Gaussian: nothing is left of either here.
    """
    from scipy.special import logsumexp

    step = min(noise_multiplier, noise_multiplier**2) / 4
    low, high = -12 * noise_multiplier, order + 12 * noise_multiplier
    if high - low > _POINTS * step:
        return math.inf
    x = np.arange(low, high, step)
    ratio = np.logaddexp(math.log1p(-sampling_rate), math.log(sampling_rate) + (x - 0.5) / noise_multiplier**2)
    density = -0.5 * (x / noise_multiplier) ** 2 + math.log(step / noise_multiplier / math.sqrt(2 * math.pi))
    return float(logsumexp(order * ratio + density)) / (order - 1)


def _total(events: Sequence[GaussianEvent]) -> FloatArray:
    total = np.zeros(len(ORDERS))
    for event in events:
        total += event.steps * rdp_vector(event.noise_multiplier, event.sampling_rate)
    return total


@lru_cache(maxsize=256)
def _allowance(budget: Budget) -> FloatArray:
    """The most RDP at each order that is (epsilon, delta)-DP by Proposition 12, which needs orders above 1.01."""
    orders = np.asarray(ORDERS)
    allowance: FloatArray = budget.epsilon - np.log1p(-1 / orders) + np.log(budget.delta * orders) / (orders - 1)
    return allowance


@lru_cache(maxsize=4096)
def _best_order(noise_multiplier: float, sampling_rate: float, budget: Budget) -> int:
    return int(np.argmax(_allowance(budget) / rdp_vector(noise_multiplier, sampling_rate)))
