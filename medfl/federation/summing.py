"""A round whose updates are only ever added: integers in, one sum out, then the model's step.

Used when a study has site- or patient-level privacy, or a bound on updates (`update.clip`), over any channel: the sum
of the integers is the same, bit for bit, whether the coordinator sees the updates, masks hide them or they are
encrypted.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from medfl.errors import RunError
from medfl.privacy.channels.base import (
    MINIMUM_SITES,
    Channel,
    CoordinatorEnd,
    Exchange,
    IntVector,
    Roster,
    RoundContext,
)
from medfl.privacy.codec import GridCodec, weighted
from medfl.privacy.grid import BIT, BOUND, CAP, CLIP, SUM_LIMIT, Grid, weight_of
from medfl.privacy.mechanisms.adaptive_clip import AdaptiveClip
from medfl.privacy.mechanisms.base import Mechanism, NoisePlan
from medfl.update.base import Payload
from medfl.update.vector import FloatVector


@dataclass(frozen=True)
class Summation:
    """How a run adds up. noise: the run's plan under site- or patient-level privacy, else None; then `clip` is the
    study's bound on an update, and sites weigh by their declared cases."""

    channel: Channel
    clip: float
    mechanism: Mechanism | None = None
    noise: NoisePlan | None = None

    @property
    def gradients(self) -> bool:
        """Whether sites send sums of gradients in place of changes of the model."""
        return self.mechanism is not None and "gradients" in self.mechanism.config.traits()

    def grid(self, sites: int) -> Grid:
        """The finest grid for so many sites; StudyError when it would be too coarse."""
        if self.noise is None:
            return Grid.fit(self.clip, sites)
        noise = self.noise.update_noise * math.sqrt(sites / self.noise.shares)
        return Grid.for_gradients(self.clip, noise) if self.gradients else Grid.fit(self.clip, sites, noise)

    def later(self, sites: int) -> dict[str, float]:
        """What orders must say whose updates are summed when `sites` of them wait: the same in the whole run."""
        grid = self.grid(sites)
        return {CLIP: grid.clip, BOUND: float(grid.bound), CAP: 0.0, BIT: 0.0}

    def values(self, cases: Mapping[str, int], clip: float) -> dict[str, float]:
        """What orders must say: clip, grid, the cases that weigh 1 (0: every site does), and the clip bit's size."""
        cap = max(cases.values()) if self.noise is None else self.noise.cap
        grid = self.grid(len(cases) if self.noise is None else len(self.noise.sites))
        bit = 0.0
        if self.noise is not None and self.noise.bit_noise:
            # even, and rounded down: the bit then has no less noise than it is charged for
            bit = float(2 * int(self.noise.update_noise * grid.bound / self.noise.bit_noise / 2))
        return {CLIP: clip, BOUND: float(grid.bound), CAP: float(cap), BIT: bit}

    def adaptive_clip(self) -> AdaptiveClip | None:
        """The moving clip of a run, at its start; None when it does not move."""
        config = None if self.mechanism is None else getattr(self.mechanism.config, "adaptive", None)
        return None if config is None else AdaptiveClip(config, self.clip)

    def context(
        self,
        run: str,
        round_: int,
        attempt: int,
        cohort: tuple[str, ...],
        parameters: int,
        values: Mapping[str, float],
        told: str,
    ) -> RoundContext:
        """told: `part_digest` of what the sites of the sum were told."""
        minimum = MINIMUM_SITES
        if self.gradients and self.noise is not None:
            minimum = max(minimum, self.noise.shares)
        size = parameters + (1 if values[BIT] else 0)
        return RoundContext(run, round_, attempt, cohort, size, SUM_LIMIT, minimum, told)

    def combined(
        self,
        total: npt.NDArray[np.signedinteger[Any]],
        denominator: float,
        values: Mapping[str, float],
    ) -> FloatVector | None:
        """The change of the model [size] that an opened sum stands for; None when nothing is in it."""
        if not denominator:
            return None
        change = Grid.of(values).decode(total[:-1] if values[BIT] else total, denominator)
        if self.gradients:
            change *= np.float32(-values["local.learning_rate"])
        return change

    def unclipped(self, total: npt.NDArray[np.signedinteger[Any]], values: Mapping[str, float]) -> float | None:
        """The noisy share of sites that were not clipped, from an opened sum; None where nobody asked."""
        if not values[BIT] or self.noise is None:
            return None
        return float(total[-1]) / values[BIT] / len(self.noise.sites) + 0.5

    def open(self, context: RoundContext, roster: Roster, values: Mapping[str, float]) -> "RoundSum":
        codec = GridCodec(Grid.of(values), bit=int(values[BIT]))
        return RoundSum(self, codec, self.channel.coordinator(context, roster), context, values[CAP])


@dataclass
class RoundSum:
    """One round's sum at the coordinator. weights: of the sites that are in it."""

    how: Summation
    codec: GridCodec
    end: CoordinatorEnd
    context: RoundContext
    cap: float
    weights: dict[str, float] = field(default_factory=dict)

    def prepare(self, exchange: Exchange) -> tuple[str, ...]:
        return self.end.prepare(exchange)

    def add(self, site: str, payload: Payload, cases: int, factor: float = 1.0) -> None:
        """Take in a sealed payload. factor lowers a weight that the coordinator can see to."""
        if factor != 1.0:
            # a clip bit is lowered with the rest, which bounds it no less
            payload = weighted(payload, factor)
        self.end.add(site, payload)
        self.weights[site] = factor * weight_of(cases, self.cap)

    def check(self, answered: int) -> None:
        """Before anything is charged: RunError when so many answers are not enough to open a sum at all."""
        shares = self.context.minimum if self.how.gradients else 1
        there = len(self.weights) if self.how.gradients else answered
        if there < shares:
            raise RunError.at(
                f"round {self.context.round}",
                f"{there} sites are in the sum, {shares} are needed",
                "it stays closed; see why sites are missing, or raise privacy.tolerated",
            )

    def total(self, exchange: Exchange, noise: IntVector | None) -> IntVector:
        """Open the sum, once. RunError when too few sites are in it, or too few help."""
        total = self.end.open(exchange, noise)
        if total.size and max(int(total.max()), -int(total.min())) > self.context.limit:
            raise RunError.at(
                f"round {self.context.round}",
                f"the sum passes {self.context.limit} units: a site sent more than its clip allows",
                "nothing of it is used; see what the sites send",
            )
        return total

    @property
    def denominator(self) -> float:
        """What the sum is to be divided by: public and fixed under privacy, else the weights that are in it."""
        return sum(self.weights.values()) if self.how.noise is None else self.how.noise.denominator
