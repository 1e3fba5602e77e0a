"""Ledger contract: the only door to noise.

check -> append the charge and make it durable -> draw the noise -> persist the noisy bytes -> send -> done: never
another order. A `Permit` is what a durable charge gives, and noise is drawn only against a permit, once.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from medfl.errors import RunError
from medfl.privacy.accounting.base import Budget, GaussianEvent

Unit = Literal["site", "patient"]
Randomness = Literal["system", "insecure-test"]


class BudgetError(RunError):
    """The next charge would pass a budget: nothing was charged and nothing may be released."""


@dataclass(frozen=True, slots=True)
class Charge:
    """One release, before it is made.

    run, round: which release (a run's name is unique). release: "model", "clip-bit", "metric". dataset: a salted hash
    of the sorted keys of the units it is about. event: the noise, sampling and number of steps that are charged, as
    they hold against the mechanism's adversary. clip: the bound C of a unit's contribution; the noise's standard
    deviation is event.noise_multiplier * sensitivity. sites, shares: parties expected, and noise shares counted on.
    plan: the plan that was written down before the run, as (event with all its steps), or None.
    """

    study: str
    run: str
    round: int
    release: str
    unit: Unit
    dataset: str
    mechanism: str
    event: GaussianEvent
    clip: float
    sensitivity: float
    sites: int = 1
    shares: float = 1.0
    adjacency: str = "add-remove"
    plan: GaussianEvent | None = None
    randomness: Randomness = "system"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Permit:
    """The right to draw the noise of one charge: once for each of its steps. Made by a ledger after the charge is
    durable."""

    def __init__(self, charge: Charge, entry: str) -> None:
        self.charge = charge
        self.entry = entry
        self._left = charge.event.steps

    def use(self) -> Charge:
        """The charge, as often as it has steps; RunError afterwards: one release, one noise."""
        if not self._left:
            raise RunError.at(
                f"round {self.charge.round}", "its noise was drawn already", "charge a fresh round instead of retrying"
            )
        self._left -= 1
        return self.charge

    def void(self) -> None:
        """Give up what is left: no more noise is drawn against this permit."""
        self._left = 0


class Ledger(ABC):
    """One party's record of charges. `entry` is the hash of a record in its chain."""

    @abstractmethod
    def check(self, charge: Charge, budget: Budget | None) -> None:
        """BudgetError when the charge would pass the run's `budget` or the ceiling of this ledger's owner; writes
        nothing."""

    @abstractmethod
    def charge(self, charge: Charge, budget: Budget | None) -> Permit:
        """Check, append the charge, make it durable, and give the right to draw its noise."""

    @abstractmethod
    def done(self, permit: Permit, digest: str) -> None:
        """Note that the noisy bytes with this SHA-256 were persisted and sent."""

    @abstractmethod
    def charges(self, run: str | None = None) -> Sequence[Charge]:
        """What was charged, in order; of one run, or of all."""

    @property
    @abstractmethod
    def head(self) -> str:
        """The hash of the chain's last record, which the other party keeps."""

    @abstractmethod
    def witness(self, party: str, head: str) -> None:
        """Keep another party's chain head."""

    @abstractmethod
    def witnessed(self) -> Mapping[str, str]:
        """The last kept head of each other party."""

    @abstractmethod
    def compare(self, kept: Mapping[str, str], present: Mapping[str, str] | None = None) -> None:
        """When parties meet: RunError when this ledger is older than the head that another party `kept` of it, or when
        another party's ledger, with the head that it has at `present`, is older than what was kept here."""
