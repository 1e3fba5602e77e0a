"""An epsilon that one run certainly had, whatever its noise looks like.

T. Steinke, M. Nasr, M. Jagielski, "Privacy auditing with one (1) training run", NeurIPS 2023 (arXiv 2305.08846),
theorem 5.2. Each of m canaries takes part by its own fair coin. The auditor guesses the coins of those canaries of
which it is surest, and a run of a small epsilon allows only so many right guesses.
"""

import math

import numpy as np
import numpy.typing as npt

from medfl.errors import InputError
from medfl.privacy.accounting.base import check_delta
from medfl.privacy.audit.mechanism import CONFIDENCE, Observations

_MOST = 64.0
_STEPS = 60


def one_run_epsilon(
    scores: Observations,
    included: npt.NDArray[np.bool_],
    delta: float,
    guesses: int | None = None,
    *,
    confidence: float = CONFIDENCE,
) -> float:
    """A lower bound of epsilon at `delta` that holds with `confidence`; 0 when nothing can be said.

    scores: of the canaries [m], higher for those that seem to have taken part. included: whether they did [m], each
    decided by a fair coin of its own before the run. guesses: how many coins are guessed, half of them as heads (those
    of the highest scores); must be chosen without looking at `included`; None: a tenth of m. The bound can pass no more
    than about log(guesses / log(1 / (1 - confidence))). InputError when the arrays do not fit each other.
    """
    check_delta(delta)
    scores, included = np.asarray(scores, np.float64).ravel(), np.asarray(included).ravel()
    count = scores.size
    half = max(1, count // 20 if guesses is None else guesses // 2)
    if included.size != count or 2 * half > count:
        raise InputError.at(
            "audit", f"{count} scores, {included.size} coins and {2 * half} guesses do not fit", "see the arguments"
        )
    order = np.argsort(scores, kind="stable")
    right = int(included[order[-half:]].sum() + (~included[order[:half]]).sum())
    return _largest_refuted(count, 2 * half, right, delta, 1 - confidence)


def p_value(count: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """How probable so many right guesses are at most, if the run is (epsilon, delta)-DP: with W ~ Binomial(guesses,
    e^epsilon / (1 + e^epsilon)), P(W >= right) + 2 m delta max_i P(right > W >= right - i) / i."""
    from scipy.stats import binom

    rate = 1 / (1 + math.exp(-epsilon))
    beyond = float(binom.sf(right - 1, guesses, rate))
    steps = np.arange(1, right + 1)
    just_below = np.cumsum(binom.pmf(right - steps, guesses, rate))
    alpha = float(np.max(just_below / steps, initial=0.0))
    return min(1.0, beyond + 2 * count * delta * alpha)


def _largest_refuted(count: int, guesses: int, right: int, delta: float, error: float) -> float:
    low, high = 0.0, _MOST
    if p_value(count, guesses, right, low, delta) >= error:
        return 0.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if p_value(count, guesses, right, middle, delta) < error:
            low = middle
        else:
            high = middle
    return low
