"""`norm_history`: honest sites find their way back, hundredfold and growing updates do not."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys.parts import configured, federation_parts, plugin

from medfl.federation.outcome import Contribution, RoundOutcome, RoundPlan
from medfl.federation.regulator.base import REGULATORS, Arrival, Bench, RegulatorRule, Verdict
from medfl.federation.regulator.norm_history import NormHistory
from medfl.federation.round import Federation
from medfl.federation.summing import Summation
from medfl.privacy.channels.base import CHANNELS
from medfl.update.base import Update

MODEL = np.full(100, 1.0, np.float32)
NOTHING = Update(np.zeros(1, np.float32), 1)
HONEST = {name: (lambda round_: 1.0) for name in "abcd"}
Norms = Mapping[str, Callable[[int], float]]


class Old(NormHistory):
    """The fake: what is refused teaches nothing, and nobody else is looked at."""

    def _limit(self, site: str, bench: Bench) -> tuple[float, str]:
        known = self._norms.get(site, [0.0])
        return self.config.factor * float(np.median(known)) or 30.0, ""

    def learn(self, admitted: Any, refused: Any = ()) -> None:
        for site, norm in admitted:
            self._norms[site] = [*self._norms.get(site, []), norm][-self.config.window :]


class Naive(Old):
    """The fake: whoever was refused three times is let in."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._times: dict[str, int] = {}

    def _limit(self, site: str, bench: Bench) -> tuple[float, str]:
        return (1e9, "") if self._times.get(site, 0) >= 3 else super()._limit(site, bench)

    def learn(self, admitted: Any, refused: Any = ()) -> None:
        for site, _ in admitted:
            self._times.pop(site, None)
        for site, _ in refused:
            self._times[site] = self._times.get(site, 0) + 1
        super().learn(admitted)


def made(kind: type[NormHistory] = NormHistory, **settings: Any) -> NormHistory:
    return kind(configured(REGULATORS, "norm_history", **settings))  # type: ignore[arg-type]


def judged(rule: RegulatorRule, site: str, norm: float, alone: bool = False) -> Verdict:
    return rule.judge(Arrival(site, 1, NOTHING, norm, 10, 1.0), Bench(MODEL, None, alone))


def play(rule: NormHistory, norms: Norms, rounds: int, alone: bool = False) -> list[dict[str, float]]:
    """What was admitted, by round and site."""
    found = []
    for round_ in range(1, rounds + 1):
        offered = {site: norm(round_) for site, norm in norms.items()}
        admitted = {site: norm for site, norm in offered.items() if judged(rule, site, norm, alone).outcome == "admit"}
        rule.learn(list(admitted.items()), [(site, norm) for site, norm in offered.items() if site not in admitted])
        found.append(admitted)
    return found


def refusals(rounds: list[dict[str, float]], site: str) -> list[int]:
    return [number for number, admitted in enumerate(rounds, 1) if site not in admitted]


# honest sites


def test_a_tiny_first_update_locks_no_site_out() -> None:
    norms = {**HONEST, "e": lambda round_: 1e-3 if round_ == 1 else 1.0}
    assert refusals(play(made(), norms, 20), "e") == []
    assert refusals(play(made(Old), norms, 20), "e") == list(range(2, 21))


@pytest.mark.parametrize("before", [0.1, 0.01])
def test_a_site_whose_norms_were_small_for_long_comes_back_and_stays(before: float) -> None:
    norms = {**HONEST, "e": lambda round_: before if round_ <= 12 else 1.0}
    found = refusals(play(made(), norms, 40), "e")
    # each refusal widens its limit by the factor; its history then begins anew
    assert found == list(range(13, 13 + (1 if before == 0.1 else 3)))
    assert refusals(play(made(Old), norms, 40), "e") == list(range(13, 41))


@pytest.mark.parametrize(("jump", "lost"), [(10, 1), (100, 3)])
def test_a_jump_of_all_sites_at_once_costs_few_rounds(jump: float, lost: int) -> None:
    norms = {site: (lambda round_: 0.1 if round_ <= 12 else 0.1 * jump) for site in "abcde"}
    for site in norms:
        assert len(refusals(play(made(), norms, 40), site)) == lost
        assert len(refusals(play(made(Old), norms, 40), site)) == 28


