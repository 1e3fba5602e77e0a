"""No charge passes a budget: not in one run, not over runs, studies and data sets that share patients."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfl.errors import InputError, RunError
from medfl.privacy.accounting import bounds as accounting
from medfl.privacy.accounting.base import Budget, GaussianEvent
from medfl.privacy.accounting.gaussian import GaussianAccountant
from medfl.privacy.ledger import statement
from medfl.privacy.ledger.base import BudgetError, Charge
from medfl.privacy.ledger.chained import ChainedLedger
from medfl.privacy.ledger.file import FileLedger
from medfl.privacy.ledger.memory import MemoryLedger
from medfl.privacy.ledger.units import Units

BUDGET = Budget(8.0, 1e-5)
ALLOWED = 277  # rounds that epsilon 8 at delta 1e-5 allows with noise multiplier 10
DIGEST = "ab" * 32


def charge(round_: int = 0, noise: float = 10.0, **changed: Any) -> Charge:
    base = Charge("study", "run", round_, "model", "patient", "data", "gaussian", GaussianEvent(noise), 1.0, 1.0)
    return replace(base, **changed)


def spend(ledger: ChainedLedger, budget: Budget | None = None, **changed: Any) -> int:
    """Charge until it is refused; the number of charges made."""
    for count in range(1000):
        try:
            ledger.charge(charge(count, **changed), budget)
        except BudgetError:
            return count
    raise AssertionError("nothing was refused")


def test_exactly_so_many_charges_and_not_one_more():
    ledger = MemoryLedger("north")
    assert spend(ledger, BUDGET) == ALLOWED
    before = ledger.lines
    with pytest.raises(BudgetError) as error:
        ledger.charge(charge(ALLOWED), BUDGET)
    assert ledger.lines == before, "nothing is charged when it is refused"
    for word in ("north", "run run", "round 277", "7.9901", "8.0076", "budget of 8", "keep the parameters of the last"):
        assert word in str(error.value)
    with pytest.raises(BudgetError):
        ledger.check(charge(ALLOWED), BUDGET)
    ledger.check(charge(ALLOWED, noise=50.0), BUDGET)
    assert ledger.lines == before, "check writes nothing"


def test_a_test_after_the_release_is_found(monkeypatch: pytest.MonkeyPatch):
    """A fake that asks whether the budget was passed already, as it is often done, makes one release too many."""
    right = accounting.affordable
    monkeypatch.setattr(
        accounting, "affordable", lambda spent, _, budget, plan: not spent or right(spent[:-1], spent[-1], budget, plan)
    )
    assert spend(MemoryLedger("north"), BUDGET) == ALLOWED + 1


def test_the_ceiling_sums_over_studies_and_openings(tmp_path):
    path, ceiling = tmp_path / "ledger.jsonl", {"patient": BUDGET}
    counts = []
    for number in range(3):
        ledger = FileLedger.open(path, "north", ceiling)
        about = {"study": f"study {number}", "run": f"run {number}"}
        for round_ in range(100):
            try:
                ledger.charge(charge(round_, **about), BUDGET)
            except BudgetError as error:
                assert "all studies on these data at north" in str(error) and "takes part no more" in str(error)
                break
        counts.append(len(ledger.charges(about["run"])))
    assert counts == [100, 100, 77] and sum(counts) == ALLOWED
    assert len(FileLedger.open(path, "north").charges()) == ALLOWED


def test_both_limits_are_named_at_once():
    ledger = MemoryLedger("north", {"patient": Budget(1.0, 1e-5)})
    with pytest.raises(BudgetError) as error:
        ledger.charge(charge(noise=1.0), Budget(2.0, 1e-5))
    assert len(error.value.faults) == 2


def test_units_do_not_mix():
    ledger = MemoryLedger("north", {"patient": BUDGET})
    assert spend(ledger) == ALLOWED
    ledger.charge(charge(unit="site"), BUDGET)


def test_overlapping_data_sum_and_disjoint_ones_do_not():
    ledger = MemoryLedger("north", {"patient": BUDGET})
    first, second, third = (ledger.register(keys) for keys in (["a", "b"], ["b", "c"], ["d"]))
    assert spend(ledger, dataset=first) == ALLOWED
    assert spend(ledger, dataset=second, run="other") == 0
    assert spend(ledger, dataset=third, run="other") == ALLOWED
    assert spend(ledger, dataset="never registered", run="other") == 0


def test_a_match_by_name_alone_overspends(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Units, "overlap", lambda self, one, other: one == other)
    ledger = MemoryLedger("north", {"patient": BUDGET})
    first, second = (ledger.register(keys) for keys in (["a", "b"], ["b", "c"]))
    assert spend(ledger, dataset=first) + spend(ledger, dataset=second, run="other") == 2 * ALLOWED


@settings(max_examples=20)
@given(st.lists(st.tuples(st.sets(st.sampled_from("abcdef"), min_size=1), st.sampled_from([3.0, 5.0])), max_size=20))
def test_no_patient_passes_the_ceiling(wanted: list[tuple[set[str], float]]):
    """Whatever data sets are charged in whatever order: what was spent on each patient stays within the ceiling."""
    ledger = MemoryLedger("north", {"patient": Budget(2.0, 1e-5)})
    spent: dict[str, list[GaussianEvent]] = {}
    for number, (patients, noise) in enumerate(wanted):
        try:
            ledger.charge(charge(noise=noise, dataset=ledger.register(patients), run=f"run {number}"), None)
        except BudgetError:
            continue
        for patient in patients:
            spent.setdefault(patient, []).append(GaussianEvent(noise))
    costs = [GaussianAccountant().epsilon(events, 1e-5) for events in spent.values()]
    assert max(costs, default=0.0) <= 2.0
    stated = [group["epsilon"] for group in statement.summary(ledger, 1e-5)["groups"]]
    assert max(stated, default=0.0) == pytest.approx(max(costs, default=0.0)), "the statement is about the worst off"


def test_data_sets_are_known_by_their_units_not_their_order():
    ledger = MemoryLedger("north")
    first = ledger.register(["b", "a", "a"])
    assert ledger.register(iter("ab")) == first != ledger.register(["a"])
    assert MemoryLedger("north").register(["a", "b"]) != first, "salts differ"
    for keys in ([], ["a", ""]):
        with pytest.raises(InputError, match="give the key of every patient"):
            ledger.register(keys)


def test_a_retry_is_a_fresh_charge():
    ledger = MemoryLedger("north")
    for _ in range(ALLOWED):
        ledger.charge(charge(3), BUDGET)
    with pytest.raises(BudgetError):
        ledger.charge(charge(3), BUDGET)
    assert len(set(ledger.entries("run"))) == ALLOWED


def test_one_charge_one_noise_one_release():
    ledger = MemoryLedger("north")
    permit = ledger.charge(charge(), BUDGET)
    assert permit.use() == charge()
    with pytest.raises(RunError, match="drawn already"):
        permit.use()
    ledger.done(permit, DIGEST)
    ledger.done(permit, DIGEST)  # the same bytes may be sent again
    assert ledger.releases("run") == [(permit.entry, DIGEST)] and ledger.releases("other") == []
    with pytest.raises(RunError, match="cannot release"):
        ledger.done(permit, "cd" * 32)
    with pytest.raises(RunError, match="is not in ledger of south"):
        MemoryLedger("south").done(permit, DIGEST)
    with pytest.raises(RunError, match="not a SHA-256"):
        ledger.done(permit, "bytes")


def test_a_recalled_permit_draws_no_noise():
    ledger = MemoryLedger("north")
    entry = ledger.charge(charge(event=GaussianEvent(10.0, 1.0, 3)), BUDGET).entry
    permit = ledger.recall(entry)
    with pytest.raises(RunError, match="drawn already"):
        permit.use()
    ledger.done(permit, DIGEST)
    assert ledger.releases() == [(entry, DIGEST)]


def test_sampled_steps_follow_the_renyi_filter():
    event = GaussianEvent(1.0, 0.1, 10)
    ledger = MemoryLedger("north")
    count = spend(ledger, BUDGET, event=event)
    events = [replace(event, steps=10 * count)]
    assert 0 < count < 1000 and accounting.affordable([], events[0], BUDGET, None)
    assert not accounting.affordable(events, event, BUDGET, None)


def test_a_plan_buys_more_when_it_was_written_down_first():
    event = GaussianEvent(1.0, 0.1, 10)
    free = spend(MemoryLedger("north"), BUDGET, event=event)
    plan = replace(event, steps=10 * (free + 1))
    ledger = MemoryLedger("north")
    for round_ in range(free + 1):
        ledger.charge(charge(round_, event=event, plan=plan), BUDGET)
    assert [record for record in ledger.lines.splitlines() if b'"kind":"plan"' in record]

    late = MemoryLedger("north")
    late.charge(charge(0, event=event), BUDGET)
    assert 1 + spend(late, BUDGET, event=event, plan=plan) == free, "a plan that comes after a release is none"
    changed = MemoryLedger("north")
    changed.write_plan("run", "patient", replace(plan, steps=20))
    assert spend(changed, BUDGET, event=event, plan=plan) == free, "nor is one that was changed"
    with pytest.raises(RunError, match="has begun"):
        changed.write_plan("run", "patient", plan)


def test_the_ceiling_knows_no_plan():
    event = GaussianEvent(1.0, 0.1, 10)
    free = spend(MemoryLedger("north"), BUDGET, event=event)
    ledger = MemoryLedger("north", {"patient": BUDGET})
    assert spend(ledger, event=event, plan=replace(event, steps=10 * (free + 1))) == free


@pytest.mark.parametrize(
    "changed",
    [
        {"event": GaussianEvent(0.0)},
        {"event": GaussianEvent(1.0, steps=0)},
        {"clip": math.inf},
        {"sensitivity": 0.0},
        {"dataset": ""},
        {"unit": "image"},
        {"round": "one"},
        {"plan": "as agreed"},
        {"clip": np.float32(1.0)},
    ],
)
def test_what_cannot_be_accounted_for_is_refused_and_not_written(changed: dict[str, Any]):
    ledger = MemoryLedger("north")
    before = ledger.lines
    with pytest.raises(InputError, match="run"):
        ledger.charge(charge(**changed), BUDGET)
    assert ledger.lines == before


def test_test_noise_taints_for_good(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = FileLedger.open(path, "north")
    ledger.charge(charge(), BUDGET)
    assert not ledger.tainted and statement.summary(ledger, 1e-5)["void"] is None
    ledger.charge(charge(1, randomness="insecure-test"), BUDGET)
    ledger.charge(charge(2), BUDGET)
    again = FileLedger.open(path, "north")
    assert again.tainted and "not secret" in statement.summary(again, 1e-5)["void"]


def test_the_statement_adds_up():
    ledger = MemoryLedger("north")
    one, two, apart = (ledger.register(keys) for keys in (["a", "b"], ["b", "c"], ["z"]))
    permit = ledger.charge(charge(0, dataset=one), BUDGET)
    ledger.done(permit, DIGEST)
    ledger.charge(charge(1, dataset=two, study="second", run="run 2"), BUDGET)
    ledger.charge(charge(2, dataset=apart, noise=5.0), BUDGET)
    ledger.charge(charge(3, dataset=one, unit="site"), BUDGET)
    found = json.loads(json.dumps(statement.summary(ledger, 1e-5)))
    joint, alone, site = found["groups"]
    assert joint["datasets"] == sorted([one, two]) and joint["charges"] == 2 and joint["studies"] == ["study", "second"]
    assert alone["datasets"] == [apart] and site["unit"] == "site"
    expected = accounting.tightest(accounting.bounds([GaussianEvent(10.0, 1.0, 2)], 1e-5))
    assert joint["epsilon"] == expected.epsilon and joint["accountant"] == "exact"
    assert [bound["accountant"] for bound in joint["bounds"]] == ["exact", "pld", "rdp"]
    assert (found["charges"], found["releases"], found["head"]) == (4, 1, ledger.head)
    assert [(run["run"], run["unit"], run["charges"], run["released"]) for run in found["runs"]] == [
        ("run", "patient", 2, 1),
        ("run 2", "patient", 1, 0),
        ("run", "site", 1, 0),
    ]


def test_heads_are_kept_and_compared():
    north, coordinator = MemoryLedger("north"), MemoryLedger("coordinator")
    old = coordinator.head
    north.witness("coordinator", old)
    coordinator.charge(charge(), None)
    north.witness("coordinator", coordinator.head)
    north.witness("coordinator", coordinator.head)
    assert north.witnessed() == {"coordinator": coordinator.head} and north.lines.count(b'"witness"') == 2
    coordinator.compare(kept={"north": north.witnessed()["coordinator"]})
    with pytest.raises(RunError, match="older than"):
        north.witness("coordinator", old)
    with pytest.raises(RunError, match="older than"):
        north.compare({}, present={"coordinator": old})
    with pytest.raises(RunError, match="north has seen its record"):
        MemoryLedger("coordinator").compare(kept={"north": coordinator.head})
    with pytest.raises(RunError, match="not the head"):
        north.witness("coordinator", "head")
