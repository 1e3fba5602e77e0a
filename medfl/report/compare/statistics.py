"""Means over seeds and their confidence intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds. low, high: its t-interval, None with fewer than two values. values: one a seed."""

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and t-interval, mean +- t_{n-1} s / sqrt(n) (Student 1908); None without a value."""
    count = len(values)
    if not count:
        return None
    mean = math.fsum(values) / count
    if count < 2:
        return Estimate(mean, None, None, tuple(values))
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = t_quantile(0.5 + CONFIDENCE / 2, count - 1) * spread / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half, tuple(values))


def t_quantile(probability: float, freedom: int) -> float:
    """The quantile (at least 0.5) of Student's t with a whole number of degrees of freedom, by bisection."""
    low, high = 0.0, 1.0
    while _t_distribution(high, freedom) < probability:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_distribution(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def _t_distribution(value: float, freedom: int) -> float:
    """P(T <= value) for value >= 0: the finite series in the angle atan(value / sqrt(freedom)) (Abramowitz and Stegun,
    26.7.3 and 26.7.4)."""
    angle = math.atan(value / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2 == 1
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    # powers 1, 3, ... of the cosine for odd, 0, 2, ... for even degrees of freedom, up to freedom - 2
    for power in range(1 if odd else 0, freedom - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + inside / 2