def test_two_sites_are_enough() -> None:
    norms = {"a": lambda round_: 1.0, "b": lambda round_: 0.05 if round_ <= 12 else 1.0}
    assert refusals(play(made(), norms, 30), "b") == [13, 14]


def test_a_site_that_was_always_larger_stays() -> None:
    norms = {**HONEST, "e": lambda round_: 28.0 * (1 + 0.2 * (-1) ** round_)}
    rule = made()
    assert refusals(play(rule, norms, 30), "e") == []
    assert rule.state()["shares"] == {"e": pytest.approx(22.4)}
    # the fake: no site is larger than the others
    rule._shares.clear()
    assert judged(rule, "e", 28.0).outcome == "refuse"


def test_norms_that_fall_and_vary_are_admitted() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.uniform(0.6, 1.6, (5, 60)) * np.geomspace(1, 0.05, 60)
    norms = {site: (lambda round_, row=row: float(row[round_ - 1])) for site, row in zip("abcde", drawn, strict=True)}
    assert all(len(admitted) == 5 for admitted in play(made(), norms, 60))


# hostile sites


def hundredfold(rule: NormHistory, hostile: Callable[[int], float]) -> float:
    """The largest norm of the hostile site that was ever admitted."""
    rounds = play(rule, {**HONEST, "e": hostile}, 60)
    return max((admitted["e"] for admitted in rounds if "e" in admitted), default=0.0)


HUNDREDFOLD: Mapping[str, Callable[[int], float]] = {
    "from the start": lambda round_: 100.0,
    "after honest rounds": lambda round_: 1.0 if round_ < 15 else 100.0,
    "in bursts": lambda round_: 1.0 if round_ % 6 == 0 else 100.0,
}


@pytest.mark.parametrize("how", HUNDREDFOLD)
def test_a_hundredfold_update_never_gets_in(how: str) -> None:
    assert hundredfold(made(), HUNDREDFOLD[how]) <= 1.0
    assert hundredfold(made(Naive), HUNDREDFOLD[how]) == 100.0


@pytest.mark.parametrize("growth", [1.03, 1.1, 1.3, 2.0, 3.9])
def test_a_site_that_grows_is_bounded_by_the_median_of_the_others(growth: float) -> None:
    creep = {**HONEST, "e": lambda round_: growth**round_}
    rounds = 150 if growth < 1.1 else 60

    def largest(rule: NormHistory) -> float:
        return max(admitted.get("e", 0.0) for admitted in play(rule, creep, rounds))

    assert largest(made()) <= 16.0
    assert largest(made(Naive)) > 50


def test_waiting_to_be_let_in_leads_no_further_than_the_others_show() -> None:
    rule = made()
    play(rule, {**HONEST, "e": lambda round_: 0.5 if round_ < 10 else 90.0}, 60)
    assert judged(rule, "e", 4.0).outcome == "admit"
    assert "median of the other sites" in judged(rule, "e", 4.1).reason


@pytest.mark.parametrize("others", [2, 3, 4])
@pytest.mark.parametrize("hostile", [0.0, 1e-9, 29.0, 1e9])
def test_one_site_cannot_lock_out_honest_ones(others: int, hostile: float) -> None:
    norms = {site: HONEST[site] for site in "abcd"[:others]}
    rounds = play(made(), {**norms, "e": lambda round_: hostile}, 30)
    assert all(refusals(rounds, site) == [] for site in norms)


