"""Classification: metrics against scikit-learn, exact sums over sites, class balance, and a run that learns."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pydantic import ValidationError
from sklearn import metrics as sk
from torch.nn import functional as F

from medfl.data.base import SampleInfo
from medfl.errors import DataError
from medfl.tasks.base import TASKS, Metric, add
from medfl.tasks.classification import Classification, metrics
from medfl.tasks.classification.config import ClassificationConfig
from medfl.tasks.histograms import auroc, roc_curve, score_histogram

CPU = torch.device("cpu")
CLASSES = ("normal", "bacterial", "viral")


def task(classes: int = 3, **changes: Any) -> Classification:
    settings = {"classes": CLASSES[:classes], "network": {"layers": (1, 1), "width": 8, "stem": "small"}}
    return Classification(ClassificationConfig.model_validate(settings | changes))


class Images:
    """Samples in memory."""

    def __init__(self, images: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> None:
        self.images, self.truth, self.cases = images, labels, len(labels)

    def __len__(self) -> int:
        return len(self.truth)

    def batch(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> dict[str, Any]:
        chosen = list(indices)
        return {"image": self.images[chosen], "label": self.truth[chosen]}

    def info(self, index: int) -> SampleInfo:
        return SampleInfo(str(index), str(index), (1.0, 1.0))

    def labels(self) -> npt.NDArray[np.int64]:
        return self.truth


def images_of(classes: int, count: int, seed: int = 0) -> Images:
    """Stripes whose frequency tells the class, under noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    rows = np.sin(np.arange(12)[None] * (0.6 + 0.9 * labels[:, None]) + rng.uniform(0, 6, (count, 1)))
    images = rows[:, None, :, None] + rng.normal(0, 0.5, (count, 1, 12, 12))
    return Images(images.astype(np.float32), labels)


def draw(classes: int, count: int, seed: int, sharpness: float = 1.5) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    logits = rng.normal(0, 1, (count, classes)) + sharpness * np.eye(classes)[labels]
    return logits, labels


def named(found: Sequence[Metric]) -> dict[tuple[str, str], Metric]:
    assert len({(m.name, m.class_name) for m in found}) == len(found)
    return {(m.name, m.class_name): m for m in found}


def value(found: Sequence[Metric], name: str, class_name: str = "") -> float:
    return named(found)[name, class_name].value


@pytest.mark.parametrize("classes", [2, 3])
def test_metrics_agree_with_scikit_learn(classes: int) -> None:
    logits, labels = draw(classes, 700, seed=1)
    found = metrics.metrics(metrics.of_batch(logits, labels), CLASSES[:classes])
    predicted, probability = logits.argmax(1), np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    exact = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "precision": sk.precision_score(labels, predicted, average="macro"),
        "recall": sk.recall_score(labels, predicted, average="macro"),
        "f1": sk.f1_score(labels, predicted, average="macro"),
        "loss": sk.log_loss(labels, probability),
    }
    for name, expected in exact.items():
        assert value(found, name) == pytest.approx(expected, abs=1e-12), name
    area = (
        sk.roc_auc_score(labels, probability[:, 1])
        if classes == 2
        else sk.roc_auc_score(labels, probability, multi_class="ovr")
    )
    assert value(found, "auroc") == pytest.approx(area, abs=1e-3)
    for number, name in enumerate(CLASSES[:classes]):
        ours, theirs = predicted == number, labels == number
        assert value(found, "precision", name) == pytest.approx(sk.precision_score(theirs, ours))
        assert value(found, "recall", name) == pytest.approx(sk.recall_score(theirs, ours))
        assert value(found, "specificity", name) == pytest.approx(sk.recall_score(~theirs, ~ours))
        assert value(found, "f1", name) == pytest.approx(sk.f1_score(theirs, ours))
        assert value(found, "auroc", name) == pytest.approx(sk.roc_auc_score(theirs, probability[:, number]), abs=1e-3)


def test_supports_are_the_cases_behind_each_number() -> None:
    logits, labels = draw(3, 300, seed=2)
    predicted = logits.argmax(1)
    found = named(metrics.metrics(metrics.of_batch(logits, labels), CLASSES))
    for name in ("auroc", "accuracy", "f1", "ece", "loss"):
        assert found[name, ""].n == 300
    assert found["recall", "viral"].n == (labels == 2).sum()
    assert found["precision", "viral"].n == (predicted == 2).sum()
    assert found["specificity", "viral"].n == (labels != 2).sum()
    assert found["f1", "viral"].n == ((predicted == 2) | (labels == 2)).sum()
    assert found["auroc", "viral"].n == 300


def test_confusion_has_the_truth_in_rows() -> None:
    logits, labels = draw(3, 200, seed=3)
    table = metrics.confusion(metrics.of_batch(logits, labels))
    assert table.dtype == np.int64
    np.testing.assert_array_equal(table, sk.confusion_matrix(labels, logits.argmax(1)))


