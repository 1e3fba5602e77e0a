"""Numbers and names as a reader wants them."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

LABELS = {
    "auroc": "AUROC",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "precision": "Precision",
    "recall": "Recall",
    "specificity": "Specificity",
    "f1": "F1",
    "ece": "Calibration error",
    "loss": "Loss",
    "dice": "Dice",
    "global_dice": "Dice, all voxels",
    "iou": "IoU",
    "hd95": "Hausdorff 95 % (mm)",
    "map": "mAP, IoU 0.1–0.5",
    "map_50": "mAP, IoU 0.5",
    "map_10": "mAP, IoU 0.1",
    "mar": "mAR, IoU 0.1–0.5",
    "cpm": "FROC mean (CPM)",
    "dropped_boxes": "Boxes without area",
}
"""What a metric's name means. Names that are not here are shown as they are."""

MISSING = "–"


def label(metric: str) -> str:
    """A metric's name for a reader."""
    if metric.startswith("froc_"):
        return f"Sensitivity, {metric.removeprefix('froc_')} false/image"
    return LABELS.get(metric, metric)


def number(value: float | None, digits: int = 3) -> str:
    """Fixed digits; large, tiny and whole numbers in their own way; a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.{digits}f}" if isinstance(value, float) else f"{value:,}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def short(value: float | None) -> str:
    """Four significant digits without trailing zeros."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.4g}"


def size(count: float) -> str:
    """Bytes with a decimal unit (1 MB is 10^6 bytes)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: float) -> str:
    """Seconds in the units a reader thinks in."""
    if seconds < 0.1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def count(number: int, word: str, plural: str = "") -> str:
    """ "1 site", "2 sites"."""
    return f"{number:,} {word if number == 1 else plural or word + 's'}"


def listed(names: Iterable[str], most: int = 6) -> str:
    """Names in words; of many the first and how many more."""
    known = list(names)
    if len(known) > most:
        return f"{', '.join(known[:most])} and {len(known) - most} more"
    return ", ".join(known[:-1]) + " and " + known[-1] if len(known) > 1 else "".join(known)


def stopped(stop: Mapping[str, Any], reason: str | None) -> str:
    """What ended a run, in a sentence. stop: of the study; reason: `stopped_by` of the summary."""
    target = stop.get("target") or {"metric": "", "value": math.nan}
    words = {
        "rounds": "All planned rounds were run.",
        "target": f"Stopped: {label(target['metric'])} reached {short(target['value'])} on the validation images.",
        "patience": f"Stopped: no better validation result in {stop['patience']} evaluations.",
        "budget": "Stopped: the next round would have passed the privacy budget.",
        "operator": "Stopped by the operator.",
        None: "The run has not ended.",
    }
    return words.get(reason, f"Stopped by: {reason}.")
