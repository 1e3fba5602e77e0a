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


def require_sound(charge: Charge, owner: str, budgets: Sequence[Budget]) -> None:
    """InputError names everything about a charge that cannot be accounted for."""
    faults = Faults()
    where = f"{owner}, run {charge.run!r}, round {charge.round}"
    event = charge.event
    positive = {
        "noise multiplier": event.noise_multiplier,
        "clip": charge.clip,
        "sensitivity": charge.sensitivity,
        "number of steps": event.steps,
        "number of sites": charge.sites,
        "number of noise shares": charge.shares,
    }
    for name, value in positive.items():
        if not (math.isfinite(value) and value > 0):
            faults.add(where, f"the {name} is {value}", "it must be positive and finite: nothing leaves without noise")
    if not 0 < event.sampling_rate <= 1:
        faults.add(where, f"the sampling rate is {event.sampling_rate}", "it must lie in (0, 1]")
    for name, text in (("study", charge.study), ("run", charge.run), ("data set", charge.dataset)):
        if not text:
            faults.add(where, f"the {name} has no name", "charges are summed by it")
    for budget in budgets:
        if not (budget.epsilon > 0 and 0 < budget.delta < 1):
            faults.add(where, f"the budget is {budget}", "epsilon must be positive and delta in (0, 1)")
    faults.raise_if_any(InputError)


def _said(charge: Charge, limit: Limit) -> str:
    budget = limit.budget
    # a plan only ever allows more, so what refuses a charge are the bounds that hold without one
    before = _epsilon(limit.spent, budget.delta) if limit.spent else 0.0
    after = _epsilon([*limit.spent, charge.event], budget.delta)
    return (
        f"the next charge (unit {charge.unit}, {charge.release}, noise multiplier {charge.event.noise_multiplier:g}) "
        f"would bring {limit.what} from epsilon {before:.4f} to {after:.4f} at delta {budget.delta:g}, over the budget "
        f"of {budget.epsilon:g}: nothing was charged and nothing may be released"
    )


def _epsilon(events: Sequence[GaussianEvent], delta: float) -> float:
    from medfl.privacy.accounting.bounds import bounds, tightest

    found = tightest(bounds(events, delta)).epsilon
    return math.inf if found is None else found
