"""Privacy loss distributions (PLD): the tightest bound for a plan that was fixed before the run.

Numerical composition with errors rounded against us ("pessimistic"): Koskela et al. 2020, Doroshenko et al. 2022
(arXiv 2207.04380), by the library dp-accounting. Adjacency is add-or-remove throughout; the library treats replace-one
differently in its two accountants, so it is not offered. Not a filter: when parameters are chosen after seeing earlier
releases, the bound does not hold (arXiv 2602.06756).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar

from medfl.privacy.accounting.base import Accountant, GaussianEvent, check_delta, merge
from medfl.privacy.accounting.gaussian import gaussian_mu
from medfl.privacy.accounting.rdp import MOST_NOISE, NO_NOISE

CALIBRATION = 1e-3
REPORTED = 1e-4
"""Discretisation of the privacy loss: for searching, and for what is reported."""
_HOPELESS = 1e4
_POINTS = 400_000
_ROUGH_ORDERS = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 128.0, 256.0)


class PldAccountant(Accountant):
    """Covers everything, but is valid only of a plan that was fixed before the run.

    interval: discretisation for epsilons of about 0.1 to 10. Larger epsilons get a coarser one, which costs no relative
    precision, and smaller ones a finer one.
    """

    name: ClassVar[str] = "pld"
    adaptive: ClassVar[bool] = False

    def __init__(self, interval: float = REPORTED) -> None:
        self.interval = interval

    def epsilon(self, events: Sequence[GaussianEvent], delta: float) -> float | None:
        check_delta(delta)
        merged = merge(replace(event, noise_multiplier=min(event.noise_multiplier, MOST_NOISE)) for event in events)
        if not merged:
            return 0.0
        return _epsilon(merged, delta, self.interval)


@lru_cache(maxsize=1024)
def _epsilon(events: tuple[GaussianEvent, ...], delta: float, interval: float) -> float:
    rough = _rough(events, delta)
    if rough > _HOPELESS:
        return math.inf
    interval = _interval(events, rough, interval)
    full = [event for event in events if event.sampling_rate == 1]
    parts = [_composed(event, interval) for event in events if event.sampling_rate != 1]
    if full:
        # releases under full participation are one Gaussian mechanism
        parts.append(_single(1 / gaussian_mu(full), 1.0, interval))
    total = parts[0]
    for part in parts[1:]:
        total = total.compose(part)
    return max(0.0, float(total.get_epsilon_for_delta(delta)))


def _rough(events: Sequence[GaussianEvent], delta: float) -> float:
    """An epsilon within a factor of about two, at once; infinite where there is no noise."""
    if any(event.noise_multiplier < NO_NOISE for event in events):
        return math.inf
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant as Library

    accountant = Library(_ROUGH_ORDERS)
    for event in events:
        accountant.compose(
            PoissonSampledDpEvent(event.sampling_rate, GaussianDpEvent(event.noise_multiplier)), event.steps
        )
    return max(float(accountant.get_epsilon(delta)), 1e-9)


def _interval(events: Sequence[GaussianEvent], rough: float, usual: float) -> float:
    """`usual` for epsilons of about 0.1 to 10, times a power of ten: coarser for larger ones and where a step would
    take more than _POINTS points, finer for smaller ones."""
    power = math.floor(math.log10(rough / 2)) if rough >= 20 else min(0, math.floor(math.log10(rough)) + 1)
    interval = float(usual * 10.0 ** max(power, -2))
    widest = max(_largest_loss(event) for event in events)
    while widest > _POINTS * interval:
        interval *= 10
    return interval


def _largest_loss(event: GaussianEvent) -> float:
    """About the privacy loss of one step that is passed with probability exp(-50)."""
    from numpy import logaddexp

    z, q = event.noise_multiplier, event.sampling_rate
    tail = 10 / z + 1 / (2 * z * z)
    return tail if q == 1 else float(logaddexp(math.log1p(-q), math.log(q) + tail))


def _composed(event: GaussianEvent, interval: float) -> Any:
    return _single(event.noise_multiplier, event.sampling_rate, interval).self_compose(event.steps)


@lru_cache(maxsize=16)
def _single(noise_multiplier: float, sampling_rate: float, interval: float) -> Any:
    """The distribution of one step."""
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    return from_gaussian_mechanism(
        noise_multiplier,
        pessimistic_estimate=True,
        value_discretization_interval=interval,
        sampling_prob=sampling_rate,
    )
