"""Accountant contract: what Gaussian releases cost, as (epsilon, delta).

Adjacency everywhere: add or remove one unit (a site or a patient), against a fixed public denominator, so that the
sensitivity of a clipped sum is the clip norm.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class GaussianEvent:
    """`steps` releases of a clipped sum with Gaussian noise of standard deviation `noise_multiplier` times the clip.

    sampling_rate: the probability q with which each unit takes part in a step, drawn in secret and independently
    (Poisson); 1 when everyone takes part or when anybody can know who does.
    """

    noise_multiplier: float
    sampling_rate: float = 1.0
    steps: int = 1


@dataclass(frozen=True, slots=True)
class Budget:
    """What a study or a data set may cost at most."""

    epsilon: float
    delta: float


class Accountant(ABC):
    """A way to bound what events cost. All of them give upper bounds; none is ever below 0."""

    name: ClassVar[str]
    adaptive: ClassVar[bool]
    """Whether the bound holds when later parameters were chosen after seeing earlier releases (a filter)."""

    @abstractmethod
    def epsilon(self, events: Sequence[GaussianEvent], delta: float) -> float | None:
        """The epsilon of all events together at this delta; None when this accountant does not cover them."""
