"""Metrics from counts against MONAI's COCOMetric, a plain FROC and hand-made cases; site sums equal pooled counts."""

import numpy as np
import pytest
from monai.apps.detection.metrics.coco import COCOMetric
from monai.apps.detection.metrics.matching import matching_batch
from monai.data.box_utils import box_iou as monai_iou

from medfl.tasks.base import Statistics, add
from medfl.tasks.detection import metrics
from medfl.tasks.detection.metrics import FROC_RATES, IOU_THRESHOLDS, box_iou, count_image, empty, match, score_bins

CLASSES = ("nodule", "cyst", "mass")
Image = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def images(nd: int, count: int, seed: int = 0) -> list[Image]:
    """Images with ground truth and detections that are shifted copies of it, missed, doubled or invented."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        truth = _boxes(rng, nd, int(rng.integers(0, 6)))
        truth_labels = rng.integers(0, len(CLASSES), len(truth))
        kept = rng.random(len(truth)) < 0.8
        near = np.repeat(truth[kept], 2, axis=0) + rng.normal(0, 2.0, (2 * kept.sum(), 2 * nd))
        near[:, nd:] = np.maximum(near[:, nd:], near[:, :nd] + 1)
        found = np.concatenate([near, _boxes(rng, nd, int(rng.integers(0, 5)))])
        labels = np.concatenate(
            [np.repeat(truth_labels[kept], 2), rng.integers(0, len(CLASSES), len(found) - len(near))]
        )
        scores = 1 / (1 + np.exp(-rng.normal(np.where(np.arange(len(found)) < len(near), 1.5, -1.0), 2.0)))
        made.append((found, labels, scores, truth, truth_labels))
    return made


def _boxes(rng: np.random.Generator, nd: int, count: int) -> np.ndarray:
    start = rng.uniform(0, 50, (count, nd))
    return np.concatenate([start, start + rng.uniform(6, 16, (count, nd))], axis=1)


def counted(cases: list[Image]) -> Statistics:
    statistics = empty(len(CLASSES))
    for case in cases:
        count_image(statistics, *case)
    return statistics


def values(statistics: Statistics) -> dict[tuple[str, str], float]:
    return {(m.name, m.class_name): m.value for m in metrics.metrics(statistics, CLASSES)}


def monai_values(cases: list[Image]) -> dict[tuple[str, str], float]:
    coco = COCOMetric(CLASSES, iou_list=[0.1, 0.5], iou_range=(0.1, 0.5, 0.05), max_detection=[100], verbose=False)
    found, labels, scores, truth, truth_labels = ([case[i] for case in cases] for i in range(5))
    matched = matching_batch(monai_iou, coco.iou_thresholds, found, labels, scores, truth, truth_labels)
    result, _ = coco(matched)
    names = {"map": "mAP_IoU_0.10_0.50_0.05_MaxDet_100", "map_50": "AP_IoU_0.50_MaxDet_100"}
    names |= {"map_10": "AP_IoU_0.10_MaxDet_100", "mar": "mAR_IoU_0.10_0.50_0.05_MaxDet_100"}
    prefixes = {"": "", **{name: f"{name}_" for name in CLASSES}}
    return {(name, c): result[prefix + key] for name, key in names.items() for c, prefix in prefixes.items()}


BINNING_ERROR = 0.01
"""Detections of one bin are ranked as one. With 1024 bins and some hundred detections AP moves by less than this."""


@pytest.mark.parametrize("nd", [2, 3])
def test_precision_and_recall_equal_monai(nd: int) -> None:
    cases = images(nd, 60, seed=nd)
    ours, theirs = values(counted(cases)), monai_values(cases)
    assert 0.1 < theirs["map_50", ""] < 0.9
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value, abs=1e-6 if key[0] == "mar" else BINNING_ERROR), key


def test_a_wrong_matching_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fakes: ground truth that may be found twice, and detections in the order of rising score."""
    cases = images(2, 60, seed=2)
    theirs = monai_values(cases)

    def twice(iou: np.ndarray, thresholds: tuple[float, ...] = IOU_THRESHOLDS) -> np.ndarray:
        best = iou.max(axis=1, initial=0.0)
        return best[None, :] >= np.asarray(thresholds)[:, None]

    right = match

    def rising(iou: np.ndarray, thresholds: tuple[float, ...] = IOU_THRESHOLDS) -> np.ndarray:
        return right(iou[::-1], thresholds)[:, ::-1]

    for fake in (twice, rising):
        monkeypatch.setattr(metrics, "match", fake)
        assert abs(values(counted(cases))["map", ""] - theirs["map", ""]) > 2 * BINNING_ERROR


