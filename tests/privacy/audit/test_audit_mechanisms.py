"""The noise that the real parts add is the noise that their ledgers charge, and each injected bug is found.

Noise is the system's, so these tests are random: intervals that must hold the truth do so with 0.9999. They look at
mechanisms with little noise, of which few calls tell much; tests/acceptance/test_privacy_audit.py makes all calls.
"""

from typing import Any

import numpy as np
import pytest
from toys.private import Coordinated, names, study
from toys.private_audits import SITES, adaptive_mu, hold_rows, local_mu, patient_mu, site_mu
from toys.private_faults import PATIENT_FAULTS, SITE_FAULTS, UTILITY_FAULTS, BareBitDesk, KnownNoise

from medfl.errors import RunError
from medfl.learning.patients import private_sgd
from medfl.privacy.accounting.gaussian import gaussian_mu
from medfl.privacy.audit import Estimate, finding
from medfl.privacy.noise import NoiseSource, SeededNoise, draw

LITTLE = 0.05
"""The noise multiplier of most audits here."""
SURE = 0.9999
LIKELY = 0.99
"""For bugs, which must be found: an interval that never misses would be wide."""
CALLS = {"noise / sqrt 2": 300, "redraws for one charge": 600, "opens a sum twice": 600}
"""The bugs that raise mu by sqrt 2 alone take more calls, and twice as many when two make one observation."""


def check(found: tuple[Estimate, float], width: float) -> None:
    """The assertion of all audits: as claimed, by an interval that is at most `width` of the claim to either side."""
    estimate, claim = found
    assert finding(estimate, claim) == "as claimed", f"{estimate}, claimed {claim:.4g}"
    assert estimate.low <= claim <= estimate.high, f"{estimate}, claimed {claim:.4g}"
    assert estimate.high - estimate.low < 2 * width * claim


def check_fails(found: tuple[Estimate, float], kind: str) -> None:
    with pytest.raises(AssertionError, match=r"mu .*claimed"):
        check(found, 1.0)
    assert finding(*found) == kind


def test_site_noise_is_as_charged() -> None:
    check(site_mu(1000, LITTLE, SURE), 0.12)


@pytest.mark.parametrize("name", SITE_FAULTS)
def test_a_fault_of_site_noise_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_fails(site_mu(CALLS.get(name, 160), LITTLE, LIKELY, **SITE_FAULTS[name](monkeypatch)), "privacy bug")


def test_too_much_site_noise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    UTILITY_FAULTS["site"](monkeypatch)
    check_fails(site_mu(800, LITTLE, LIKELY), "utility bug")


def test_noise_of_a_moving_clip_is_as_charged() -> None:
    check(adaptive_mu(800, 0.5, SURE), 0.3)


def test_a_clip_bit_without_noise_is_found() -> None:
    # by right, the bit tells far less than update and bit together
    assert finding(*adaptive_mu(200, 0.5, LIKELY, bit_alone=True)) == "utility bug"
    check_fails(adaptive_mu(200, 0.5, LIKELY, bit_alone=True, desk=BareBitDesk), "privacy bug")


@pytest.mark.parametrize(
    "there",
    [
        {},
        {"noise_multiplier": 1.0},
        {"away": 1},
        {"tolerated": 3, "colluders": 3},
        {"tolerated": 3, "colluders": 1, "away": 3},
        {"tolerated": 0, "colluders": 0},
        {"channel": "masks", "sites": 4},
        {"channel": "he", "sites": 4},
        {"trained": True, "sites": 4, "patients": 60},
    ],
    ids=lambda there: ", ".join(f"{name} {value}" for name, value in there.items()) or "all there",
)
def test_patient_noise_is_as_charged(there: dict[str, Any]) -> None:
    """Against the coordinator together with the colluders, who take their own shares off; with sites missing; over
    every channel; after the real training's own clip."""
    if there.get("channel") == "he":
        pytest.importorskip("tenseal")
    check(patient_mu(**{"calls": 24, "noise_multiplier": LITTLE, "confidence": SURE, **there}), 0.15)


@pytest.mark.parametrize("name", PATIENT_FAULTS)
def test_a_fault_of_patient_noise_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"tolerated": 3, "colluders": 1, "away": 3, **PATIENT_FAULTS[name](monkeypatch)}
    check_fails(patient_mu(24, LITTLE, LIKELY, **missing), "privacy bug")


