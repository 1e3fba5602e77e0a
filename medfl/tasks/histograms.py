"""Curves from sums: score histograms and calibration bins may be added over sites, and curves are read off the sum."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatMatrix = npt.NDArray[np.float64]

LOG_ODDS_LIMIT = 16.0
"""Log-odds beyond +-16 (probability 1e-7) share the outermost bins."""

SCORE_BINS = 4096
CALIBRATION_BINS = 15


def score_histogram(log_odds: FloatMatrix, bins: int = SCORE_BINS) -> FloatMatrix:
    """Counts [bins] of scores given as log-odds [N], in bins of equal width between -16 and 16.

    Log-odds, because probabilities crowd at 0 and 1 where equal bins would tie them. NaN counts as log-odds 0.
    """
    scores = np.nan_to_num(log_odds, nan=0.0)
    places = np.floor((scores / LOG_ODDS_LIMIT + 1.0) / 2.0 * bins)
    return np.bincount(np.clip(places, 0, bins - 1).astype(np.int64), minlength=bins).astype(np.float64)


def auroc(negatives: FloatMatrix, positives: FloatMatrix) -> float:
    """Area under the ROC curve from the score histograms [bins] of both groups; a tie within a bin counts half.

    NaN when a group is empty. Differs from the area of the single scores by less than the share of pairs that fall
    into one bin.
    """
    pairs = negatives.sum() * positives.sum()
    if not pairs:
        return float("nan")
    below = np.cumsum(negatives) - negatives / 2.0
    return float(positives @ below / pairs)


class RocCurve(NamedTuple):
    """Points of an ROC curve from (0, 0) to (1, 1): false and true positive rates."""

    false_positive_rate: FloatMatrix
    true_positive_rate: FloatMatrix


def roc_curve(negatives: FloatMatrix, positives: FloatMatrix) -> RocCurve:
    """The ROC curve of two score histograms [bins]: at most bins + 1 points, fewer where bins are empty."""
    used = np.flatnonzero(negatives + positives)[::-1]
    rates = [
        np.concatenate([[0.0], np.cumsum(counts[used])]) / max(counts.sum(), 1.0) for counts in (negatives, positives)
    ]
    return RocCurve(*rates)


def calibration_table(confidence: FloatMatrix, correct: npt.NDArray[np.bool_]) -> FloatMatrix:
    """Sums [bins, 3] of count, confidence and correct predictions by equal bins of the confidence [N] in 0..1."""
    places = np.clip((np.nan_to_num(confidence) * CALIBRATION_BINS).astype(np.int64), 0, CALIBRATION_BINS - 1)
    columns = (np.ones_like(confidence), np.nan_to_num(confidence), correct.astype(np.float64))
    return np.stack([np.bincount(places, weights=c, minlength=CALIBRATION_BINS) for c in columns], axis=1)


def expected_calibration_error(table: FloatMatrix) -> float:
    """Mean gap between confidence and accuracy over the bins, weighted by their counts (Guo et al. 2017, arXiv
    1706.04599); NaN for no case."""
    count = table[:, 0].sum()
    return float(np.abs(table[:, 1] - table[:, 2]).sum() / count) if count else float("nan")
