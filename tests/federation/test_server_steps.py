"""Server steps: FedAvg, FedMom (algorithms' test t10), FedAvgM and FedAdam."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from toys.parts import plugin
from toys.problems import curvature, least_squares, loss, optimum

from medfl.federation.server_steps.base import SERVER_STEPS, ServerStep
from medfl.federation.server_steps.momentum import ServerMomentum, ServerMomentumConfig

Vector = npt.NDArray[np.float32]


def step(kind: str, **settings: object) -> ServerStep:
    built: ServerStep = plugin(SERVER_STEPS, kind, **settings)
    return built


def updates(count: int = 6, size: int = 30) -> list[Vector]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=size).astype(np.float32) for _ in range(count)]


def course(made: ServerStep, given: list[Vector], start: Vector) -> list[Vector]:
    model, found = start.copy(), []
    for update in given:
        made.apply(model, update.copy())
        found.append(model.copy())
    return found


START = np.random.default_rng(9).normal(size=30).astype(np.float32)


def test_sgd_with_rate_one_is_fedavg_to_the_bit() -> None:
    expected = START + updates(1)[0]
    assert course(step("sgd"), updates(1), START)[0].tobytes() == expected.tobytes()
    half = course(step("sgd", learning_rate=0.5), updates(1), START)[0]
    np.testing.assert_allclose(half, START + 0.5 * updates(1)[0], rtol=1e-6)


def test_fedadam_is_the_published_formula() -> None:
    m, v, w = np.zeros(30), np.zeros(30), START.astype(np.float64)
    found = course(step("adam", learning_rate=0.05, beta1=0.8, beta2=0.95, tau=0.01), updates(), START)
    for update, model in zip(updates(), found, strict=True):
        delta = update.astype(np.float64)
        m, v = 0.8 * m + 0.2 * delta, 0.95 * v + 0.05 * delta**2
        w = w + 0.05 * m / (np.sqrt(v) + 0.01)
        np.testing.assert_allclose(model, w, rtol=1e-4, atol=1e-5)


def test_fedmom_is_the_published_formula() -> None:
    v, w = START.astype(np.float64), START.astype(np.float64)
    found = course(step("momentum", learning_rate=0.7, beta=0.6), updates(), START)
    for update, model in zip(updates(), found, strict=True):
        ahead = w + 0.7 * update
        w, v = ahead + 0.6 * (ahead - v), ahead
        np.testing.assert_allclose(model, w, rtol=1e-4, atol=1e-5)


def test_fedavgm_is_the_heavy_ball() -> None:
    m, w = np.zeros(30), START.astype(np.float64)
    found = course(step("momentum", learning_rate=0.7, beta=0.6, nesterov=False), updates(), START)
    for update, model in zip(updates(), found, strict=True):
        m = 0.6 * m + 0.7 * update
        w = w + m
        np.testing.assert_allclose(model, w, rtol=1e-4, atol=1e-5)


def test_momentum_without_beta_is_fedavg() -> None:
    plain = course(step("sgd"), updates(), START)
    for nesterov in (True, False):
        found = course(step("momentum", beta=0.0, nesterov=nesterov), updates(), START)
        np.testing.assert_allclose(found[-1], plain[-1], rtol=1e-6, atol=1e-6)


KINDS = [("sgd", {}), ("momentum", {}), ("momentum", {"nesterov": False}), ("adam", {})]


@pytest.mark.parametrize(("kind", "settings"), KINDS)
@pytest.mark.parametrize("cut", [0, 1, 3])
def test_state_and_restore_continue_to_the_bit(kind: str, settings: dict[str, object], cut: int) -> None:
    whole = course(step(kind, **settings), updates(), START)
    first, second = step(kind, **settings), step(kind, **settings)
    before = course(first, updates()[:cut], START)
    second.restore({name: array.copy() for name, array in first.state().items()})
    after = course(second, updates()[cut:], before[-1] if before else START)
    assert [model.tobytes() for model in before + after] == [model.tobytes() for model in whole]


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_no_state_aliases_the_model_or_the_update(kind: str, settings: dict[str, object]) -> None:
    made, model = step(kind, **settings), START.copy()
    for update in updates(2):
        made.apply(model, update)
        for array in made.state().values():
            assert not np.shares_memory(array, model) and not np.shares_memory(array, update)


class Resets(ServerMomentum):
    """The fake: its buffer does not live from round to round."""

    def apply(self, model: Vector, update: Vector) -> None:
        self._buffer = None
        super().apply(model, update)


def rounds_to_target(made: ServerStep) -> int:
    """Rounds until 0.1 % of the first gap: eight sites, 30 values, condition about 100, five local steps."""
    sites = least_squares(8, 30, 80, 0.0, noise=0.01, condition=8)
    best, rate = loss(sites, optimum(sites)), 0.05 / curvature(sites)
    model = np.zeros(30, np.float32)
    gap = loss(sites, model.astype(np.float64)) - best
    for round_ in range(1, 1001):
        model64 = model.astype(np.float64)
        local = [model64.copy() for _ in sites]
        for number, rows in enumerate(sites):
            for _ in range(5):
                residual = rows.features @ local[number] - rows.targets
                local[number] -= rate * rows.features.T @ residual / len(residual)
        made.apply(model, (np.mean(local, axis=0) - model64).astype(np.float32))
        if loss(sites, model.astype(np.float64)) - best < 1e-3 * gap:
            return round_
    return 1000


def test_fedmom_needs_five_times_fewer_rounds() -> None:
    makes: list[Callable[[], ServerStep]] = [
        lambda: step("sgd"),
        lambda: step("momentum"),
        lambda: Resets(ServerMomentumConfig()),
        lambda: step("momentum", nesterov=False),
    ]
    fedavg, fedmom, fake, heavy = (rounds_to_target(make()) for make in makes)
    assert fedmom * 5 <= fedavg
    assert heavy * 2 <= fedavg
    assert not fake * 5 <= fedavg
