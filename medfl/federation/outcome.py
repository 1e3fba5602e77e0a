"""What a round is before it is sent, and what became of it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from medfl.federation.regulator.base import Verdict
from medfl.learning.messages import TrainOrder, TrainReply
from medfl.update.submodels.base import Choice


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """A round before it is sent: its number from 1, its sites in combining order, its hyper-parameters.

    cases: training cases of every site that is there; no site may weigh more than it joined with. weights: what updates
    count where that is not their cases. counted, parts: by site, see `TrainOrder`.
    """

    round: int
    cohort: tuple[str, ...]
    values: Mapping[str, float]
    cases: Mapping[str, int]
    weights: Mapping[str, float] | None = None
    counted: Mapping[str, int] = field(default_factory=dict)
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def orders(self, ledger: str = "") -> list[TrainOrder]:
        """One a site. ledger: the head of the coordinator's privacy ledger."""
        return [
            TrainOrder(site, self.round, self.values, ledger, self.counted.get(site, 0), self.parts.get(site, {}))
            for site in self.cohort
        ]

    def choice(self, site: str) -> Choice:
        """Which part of the vector a site has in this round."""
        return Choice(site, self.round, self.parts.get(site, {}))


@dataclass(slots=True)
class Contribution:
    """What became of one site in a round. cases: of its own, its weight; shared: of others, which it trained on too.
    prototypes: classes of which it sent the gradient of an image."""

    cases: int = 0
    steps: int = 0
    epochs: int = 0
    loss_start: float = math.nan
    loss: float = math.nan
    norm: float = math.nan
    verdict: Verdict | None = None
    skipped: Mapping[str, int] = field(default_factory=dict)
    skipped_upload: bool = False
    prototypes: int = 0
    failure: str = ""
    late: bool = False
    shared: int = 0

    @classmethod
    def of(cls, reply: TrainReply) -> "Contribution":
        """What a site says of its training, not judged yet."""
        return cls(
            reply.cases,
            reply.steps,
            reply.epochs,
            reply.loss_start,
            reply.loss,
            skipped=dict(reply.skipped),
            shared=reply.shared,
        )

    @property
    def counts(self) -> bool:
        """Whether an update was admitted."""
        return self.verdict is not None and self.verdict.outcome != "refuse"

    def refused_by(self, rule: str) -> bool:
        return self.verdict is not None and self.verdict.outcome == "refuse" and self.verdict.rule == rule

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Contribution":
        verdict = value["verdict"]
        return cls(**{**value, "verdict": None if verdict is None else Verdict(**verdict)})


@dataclass(slots=True)
class RoundOutcome:
    """A finished round. loss: case-weighted mean of the admitted sites' losses at the start; moved: false when no
    update was admitted and the model stayed as it was. void: why the sum was not opened."""

    plan: RoundPlan
    sites: dict[str, Contribution] = field(default_factory=dict)
    loss_start: float = math.nan
    loss: float = math.nan
    moved: bool = False
    void: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "RoundOutcome":
        plan = RoundPlan(**{**value["plan"], "cohort": tuple(value["plan"]["cohort"])})
        sites = {site: Contribution.from_json(mine) for site, mine in value["sites"].items()}
        return cls(plan, sites, value["loss_start"], value["loss"], value["moved"], value["void"])
