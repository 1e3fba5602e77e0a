"""Detection metrics from additive counts: COCO average precision and recall, and FROC. numpy only, 2D and 3D.

Boxes are matched to ground truth image by image and class by class, and counted by score in a fixed grid of bins.
The counts of two sites add up to exactly the counts of their pooled images; only the place of a detection within its
bin is lost. The grid is even in the logit of the score, so that scores near 0 and 1 stay apart.

- AP, AR: matching of pycocotools (in the order of falling score each detection takes the free ground truth of highest
  IoU), 101-point interpolation; mAP over IoU 0.1 to 0.5 in steps of 0.05, as MONAI and nnDetection report it.
- FROC: LUNA16's rule at IoU 0.1. A detection whose best ground truth is found already is neither hit nor false.
"""

import numpy as np
import numpy.typing as npt

from medfl.tasks.base import Metric, Statistics

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

IOU_THRESHOLDS = tuple(round(0.1 + 0.05 * i, 2) for i in range(9))
FROC_IOU = 0.1
FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives an image at which the sensitivity is read; their mean is LUNA16's CPM."""

BINS = 1024
_LOGIT_RANGE = 10.0
_RECALLS = np.linspace(0.0, 1.0, 101)


def empty(classes: int) -> Statistics:
    """Zeros. true: matched detections [class, IoU threshold, bin]; found: all detections [class, bin]; froc: hits and
    false positives [class, 2, bin]; boxes: ground truth [class]; images: [1]; dropped: ground-truth boxes without
    area [1]; loss: sum and count [2]."""
    return {
        "true": np.zeros((classes, len(IOU_THRESHOLDS), BINS)),
        "found": np.zeros((classes, BINS)),
        "froc": np.zeros((classes, 2, BINS)),
        "boxes": np.zeros(classes),
        "images": np.zeros(1),
        "dropped": np.zeros(1),
        "loss": np.zeros(2),
    }


def box_iou(a: FloatArray, b: FloatArray) -> FloatArray:
    """Intersection over union of boxes [N, 2 * nd] and [M, 2 * nd] as [N, M]; 0 where both are empty."""
    nd = a.shape[1] // 2
    start = np.maximum(a[:, None, :nd], b[None, :, :nd])
    stop = np.minimum(a[:, None, nd:], b[None, :, nd:])
    common = np.prod(np.maximum(stop - start, 0.0), axis=2)
    union = _volume(a)[:, None] + _volume(b)[None, :] - common
    iou: FloatArray = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return iou


def _volume(boxes: FloatArray) -> FloatArray:
    nd = boxes.shape[1] // 2
    volume: FloatArray = np.prod(boxes[:, nd:] - boxes[:, :nd], axis=1)
    return volume


def score_bins(scores: FloatArray) -> IntArray:
    """Bin of each score in [0, 1]; a higher score never has a lower bin."""
    with np.errstate(divide="ignore"):
        logits = np.log(scores) - np.log1p(-scores)
    position = (np.clip(logits, -_LOGIT_RANGE, _LOGIT_RANGE) + _LOGIT_RANGE) / (2 * _LOGIT_RANGE)
    bins: IntArray = np.minimum((position * BINS).astype(np.int64), BINS - 1)
    return bins


def match(iou: FloatArray, thresholds: npt.ArrayLike = IOU_THRESHOLDS) -> BoolArray:
    """COCO matching of one image and class: which detections are true, [thresholds, N].

    iou: [N, M], detections in the order of falling score. Of equal IoUs the last ground truth wins (pycocotools).
    """
    limits = np.asarray(thresholds, dtype=np.float64)
    found, boxes = iou.shape
    true = np.zeros((len(limits), found), dtype=bool)
    if boxes == 0:
        return true
    free = np.ones((len(limits), boxes), dtype=bool)
    rows = np.arange(len(limits))
    for detection in range(found):
        offers = np.where(free, iou[detection], -1.0)
        best = boxes - 1 - np.argmax(offers[:, ::-1], axis=1)
        true[:, detection] = offers[rows, best] >= limits
        free[rows, best] &= ~true[:, detection]
    return true


def match_froc(iou: FloatArray, threshold: float = FROC_IOU) -> tuple[BoolArray, BoolArray]:
    """LUNA16 matching of one image and class: which detections are hits and which are false, [N] each.

    iou: [N, M], detections in the order of falling score.
    """
    found, boxes = iou.shape
    if boxes == 0:
        return np.zeros(found, dtype=bool), np.ones(found, dtype=bool)
    best = np.argmax(iou, axis=1)
    near = iou[np.arange(found), best] >= threshold
    hit = np.zeros(found, dtype=bool)
    _, first = np.unique(best[near], return_index=True)
    hit[np.flatnonzero(near)[first]] = True
    return hit, ~near


