"""FedCOMGATE and its variance-reduced form (algorithms' tests t01 and t14): the exact optimum of different hospitals,
where FedAvg and FedCOM stop at the balance of their drifts."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from toys.exact import Exact, Lossless
from toys.parts import Federated, federation_parts, pipeline, plugin
from toys.problems import curvature, least_squares, optimum
from toys.tasks import LeastSquares, Rows, site

from medfl.federation.server_steps.base import SERVER_STEPS
from medfl.learning.rules.base import RULES, LocalContext, LocalRule
from medfl.learning.rules.fedcomgate import FedComGate, FedComGateConfig
from medfl.update.base import Update
from medfl.update.codecs.base import CODECS, Codec
from medfl.update.gates.base import GATES
from medfl.update.memories.base import MEMORIES
from medfl.update.pipeline import UploadPipeline

SITES = least_squares(10, 20, 60, 1)
RATE = 0.1 / curvature(SITES)


class Frozen(FedComGate):
    """The fake: a tracker that never moves."""

    def sent(self, context: LocalContext, update: Callable[[], Update]) -> None:
        pass


class Raw(FedComGate):
    """The fake, as in published code: the tracker follows the site's exact update and not the coded one."""

    def finish(self, context: LocalContext) -> None:
        network: Any = context.network
        exact = (network.parameters - context.anchor).numpy()
        super().sent(context, lambda: Update(exact, exact.size))

    def sent(self, context: LocalContext, update: Callable[[], Update]) -> None:
        pass


def gate(kind: type[FedComGate] = FedComGate, alpha: float | None = None) -> FedComGate:
    return kind(FedComGateConfig(alpha=alpha))


def way(codec: Codec | None = None, memory: str = "none") -> UploadPipeline:
    return UploadPipeline(plugin(GATES, "always"), plugin(MEMORIES, memory), codec or Lossless())


def error(rules: list[LocalRule], codec: Codec | None = None, rounds: int = 400, **changes: Any) -> float:
    return Exact(SITES, rules, way(codec), RATE, **changes).run(rounds)


def qsgd(levels: int = 16) -> Codec:
    made: Codec = plugin(CODECS, "qsgd", levels=levels)
    return made


def test_tracking_reaches_the_optimum_where_averaging_stalls() -> None:
    assert error([gate()]) < 1e-12
    assert error([gate()], qsgd()) < 1e-12
    for stalled in (error([]), error([], qsgd()), error([gate(Frozen)], qsgd())):
        assert not stalled < 2e-2


def test_the_tracker_follows_the_coded_update() -> None:
    assert error([gate()], qsgd(4), rounds=800) < 1e-8
    assert not error([gate(Raw)], qsgd(4), rounds=800) < 1e-2


def test_variance_reduction_removes_the_noise_of_batches() -> None:
    svrg = plugin(RULES, "svrg")
    assert error([svrg, gate()], batch=8) < 1e-12
    assert not error([gate()], rounds=300, batch=8) < 1e-2, "without variance reduction the batches' noise stays"
    assert not error([svrg], rounds=300, batch=8) < 3e-2, "without tracking the drift stays"


def test_a_step_above_what_the_codec_allows_diverges() -> None:
    sparse = plugin(CODECS, "random_k", density=0.25)
    assert sparse.omega(20) == pytest.approx(3)
    assert error([gate()], sparse, rounds=1500) < 1e-4
    with np.errstate(all="ignore"):
        assert not error([gate(alpha=1.0)], sparse, rounds=300) < 1


def test_invariants() -> None:
    made = Exact(SITES, [gate()], way(qsgd()), RATE)
    made.run(600)
    deltas = np.array([state["fedcomgate.delta"] for state in made.states])
    best = optimum(list(SITES))
    gradients = [rows.features.T @ (rows.features @ best - rows.targets) / len(rows.targets) for rows in SITES]
    np.testing.assert_allclose(deltas.sum(0), 0, atol=1e-9)
    np.testing.assert_allclose(deltas, gradients, atol=1e-9)


def federated(**local: Any) -> Federated:
    sites = [site(f"s{number}", Rows(rows.features, rows.targets)) for number, rows in enumerate(SITES)]
    return Federated(LeastSquares(20), sites, federation_parts(RATE, 10), **local)


def relative(made: Federated) -> float:
    best = optimum(list(SITES))
    return float(np.linalg.norm(made.model - best) / np.linalg.norm(best))


def test_the_whole_federation_in_single_precision() -> None:
    tracked, averaged = federated(rules=[gate()]), federated()
    tracked.run(60)
    averaged.run(60)
    assert relative(tracked) < 2e-4
    assert relative(averaged) > 2e-2


def test_what_did_not_count_moves_no_tracker() -> None:
    made = federated(rules=[gate()], pipeline=pipeline())
    made.round()
    made.federation.counted.pop("s3")
    made.round()
    assert "fedcomgate.delta" not in made.states["s3"]
    assert "fedcomgate.delta" in made.states["s4"]
    made.federation.parts = federation_parts(RATE, 10, server=plugin(SERVER_STEPS, "sgd"))
    made.round()
    assert "fedcomgate.delta" in made.states["s3"]


def test_momentum_comes_before_the_tracker() -> None:
    momentum: LocalRule = plugin(RULES, "local_momentum", beta=0.9)
    assert error([momentum, gate()]) < 1e-12
    with np.errstate(all="ignore"):
        assert not error([gate(), momentum]) < 1e12


def test_a_rate_that_came_down_to_zero_teaches_the_tracker_nothing() -> None:
    data = [Rows(rows.features, rows.targets) for rows in SITES[:3]]
    parts = federation_parts(rate=0.0)
    federated = Federated(LeastSquares(20), [site(f"s{n}", rows) for n, rows in enumerate(data)], parts, rules=[gate()])
    outcomes = federated.run(3)
    assert all(outcome.moved for outcome in outcomes) and not federated.model.any()
