import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfl.errors import InputError
from medfl.privacy.accounting.base import Budget, GaussianEvent, merge
from medfl.privacy.accounting.gaussian import GaussianAccountant, epsilon_of, gaussian_mu, log_delta, mu_of
from medfl.privacy.accounting.pld import CALIBRATION, PldAccountant
from medfl.privacy.accounting.rdp import ORDERS, RdpAccountant, rdp_vector

EXACT, RDP, PLD, COARSE = GaussianAccountant(), RdpAccountant(), PldAccountant(), PldAccountant(CALIBRATION)

# q, z, steps, delta: RDP, PLD, exact as published, and what is certified from below (Gopi et al. 2021)
TABLE = [
    (0.01, 1.1, 10000, 1e-5, "5.632", "5.193", None, 5.182),
    (0.01, 4, 10000, 1e-5, "1.035", "0.947", None, 0.937),
    (256 / 60000, 1.1, 14062, 1e-5, "2.597", "2.382", None, 2.372),
    (1, 5, 100, 1e-5, "10.726", "9.997", "9.99726", 9.987),
    (1, 10, 100, 1e-5, "4.729", "4.377", "4.37718", 4.367),
    (1, 20, 100, 1e-5, "2.166", "1.993", "1.99309", 1.983),
    (0.5, 5, 100, 1e-5, "4.862", "4.488", None, 4.478),
    (0.2, 2, 50, 1e-2, "2.033", "1.641", None, 1.631),
    (32 / 500, 1, 1000, 1e-4, "14.28", "12.97", None, 12.96),
]


def agrees(value: float, digits: str) -> bool:
    return abs(value - float(digits)) <= 0.5000001 * 10.0 ** -len(digits.partition(".")[2])


@pytest.mark.parametrize("q, z, steps, delta, rdp, pld, exact", [row[:7] for row in TABLE])
def test_published_epsilons(q, z, steps, delta, rdp, pld, exact):
    events = [GaussianEvent(z, q, steps)]
    assert agrees(RDP.epsilon(events, delta), rdp)
    assert agrees(PLD.epsilon(events, delta), pld)
    found = EXACT.epsilon(events, delta)
    assert found is None if exact is None else agrees(found, exact)


def clt(q, z, steps, delta):
    """The central-limit approximation that must never be offered: it is no bound."""
    return epsilon_of(q * math.sqrt(steps * math.expm1(z**-2)), delta)


@pytest.mark.parametrize("q, z, steps, delta, lower", [(*row[:4], row[7]) for row in TABLE])
def test_no_accountant_is_below_what_is_certified(q, z, steps, delta, lower):
    found = [accountant.epsilon([GaussianEvent(z, q, steps)], delta) for accountant in (EXACT, RDP, PLD, COARSE)]
    assert all(epsilon >= lower for epsilon in found if epsilon is not None)


def test_the_central_limit_approximation_is_below_what_is_certified():
    below = [row for row in TABLE if row[0] < 1 and clt(*row[:4]) < row[7]]
    assert len(below) == 5
    assert agrees(clt(0.01, 1.1, 10000, 1e-5), "5.065") and agrees(clt(0.2, 2, 50, 1e-2), "1.588")


def test_coarse_discretisation_costs_little_and_is_never_below_the_fine_one():
    for q, z, steps, delta, coarse in ((0.01, 1.1, 10000, 1e-5, "5.196"), (0.01, 4, 10000, 1e-5, "0.960")):
        events = [GaussianEvent(z, q, steps)]
        assert agrees(COARSE.epsilon(events, delta), coarse)
        assert PLD.epsilon(events, delta) <= COARSE.epsilon(events, delta)


@pytest.mark.parametrize("epsilon, mu", [(1, "0.268"), (2, "0.502"), (4, "0.925"), (8, "1.666"), (10, "2.000")])
def test_mu_of_a_budget(epsilon, mu):
    assert agrees(mu_of(epsilon, 1e-5), mu)


def reference_delta(mu, epsilon):
    with mpmath.workdps(60):
        mu, epsilon = mpmath.mpf(mu), mpmath.mpf(epsilon)
        return mpmath.ncdf(mu / 2 - epsilon / mu) - mpmath.exp(epsilon) * mpmath.ncdf(-mu / 2 - epsilon / mu)


@given(st.floats(0.001, 40), st.floats(0, 12))
@settings(max_examples=150)
def test_delta_agrees_with_sixty_digits(mu, spread):
    epsilon = mu * mu / 2 + mu * (spread - min(mu / 2, 6))
    truth = reference_delta(mu, epsilon)
    assert math.exp(log_delta(mu, epsilon)) == pytest.approx(float(truth), rel=1e-9)


def test_delta_where_plain_arithmetic_fails():
    with pytest.raises(OverflowError):
        math.exp(1200.0)
    assert log_delta(40.0, 1200.0) == pytest.approx(float(mpmath.log(reference_delta(40, 1200))), rel=1e-9)
    assert 4.9e11 < epsilon_of(1e6, 1e-5) < 5.1e11


deltas = st.floats(1e-12, 0.3)
mus = st.floats(1e-4, 50)


@given(mus, mus, deltas)
@settings(max_examples=80)
def test_epsilon_grows_with_mu_and_falls_with_delta(one, other, delta):
    low, high = sorted((one, other))
    assert 0 <= epsilon_of(low, delta) <= epsilon_of(high, delta) * (1 + 1e-9)
    assert epsilon_of(high, delta) <= epsilon_of(high, delta / 2) * (1 + 1e-9)


