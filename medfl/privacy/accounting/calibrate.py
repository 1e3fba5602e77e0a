"""From a budget to noise and rounds, and from noise to the predicted signal."""

import math
from collections.abc import Callable
from functools import partial

from medfl.errors import Faults, InputError
from medfl.privacy.accounting.base import Accountant, Budget, GaussianEvent
from medfl.privacy.accounting.bounds import ACCOUNTANTS
from medfl.privacy.accounting.gaussian import mu_of
from medfl.privacy.accounting.pld import CALIBRATION, REPORTED, PldAccountant

MOST_STEPS = 1_000_000
"""More steps than these are not counted."""
_DIGITS = 5
_TOLERANCE = 1e-3


LOW_SIGNAL = 0.1
"""Signal-to-noise ratio below which next to nothing can be learnt."""


def noise_multiplier(budget: Budget, steps: int, sampling_rate: float = 1.0) -> float:
    """The least noise multiplier, rounded up to 5 digits, with which `steps` steps fit the budget.

    Exact for full participation; for less by PLD and up to a thousandth, so it holds for a plan of these steps only.
    InputError when no noise would do (a budget of 0) or a value is out of range.
    """
    faults = Faults()
    if steps < 1:
        faults.add("steps", f"is {steps}", "use at least 1")
    if not 0 < sampling_rate <= 1:
        faults.add("sampling_rate", f"is {sampling_rate:g}", "use a number above 0 and at most 1")
    if budget.epsilon == 0:
        faults.add("epsilon", "is 0, which no noise reaches", "give a budget above 0")
    faults.raise_if_any(InputError)
    full = _round_up(math.sqrt(steps) / mu_of(budget.epsilon, budget.delta))
    if sampling_rate == 1:
        return full
    return _subsampled(budget, steps, sampling_rate, full)


def steps_allowed(
    budget: Budget, noise_multiplier: float, sampling_rate: float = 1.0, accountant: str = "exact"
) -> int | None:
    """How many equal steps fit the budget by this accountant ("exact", "rdp" or "pld"), at most MOST_STEPS; None when
    the accountant does not cover them."""
    judge = _judge(accountant)
    if judge.epsilon([GaussianEvent(noise_multiplier, sampling_rate)], budget.delta) is None:
        return None

    def fits(by: Accountant, steps: int) -> bool:
        epsilon = by.epsilon([GaussianEvent(noise_multiplier, sampling_rate, steps)], budget.delta)
        return epsilon is not None and epsilon <= budget.epsilon

    # coarse first: what fits a coarse discretisation fits a fine one
    start = _most(partial(fits, PldAccountant(CALIBRATION)), 0) if accountant == "pld" else 0
    return _most(partial(fits, judge), start)


def signal_to_noise(units: float, noise_multiplier: float, parameters: int) -> float:
    """The most that the norm of a step's sum can be, over the norm of its noise: units / (z sqrt(parameters)).

    units: what adds up before the noise does, each clipped to norm C. Sites, for noise on the sum of site updates; the
    expected patients a step of all sites, q N, for noise shares that are summed; those of one site, q N_k, where each
    site adds its own noise.
    """
    if noise_multiplier == 0:
        return math.inf
    return units / (noise_multiplier * math.sqrt(parameters))


def _judge(name: str) -> Accountant:
    if name not in ACCOUNTANTS:
        raise InputError.at("accountant", f"there is no accountant {name!r}", f"use one of: {', '.join(ACCOUNTANTS)}")
    return ACCOUNTANTS[name]


def _subsampled(budget: Budget, steps: int, sampling_rate: float, full: float) -> float:
    """The noise multiplier by PLD, searched downwards from what full participation needs, which is always enough:
    coarse, then at the discretisation that is reported."""

    def excess(interval: float, noise: float) -> float:
        epsilon = PldAccountant(interval).epsilon([GaussianEvent(noise, sampling_rate, steps)], budget.delta)
        return math.log(min(max(epsilon or 0.0, 1e-12), 1e12) / budget.epsilon)

    coarse = _least(partial(excess, CALIBRATION), full, 0.9)
    return min(full, _round_up(_least(partial(excess, REPORTED), coarse, 1 - 2 * _TOLERANCE)))


def _least(excess: Callable[[float], float], high: float, ratio: float) -> float:
    """The least number at which `excess` is not above 0, or at most _TOLERANCE more; `high` where it is above 0 there.
    ratio: where to look first, as a part of `high`."""
    from scipy.optimize import brentq

    if excess(high) > 0:
        return high
    while excess(low := high * ratio) <= 0:
        high, ratio = low, ratio * ratio
    found = float(brentq(excess, low, high, rtol=_TOLERANCE, xtol=_TOLERANCE * low))
    while excess(found) > 0:
        found *= 1 + _TOLERANCE
    return min(found, high)


def _most(fits: Callable[[int], bool], low: int) -> int:
    """The largest number up to MOST_STEPS that fits, knowing that `low` does and that none does beyond one that does
    not."""
    step = max(1, low // 64)
    while low < MOST_STEPS and fits(high := min(low + step, MOST_STEPS)):
        low, step = high, 2 * step
    if low == MOST_STEPS:
        return low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _round_up(value: float) -> float:
    """To _DIGITS significant digits, never down."""
    unit = 10.0 ** (math.floor(math.log10(value)) + 1 - _DIGITS)
    return float(f"{math.ceil(value / unit) * unit:.{_DIGITS}g}")
