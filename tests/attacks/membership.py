"""Membership inference: was this patient in the training data?

N. Carlini, S. Chien, M. Nasr, S. Song, A. Terzis, F. Tramèr, "Membership Inference Attacks From First Principles",
IEEE S&P 2022 (arXiv 2112.03570), the online attack LiRA: shadow models train with and without each example, its score
(the log odds of its label) gets a Gaussian with and one without, and the likelihood ratio decides. Each model is in
turn the attacked one, and all others are its shadows.

The examples that are asked about are canaries: mislabelled, each with a rare finding of its own. Nothing else teaches
the model their labels, and no other example gets in their way, so that the attack is nearly as strong as the noise
allows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, norm
from toys.tasks import Classifier, Rows

Matrix = npt.NDArray[np.float64]
Truth = npt.NDArray[np.bool_]

COMMON = 10
ORDINARY = 40
CANARIES = 60
RARE = 4.0
FALSE_POSITIVES = 0.01
ALARMS = (0.01, 0.1, 0.3)
"""False positive rates at which an attack may be too strong: the higher ones are known more exactly."""


def task() -> Classifier:
    """Softmax regression on common findings and on one rare finding a canary."""
    return Classifier(COMMON + CANARIES, 2)


def patients() -> tuple[Matrix, npt.NDArray[np.int64]]:
    """Findings [CANARIES + ORDINARY, COMMON + CANARIES] and labels; the canaries come first."""
    rng = np.random.default_rng(0)
    true = rng.integers(0, 2, CANARIES + ORDINARY)
    findings = np.zeros((CANARIES + ORDINARY, COMMON + CANARIES))
    findings[:, :COMMON] = rng.normal(size=(CANARIES + ORDINARY, COMMON)) * 0.5 + (2 * true[:, None] - 1) * 0.5
    findings[:CANARIES, COMMON:] = RARE * np.eye(CANARIES)
    labels = np.where(np.arange(CANARIES + ORDINARY) < CANARIES, 1 - true, true)
    return findings, labels


def drawn(models: int, seed: int = 0) -> Truth:
    """Which canaries each model is trained with [models, CANARIES]; each canary with exactly half of the models."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(models) < models // 2 for _ in range(CANARIES)], axis=1)


def cohort(taken: Truth, sites: int = 1) -> list[Rows]:
    """The patients of each site when these canaries [CANARIES] are there, dealt out in turn."""
    findings, labels = patients()
    there = np.flatnonzero(np.concatenate([taken, np.ones(ORDINARY, bool)]))
    return [Rows(findings[there[site::sites]], labels[there[site::sites]]) for site in range(sites)]


def log_odds(model: npt.NDArray[np.float32]) -> Matrix:
    """What a model [size] says of the canaries' own labels [CANARIES]."""
    findings, labels = (part[:CANARIES] for part in patients())
    weights, bias = model[:-2].reshape(2, -1).astype(np.float64), model[-2:].astype(np.float64)
    logits = findings @ weights.T + bias
    rows = np.arange(CANARIES)
    return logits[rows, labels] - logits[rows, 1 - labels]


@dataclass(frozen=True)
class Verdicts:
    """Likelihood ratios of members and of others, over all models and canaries."""

    members: Matrix
    others: Matrix

    def true_positives(self, rate: float = FALSE_POSITIVES) -> float:
        """The part of the members that is found when this part of the others is called members."""
        return float((self.members > self._threshold(rate)).mean())

    def breaks(self, mu: float, confidence: float = 0.9999) -> bool:
        """Whether the attack is stronger than noise of this mu allows: TPR <= Phi(Phi^-1(FPR) + mu) (Dong, Roth & Su
        2022), at any of ALARMS, with both rates at the ends of their intervals (Clopper & Pearson) that are kindest to
        the noise."""
        for rate in ALARMS:
            threshold = self._threshold(rate)
            least = _lower(int((self.members > threshold).sum()), self.members.size, confidence)
            most = 1 - _lower(int((self.others <= threshold).sum()), self.others.size, confidence)
            if least > norm.cdf(norm.ppf(most) + mu):
                return True
        return False

    def _threshold(self, rate: float) -> float:
        return float(np.quantile(self.others, 1 - rate, method="higher"))


def _lower(count: int, of: int, confidence: float) -> float:
    return float(beta.ppf(1 - confidence, count, of - count + 1)) if count else 0.0


def lira(scores: Sequence[Matrix], taken: Truth) -> Verdicts:
    """The attack on models with these scores [models][CANARIES] that were trained with `taken` [models, CANARIES]."""
    table = np.stack(scores)
    ratios = np.stack([_ratios(table, taken, attacked) for attacked in range(len(table))])
    return Verdicts(ratios[taken], ratios[~taken])


def _ratios(table: Matrix, taken: Truth, attacked: int) -> Matrix:
    shadows = np.arange(len(table)) != attacked
    inside = np.where((taken & shadows[:, None]), table, np.nan)
    outside = np.where((~taken & shadows[:, None]), table, np.nan)
    fits = []
    for found in (inside, outside):
        centre = np.nanmean(found, axis=0)
        # one spread for all canaries: with so few shadow models a spread of each would be mostly error
        fits.append(norm.logpdf(table[attacked], centre, np.sqrt(np.nanmean((found - centre) ** 2)) + 1e-9))
    ratios: Matrix = fits[0] - fits[1]
    return ratios
