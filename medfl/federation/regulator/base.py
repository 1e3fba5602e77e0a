"""Regulator contract: admit, down-weight or refuse each arriving update, with a reason.

A study lists rules; a site is refused as soon as one rule refuses it, and its weight is multiplied by every rule's
factor. Rules that judge an update alone act on arrival, so that the coordinator holds one update at a time. A rule
that compares the sites of a round (trait "compares-sites") is asked once all have arrived, and the round holds all
updates for it; such rules are refused when differential privacy is on.
"""

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from medfl.plugins import Plugin, PluginConfig, PluginPoint
from medfl.update.base import Update
from medfl.update.vector import FloatVector

Outcome = Literal["admit", "down-weight", "refuse"]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A decoded update on the table. norm: Euclidean, inf or NaN when a value is not finite."""

    site: str
    round: int
    update: Update
    norm: float
    cases: int
    loss: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """factor multiplies the site's weight: 1 admits fully, 0 refuses. rule: the kind that decided."""

    outcome: Outcome
    rule: str = ""
    reason: str = ""
    factor: float = 1.0


ADMIT = Verdict("admit")

Score = Mapping[str, float]
"""Metrics of a model on the public validation set, by name; always has "loss"."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What rules may consult: the global vector before the round, and the public validation set if the study has
    one. alone: under differential privacy whose noise is added to the sum, where a verdict must not hang on what other
    sites sent, in this round or before."""

    model: FloatVector
    validate: Callable[[FloatVector], Score] | None = None
    alone: bool = False


class RegulatorRule(Plugin[PluginConfig], ABC):
    """Every hook admits unless a rule overrides it."""

    def judge(self, arrival: Arrival, bench: Bench) -> Verdict:
        """On arrival, from this update, the model and what the rule learned, of other sites only unless
        `bench.alone`."""
        return ADMIT

    def judge_cohort(self, arrivals: Sequence[Arrival], bench: Bench) -> Mapping[str, Verdict]:
        """Once all have arrived; verdicts by site. Only rules with the trait "compares-sites"."""
        return {}

    def learn(self, admitted: Sequence[tuple[str, float]], refused: Sequence[tuple[str, float]] = ()) -> None:
        """After the round: (site, norm) of the updates that were admitted, and of those that this rule refused."""

    def refuse(self, reason: str) -> Verdict:
        return Verdict("refuse", self.config.kind, reason, 0.0)

    def state(self) -> dict[str, Any]:
        """Everything that moves, JSON-able."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""


REGULATORS = PluginPoint(
    "regulator rule",
    "medfl.regulators",
    {
        "finite": "medfl.federation.regulator.finite:Finite",
        "norm_limit": "medfl.federation.regulator.norm_limit:NormLimit",
        "norm_history": "medfl.federation.regulator.norm_history:NormHistory",
        "validation": "medfl.federation.regulator.validation:Validation",
        "validation_median": "medfl.federation.regulator.validation_median:ValidationMedian",
        "median_distance": "medfl.federation.regulator.median_distance:MedianDistance",
    },
)


def combine(verdicts: Sequence[Verdict]) -> Verdict:
    """All rules' verdicts on one update as one: refused if any refuses, else the product of the factors."""
    for verdict in verdicts:
        if verdict.outcome == "refuse":
            return verdict
    factor = 1.0
    lowered = [verdict for verdict in verdicts if verdict.outcome == "down-weight"]
    for verdict in lowered:
        factor *= verdict.factor
    if not lowered:
        return ADMIT
    reasons = "; ".join(verdict.reason for verdict in lowered)
    return Verdict("down-weight", ", ".join(verdict.rule for verdict in lowered), reasons, factor)
