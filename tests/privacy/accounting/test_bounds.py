import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfl.errors import InputError
from medfl.privacy.accounting import pld
from medfl.privacy.accounting.base import Budget, GaussianEvent
from medfl.privacy.accounting.bounds import ACCOUNTANTS, affordable, bounds, tightest
from medfl.privacy.accounting.calibrate import MOST_STEPS, noise_multiplier, signal_to_noise, steps_allowed
from medfl.privacy.accounting.gaussian import epsilon_of, gaussian_mu
from medfl.privacy.accounting.rdp import within

BUDGET = Budget(8.0, 1e-5)
PLAN = GaussianEvent(0.7, 0.05, 100)
STEP = GaussianEvent(0.7, 0.05)


def by_name(events, delta=1e-5, plan=None):
    return {bound.accountant: bound for bound in bounds(events, delta, plan)}


def run(ask, charge, budget, plan=None, most=400):
    """Rounds that are released when `ask` is asked before each."""
    spent = []
    while len(spent) < most and ask(spent, charge, budget, plan):
        spent.append(charge)
    return spent


def asked_after_the_release(spent, _, budget, plan=None):
    """The mistake: what was spent is tested, not what would be."""
    return not spent or affordable(spent[:-1], spent[-1], budget, plan)


@pytest.mark.parametrize("charge, plan", [(GaussianEvent(10.0), None), (STEP, PLAN), (STEP, None)])
def test_a_run_that_asks_before_each_release_stays_within_the_budget(charge, plan):
    def over(spent):
        return tightest(bounds(spent, BUDGET.delta, plan)).epsilon > BUDGET.epsilon

    spent = run(affordable, charge, BUDGET, plan)
    assert spent and not over(spent)
    assert over([*spent, charge])
    assert over(run(asked_after_the_release, charge, BUDGET, plan))


@pytest.mark.parametrize("epsilon, exact, rdp", [(2, 25, 21), (4, 85, 74), (8, 277, 245)])
def test_rounds_that_a_budget_buys(epsilon, exact, rdp):
    budget = Budget(epsilon, 1e-5)
    assert steps_allowed(budget, 10.0, 1.0, "exact") == exact == len(run(affordable, GaussianEvent(10.0), budget))
    assert steps_allowed(budget, 10.0, 1.0, "rdp") == rdp
    assert steps_allowed(budget, 10.0, 1.0, "pld") == exact


def test_the_exact_bound_is_the_tightest_under_full_participation():
    found = by_name([GaussianEvent(5.0)] * 100)
    assert found["exact"].epsilon == pytest.approx(9.99726, abs=5e-6)
    assert found["exact"].tightest and found["exact"].valid and found["rdp"].valid
    assert not found["pld"].valid and "no plan" in found["pld"].why


def test_pld_holds_while_the_plan_is_kept():
    found = by_name([STEP] * 80, plan=PLAN)
    assert found["pld"].valid and found["pld"].tightest
    assert found["exact"].epsilon is None and not found["exact"].valid and "full participation" in found["exact"].why


@pytest.mark.parametrize(
    "events, reason",
    [
        ([STEP, GaussianEvent(0.71, 0.05)], "noise multiplier 0.71"),
        ([STEP, GaussianEvent(0.7, 0.04)], "sampling rate 0.04"),
        ([STEP] * 101, "101 steps were charged, 100 were planned"),
    ],
)
def test_pld_is_shown_but_refused_after_a_changed_plan(events, reason):
    found = by_name(events, plan=PLAN)
    assert not found["pld"].valid and reason in found["pld"].why
    assert found["pld"].epsilon is not None and found["rdp"].tightest


def test_a_changed_plan_falls_back_to_the_renyi_filter():
    def by_pld_whatever_happens(spent, charge, budget):
        return ACCOUNTANTS["pld"].epsilon([*spent, charge], budget.delta) <= budget.epsilon

    spent, changed = [STEP] * 80, GaussianEvent(0.71, 0.05)
    assert affordable(spent, STEP, BUDGET, PLAN)
    assert not affordable(spent, changed, BUDGET, PLAN)
    assert not affordable(spent, STEP, BUDGET, None)
    assert by_pld_whatever_happens(spent, changed, BUDGET)


def test_a_plan_that_is_too_dear_as_a_whole_is_stopped_by_the_filter():
    long = GaussianEvent(0.7, 0.05, 1000)
    rounds = steps_allowed(BUDGET, 0.7, 0.05, "rdp")
    assert len(run(affordable, STEP, BUDGET, long)) == rounds < 100


def test_equal_events_give_the_same_rounds_by_filter_and_by_rdp():
    for z, q in ((1.5, 0.02), (0.7, 0.05), (10.0, 1.0)):
        rounds = steps_allowed(BUDGET, z, q, "rdp")
        assert within([GaussianEvent(z, q, rounds)], BUDGET)
        assert not within([GaussianEvent(z, q, rounds + 1)], BUDGET)