def plain_froc(cases: list[Image]) -> list[float]:
    """LUNA16's rule written out: per image by falling score, then over all images."""
    ranked: list[tuple[float, int]] = []
    for found, labels, scores, truth, truth_labels in cases:
        used: set[int] = set()
        for d in np.argsort(-scores, kind="stable"):
            same = [g for g in range(len(truth)) if truth_labels[g] == labels[d]]
            overlaps = [float(box_iou(found[d : d + 1], truth[g : g + 1])[0, 0]) for g in same]
            if not same or max(overlaps) < 0.1:
                ranked.append((scores[d], 0))
            elif (best := same[int(np.argmax(overlaps))]) not in used:
                used.add(best)
                ranked.append((scores[d], 1))
    boxes = sum(len(case[3]) for case in cases)
    hits = false = 0
    reached = dict.fromkeys(FROC_RATES, 0.0)
    for _, hit in sorted(ranked, key=lambda item: -item[0]):
        hits, false = hits + hit, false + 1 - hit
        for rate in FROC_RATES:
            if false / len(cases) <= rate:
                reached[rate] = max(reached[rate], hits / boxes)
    return list(reached.values())


@pytest.mark.parametrize("nd", [2, 3])
def test_froc_equals_a_plain_one(nd: int) -> None:
    cases = images(nd, 60, seed=10 + nd)
    ours = values(counted(cases))
    plain = plain_froc(cases)
    assert plain == sorted(plain) and plain[0] < plain[-1]
    for rate, sensitivity in zip(FROC_RATES, plain, strict=True):
        assert ours[f"froc_{rate:g}", ""] == pytest.approx(sensitivity, abs=BINNING_ERROR)
    assert ours["cpm", ""] == pytest.approx(np.mean(plain), abs=BINNING_ERROR)


def test_sums_over_sites_equal_the_pooled_evaluation() -> None:
    cases = images(2, 40)
    pooled, total = counted(cases), counted(cases[:13])
    add(total, counted(cases[13:]))
    for name, array in pooled.items():
        np.testing.assert_array_equal(total[name], array, err_msg=name)
    total["loss"] += (3.0, 2)
    pooled["loss"] += (3.0, 2)
    assert metrics.metrics(total, CLASSES) == metrics.metrics(pooled, CLASSES)
    means = [values(counted(part))["map_50", ""] for part in (cases[:13], cases[13:])]
    assert abs(np.mean(means) - values(pooled)["map_50", ""]) > 1e-3, "a mean of means would not be noticed"


def test_supports_count_boxes_and_classes_without_any_stay_out() -> None:
    box = np.array([[0.0, 0.0, 10.0, 10.0]])
    statistics = empty(3)
    count_image(statistics, box, np.array([1]), np.array([0.9]), box, np.array([1]))
    by_key = {(m.name, m.class_name): m for m in metrics.metrics(statistics, CLASSES)}
    assert by_key["map_50", ""].value == by_key["map_50", "cyst"].value == 1.0
    assert by_key["map_50", ""].n == by_key["map_50", "cyst"].n == 1
    assert by_key["map_50", "mass"].n == 0 and np.isnan(by_key["map_50", "mass"].value)
    assert all(np.isnan(m.value) for m in metrics.metrics(empty(3), CLASSES) if m.name != "dropped_boxes")


def test_the_label_must_agree() -> None:
    box = np.array([[0.0, 0.0, 10.0, 10.0]])
    statistics = empty(3)
    count_image(statistics, box, np.array([0]), np.array([0.9]), box, np.array([1]))
    result = values(statistics)
    assert result["map_50", "cyst"] == result["mar", "cyst"] == result["froc_8", ""] == 0.0


def test_bins_keep_the_order_and_separate_confident_scores() -> None:
    scores = np.concatenate([np.linspace(0, 1, 5001), 1 - np.logspace(-1, -4, 50), np.logspace(-4, -1, 50)])
    scores.sort()
    bins = score_bins(scores)
    assert bins.min() == 0 and bins.max() == metrics.BINS - 1
    assert (np.diff(bins) >= 0).all()
    assert len(set(score_bins(np.array([0.99, 0.995, 0.999, 0.9995])))) == 4


@pytest.mark.parametrize("nd", [2, 3])
def test_iou_equals_monai(nd: int) -> None:
    rng = np.random.default_rng(0)
    a, b = _boxes(rng, nd, 20), _boxes(rng, nd, 30)
    np.testing.assert_allclose(box_iou(a, b), monai_iou(a, b), atol=1e-6)
    assert box_iou(a, b[:0]).shape == (20, 0)
