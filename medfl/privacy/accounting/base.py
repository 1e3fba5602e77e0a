"""Accountant contract: what Gaussian releases cost, as (epsilon, delta).

Adjacency everywhere: add or remove one unit (a site or a patient), against a fixed public denominator, so that the
sensitivity of a clipped sum is the clip norm.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from medfl.errors import Faults, InputError

DELTA_REMEDY = "use a number above 0 and below 1, such as 1e-5, well below one over the number of units"


@dataclass(frozen=True, slots=True)
class GaussianEvent:
    """`steps` releases of a clipped sum with Gaussian noise of standard deviation `noise_multiplier` times the clip.

    sampling_rate: the probability q with which each unit takes part in a step, drawn in secret and independently
    (Poisson); 1 when everyone takes part or when anybody can know who does. A noise multiplier of 0 is a release
    without noise: its epsilon is infinite. InputError names every value that is out of range.
    """

    noise_multiplier: float
    sampling_rate: float = 1.0
    steps: int = 1

    def __post_init__(self) -> None:
        faults = Faults()
        if not 0 <= self.noise_multiplier < math.inf:
            faults.add("noise_multiplier", f"is {self.noise_multiplier:g}", "use a finite number of at least 0")
        if not 0 < self.sampling_rate <= 1:
            faults.add("sampling_rate", f"is {self.sampling_rate:g}", "use a number above 0 and at most 1")
        if self.steps < 0:
            faults.add("steps", f"is {self.steps}", "use a number of at least 0")
        faults.raise_if_any(InputError)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a study or a data set may cost at most. InputError names every value that is out of range.

    epsilon: at least 0; with 0 nothing may be released. delta: between 0 and 1, both excluded; well below one over the
    number of units.
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        faults = Faults()
        if not 0 <= self.epsilon < math.inf:
            faults.add("epsilon", f"is {self.epsilon:g}", "use a finite number of at least 0")
        if not 0 < self.delta < 1:
            faults.add("delta", f"is {self.delta:g}", DELTA_REMEDY)
        faults.raise_if_any(InputError)


class Accountant(ABC):
    """A way to bound what events cost. All of them give upper bounds; none is ever below 0."""

    name: ClassVar[str]
    adaptive: ClassVar[bool]
    """Whether the bound holds when later parameters were chosen after seeing earlier releases (a filter)."""

    @abstractmethod
    def epsilon(self, events: Sequence[GaussianEvent], delta: float) -> float | None:
        """The epsilon of all events together at this delta; None when this accountant does not cover them."""


def check_delta(delta: float) -> None:
    """InputError unless 0 < delta < 1."""
    if not 0 < delta < 1:
        raise InputError.at("delta", f"is {delta:g}", DELTA_REMEDY)


def merge(events: Iterable[GaussianEvent]) -> tuple[GaussianEvent, ...]:
    """The same releases with equal ones counted together, in the order of their first appearance."""
    steps: dict[tuple[float, float], int] = {}
    for event in events:
        key = (event.noise_multiplier, event.sampling_rate)
        steps[key] = steps.get(key, 0) + event.steps
    return tuple(GaussianEvent(*key, count) for key, count in steps.items() if count)
