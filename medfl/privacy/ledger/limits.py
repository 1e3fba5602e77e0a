"""Whether the next charge may be made: tested before it is made, never after. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medfl.errors import Faults, InputError
from medfl.privacy.accounting.base import Budget, GaussianEvent
from medfl.privacy.ledger.base import BudgetError, Charge


@dataclass(frozen=True, slots=True)
class Limit:
    """One budget and what was spent of it. what: as its reader knows it. plan: as for `Charge`."""

    what: str
    budget: Budget
    spent: Sequence[GaussianEvent]
    plan: GaussianEvent | None
    remedy: str


def require_affordable(charge: Charge, owner: str, limits: Sequence[Limit]) -> None:
    """BudgetError names the owner, the round, what was spent, what the charge would cost, and the remedy, for every
    limit that the charge would pass."""
    from medfl.privacy.accounting.bounds import affordable

    faults = Faults()
    for limit in limits:
        if not affordable(limit.spent, charge.event, limit.budget, limit.plan):
            faults.add(f"{owner}, run {charge.run}, round {charge.round}", _said(charge, limit), limit.remedy)
    faults.raise_if_any(BudgetError)


def require_sound(charge: Charge, owner: str) -> None:
    """InputError names everything about a charge that cannot be accounted for."""
    faults = Faults()
    where = f"{owner}, run {charge.run!r}, round {charge.round}"
    positive = {
        "noise multiplier": charge.event.noise_multiplier,
        "clip": charge.clip,
        "sensitivity": charge.sensitivity,
        "number of steps": charge.event.steps,
        "number of sites": charge.sites,
        "number of noise shares": charge.shares,
    }
    for name, value in positive.items():
        if not (math.isfinite(value) and value > 0):
            faults.add(where, f"the {name} is {value}", "it must be positive and finite: nothing leaves without noise")
    for name, text in (("study", charge.study), ("run", charge.run), ("data set", charge.dataset)):
        if not text:
            faults.add(where, f"the {name} has no name", "charges are summed by it")
    faults.raise_if_any(InputError)


def _said(charge: Charge, limit: Limit) -> str:
    budget = limit.budget
    # a plan only ever allows more, so what refuses a charge are the bounds that hold without one
    before = least_epsilon(limit.spent, budget.delta)
    after = least_epsilon([*limit.spent, charge.event], budget.delta)
    return (
        f"the next charge (unit {charge.unit}, {charge.release}, noise multiplier {charge.event.noise_multiplier:g}) "
        f"would bring {limit.what} from epsilon {before:.4f} to {after:.4f} at delta {budget.delta:g}, over the budget "
        f"of {budget.epsilon:g}: nothing was charged and nothing may be released"
    )


def least_epsilon(events: Sequence[GaussianEvent], delta: float) -> float:
    """The least of the bounds that hold without a plan; much cheaper than all bounds."""
    from medfl.privacy.accounting.bounds import ACCOUNTANTS

    adaptive = (one.epsilon(events, delta) for one in ACCOUNTANTS.values() if one.adaptive)
    return min(epsilon for epsilon in adaptive if epsilon is not None)