def test_too_much_patient_noise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    UTILITY_FAULTS["patient"](monkeypatch)
    check_fails(patient_mu(16, LITTLE, LIKELY), "utility bug")


def test_sites_and_coordinator_charge_what_is_missing() -> None:
    run = Coordinated(
        study({"kind": "patient", "noise_multiplier": 1, "sampling_rate": 1, "tolerated": 2}),
        dict.fromkeys(SITES, 9),
        4,
    )
    run.set({site: np.zeros(4, np.float32) for site in SITES[:8]})
    run.play(1, lambda change: change)
    assert run.claim == pytest.approx((8 / 7) ** 0.5)
    for site in SITES[:8]:
        charged = run.sites[site].disclosure.ledger.charges()
        assert gaussian_mu([charge.event for charge in charged]) >= run.claim


@pytest.mark.parametrize("epochs", [1, 3])
def test_local_noise_is_as_charged(epochs: int) -> None:
    found = local_mu(12, LITTLE, SURE, epochs)
    check(found, 0.2)
    assert found[1] == pytest.approx(epochs**0.5 / LITTLE)


@pytest.mark.parametrize("name", ["noise / sqrt 2", "seeded noise"])
def test_a_fault_of_local_noise_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_fails(local_mu(10, LITTLE, LIKELY, **PATIENT_FAULTS[name](monkeypatch)), "privacy bug")


def beside_the_grid(run: Coordinated) -> float:
    """How far a released change is from whole steps of the noise's grid, on average."""
    site = run.sites[SITES[0]]
    change = run.play(1, lambda change: change)[0]
    units = change * (run.cases[site.name] / site.disclosure.fine.step)
    return float(np.abs(units - np.rint(units)).mean())


def test_nothing_shows_between_the_steps_of_local_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of whole steps on sums between them would leave the sums' fractions bare, however much noise it is."""
    made = study({"kind": "local", "noise_multiplier": LITTLE, "sampling_rate": 1, "engine": "loop"})
    run = Coordinated(made, {SITES[0]: 1000}, 64)
    hold_rows(run, SITES[0], np.random.default_rng(0).normal(size=(5, 64)))
    # float32 keeps these sums to an eighth of a step
    assert beside_the_grid(run) < 0.1
    real = private_sgd._noisy_mean

    def bare(found: Any, noise: Any, denominator: float) -> Any:
        fractions = np.random.default_rng(1).random(64) * found.step / denominator
        return (real(found, noise, denominator).double().numpy() + fractions).astype(np.float32)

    monkeypatch.setattr(private_sgd, "_noisy_mean", lambda *given: private_sgd.torch.from_numpy(bare(*given)))
    assert beside_the_grid(run) > 0.15


@pytest.mark.parametrize("kind", ["site", "patient"])
def test_every_channel_opens_the_same_sum(kind: str) -> None:
    """Bit for bit, noise included. So what is audited over one channel holds over the others."""
    pytest.importorskip("tenseal")

    def total(channel: str, source: NoiseSource) -> np.ndarray:
        made = study({"kind": kind, "noise_multiplier": 1}, channel)
        run = Coordinated(made, dict.fromkeys(names(4), 9), 5000, source=source)
        rng = np.random.default_rng(0)
        run.set({name: rng.normal(size=5000).astype(np.float32) for name in names(4)})
        run.play(1, lambda change: change)
        return run.opened

    clear = total("clear", KnownNoise())
    assert np.count_nonzero(clear) > 4900
    assert np.array_equal(total("masks", KnownNoise()), clear)
    assert np.array_equal(total("he", KnownNoise()), clear)
    assert not np.array_equal(total("he", KnownNoise(seed=1)), clear)


def test_the_real_parts_refuse_a_second_release() -> None:
    run = Coordinated(study({"kind": "site", "noise_multiplier": 1}), dict.fromkeys(names(3), 9), 4)
    permit = run.ledger.charge(run.desk._charge(1, 3), None)
    draw(permit, 100.0, 4)
    with pytest.raises(RunError, match="drawn already"):
        draw(permit, 100.0, 4)


def test_a_seed_cannot_pass_for_the_system() -> None:
    run = Coordinated(study({"kind": "site", "noise_multiplier": 1}), dict.fromkeys(names(3), 9), 4)
    with pytest.raises(RunError, match="insecure-test"):
        draw(run.ledger.charge(run.desk._charge(1, 3), None), 100.0, 4, SeededNoise(0))
