"""Every bound on what was spent, which of them hold, and the test before a charge."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from medfl.privacy.accounting.base import Accountant, Budget, GaussianEvent, check_delta, merge
from medfl.privacy.accounting.gaussian import GaussianAccountant, gaussian_mu, mu_of
from medfl.privacy.accounting.pld import PldAccountant
from medfl.privacy.accounting.rdp import RdpAccountant, within

ACCOUNTANTS: dict[str, Accountant] = {
    accountant.name: accountant for accountant in (GaussianAccountant(), PldAccountant(), RdpAccountant())
}
"""By name, in the order in which one of several equal bounds is preferred."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What one accountant says. epsilon: None where it does not cover the events. valid: whether the bound holds of
    these events; why: the reason in one sentence. tightest: the least of the valid ones."""

    accountant: str
    epsilon: float | None
    valid: bool
    why: str
    tightest: bool = False

    def to_json(self) -> dict[str, Any]:
        """For JSON, which has no infinity: an epsilon without bound is null, and `why` says so."""
        return {**asdict(self), "epsilon": None if self.epsilon == math.inf else self.epsilon}


def bounds(events: Sequence[GaussianEvent], delta: float, plan: GaussianEvent | None = None) -> list[Bound]:
    """All accountants' bounds on all events together, the tightest valid one marked.

    plan: what was written down before the first event, with all its steps; None when nothing was.
    """
    check_delta(delta)
    merged = merge(events)
    found = [_bound(accountant, merged, delta, plan) for accountant in ACCOUNTANTS.values()]
    best = min((bound for bound in found if bound.valid), key=_epsilon)
    return [replace(bound, tightest=bound is best) for bound in found]


def tightest(found: Sequence[Bound]) -> Bound:
    """The bound that is marked as the tightest."""
    return next(bound for bound in found if bound.tightest)


def affordable(
    spent: Sequence[GaussianEvent], charge: GaussianEvent, budget: Budget, plan: GaussianEvent | None = None
) -> bool:
    """Whether `charge` may be made after `spent`: the test before a release, never after it.

    The exact filter under full participation throughout. Otherwise a plan that covers everything and whose whole cost
    by PLD is within the budget; else the Renyi filter, which holds whatever the parameters depended on.
    """
    events = merge((*spent, charge))
    if all(event.sampling_rate == 1 for event in events):
        return gaussian_mu(events) <= mu_of(budget.epsilon, budget.delta)
    if plan is not None and off_plan(events, plan) is None and _cost(plan, budget.delta) <= budget.epsilon:
        return True
    return within(events, budget)


def off_plan(events: Sequence[GaussianEvent], plan: GaussianEvent) -> str | None:
    """Why the plan does not cover the events, or None when it does."""
    merged = merge(events)
    for event in merged:
        if event.noise_multiplier != plan.noise_multiplier:
            return f"noise multiplier {event.noise_multiplier:.6g} was charged, {plan.noise_multiplier:.6g} was planned"
        if event.sampling_rate != plan.sampling_rate:
            return f"sampling rate {event.sampling_rate:.6g} was charged, {plan.sampling_rate:.6g} was planned"
    steps = sum(event.steps for event in merged)
    return f"{steps} steps were charged, {plan.steps} were planned" if steps > plan.steps else None


def _bound(accountant: Accountant, events: Sequence[GaussianEvent], delta: float, plan: GaussianEvent | None) -> Bound:
    epsilon = accountant.epsilon(events, delta)
    if epsilon is None:
        return Bound(accountant.name, None, False, "covers full participation (sampling rate 1) only")
    if epsilon == math.inf:
        return Bound(accountant.name, epsilon, accountant.adaptive, "a release with next to no noise: no finite bound")
    if accountant.adaptive:
        return Bound(accountant.name, epsilon, True, _ADAPTIVE[accountant.name])
    if plan is None:
        return Bound(accountant.name, epsilon, False, "no plan was fixed before the first release")
    reason = off_plan(events, plan)
    if reason is not None:
        return Bound(accountant.name, epsilon, False, f"the plan was left: {reason}")
    return Bound(accountant.name, epsilon, True, "the plan that was fixed before the first release was kept")


def _epsilon(bound: Bound) -> float:
    return math.inf if bound.epsilon is None else bound.epsilon


_ADAPTIVE = {
    "exact": "closed form, holds also when parameters adapt (Gaussian-DP filter)",
    "rdp": "holds also when parameters adapt (Renyi filter)",
}


def _cost(plan: GaussianEvent, delta: float) -> float:
    """The whole plan's epsilon by PLD; computed once for a plan, since the accountant remembers it."""
    epsilon = ACCOUNTANTS["pld"].epsilon([plan], delta)
    return math.inf if epsilon is None else epsilon