def count_image(
    statistics: Statistics,
    boxes: FloatArray,
    labels: IntArray,
    scores: FloatArray,
    true_boxes: FloatArray,
    true_labels: IntArray,
) -> None:
    """Add one image to `statistics`: detections [N, 2 * nd], [N], [N] and ground truth [M, 2 * nd], [M]."""
    order = np.argsort(-scores, kind="stable")
    boxes, labels, scores = boxes[order], labels[order], scores[order]
    statistics["images"] += 1
    for label in range(len(statistics["boxes"])):
        mine, truth = labels == label, true_labels == label
        statistics["boxes"][label] += truth.sum()
        iou = box_iou(boxes[mine], true_boxes[truth])
        bins = score_bins(scores[mine])
        np.add.at(statistics["found"][label], bins, 1)
        for row, true in zip(statistics["true"][label], match(iou), strict=True):
            np.add.at(row, bins[true], 1)
        for row, chosen in zip(statistics["froc"][label], match_froc(iou), strict=True):
            np.add.at(row, bins[chosen], 1)


def average_precision(true: FloatArray, found: FloatArray, boxes: float) -> float:
    """101-point interpolated AP from the counts [bin] of one class and threshold; NaN without ground truth."""
    if boxes == 0:
        return float("nan")
    seen = found[::-1] > 0
    hits, all_ = np.cumsum(true[::-1])[seen], np.cumsum(found[::-1])[seen]
    best = np.maximum.accumulate((hits / all_)[::-1])[::-1]
    at = np.searchsorted(hits / boxes, _RECALLS, side="left")
    return float(np.append(best, 0.0)[at].mean())


def froc(counts: FloatArray, boxes: float, images: float) -> FloatArray:
    """Sensitivity at each of FROC_RATES from the hits and false positives [2, bin]; NaN without ground truth."""
    if boxes == 0 or images == 0:
        return np.full(len(FROC_RATES), np.nan)
    hits, false = np.cumsum(counts[:, ::-1], axis=1)
    allowed = false[None, :] / images <= np.array(FROC_RATES)[:, None]
    sensitivity: FloatArray = np.max(np.where(allowed, hits / boxes, 0.0), axis=1)
    return sensitivity


def metrics(statistics: Statistics, classes: tuple[str, ...]) -> list[Metric]:
    """All metrics of a sum of statistics: over all classes that have ground truth, then class by class.

    map, map_50, map_10: average precision, mean over IoU 0.1 to 0.5 and at one IoU. mar: highest recall, mean over
    IoU 0.1 to 0.5. froc_<rate>: sensitivity at `rate` false positives an image; cpm: their mean.
    """
    boxes, images = statistics["boxes"], float(statistics["images"][0])
    total = int(boxes.sum())
    by_class = [_of_class(statistics, label) for label in range(len(classes))]
    overall = {name: _mean([values[name] for values in by_class]) for name in by_class[0]}
    sensitivity = froc(statistics["froc"].sum(axis=0), total, images)
    overall |= {f"froc_{rate:g}": float(s) for rate, s in zip(FROC_RATES, sensitivity, strict=True)}
    overall["cpm"] = float(sensitivity.mean())
    found = [Metric(name, value, total) for name, value in overall.items()]
    loss, count = statistics["loss"]
    found.append(Metric("loss", float(loss / count) if count else float("nan"), int(count)))
    found.append(Metric("dropped_boxes", float(statistics["dropped"][0]), int(images)))
    for name, n, values in zip(classes, boxes, by_class, strict=True):
        found += [Metric(metric, value, int(n), name) for metric, value in values.items()]
    return found


def _of_class(statistics: Statistics, label: int) -> dict[str, float]:
    found, boxes = statistics["found"][label], float(statistics["boxes"][label])
    rows = statistics["true"][label]
    precision = [average_precision(true, found, boxes) for true in rows]
    recall = rows.sum() / len(rows) / boxes if boxes else float("nan")
    return {
        "map": float(np.mean(precision)),
        "map_50": precision[IOU_THRESHOLDS.index(0.5)],
        "map_10": precision[IOU_THRESHOLDS.index(0.1)],
        "mar": float(recall),
    }


def _mean(values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