def test_the_auroc_of_all_sites_is_exact_where_a_mean_of_sites_is_not() -> None:
    """Two sites with shifted scores: each ranks perfectly, all together do not."""
    labels = np.tile([0, 1], 50)
    first = np.stack([np.zeros(100), labels * 1.0 - 3.0], axis=1)
    second = np.stack([np.zeros(100), labels * 1.0 + 3.0], axis=1)
    parts = [metrics.of_batch(logits, labels) for logits in (first, second)]
    of_sites = [value(metrics.metrics(part, CLASSES[:2]), "auroc") for part in parts]
    total = metrics.empty(2)
    for part in parts:
        add(total, part)
    together = value(metrics.metrics(total, CLASSES[:2]), "auroc")
    pooled = sk.roc_auc_score(np.tile(labels, 2), np.concatenate([first, second])[:, 1])
    assert together == pytest.approx(pooled, abs=1e-6)
    assert abs(np.mean(of_sites) - pooled) > 0.2


def test_statistics_add_up_exactly() -> None:
    logits, labels = draw(3, 500, seed=4)
    total = metrics.empty(3)
    for part in (slice(0, 20), slice(20, 21), slice(21, 500)):
        add(total, metrics.of_batch(logits[part], labels[part]))
    for name, sums in metrics.of_batch(logits, labels).items():
        np.testing.assert_allclose(total[name], sums, atol=1e-9, err_msg=name)


def test_ties_count_half_and_the_curve_agrees_with_its_area() -> None:
    ones = score_histogram(np.zeros(10))
    assert auroc(ones, ones) == 0.5
    rng = np.random.default_rng(0)
    negatives, positives = score_histogram(rng.normal(-1, 2, 400)), score_histogram(rng.normal(1, 2, 300))
    curve = roc_curve(negatives, positives)
    area = np.trapezoid(curve.true_positive_rate, curve.false_positive_rate)
    assert area == pytest.approx(auroc(negatives, positives))
    assert curve.true_positive_rate[-1] == curve.false_positive_rate[-1] == 1.0


def test_probabilities_near_one_are_still_ranked() -> None:
    """Log-odds bins: equal bins of the probability would tie scores of 0.999990 and 0.999999."""
    odds = np.array([11.5, 13.8])
    fine = auroc(score_histogram(odds[:1]), score_histogram(odds[1:]))
    probability = 1 / (1 + np.exp(-odds))
    coarse = np.floor(probability * 4096)
    assert fine == 1.0
    assert coarse[0] == coarse[1]


def test_what_is_undefined_is_nan_without_support() -> None:
    logits, labels = draw(2, 40, seed=5)
    only = metrics.metrics(metrics.of_batch(logits[labels == 1], labels[labels == 1]), CLASSES[:2])
    found = named(only)
    for key in (("auroc", ""), ("auroc", "bacterial"), ("recall", "normal"), ("specificity", "bacterial")):
        assert math.isnan(found[key].value) and found[key].n == 0, key
    assert found["accuracy", ""].n == (labels == 1).sum()
    assert found["recall", ""].value == found["recall", "bacterial"].value
    nothing = metrics.metrics(metrics.empty(2), CLASSES[:2])
    assert all(math.isnan(m.value) and m.n == 0 for m in nothing)


def test_a_class_that_is_never_predicted_lowers_precision_and_f1() -> None:
    labels = np.array([0, 0, 1, 1, 1, 1])
    logits = np.tile([0.0, 1.0], (6, 1))
    found = metrics.metrics(metrics.of_batch(logits, labels), CLASSES[:2])
    predicted = logits.argmax(1)
    assert value(found, "precision") == pytest.approx(
        sk.precision_score(labels, predicted, average="macro", zero_division=0)
    )
    assert value(found, "f1") == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    assert math.isnan(value(found, "precision", "normal"))


def test_calibration_error_tells_over_confidence() -> None:
    rng = np.random.default_rng(0)
    probability = rng.uniform(0.5, 1, 20_000)
    labels = (rng.random(20_000) < probability).astype(np.int64)
    odds = np.log(probability / (1 - probability))
    for factor, error in ((1.0, 0.0), (5.0, 0.2)):
        logits = np.stack([np.zeros_like(odds), factor * odds], axis=1)
        assert value(metrics.metrics(metrics.of_batch(logits, labels), CLASSES[:2]), "ece") == pytest.approx(
            error, abs=0.03
        )


@pytest.mark.filterwarnings("error")
def test_a_diverged_network_is_reported_and_does_not_stop_the_run() -> None:
    found = metrics.metrics(metrics.of_batch(np.full((4, 2), np.nan), np.array([0, 1, 0, 1])), CLASSES[:2])
    assert math.isnan(value(found, "loss")) and value(found, "auroc") == 0.5