@given(st.floats(1e-3, 200), deltas)
@settings(max_examples=80)
def test_mu_and_epsilon_are_inverse_and_rounded_to_the_safe_side(epsilon, delta):
    mu = mu_of(epsilon, delta)
    assert epsilon_of(mu, delta) <= epsilon
    assert epsilon_of(mu * (1 + 1e-6), delta) > epsilon


events_ = st.lists(st.builds(GaussianEvent, st.floats(0.5, 50), st.just(1.0), st.integers(1, 50)), max_size=5)


@given(events_, deltas)
@settings(max_examples=80)
def test_rdp_is_above_the_exact_cost_and_order_and_grouping_do_not_matter(events, delta):
    exact = EXACT.epsilon(events, delta)
    assert exact is not None and RDP.epsilon(events, delta) >= exact * (1 - 1e-9)
    single = [GaussianEvent(event.noise_multiplier) for event in events for _ in range(event.steps)]
    assert EXACT.epsilon(single[::-1], delta) == pytest.approx(exact, rel=1e-9)
    assert merge(single) == merge(events)


@given(st.floats(0.4, 30), st.floats(0.001, 0.9), st.integers(1, 5000), deltas)
@settings(max_examples=6)
def test_rdp_grows_with_steps_and_sampling_and_falls_with_noise(z, q, steps, delta):
    def epsilon(z, q, steps):
        return RDP.epsilon([GaussianEvent(z, q, steps)], delta)

    assert 0 <= epsilon(z, q, steps) <= epsilon(z, q, steps + 1)
    assert epsilon(z * 1.1, q, steps) <= epsilon(z, q, steps) <= epsilon(z, min(1, q * 1.1), steps) * (1 + 1e-9)


@given(st.floats(0.6, 20), st.floats(0.001, 0.9), st.integers(1, 200), st.floats(1e-9, 1e-2))
@settings(max_examples=6)
def test_pld_lies_between_nothing_and_full_participation(z, q, steps, delta):
    found = COARSE.epsilon([GaussianEvent(z, q, steps)], delta)
    full = EXACT.epsilon([GaussianEvent(z, 1.0, steps)], delta)
    more = COARSE.epsilon([GaussianEvent(z, q, steps + 1)], delta)
    assert 0 <= found <= more * (1 + 1e-9) and full is not None
    assert found <= full + 0.02 + 1e-3 * steps


@pytest.mark.parametrize("z, q", [(2, 0.2), (4, 0.01), (1, 0.064), (0.5, 0.5), (5, 0.5)])
def test_fractional_orders_are_integrated_exactly(z, q):
    """At orders where the library's series gives up, or stops early and is too large, as well as where it is right."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant as Library

    vector = rdp_vector(z, q)
    for order in (1.1, 1.5, 1.9, 2.5, 6.3):
        at = ORDERS.index(order)
        with mpmath.workdps(30):
            truth = mpmath.log(
                mpmath.quad(
                    lambda x, order=order: (
                        mpmath.npdf(x, 0, z) * (1 - q + q * mpmath.exp((2 * x - 1) / (2 * z * z))) ** order
                    ),
                    [-15 * z, -5 * z, -2 * z, 0, 2 * z, order, order + 5 * z, order + 15 * z],
                )
            ) / (order - 1)
        # the slack against rounding is on top, never below
        assert 0 <= vector[at] - truth <= 1e-13 / (order - 1)
    library = Library(ORDERS)
    library.compose(PoissonSampledDpEvent(q, GaussianDpEvent(z)))
    assert np.all(vector <= library.rdp * (1 + 1e-7))


def test_a_step_that_costs_next_to_nothing_is_not_free():
    assert (rdp_vector(100.0, 1e-6) > 0).all()
    assert RDP.epsilon([GaussianEvent(100.0, 1e-6, 10**15)], 1e-9) > 0


@pytest.mark.parametrize("accountant", [EXACT, RDP, PLD])
def test_extremes_do_not_crash_and_epsilon_is_never_negative(accountant):
    for z in (0.0, 1e-200, 1e-7, 1e-3, 1e5, 1e200):
        for q in (1e-9, 0.5, 1.0):
            epsilon = accountant.epsilon([GaussianEvent(z, q, 10)], 0.9 if z > 1 else 1e-9)
            assert epsilon is None if accountant is EXACT and q < 1 else epsilon >= 0
    assert accountant.epsilon([], 1e-5) == accountant.epsilon([GaussianEvent(0.0, 1.0, 0)], 1e-5) == 0
    assert accountant.epsilon([GaussianEvent(1.0), GaussianEvent(0.0)], 1e-5) == math.inf
    assert gaussian_mu([GaussianEvent(0.0)]) == math.inf


def test_nothing_is_printed_where_the_library_would_log(capfd):
    RDP.epsilon([GaussianEvent(3.0, 0.7, 10)], 1e-5)
    PLD.epsilon([GaussianEvent(3.0, 0.7, 10)], 1e-5)
    shown = capfd.readouterr()
    assert shown.out == shown.err == ""


@pytest.mark.parametrize("delta", [0, -1, 1, 2, math.nan, math.inf])
def test_a_delta_out_of_range_is_refused_everywhere(delta):
    for accountant in (EXACT, RDP, PLD):
        with pytest.raises(InputError, match="delta"):
            accountant.epsilon([GaussianEvent(1.0)], delta)
    with pytest.raises(InputError, match="delta"):
        Budget(1.0, delta)


def test_events_and_budgets_name_all_their_faults():
    with pytest.raises(InputError) as caught:
        GaussianEvent(math.nan, 1.5, -1)
    assert [fault.where for fault in caught.value.faults] == ["noise_multiplier", "sampling_rate", "steps"]
    with pytest.raises(InputError) as caught:
        Budget(math.nan, 0.0)
    assert [fault.where for fault in caught.value.faults] == ["epsilon", "delta"]
