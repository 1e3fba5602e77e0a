"""The full number of calls: what the noise of each mechanism really is, to a few per cent, and every injected bug.

Prints a table (pytest -s): mu over its claim, with 99 % intervals.
"""

from collections.abc import Callable
from typing import Any

import pytest
from toys.private_audits import adaptive_mu, canary_run, local_mu, names, patient_mu, site_mu
from toys.private_faults import PATIENT_FAULTS, SITE_FAULTS, UTILITY_FAULTS, scaled_noise

from medfl.coordinator import desk
from medfl.learning import disclosure
from medfl.privacy.accounting.gaussian import epsilon_of
from medfl.privacy.audit import Estimate, canary_epsilon, finding, one_run_epsilon

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CONFIDENCE = 0.99
CALLS = 20_000
FAULTY_CALLS = 3000
SIZE = 100_000
MISSING = {"tolerated": 3, "colluders": 1, "away": 3}

Audit = Callable[[float], tuple[Estimate, float]]

RIGHT: dict[str, Audit] = {
    "site, z = 1": lambda sure: site_mu(CALLS, 1.0, sure),
    "site, z = 0.25": lambda sure: site_mu(CALLS, 0.25, sure),
    "site, moving clip, z = 1": lambda sure: adaptive_mu(CALLS, 1.0, sure),
    "patient, z = 1": lambda sure: patient_mu(200, 1.0, sure),
    "patient, 3 of 10 away, 1 colluder, z = 1": lambda sure: patient_mu(200, 1.0, sure, **MISSING),
    "patient, 3 colluders, z = 1": lambda sure: patient_mu(200, 1.0, sure, tolerated=3, colluders=3),
    "patient over masks, z = 1": lambda sure: patient_mu(200, 1.0, sure, sites=4, channel="masks"),
    "patient over he, z = 1": lambda sure: patient_mu(200, 1.0, sure, sites=4, channel="he"),
    "patient, trained, z = 0.25": lambda sure: patient_mu(160, 0.25, sure, sites=4, patients=120, trained=True),
    "local, trained, z = 0.25": lambda sure: local_mu(160, 0.25, sure, patients=120),
    "local, trained, 4 steps, z = 1": lambda sure: local_mu(160, 1.0, sure, epochs=4, patients=60),
}


def told(name: str, estimate: Estimate, claim: float) -> str:
    low, high = estimate.low / claim, estimate.high / claim
    kind = finding(estimate, claim)
    line = f"{name:45} mu / claim {estimate.mu / claim:8.3f} [{low:.3f}, {high:.3f}]  {kind}"
    print(line)
    return line


@pytest.mark.parametrize("name", RIGHT)
def test_the_noise_is_what_the_ledger_charges(name: str) -> None:
    """mu within three per cent of the claim where the calls tell so much; always an interval that holds the claim."""
    if " he," in name:
        pytest.importorskip("tenseal")
    estimate, claim = RIGHT[name](CONFIDENCE)
    line = told(name, estimate, claim)
    error = (estimate.high - estimate.low) / 2
    # for certain, where the printed interval may miss once in a hundred times
    assert abs(estimate.mu - claim) < 1.6 * error, line
    assert abs(estimate.mu / claim - 1) < max(0.03, 1.6 * error / claim), line
    assert error < 0.05 * claim, line


@pytest.mark.parametrize("channel", ["masks", "he"])
def test_site_noise_over_sums_that_nobody_opens_alone(channel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few calls, for each makes its keys: enough to tell the claimed noise from half of it. With 20,000 calls the
    interval is three to four per cent wide (docs/results.md)."""
    if channel == "he":
        pytest.importorskip("tenseal")
    estimate, claim = site_mu(600, 1.0, CONFIDENCE, channel=channel, sites=names(4))
    assert finding(estimate, claim) != "privacy bug", told(f"site over {channel}", estimate, claim)
    scaled_noise(0.5, desk)(monkeypatch)
    estimate, claim = site_mu(600, 1.0, CONFIDENCE, channel=channel, sites=names(4))
    assert finding(estimate, claim) == "privacy bug", told(f"site over {channel}, half the noise", estimate, claim)


@pytest.mark.parametrize("name", SITE_FAULTS)
def test_bugs_of_site_noise(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    estimate, claim = site_mu(FAULTY_CALLS, 1.0, CONFIDENCE, **SITE_FAULTS[name](monkeypatch))
    assert finding(estimate, claim) == "privacy bug", told(name, estimate, claim)
    told(name, estimate, claim)


@pytest.mark.parametrize("name", PATIENT_FAULTS)
def test_bugs_of_patient_noise(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    faults: dict[str, Any] = {**MISSING, **PATIENT_FAULTS[name](monkeypatch)}
    estimate, claim = patient_mu(200, 1.0, CONFIDENCE, **faults)
    assert finding(estimate, claim) == "privacy bug", told(name, estimate, claim)
    told(f"patient: {name}", estimate, claim)


@pytest.mark.parametrize("name", UTILITY_FAULTS)
def test_noise_that_nobody_asked_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    UTILITY_FAULTS[name](monkeypatch)
    found = site_mu(FAULTY_CALLS, 0.25, CONFIDENCE) if name == "site" else patient_mu(100, 0.25, CONFIDENCE)
    assert finding(*found) == "utility bug", told(name, *found)
    told(f"{name}: noise x 1.2", *found)


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_canaries_in_a_run_of_100_000_parameters(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    scaled_noise(factor, disclosure)(monkeypatch)
    scores, included, claimed = canary_run(50, 50**0.5, canaries=3000, size=SIZE)
    truth = epsilon_of(claimed / factor, 1e-5)
    found = canary_epsilon(scores[included], scores[~included], SIZE, 1e-5, confidence=0.9999)
    bound = one_run_epsilon(scores, included, 1e-5, confidence=0.95)
    print(f"noise x {factor}: true epsilon {truth:.2f}, by canaries {found}, certainly at least {bound:.2f}")
    assert found.low < truth < found.high
    assert (found.low > epsilon_of(claimed, 1e-5)) == (factor < 1)
    assert 1 < bound < truth
