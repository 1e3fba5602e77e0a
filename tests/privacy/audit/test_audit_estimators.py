"""Estimates on samples whose truth is known: intervals hold it, and no bug within reach goes unseen."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from medfl.errors import InputError
from medfl.privacy.accounting.gaussian import epsilon_of
from medfl.privacy.audit import canary_epsilon, canary_mu, finding, mechanism_mu, one_run_epsilon
from medfl.privacy.audit.canary import gaussian_canaries
from medfl.privacy.audit.one_run import p_value


def samples(mu: float, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Of a mechanism of this mu, in units of its own."""
    return 7 + 3 * (rng.normal(size=count) + mu), 7 + 3 * rng.normal(size=count)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("mu", [0.5, 1.0, 20.0])
def test_the_interval_holds_the_truth_as_often_as_it_says(mu: float, paired: bool) -> None:
    rng = np.random.default_rng(0)
    found = [mechanism_mu(*samples(mu, 200, rng), paired=paired, confidence=0.9) for _ in range(1000)]
    missed = sum(not one.low <= mu <= one.high for one in found)
    # two looks share the error of a paired one, so it misses less often
    assert (25 if paired else 75) <= missed <= 130
    assert np.mean([one.mu for one in found]) == pytest.approx(mu, rel=0.02)


@pytest.mark.parametrize(("noise", "verdict"), [(1.0, "as claimed"), (2**-0.5, "privacy bug"), (1.2, "utility bug")])
def test_findings(noise: float, verdict: str) -> None:
    found = mechanism_mu(*samples(1 / noise, 10_000, np.random.default_rng(1)))
    assert finding(found, 1.0) == verdict


@pytest.mark.parametrize("shared", [1.0, 0.5])
def test_noise_that_repeats_between_worlds_shows_in_pairs_only(shared: float) -> None:
    rng = np.random.default_rng(2)
    known = math.sqrt(shared) * rng.normal(size=4000)
    present, absent = (known + math.sqrt(1 - shared) * rng.normal(size=4000) + at for at in (1.0, 0.0))
    assert finding(mechanism_mu(present, absent), 1.0) == "as claimed"
    found = mechanism_mu(present, absent, paired=True)
    assert finding(found, 1.0) == "privacy bug"
    if shared < 1:
        assert found.low < 1 / math.sqrt(1 - shared) < found.high


def test_no_noise_at_all() -> None:
    assert mechanism_mu(np.ones(40), np.zeros(40)).low == math.inf
    assert mechanism_mu(np.ones(40), np.ones(40)).high == 0


@pytest.mark.parametrize(
    ("present", "absent", "what"),
    [
        (np.zeros(29), np.zeros(40), "29 observations"),
        (np.zeros(40), np.full(40, np.nan), "absent.*not finite"),
        (np.zeros(40), np.zeros(41), "do not pair"),
    ],
)
def test_bad_samples(present: np.ndarray, absent: np.ndarray, what: str) -> None:
    with pytest.raises(InputError, match=what):
        mechanism_mu(present, absent, paired=True)


def test_a_confidence_is_a_probability() -> None:
    with pytest.raises(InputError, match="confidence"):
        mechanism_mu(np.zeros(40), np.ones(40), confidence=99)


def test_canaries_are_units_in_nearly_orthogonal_directions() -> None:
    found = gaussian_canaries(50, 40_000, np.random.default_rng(3)).astype(np.float64)
    products = found @ found.T
    assert np.diag(products) == pytest.approx(1, abs=1e-6)
    assert np.abs(products - np.diag(np.diag(products))).max() < 5 / math.sqrt(40_000)


@pytest.mark.parametrize("mu", [0.5, 2.0])
def test_an_epsilon_by_canaries(mu: float) -> None:
    found = canary_epsilon(*samples(mu, 20_000, np.random.default_rng(4)), 10**9, 1e-5)
    assert found.low < epsilon_of(mu, 1e-5) < found.high
    assert found.high - found.low < 0.15 * found.epsilon


def crowded(mu: float, rng: np.random.Generator, size: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """The projections of a noisy sum of 200 canaries on these, and on 200 others."""
    canaries = gaussian_canaries(400, size, rng)
    released = canaries[:200].sum(0) + rng.standard_normal(size) / mu
    scores = canaries @ released
    return scores[:200], scores[200:]


def test_canaries_that_disturb_each_other_do_not_hide_what_a_run_gives_away() -> None:
    mu, runs = 2.0, 300
    rng = np.random.default_rng(7)
    found = [canary_mu(*crowded(mu, rng), 2000) for _ in range(runs)]
    # 0.05 is more than four standard errors of the mean; without regard to the other canaries it is 1.69
    assert np.mean([estimate.mu for estimate in found]) == pytest.approx(mu, abs=0.05)
    assert np.mean([mechanism_mu(*crowded(mu, rng)).mu for _ in range(runs)]) == pytest.approx(1.69, abs=0.05)
    # 99 % intervals
    assert sum(estimate.low < mu < estimate.high for estimate in found) >= 0.97 * runs


def test_canaries_without_noise_give_all_away() -> None:
    rng = np.random.default_rng(8)
    assert canary_mu(*crowded(50.0, rng), 2000).high == math.inf
    assert canary_epsilon(*crowded(50.0, rng), 2000, 1e-5).low > 10


def randomised_response(epsilon: float, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The scores and coins of a mechanism that is epsilon-DP and no better: it tells each coin, and lies now and
    then."""
    coins = rng.random(count) < 0.5
    lies = rng.random(count) < 1 / (1 + math.exp(epsilon))
    return (coins ^ lies).astype(float) + 1e-3 * rng.random(count), coins


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_one_run_never_claims_too_much_and_comes_near(epsilon: float) -> None:
    rng = np.random.default_rng(5)
    found = [one_run_epsilon(*randomised_response(epsilon, 1000, rng), 1e-9, 1000, confidence=0.9) for _ in range(100)]
    assert sum(low > epsilon for low in found) <= 22
    assert np.mean(found) > 0.8 * epsilon


def test_one_run_says_nothing_about_chance() -> None:
    rng = np.random.default_rng(6)
    assert one_run_epsilon(rng.random(1000), rng.random(1000) < 0.5, 1e-5) == pytest.approx(0, abs=0.5)
    # all guesses wrong
    assert one_run_epsilon(-np.arange(100.0), np.arange(100) >= 50, 1e-5, 100) == 0


def test_p_values() -> None:
    # without a delta, the tail of the binomial law alone
    assert p_value(100, 50, 40, 1.0, 0.0) == pytest.approx(binom.sf(39, 50, 1 / (1 + math.exp(-1))))
    # with one, by the theorem's sum written out
    law = binom(20, 1 / (1 + math.exp(-0.5)))
    worst = max(sum(law.pmf(17 - j) for j in range(1, i + 1)) / i for i in range(1, 18))
    assert p_value(30, 20, 17, 0.5, 0.01) == pytest.approx(law.sf(16) + 2 * 30 * 0.01 * worst)
    # a larger delta or epsilon explains more
    assert p_value(100, 50, 45, 1.0, 1e-3) > p_value(100, 50, 45, 1.0, 1e-5)
    assert p_value(100, 50, 45, 2.0, 1e-5) > p_value(100, 50, 45, 1.0, 1e-5)


@pytest.mark.parametrize(("coins", "guesses"), [(90, 10), (100, 200)])
def test_one_run_needs_fitting_arrays(coins: int, guesses: int) -> None:
    with pytest.raises(InputError, match="do not fit"):
        one_run_epsilon(np.zeros(100), np.zeros(coins, bool), 1e-5, guesses)