def lower(rule: NormHistory, site: str) -> float:
    others = rule._others(site)
    return others[(len(others) - 1) // 2]


def test_the_lower_median_would_let_one_site_lock_out_another() -> None:
    rule = made()
    play(rule, {"a": lambda round_: 1.0, "b": lambda round_: 1.0, "e": lambda round_: 1e-9}, 5)
    assert lower(rule, "a") == 1e-9 and rule._others("a") == [1e-9, 1.0]


@given(
    st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12),
    st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6),
    st.integers(0, 400),
    st.floats(1.01, 1e3),
)
def test_nothing_is_admitted_that_neither_the_own_history_nor_the_others_show(
    own: list[float], others: list[float], times: int, factor: float
) -> None:
    rule = made(factor=factor)
    for norm in own:
        rule._norms["e"] = [*rule._norms.get("e", []), norm][-10:]
    rule._norms |= {f"s{number}": [norm] for number, norm in enumerate(others)}
    rule._refused["e"] = times, 1.0
    usual = sorted(others)[len(others) // 2]
    most = factor * max(float(np.median(own[-10:])), usual)
    assert judged(rule, "e", most * 1.001).outcome == "refuse"
    assert judged(rule, "e", float("nan")).outcome == judged(rule, "e", float("inf")).outcome == "refuse"


# under differential privacy


def test_alone_other_sites_decide_nothing() -> None:
    def verdicts(scale: float, alone: bool) -> list[list[int]]:
        others = {site: (lambda round_: scale * 1.3**round_) for site in "abcd"}
        norms = {**others, "e": lambda round_: 0.01 if round_ < 5 else 1.0 + round_}
        return [refusals(play(made(), norms, 20, alone), "e")]

    assert verdicts(1.0, alone=True) == verdicts(1e-3, alone=True) == verdicts(1e3, alone=True)
    assert verdicts(1.0, alone=False) != verdicts(1e-3, alone=False)


@pytest.mark.parametrize("alone", [True, False])
def test_alone_a_site_comes_back_too(alone: bool) -> None:
    norms = {**HONEST, "e": lambda round_: 0.01 if round_ <= 12 else 1.0}
    assert refusals(play(made(), norms, 30, alone), "e") == [13, 14, 15]


@pytest.mark.parametrize("noise", [None, object()])
def test_rules_are_told_when_others_must_not_decide(noise: Any) -> None:
    how = Summation(CHANNELS.build(CHANNELS.default("clear")), 1.0, None, noise)
    federation = Federation(federation_parts(summation=how), 0, MODEL.copy())
    round_ = federation.open(RoundPlan(1, ("a",), {}, {"a": 1}))
    assert round_._bench.alone == (noise is not None)


# state


class Forgetful(NormHistory):
    """The fake: a resumed run has forgotten who was refused."""

    def restore(self, state: dict[str, Any]) -> None:
        super().restore({"norms": state["norms"]})


def resumed(kind: type[NormHistory], rounds: int = 30) -> list[dict[str, float]]:
    """A run whose rule is made anew from its state after each round."""
    rule, found = made(kind), []
    norms = {**HONEST, "e": lambda round_: 0.01 if round_ <= 12 else 1.0, "f": lambda round_: 25.0}
    for round_ in range(1, rounds + 1):
        found += play(rule, {site: partial(_at, norm, round_) for site, norm in norms.items()}, 1)
        state = json.loads(json.dumps(rule.state()))
        rule = made(kind)
        rule.restore(state)
    assert kind is not NormHistory or rule.state() == state
    return found


def _at(norm: Callable[[int], float], round_: int, _: int) -> float:
    return norm(round_)


def test_a_resumed_run_goes_on_exactly() -> None:
    norms = {**HONEST, "e": lambda round_: 0.01 if round_ <= 12 else 1.0, "f": lambda round_: 25.0}
    whole = play(made(), norms, 30)
    assert refusals(whole, "e") == [13, 14, 15]
    assert resumed(NormHistory) == whole != resumed(Forgetful)


def test_a_state_of_an_earlier_version_is_taken() -> None:
    rule = made()
    rule.restore({"norms": {"a": [1.0, 1.0, 1.0]}})
    assert judged(rule, "a", 4.0).outcome == "admit" and judged(rule, "a", 4.1).outcome == "refuse"


def test_only_its_own_refusals_reach_a_rule() -> None:
    rule = plugin(REGULATORS, "norm_history")
    federation = Federation(federation_parts(regulator=[plugin(REGULATORS, "finite"), rule]), 0, MODEL.copy())
    verdicts = {"a": Verdict("admit"), "b": Verdict("refuse", "norm_history", "", 0.0)}
    verdicts |= {"c": Verdict("refuse", "finite", "", 0.0), "d": Verdict("refuse", "validation", "", 0.0)}
    sites = {site: Contribution(10, norm=2.0, verdict=verdict) for site, verdict in verdicts.items()}
    sites["e"] = Contribution(failure="lost")
    federation.step(RoundOutcome(RoundPlan(1, tuple(sites), {}, {}), sites), None)
    assert rule.state() == {"norms": {"a": [2.0]}, "refused": {"b": [1, 2.0]}}


def test_refusals_that_are_no_numbers_teach_nothing() -> None:
    rule = made()
    rule.learn([("a", 1.0)], [("b", float("nan")), ("c", float("inf"))])
    assert rule.state() == {"norms": {"a": [1.0]}}
