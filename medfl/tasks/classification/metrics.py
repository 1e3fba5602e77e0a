"""Classification: what a batch adds to the statistics, and what the statistics say."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from medfl.tasks.base import Metric, Statistics
from medfl.tasks.histograms import (
    CALIBRATION_BINS,
    SCORE_BINS,
    auroc,
    calibration_table,
    expected_calibration_error,
    score_histogram,
)

FloatMatrix = npt.NDArray[np.float64]


def empty(classes: int) -> Statistics:
    """Zeros: "loss" [sum, count], "confusion" [truth, predicted], "scores" [class, negative|positive, bin] and
    "calibration" [bin, count|confidence|correct]."""
    return {
        "loss": np.zeros(2),
        "confusion": np.zeros((classes, classes)),
        "scores": np.zeros((classes, 2, SCORE_BINS)),
        "calibration": np.zeros((CALIBRATION_BINS, 3)),
    }


def of_batch(logits: FloatMatrix, labels: npt.NDArray[np.int64]) -> Statistics:
    """Statistics of logits [N, C] and labels [N]; the loss is the plain cross entropy."""
    classes = logits.shape[1]
    found = empty(classes)
    with np.errstate(invalid="ignore"):  # a diverged network: its loss is NaN, its scores tie
        log_probability = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        rest = [np.logaddexp.reduce(np.delete(logits, c, axis=1), axis=1) for c in range(classes)]
    predicted = logits.argmax(axis=1)
    found["loss"][:] = -log_probability[np.arange(len(labels)), labels].sum(), len(labels)
    np.add.at(found["confusion"], (labels, predicted), 1.0)
    for number in range(classes):
        odds = logits[:, number] - rest[number]
        for group in (0, 1):
            found["scores"][number, group] = score_histogram(odds[(labels == number) == group])
    found["calibration"] = calibration_table(np.exp(log_probability.max(axis=1)), predicted == labels)
    return found


def confusion(statistics: Statistics) -> npt.NDArray[np.int64]:
    """Counts [C, C] of images by true (row) and predicted (column) class."""
    return np.rint(statistics["confusion"]).astype(np.int64)


def metrics(statistics: Statistics, classes: Sequence[str]) -> list[Metric]:
    """Metrics of all classes together, then of each class.

    Overall "precision", "recall", "specificity" and "f1" are means over classes (macro); recall is then the balanced
    accuracy. "auroc" is that of class 1 for two classes, else the mean of one class against the rest. Recall and
    specificity leave out classes for which they are undefined; precision and f1 count a class that has images but is
    never predicted as 0. A metric of one class that is undefined is NaN with n = 0.
    """
    table = statistics["confusion"]
    per_class = {name: compute(table) for name, compute in _PER_CLASS.items()}
    per_class["auroc"] = _aurocs(statistics["scores"])
    overall = _overall(statistics, per_class)
    by_class = [
        _metric(name, values[number], support[number], class_name)
        for number, class_name in enumerate(classes)
        for name, (values, support) in per_class.items()
    ]
    return overall + by_class


_Column = tuple[FloatMatrix, FloatMatrix]
"""Values [C] and supports [C]."""


def _ratio(part: FloatMatrix, whole: FloatMatrix) -> _Column:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0), whole


def _recall(table: FloatMatrix) -> _Column:
    return _ratio(table.diagonal().copy(), table.sum(axis=1))


def _precision(table: FloatMatrix) -> _Column:
    return _ratio(table.diagonal().copy(), table.sum(axis=0))


def _specificity(table: FloatMatrix) -> _Column:
    negatives = table.sum() - table.sum(axis=1)
    return _ratio(negatives - table.sum(axis=0) + table.diagonal(), negatives)


def _f1(table: FloatMatrix) -> _Column:
    hits = table.diagonal()
    either = table.sum(axis=0) + table.sum(axis=1)
    return _ratio(2.0 * hits, either)[0], either - hits


_PER_CLASS: dict[str, Callable[[FloatMatrix], _Column]] = {
    "precision": _precision,
    "recall": _recall,
    "specificity": _specificity,
    "f1": _f1,
}


def _aurocs(scores: FloatMatrix) -> _Column:
    values = np.array([auroc(negatives, positives) for negatives, positives in scores])
    return values, np.where(np.isnan(values), 0.0, scores.sum(axis=(1, 2)))


def _overall(statistics: Statistics, per_class: dict[str, _Column]) -> list[Metric]:
    table = statistics["confusion"]
    cases = float(table.sum())
    areas, _ = per_class["auroc"]
    seen = per_class["f1"][1] > 0
    values = {
        "auroc": float(areas[1]) if len(areas) == 2 else _mean(areas),
        "accuracy": float(table.trace() / cases) if cases else np.nan,
        "balanced_accuracy": _mean(per_class["recall"][0]),
        "precision": _mean(np.nan_to_num(per_class["precision"][0][seen])),
        "recall": _mean(per_class["recall"][0]),
        "specificity": _mean(per_class["specificity"][0]),
        "f1": _mean(np.nan_to_num(per_class["f1"][0][seen])),
        "ece": expected_calibration_error(statistics["calibration"]),
    }
    total, count = statistics["loss"]
    loss = Metric("loss", float(total / count) if count else float("nan"), round(count))
    return [*(_metric(name, value, cases) for name, value in values.items()), loss]


def _mean(values: FloatMatrix) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _metric(name: str, value: float, n: float, class_name: str = "") -> Metric:
    return Metric(name, float(value), 0 if np.isnan(value) else round(float(n)), class_name)
