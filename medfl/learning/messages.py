"""What coordinator and site say to each other in a round."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medfl.update.base import Payload

SNAPSHOT = "local.snapshot"
"""An order's value: the share of a site's steps after which it keeps a copy of its parameters; none when absent."""
STEPS = "local.steps"
"""An order's value: local steps in place of epochs."""


OLD_MODELS = "local.old_models"
"""What orders of a study may bring beside the model: the proxy server's old models (rule `glfc`)."""
PREVIOUS, CURRENT, SINCE = "previous", "current", "since"
"""Old models by name: the best of the federation's task before and of the present one; and the first round of the
present task."""
PROTOTYPES = "glfc.prototypes"
"""A tensor among a rule's `scratch` [k, length]: gradients that leave with the reply."""


def planned_steps(values: Mapping[str, float], per_epoch: int, most: int | None) -> int:
    """Local steps of an order at a site that needs `per_epoch` of them for one pass over its samples."""
    steps = round(values[STEPS]) if STEPS in values else per_epoch * max(1, round(values["local.epochs"]))
    return max(1, min(steps, most or steps))


@dataclass(frozen=True, slots=True)
class SiteInfo:
    """What a site tells about itself when it joins. cases: unique cases of its own by split. identity: its public
    signing key, as hex. shared: training cases beside its own, by the consent that its file states."""

    name: str
    cases: Mapping[str, int]
    skipped: Mapping[str, str] = field(default_factory=dict)
    identity: str = ""
    shared: Mapping[str, int] = field(default_factory=dict)

    @property
    def trains(self) -> bool:
        return self.cases.get("train", 0) > 0


@dataclass(frozen=True, slots=True)
class Beginning:
    """What the sites are told before the first round. run: a name that no other run has. roster: every site's public
    signing key, as hex. noise: the run's `NoisePlan` as JSON under differential privacy. ledger, kept: the head of the
    coordinator's privacy ledger, and the heads of the sites' ledgers as the coordinator last kept them."""

    run: str
    roster: Mapping[str, str]
    noise: Mapping[str, Any] | None = None
    ledger: str = ""
    kept: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LedgerHeads:
    """What a site with a privacy ledger answers to a beginning: its ledger's head, and the head of the coordinator's
    as the site last kept it ("" when it never did)."""

    head: str
    kept: str = ""


@dataclass(frozen=True, slots=True)
class TrainOrder:
    """Train in this round. values: the round's hyper-parameters ("local.epochs", "local.learning_rate", ..). ledger:
    the head of the coordinator's privacy ledger, "" without one. counted: the last round in which an update of this
    site moved the model, 0 before there was one; what a site remembers of an update that did not count is void. part:
    the content of the sub-model's `Choice`: which part of the vector is sent and trains."""

    site: str
    round: int
    values: Mapping[str, float]
    ledger: str = ""
    counted: int = 0
    part: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrainReply:
    """A site's answer to a TrainOrder.

    payload: the sealed update, or None when the upload gate kept it back. snapshot: the change of the model at an
    earlier step, where the order's values ask for it ("local.snapshot"). notice: what a sub-model tells of the part of
    the vector that the payload is of. prototypes: gradients of single perturbed images, one for each class that is new
    at the site, where the study has a proxy server (rule `glfc`). cases: unique cases of its own trained on, which are
    its weight. shared: unique cases of others trained on.
    loss_start / loss: mean training loss over the first epoch and over the last. seconds: training, and all of it.
    ledger: the head of the site's privacy ledger, "" without one. skipped: cases that could not be used, by reason.
    """

    site: str
    round: int
    payload: Payload | None
    cases: int
    steps: int
    epochs: int
    loss_start: float
    loss: float
    seconds: Mapping[str, float] = field(default_factory=dict)
    ledger: str = ""
    skipped: Mapping[str, int] = field(default_factory=dict)
    snapshot: Payload | None = None
    notice: bytes = b""
    shared: int = 0
    prototypes: Payload | None = None


@dataclass(frozen=True, slots=True)
class SiteFailure:
    """A site did not answer with an update. The run goes on without it. late: it was still at work at the deadline."""

    site: str
    round: int
    reason: str
    late: bool = False
