"""FedProx and server momentum in whole federations (algorithms' test t10): identities, stragglers, rounds.

The local rule alone is in learning/test_fedprox.py, the server steps' formulas in test_server_steps.py.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from toys.parts import Federated, configured, federation_parts, plugin
from toys.problems import SiteRows, curvature, least_squares, loss, optimum
from toys.tasks import LeastSquares, Rows, site

from medfl.federation.outcome import RoundOutcome
from medfl.federation.schedule.base import SCHEDULES
from medfl.federation.server_steps.base import SERVER_STEPS, ServerStep
from medfl.federation.server_steps.momentum import ServerMomentum, ServerMomentumConfig
from medfl.hyperparameters.base import HYPERPARAMETERS
from medfl.learning.messages import SiteFailure
from medfl.learning.rules.base import RULES, LocalContext, LocalRule
from medfl.plugins import PluginConfig

SIZE = 20
Vector = npt.NDArray[np.float32]


def sites(problem: list[SiteRows]) -> list[Any]:
    return [site(f"s{number:02}", Rows(rows.features, rows.targets)) for number, rows in enumerate(problem)]


def constant(mu: float) -> dict[str, PluginConfig]:
    return {"fedprox.mu": configured(HYPERPARAMETERS, "constant", value=mu)}


# identities


@pytest.mark.parametrize("batch", [7, 1000])
def test_fedprox_without_mu_is_fedavg_to_the_bit(batch: int) -> None:
    problem = least_squares(6, SIZE, 30, 1.5)

    def model(rule: str, mu: float) -> bytes:
        parts = federation_parts(
            0.3 / curvature(problem),
            5,
            constant(mu),
            schedule=plugin(SCHEDULES, "uniform", fraction=0.5),
            server=plugin(SERVER_STEPS, "momentum", beta=0.5),
        )
        rules = [plugin(RULES, rule, **({"mu": mu} if rule == "fedprox" else {}))]
        made = Federated(LeastSquares(SIZE), sites(problem), parts, rules=rules, batch_size=batch)
        made.run(4)
        return made.model.tobytes()

    assert model("fedprox", 0.0) == model("sgd", 0.0)
    assert model("fedprox", 1e-3) != model("sgd", 0.0)


class UnsquaredNorm(LocalRule):
    """The fake: f + mu/2 |y - x|, as a popular docstring prints it."""

    def direction(self, context: LocalContext) -> None:
        drift = context.network.parameters.detach() - context.anchor
        context.network.gradient.add_(drift / drift.norm().clamp_min(1e-12), alpha=context.values["fedprox.mu"] / 2)


def proximal_error(rule: LocalRule, mu: float) -> float:
    """Relative distance of two rounds to two exact proximal points in a row, (H + mu I) y = H x_i + mu x."""
    (rows,) = problem = least_squares(1, SIZE, 60, 1.5)
    made = Federated(
        LeastSquares(SIZE), sites(problem), federation_parts(0.3 / curvature(problem), 500, constant(mu)), rules=[rule]
    )
    exact = made.model.astype(np.float64)
    for _ in range(2):
        made.round()
        vector = rows.features.T @ rows.targets / len(rows.targets)
        exact = np.linalg.solve(rows.hessian + mu * np.eye(SIZE), vector + mu * exact)
    return float(np.linalg.norm(made.model - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("mu", [0.5, 2.0])
def test_a_round_of_fedprox_is_the_proximal_point(mu: float) -> None:
    assert proximal_error(plugin(RULES, "fedprox", mu=mu), mu) < 1e-6
    assert not proximal_error(UnsquaredNorm(PluginConfig(kind="fake")), mu) < 1e-2


# stragglers


class Stragglers(Federated):
    """In each round nine in ten of the cohort do not get to the end of their local work. keep: whether they send what
    they have, or are left out as late."""

    def __init__(self, steps: int, keep: bool, *given: Any, **local: Any) -> None:
        super().__init__(*given, **local)
        self.steps, self.keep = steps, keep
        self.rng = np.random.default_rng(7)

    def round(self) -> RoundOutcome:
        plan = self.federation.plan(self.cases)
        open_ = self.federation.open(plan)
        slow = set(self.rng.permutation(plan.cohort)[: round(0.9 * len(plan.cohort))])
        for order in plan.orders():
            steps = int(self.rng.integers(1, self.steps)) if order.site in slow else self.steps
            if order.site in slow and not self.keep:
                open_.fail(SiteFailure(order.site, order.round, "late", late=True))
                continue
            mine = replace(order, values={**order.values, "local.epochs": steps})
            open_.receive(
                self.executor.train(self.sites[order.site], mine, self.federation.model, self.states[order.site])
            )
        return self.federation.close(open_)


def straggling_excess(mu: float, keep: bool) -> float:
    """Mean loss above the best of the last rounds, of 30 sites of which 10 are asked."""
    problem = least_squares(30, SIZE, 60, 1.5)
    parts = federation_parts(
        0.3 / curvature(problem), 30, constant(mu), schedule=plugin(SCHEDULES, "uniform", fraction=1 / 3)
    )
    made = Stragglers(30, keep, LeastSquares(SIZE), sites(problem), parts, rules=[plugin(RULES, "fedprox", mu=mu)])
    best, found = loss(problem, optimum(problem)), []
    for _ in range(24):
        made.round()
        found.append(loss(problem, made.model.astype(np.float64)) - best)
    return float(np.mean(found[-12:]))


def test_fedprox_keeps_what_stragglers_have_done() -> None:
    prox, fedavg = straggling_excess(1.0, keep=True), straggling_excess(0.0, keep=False)
    assert prox < fedavg / 8
    # leaving stragglers out costs more than mu can mend
    assert not straggling_excess(1.0, keep=False) < fedavg / 8


# momentum


class Resets(ServerMomentum):
    """The fake: forgets its buffer after every round."""

    def apply(self, model: Vector, update: Vector) -> None:
        self._buffer = model + np.float32(self.config.learning_rate) * update
        super().apply(model, update)


def gap_left(server: ServerStep, rounds: int = 50) -> float:
    """Share of the first gap after so many rounds: four sites alike, 30 values, condition about 110, five local
    steps."""
    problem = least_squares(4, 30, 80, 0.0, noise=0.01, condition=8)
    parts = federation_parts(0.05 / curvature(problem), 5, server=server)
    made = Federated(LeastSquares(30), sites(problem), parts)
    best, first = loss(problem, optimum(problem)), loss(problem, made.model.astype(np.float64))
    made.run(rounds)
    return (loss(problem, made.model.astype(np.float64)) - best) / (first - best)


def test_momentum_at_the_coordinator_is_ahead_after_fifty_rounds() -> None:
    """How many rounds it saves in all is in test_server_steps.py."""
    fedavg = gap_left(plugin(SERVER_STEPS, "sgd"))
    assert gap_left(plugin(SERVER_STEPS, "momentum")) < fedavg / 20
    assert gap_left(plugin(SERVER_STEPS, "momentum", nesterov=False)) < fedavg / 10
    # without its memory it is FedAvg
    assert gap_left(Resets(ServerMomentumConfig())) == pytest.approx(fedavg, rel=1e-3)
