"""A whole run gives away what its ledger says, and twice as much when its noise is halved behind the ledger's back."""

import pytest
from toys.private_audits import canary_run
from toys.private_faults import scaled_noise

from medfl.learning import disclosure
from medfl.privacy.accounting.gaussian import epsilon_of
from medfl.privacy.audit import canary_epsilon, one_run_epsilon

DELTA = 1e-5
ROUNDS, NOISE, SIZE = 16, 4.0, 50_000
SURE = 0.9999


def test_canaries_find_the_epsilon_of_a_run_and_its_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, included, mu = canary_run(ROUNDS, NOISE, size=SIZE)
    claim = epsilon_of(mu, DELTA)
    assert claim == pytest.approx(4.377, abs=1e-3)
    right = canary_epsilon(scores[included], scores[~included], SIZE, DELTA, confidence=SURE)
    assert right.low <= claim <= right.high
    assert right.high - right.low < 0.5 * claim
    assert 0.5 < one_run_epsilon(scores, included, DELTA) <= claim

    scaled_noise(0.5, disclosure)(monkeypatch)
    scores, included, mu = canary_run(ROUNDS, NOISE, size=SIZE)
    assert epsilon_of(mu, DELTA) == claim
    wrong = canary_epsilon(scores[included], scores[~included], SIZE, DELTA, confidence=SURE)
    assert wrong.low > claim
    # mu is doubled, which makes epsilon 10.0
    assert wrong.low < epsilon_of(2 * mu, DELTA) < wrong.high
    assert 1.7 < wrong.epsilon / right.epsilon < 3
    assert 1 < one_run_epsilon(scores, included, DELTA) <= epsilon_of(2 * mu, DELTA)
