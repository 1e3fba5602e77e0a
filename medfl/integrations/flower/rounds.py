"""medfl's rounds over clients that are not medfl's: schedule, regulator, aggregator and server step of a study's
`federation` section, with each client's vector in the clear.

What a medfl site adds, its policy, approval, ledger, masks and resume, needs a medfl site: `flower.server`, `relay`.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from medfl.errors import RunError
from medfl.federation.aggregation.base import AGGREGATORS
from medfl.federation.outcome import RoundOutcome
from medfl.federation.parts import FederationParts
from medfl.federation.regulator.base import REGULATORS
from medfl.federation.round import Federation
from medfl.federation.schedule.base import SCHEDULES
from medfl.federation.server_steps.base import SERVER_STEPS
from medfl.learning.messages import SiteFailure, TrainReply
from medfl.learning.randomness import generator
from medfl.study.model import FederationSection
from medfl.update.base import Update
from medfl.update.codecs.base import CODECS
from medfl.update.vector import FloatVector

log = logging.getLogger(__name__)

_UNKNOWN = 2**31 - 1

What = Literal["train", "evaluate"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A client's. vector: its model after training, None after an evaluation. failure: why there is none."""

    node: str
    examples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    vector: FloatVector | None = None
    failure: str = ""


Ask = Callable[[What, Sequence[str], FloatVector, int], Iterable[Answer]]
"""(what, nodes, model, round) -> one answer a node, as they come."""


def build_parts(section: Mapping[str, Any]) -> FederationParts:
    """The parts of a study's `federation` section; StudyError or ValidationError when it is wrong."""
    read = FederationSection.model_validate(section)
    return FederationParts(
        schedule=SCHEDULES.build(read.schedule),
        codec=CODECS.build(CODECS.default("fp32")),
        regulator=[REGULATORS.build(rule) for rule in read.regulator],
        aggregator=AGGREGATORS.build(read.aggregator),
        server=SERVER_STEPS.build(read.server),
        values={},
        quorum=read.quorum,
    )


class Rounds:
    """`model` is moved in place."""

    def __init__(self, parts: FederationParts, seed: int, model: FloatVector, ask: Ask) -> None:
        self.federation = Federation(parts, seed, model)
        self._ask = ask

    def play(self, nodes: Sequence[str]) -> RoundOutcome:
        """One round with those that are there. Updates are combined in the plan's order, whatever comes first."""
        # a client says with its answer how many examples it has
        plan = self.federation.plan(dict.fromkeys(sorted(nodes), _UNKNOWN))
        open_, early = self.federation.open(plan), dict[str, Answer]()
        left = list(plan.cohort)
        for answer in self._ask("train", plan.cohort, self.federation.model, plan.round):
            early[answer.node] = answer
            while left and left[0] in early:
                said = self._reply(early.pop(left.pop(0)), plan.round)
                open_.fail(said) if isinstance(said, SiteFailure) else open_.receive(said)
        for node in left:
            open_.fail(SiteFailure(node, plan.round, f"node {node} did not answer"))
        return self.federation.close(open_)

    def _reply(self, answer: Answer, round_: int) -> TrainReply | SiteFailure:
        model = self.federation.model
        if answer.failure:
            return SiteFailure(answer.node, round_, answer.failure)
        if answer.vector is None or answer.vector.shape != model.shape:
            return SiteFailure(answer.node, round_, f"node {answer.node} sent a model of another shape")
        update = Update(np.subtract(answer.vector, model, dtype=np.float32), model.size)
        payload = self.federation.parts.codec.encode(update, generator(0, "codec-up", round_))
        loss = answer.metrics.get("loss", answer.metrics.get("train_loss", float("nan")))
        return TrainReply(answer.node, round_, payload, answer.examples, 0, 0, loss, loss)

    def evaluate(self, nodes: Sequence[str]) -> dict[str, float]:
        """The clients' metrics of the model, weighted by their examples; of those that evaluated."""
        sums: dict[str, list[float]] = {}
        for answer in self._ask("evaluate", sorted(nodes), self.federation.model, self.federation.round):
            if answer.failure:
                log.warning("%s", answer.failure)
                continue
            for name, value in answer.metrics.items():
                entry = sums.setdefault(name, [0.0, 0.0])
                entry[0] += value * answer.examples
                entry[1] += answer.examples
        return {name: total / weight for name, (total, weight) in sums.items() if weight}


def check_answer(examples: object, metrics: Mapping[str, object]) -> tuple[int, dict[str, float]]:
    """What a client's function returned; RunError when it is not (examples, metrics)."""
    wrong = [name for name, value in metrics.items() if not isinstance(value, int | float)]
    if not isinstance(examples, int) or examples < 1 or wrong:
        what = f"returned {examples!r} examples and metrics {wrong} that are no numbers"
        raise RunError.at("client", what, "return (number of examples, {name: number})")
    return examples, {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