@given(
    st.lists(st.sampled_from([GaussianEvent(0.7, 0.05), GaussianEvent(2.0), GaussianEvent(30.0, 1.0, 3)]), max_size=60)
)
@settings(max_examples=60)
def test_the_filter_never_allows_more_than_the_budget_and_never_again_once_it_refused(events):
    allowed = [within(events[:count], BUDGET) for count in range(len(events) + 1)]
    assert allowed == sorted(allowed, reverse=True)
    for count, fits in enumerate(allowed):
        if fits:
            assert ACCOUNTANTS["rdp"].epsilon(events[:count], BUDGET.delta) <= BUDGET.epsilon


def test_the_order_of_the_filter_is_fixed_by_the_first_event():
    """The least epsilon over all orders, chosen in hindsight, is no filter when later noise depends on releases."""
    first, later, budget = GaussianEvent(40.0), GaussianEvent(0.7, 0.01), Budget(3.0, 1e-5)
    assert ACCOUNTANTS["rdp"].epsilon([first, later], budget.delta) < budget.epsilon
    assert not affordable([first], later, budget)
    assert affordable([later], first, budget)


def test_no_noise_is_never_affordable():
    for spent, charge in (([], GaussianEvent(0.0)), ([GaussianEvent(0.0)], STEP), ([STEP], GaussianEvent(0.0, 0.1))):
        assert not affordable(spent, charge, Budget(1e6, 1e-5), PLAN)
        assert tightest(bounds([*spent, charge], 1e-5, PLAN)).epsilon == math.inf
    assert by_name([GaussianEvent(0.0)])["exact"].to_json()["epsilon"] is None
    assert not affordable([], STEP, Budget(0.0, 1e-5))


def test_a_plan_is_accounted_once_however_often_it_is_asked():
    plan = GaussianEvent(0.7123, 0.05, 90)
    charge = GaussianEvent(0.7123, 0.05)
    before = pld._epsilon.cache_info().misses
    assert all(affordable([charge] * count, charge, BUDGET, plan) for count in range(60))
    assert pld._epsilon.cache_info().misses - before == 1


def test_noise_of_a_budget():
    assert noise_multiplier(BUDGET, 50) == pytest.approx(4.24, abs=0.005)
    assert epsilon_of(gaussian_mu([GaussianEvent(noise_multiplier(Budget(10, 1e-5), 100), 1.0, 100)]), 1e-5) <= 10


@pytest.mark.parametrize("epsilon, steps, q", [(8.0, 100, 1.0), (1.0, 1000, 0.01), (0.1, 100, 0.01)])
def test_calibrated_noise_pays_for_all_steps_and_little_less_does_not(epsilon, steps, q):
    budget = Budget(epsilon, 1e-5)
    z = noise_multiplier(budget, steps, q)
    plan, step = GaussianEvent(z, q, steps), GaussianEvent(z, q)
    assert affordable([GaussianEvent(z, q, steps - 1)], step, budget, plan)
    assert not affordable([plan], step, budget, plan)
    assert (
        tightest(bounds([GaussianEvent(z * 0.995, q, steps)], 1e-5, GaussianEvent(z * 0.995, q, steps))).epsilon
        > epsilon
    )


@given(st.floats(0.05, 50), st.integers(1, 2000), st.floats(1e-9, 1e-2))
@settings(max_examples=60)
def test_rounding_never_costs_the_last_planned_round(epsilon, steps, delta):
    budget = Budget(epsilon, delta)
    event = GaussianEvent(noise_multiplier(budget, steps))
    assert affordable([event] * (steps - 1), event, budget)


def test_calibration_refuses_what_no_noise_reaches_and_names_all_faults():
    with pytest.raises(InputError) as caught:
        noise_multiplier(Budget(0.0, 1e-5), 0, math.nan)
    assert [fault.where for fault in caught.value.faults] == ["steps", "sampling_rate", "epsilon"]
    with pytest.raises(InputError, match="gdp"):
        steps_allowed(BUDGET, 1.0, 1.0, "gdp")


def test_steps_allowed_at_the_ends():
    assert steps_allowed(BUDGET, 0.0) == steps_allowed(BUDGET, 0.1, 1.0, "rdp") == 0
    assert steps_allowed(BUDGET, 1e6) == MOST_STEPS
    assert steps_allowed(BUDGET, 1.0, 0.5, "exact") is None


@pytest.mark.parametrize(
    "sites, parameters, signal",
    [(10, 1000, 0.093), (10, 100_000, 0.009), (10, 11_000_000, 0.0009), (10_000, 1000, 93), (10_000, 11_000_000, 0.89)],
)
def test_published_signal_to_noise(sites, parameters, signal):
    z = noise_multiplier(Budget(8.0, 1e-3), 50)
    assert signal_to_noise(sites, z, parameters) == pytest.approx(signal, rel=0.06)


def test_signal_to_noise_of_the_three_modes():
    z, parameters = 4.243, 11_000_000
    assert signal_to_noise(10, z, parameters) == pytest.approx(0.0007, abs=5e-5)
    shared = signal_to_noise(0.05 * 5000, z, parameters)
    assert shared == pytest.approx(4 * signal_to_noise(0.05 * 1250, z, parameters))
    assert signal_to_noise(10, 0.0, parameters) == math.inf
