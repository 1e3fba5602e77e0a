"""AdaComm's property: as fast to the target as much local work, and a floor near that of little local work.

Least squares at eight sites that differ (20 values, 60 rows a site); the clock counts a local step as 1 and a round
trip as 10.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medfl.hyperparameters.adacomm import AdaComm, AdaCommConfig
from medfl.hyperparameters.base import Hyperparameter, Progress
from medfl.hyperparameters.constant import Constant, ConstantConfig

SITES, SIZE, ROWS, BATCH, TRIP, CLOCK = 8, 20, 60, 8, 10, 6000
Array = npt.NDArray[np.float64]


class FrozenAdaComm(AdaComm):
    """The fake: never moves."""

    def update(self, progress: Progress) -> None:
        pass


class Problem(NamedTuple):
    features: Array
    targets: Array
    rate: float
    best: float


def problem() -> Problem:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(SITES, ROWS, SIZE)) * (0.3 + 1.4 * rng.random((SITES, 1, SIZE)))
    common = rng.normal(size=SIZE)
    optima = common + rng.normal(size=(SITES, SIZE))
    targets = np.einsum("smd,sd->sm", features, optima) + rng.normal(size=(SITES, ROWS))
    largest = max(np.linalg.eigvalsh(a.T @ a / ROWS)[-1] for a in features)
    every = features.reshape(-1, SIZE)
    solution = np.linalg.lstsq(every, targets.reshape(-1), rcond=None)[0]
    return Problem(features, targets, 0.1 / largest, loss(features, targets, solution))


def loss(features: Array, targets: Array, x: Array) -> float:
    return float(((features @ x - targets) ** 2).mean() / 2)


def excess_over_time(moving: Hyperparameter, seed: int = 0) -> tuple[float, float]:
    """(time to 10 % of the first gap, mean excess loss in the last fifth of the time)."""
    p, rng = problem(), np.random.default_rng(seed)
    x, clock, round_, reached = np.zeros(SIZE), 0, 0, float("inf")
    gap, late = loss(p.features, p.targets, x) - p.best, []
    while clock < CLOCK:
        tau = int(moving.value())
        found = loss(p.features, p.targets, x)
        y = np.repeat(x[None], SITES, 0)
        for _ in range(tau):
            chosen = rng.integers(0, ROWS, (SITES, BATCH))
            a, b = np.take_along_axis(p.features, chosen[..., None], 1), np.take_along_axis(p.targets, chosen, 1)
            y -= p.rate * np.einsum("sbd,sb->sd", a, np.einsum("sbd,sd->sb", a, y) - b) / BATCH
        x, round_, clock = y.mean(0), round_ + 1, clock + tau + TRIP
        excess = loss(p.features, p.targets, x) - p.best
        if excess < 0.1 * gap:
            reached = min(reached, clock)
        if clock > 0.8 * CLOCK:
            late.append(excess)
        moving.update(Progress(round_, found))
    return reached, float(np.mean(late))


def test_adacomm_is_fast_early_and_exact_late() -> None:
    def adacomm(kind: type[AdaComm]) -> tuple[float, float]:
        return excess_over_time(kind(AdaCommConfig(start=32, block=4)))

    slow, floor = excess_over_time(Constant(ConstantConfig(value=1)))
    fast, ceiling = excess_over_time(Constant(ConstantConfig(value=32)))
    reached, late = adacomm(AdaComm)
    assert slow > 3 * fast and ceiling > 2 * floor
    assert reached < slow / 3 and late < floor + 0.35 * (ceiling - floor)
    # the same bar must stop a tau that stands still
    _, frozen = adacomm(FrozenAdaComm)
    assert not frozen < floor + 0.35 * (ceiling - floor)