@pytest.mark.parametrize("scheme", ["inverse", "effective"])
def test_weights_balance_classes_and_average_one(scheme: str) -> None:
    labels = np.array([0] * 900 + [1] * 90 + [2] * 10)
    weight = task(class_balance=scheme, classes=3).weights(labels)
    assert weight is not None and weight.dtype == np.float32
    assert weight.mean() == pytest.approx(1.0, abs=1e-4)
    assert weight[0] < weight[900] < weight[990]
    if scheme == "inverse":
        moderate = np.array([0] * 90 + [1] * 10)
        even = task(classes=3).weights(moderate)
        assert even is not None
        assert even[moderate == 0].sum() == pytest.approx(even[moderate == 1].sum(), rel=1e-5)


def test_weights_of_odd_sites() -> None:
    one_class = task().weights(np.full(7, 2))
    np.testing.assert_allclose(one_class, np.ones(7))
    assert len(task().weights(np.zeros(0, dtype=np.int64))) == 0  # type: ignore[arg-type]
    lonely = task().weights(np.array([0] * 5000 + [1]))
    assert lonely is not None and lonely[-1] / lonely[0] == pytest.approx(20)
    assert task(class_balance="none").weights(np.array([0, 1])) is None


def test_the_weighted_loss_is_that_of_torch() -> None:
    classification = task(label_smoothing=0.1)
    labels = np.array([0, 0, 0, 1])
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    image = np.zeros((4, 1, 12, 12), dtype=np.float32)
    weights = classification.weights(labels)
    batch = classification.to_device({"image": image, "label": labels, "weight": weights}, CPU)
    classes = torch.tensor([4 / (2 * 3), 4 / 2, 1.0])
    each = F.cross_entropy(logits, batch.label, reduction="none", label_smoothing=0.1)
    assert float(classification.supervised(logits, batch)) == pytest.approx(float((each * classes[batch.label]).mean()))
    plain = classification.to_device({"image": image, "label": labels}, CPU)
    assert float(classification.supervised(logits, plain)) == pytest.approx(float(each.mean()))


def test_faulty_batches_are_refused_by_name() -> None:
    images = [np.zeros((1, 12, 12)), np.zeros((1, 12, 13))]
    with pytest.raises(DataError, match="shapes"):
        task().to_device({"image": images, "label": [0, 1]}, CPU)
    with pytest.raises(DataError, match="class 3 of 3"):
        task().to_device({"image": np.zeros((1, 1, 12, 12)), "label": [3]}, CPU)
    with pytest.raises(DataError, match="class -1"):
        task().weights(np.array([-1, 0]))


def test_it_learns_and_evaluates_alike_in_any_batch_size() -> None:
    torch.manual_seed(0)
    classification, samples, unseen = task(evaluation_batch=7), images_of(3, 96), images_of(3, 60, seed=1)
    network = classification.build()
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    before = value(classification.metrics(classification.evaluate(network, unseen, CPU)), "auroc")
    for step in range(40):
        batch = classification.to_device(samples.batch(range(step % 3, 96, 3)), CPU)
        optimizer.zero_grad()
        classification.loss(network, batch).backward()
        optimizer.step()
    assert network.training
    found = classification.evaluate(network, unseen, CPU)
    assert network.training
    assert value(classification.metrics(found), "auroc") > max(0.9, before + 0.1)
    other = task(evaluation_batch=64).evaluate(network, unseen, CPU)
    np.testing.assert_allclose(found["confusion"], other["confusion"])
    assert found["loss"] == pytest.approx(other["loss"], rel=1e-4)
    part = classification.evaluate(network, unseen, CPU, indices=[0, 2, 4])
    assert part["loss"][1] == 3
    assert {k: v.shape for k, v in classification.empty().items()} == {k: v.shape for k, v in found.items()}


@pytest.mark.parametrize(("dims", "channels"), [(2, 1), (2, 3), (3, 1)])
def test_predictions_and_their_picture(dims: int, channels: int, tmp_path: Path) -> None:
    classification = task(spatial_dims=dims, in_channels=channels)
    image = np.random.default_rng(0).normal(size=(channels, *[10] * dims)).astype(np.float32)
    sample = {"image": image, "label": np.int64(1)}
    prediction = classification.predict(classification.build(), sample, SampleInfo("a", "p", (1.0,) * dims), CPU)
    assert sum(prediction.data["probabilities"].values()) == pytest.approx(1.0)
    assert list(prediction.data["probabilities"]) == list(CLASSES)
    path = tmp_path / "pictures" / "a.png"
    for truth in (sample, None):
        classification.overlay(image, prediction, truth, path)
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "wrong",
    [
        {"classes": ("a",)},
        {"classes": ("a", "a")},
        {"classes": ("a", " ")},
        {"spatial_dims": 4},
        {"in_channels": 0},
        {"label_smoothing": 1.0},
        {"class_balance": "some"},
        {"unknown": 1},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ClassificationConfig.model_validate({"classes": CLASSES} | wrong)


def test_the_study_finds_it() -> None:
    assert TASKS.load("classification") is Classification
    assert "weights-from-labels" in task().config.traits()
    assert not task(class_balance="none").config.traits()
