"""FedProx: the proximal point, and what mu does to the drift (algorithms' test t10)."""

import numpy as np
import numpy.typing as npt
import pytest
from toys.parts import CPU, Federated, configured, federation_parts, local_parts, plugin, values
from toys.problems import SiteRows, curvature, least_squares, loss, optimum
from toys.tasks import LeastSquares, Rows, site

from medfl.hyperparameters.base import HYPERPARAMETERS
from medfl.learning.executor import SiteExecutor
from medfl.learning.messages import TrainOrder
from medfl.learning.rules.base import RULES, LocalContext, LocalRule
from medfl.plugins import PluginConfig

SIZE = 20
SITES = least_squares(10, SIZE, 60, 1.5)
RATE = 0.3 / curvature(SITES)
START = np.random.default_rng(1).normal(size=SIZE).astype(np.float32)


class UnsquaredNorm(LocalRule):
    """The fake: f + mu/2 |y - x|, as a popular docstring prints it."""

    def direction(self, context: LocalContext) -> None:
        drift = context.network.parameters.detach() - context.anchor
        context.network.gradient.add_(drift / drift.norm().clamp_min(1e-12), alpha=context.values["fedprox.mu"] / 2)


def solution(rule: LocalRule, mu: float, epochs: int, rows: SiteRows, **changes: object) -> npt.NDArray[np.float64]:
    made = SiteExecutor(local_parts(LeastSquares(SIZE), rules=[rule], **changes), CPU)
    order = TrainOrder("a", 1, values(RATE, epochs, fedprox__mu=mu))
    reply = made.train(site("a", Rows(rows.features, rows.targets)), order, START, {})
    assert reply.payload is not None
    return START + np.frombuffer(reply.payload.buffers[0], np.float32)


def proximal_point(rows: SiteRows, mu: float) -> npt.NDArray[np.float64]:
    vector = rows.features.T @ rows.targets / len(rows.targets)
    found: npt.NDArray[np.float64] = np.linalg.solve(rows.hessian + mu * np.eye(SIZE), vector + mu * START)
    return found


@pytest.mark.parametrize("batch", [7, 1000])
def test_mu_zero_is_sgd_to_the_bit(batch: int) -> None:
    prox = solution(plugin(RULES, "fedprox", mu=0), 0.0, 5, SITES[0], batch_size=batch)
    plain = solution(plugin(RULES, "sgd"), 0.0, 5, SITES[0], batch_size=batch)
    assert prox.tobytes() == plain.tobytes()


@pytest.mark.parametrize("mu", [0.5, 2.0])
def test_the_local_solution_is_the_proximal_point(mu: float) -> None:
    exact = proximal_point(SITES[0], mu)
    found = solution(plugin(RULES, "fedprox"), mu, 600, SITES[0])
    assert np.abs(found - exact).max() < 1e-4
    wrong = solution(UnsquaredNorm(PluginConfig(kind="fake")), mu, 600, SITES[0])
    assert np.abs(wrong - exact).max() > 0.1


def test_drift_falls_with_mu() -> None:
    drifts = [
        float(np.mean([np.linalg.norm(solution(plugin(RULES, "fedprox"), mu, 50, rows) - START) for rows in SITES]))
        for mu in (0.0, 0.5, 2.0, 10.0)
    ]
    assert drifts[0] > 1.1 * drifts[1] > 1.2 * drifts[2] > 1.5 * drifts[3]


def test_a_federation_leaves_the_optimum_less_with_mu() -> None:
    few = SITES[:4]
    best = optimum(few)

    def excess(mu: float) -> float:
        parts = federation_parts(RATE, 30, {"fedprox.mu": configured(HYPERPARAMETERS, "constant", value=mu)})
        sites = [site(f"s{number}", Rows(rows.features, rows.targets)) for number, rows in enumerate(few)]
        federated = Federated(LeastSquares(SIZE), sites, parts, rules=[plugin(RULES, "fedprox", mu=mu)])
        federated.federation.model[:] = best
        federated.run(6)
        return loss(few, federated.model.astype(np.float64)) - loss(few, best)

    assert excess(0.0) > 3 * excess(5.0)
