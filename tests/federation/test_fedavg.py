"""FedAvg (algorithms' test t00): with one full-batch step it is pooled gradient descent, whatever the sites' sizes, and
more local work needs fewer rounds."""

from typing import Any

import numpy as np
import numpy.typing as npt
from toys.parts import Federated, configured, federation_parts
from toys.problems import gaussian_classes
from toys.tasks import Classifier, Rows, site

from medfl.federation.aggregation.base import AGGREGATORS
from medfl.federation.aggregation.weighted_mean import WeightedMean
from medfl.update.base import Update

CLASSES, SIZE, RATE = 10, 25, 0.1
COUNTS = [60, 75, 93, 110, 128, 150, 171, 190, 215, 239]
SITES = gaussian_classes(COUNTS, CLASSES, SIZE, 0.5)


class Unweighted(WeightedMean):
    """The fake: every site counts the same."""

    def add(self, update: Update, weight: float) -> None:
        super().add(update, 1.0)


def federated(aggregator: type[WeightedMean] = WeightedMean, epochs: int = 1, **local: Any) -> Federated:
    parts = federation_parts(
        RATE,
        epochs,
        aggregator=aggregator(configured(AGGREGATORS, "weighted_mean")),  # type: ignore[arg-type]
    )
    sites = [site(f"s{number}", Rows(rows.features, rows.targets)) for number, rows in enumerate(SITES)]
    return Federated(Classifier(SIZE, CLASSES), sites, parts, **local)


def pooled_descent(start: npt.NDArray[np.float32], steps: int) -> npt.NDArray[np.float64]:
    """Softmax regression on all rows at one place, in float64: weight [classes, size], then bias [classes]."""
    features = np.concatenate([rows.features for rows in SITES])
    onehot = np.eye(CLASSES)[np.concatenate([rows.targets for rows in SITES])]
    weight = start[: CLASSES * SIZE].astype(np.float64).reshape(CLASSES, SIZE)
    bias = start[CLASSES * SIZE :].astype(np.float64)
    for _ in range(steps):
        logits = features @ weight.T + bias
        shares = np.exp(logits - logits.max(1, keepdims=True))
        wrong = (shares / shares.sum(1, keepdims=True) - onehot) / len(features)
        weight, bias = weight - RATE * wrong.T @ features, bias - RATE * wrong.sum(0)
    return np.concatenate([weight.ravel(), bias])


def distance(aggregator: type[WeightedMean], rounds: int = 20) -> float:
    """Relative distance between the federation's model and pooled gradient descent."""
    made = federated(aggregator)
    start = made.model.copy()
    made.run(rounds)
    exact = pooled_descent(start, rounds)
    return float(np.linalg.norm(made.model - exact) / np.linalg.norm(exact - start))


def test_one_full_batch_step_is_pooled_gradient_descent() -> None:
    # 20 rounds in float32 against float64: a few roundings of 6e-8 each
    assert distance(WeightedMean) < 2e-6
    assert not distance(Unweighted) < 1e-2


def rounds_to(target: float, steps: int, limit: int) -> int:
    made = federated(epochs=99, batch_size=16, max_steps=steps)
    features = np.concatenate([rows.features for rows in SITES]).astype(np.float32)
    everything = Rows(features, np.concatenate([rows.targets for rows in SITES]))
    for round_ in range(1, limit + 1):
        made.round()
        total, count = made.executor.evaluate(everything, made.model)["loss"]
        if total / count < target:
            return round_
    return limit + 1


def test_more_local_work_needs_fewer_rounds() -> None:
    one, five, twenty = rounds_to(1.0, 1, 90), rounds_to(1.0, 5, 90), rounds_to(1.0, 20, 90)
    assert one > 4 * five > 8 * twenty
