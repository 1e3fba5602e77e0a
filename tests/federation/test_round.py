"""The round: who is awaited, what counts, and what is learned."""

import math
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from toys.parts import configured, federation_parts, plugin

from medfl.errors import RunError
from medfl.federation.aggregation.base import AGGREGATORS
from medfl.federation.aggregation.weighted_mean import WeightedMean
from medfl.federation.open_round import OpenRound
from medfl.federation.parts import FederationParts
from medfl.federation.regulator.base import REGULATORS, Arrival, Bench, RegulatorRule, Verdict
from medfl.federation.round import Federation
from medfl.federation.schedule.base import SCHEDULES
from medfl.federation.server_steps.base import SERVER_STEPS
from medfl.hyperparameters.base import Progress
from medfl.hyperparameters.constant import Constant, ConstantConfig
from medfl.learning.messages import SiteFailure, TrainReply
from medfl.plugins import PluginConfig
from medfl.update.base import Payload, Update
from medfl.update.wire import as_bytes

SIZE = 20
CASES = {name: 10 + number for number, name in enumerate("abcdef")}
Vector = npt.NDArray[np.float32]


def reply(
    name: str, values: Vector | None, round_: int = 1, cases: int = 10, loss: float = 1.0, codec: str = "fp32"
) -> TrainReply:
    payload = None if values is None else Payload(codec, values.size, (as_bytes(values),))
    return TrainReply(name, round_, payload, cases, 4, 2, loss, loss / 2)


def good(seed: int, size: int = SIZE) -> Vector:
    rng = np.random.default_rng(seed)
    return (np.linspace(0.1, 1, size) + 0.05 * rng.normal(size=size)).astype(np.float32)


def federation(size: int = SIZE, **changes: Any) -> Federation:
    return Federation(federation_parts(**changes), 0, np.ones(size, np.float32))


def opened(made: Federation, cases: Mapping[str, int] = CASES) -> OpenRound:
    return made.open(made.plan(cases))


def rules(*kinds: str, **settings: Any) -> list[RegulatorRule]:
    return [plugin(REGULATORS, kind, **settings) for kind in kinds]


# who takes part


def test_all_sites_take_part_in_order_of_their_names() -> None:
    plan = federation().plan({"b": 1, "a": 2, "c": 3})
    assert plan.cohort == ("a", "b", "c") and plan.round == 1
    assert [(order.site, order.round) for order in plan.orders()] == [("a", 1), ("b", 1), ("c", 1)]


def test_a_plan_depends_on_seed_and_round_alone() -> None:
    def plans(seed: int, order: Sequence[str]) -> list[tuple[str, ...]]:
        made = Federation(
            federation_parts(schedule=plugin(SCHEDULES, "uniform", fraction=0.5)), seed, np.ones(1, np.float32)
        )
        cohorts = []
        for _ in range(6):
            plan = made.plan(dict.fromkeys(order, 1))
            assert plan == made.plan(dict.fromkeys(order, 1))
            cohorts.append(plan.cohort)
            made.close(made.open(plan))
        return cohorts

    first = plans(0, "abcdef")
    assert first == plans(0, "fedcba") and first != plans(1, "abcdef") and len(set(first)) > 1
    assert all(len(cohort) == 3 and list(cohort) == sorted(set(cohort)) for cohort in first)


@pytest.mark.parametrize(("fraction", "minimum", "expected"), [(0.01, 1, 1), (0.01, 4, 4), (1.0, 1, 6), (0.5, 99, 6)])
def test_uniform_respects_its_minimum(fraction: float, minimum: int, expected: int) -> None:
    schedule = plugin(SCHEDULES, "uniform", fraction=fraction, minimum=minimum)
    assert len(schedule.cohort(1, CASES, np.random.default_rng(0))) == expected


def test_uniform_treats_sites_alike() -> None:
    made = Federation(
        federation_parts(schedule=plugin(SCHEDULES, "uniform", fraction=1 / 3)), 0, np.ones(1, np.float32)
    )
    counts = dict.fromkeys(CASES, 0)
    for _ in range(300):
        plan = made.plan(CASES)
        for name in plan.cohort:
            counts[name] += 1
        made.close(made.open(plan))
    assert all(70 < count < 130 for count in counts.values())


# what counts


def test_the_mean_is_weighted_by_cases() -> None:
    made = federation()
    round_ = opened(made, {"a": 100, "b": 100})
    round_.receive(reply("a", good(1), cases=30))
    round_.receive(reply("b", good(2), cases=10))
    outcome = made.close(round_)
    np.testing.assert_allclose(made.model, 1 + (30 * good(1) + 10 * good(2)) / 40, rtol=1e-6)
    assert outcome.moved and made.round == 1
    assert outcome.sites["a"].norm == pytest.approx(np.linalg.norm(good(1)), rel=1e-6)


def test_losses_are_weighted_by_cases_over_admitted_sites() -> None:
    made = federation()
    round_ = opened(made, dict.fromkeys("abcd", 1000))
    round_.receive(reply("a", good(1), cases=30, loss=1.0))
    round_.receive(reply("b", good(2), cases=10, loss=5.0))
    round_.receive(reply("c", np.full(SIZE, np.nan, np.float32), cases=1000, loss=100.0))
    round_.fail(SiteFailure("d", 1, "no power"))
    outcome = made.close(round_)
    assert outcome.loss_start == pytest.approx(2.0) and outcome.loss == pytest.approx(1.0)
    assert outcome.sites["d"].failure == "no power" and outcome.sites["d"].verdict is None


def test_hyper_parameters_hear_the_loss_at_the_start_of_the_admitted_sites() -> None:
    heard: list[Progress] = []

    class Hears(Constant):
        def update(self, progress: Progress) -> None:
            heard.append(progress)

    made = federation()
    made = Federation(replace(made.parts, values={"x": Hears(ConstantConfig(value=3))}), 0, made.model)
    for round_number in (1, 2):
        round_ = opened(made)
        assert round_.outcome.plan.values == {"x": 3}
        round_.receive(reply("a", good(1), round_number, loss=4.0))
        round_.receive(reply("b", np.full(SIZE, np.nan, np.float32), round_number, loss=50.0))
        made.close(round_)
    assert heard == [Progress(1, 4.0), Progress(2, 4.0)]


def test_a_loss_that_is_not_finite_does_not_take_the_others_with_it() -> None:
    made = federation()
    round_ = opened(made)
    round_.receive(reply("a", good(1), loss=3.0))
    round_.receive(reply("b", good(2), loss=math.nan))
    assert made.close(round_).loss_start == pytest.approx(3.0)


@pytest.mark.parametrize("cases", [0, -5, 10**9])
def test_a_site_without_cases_or_with_more_than_it_joined_with_counts_nothing(cases: int) -> None:
    made = federation()
    round_ = opened(made)
    round_.receive(reply("a", good(1)))
    mine = round_.receive(reply("b", 1000 * good(2), cases=cases))
    made.close(round_)
    assert mine.verdict is not None and mine.verdict.outcome == "refuse" and mine.verdict.rule == "cases"
    np.testing.assert_allclose(made.model, 1 + good(1), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_refused_updates_count_as_nothing(bad: float) -> None:
    models = []
    for answers in (1, 2):
        made = federation()
        round_ = opened(made)
        round_.receive(reply("a", good(1)))
        broken = good(2)
        broken[0] = bad
        if answers == 2:
            verdict = round_.receive(reply("b", broken)).verdict
            assert verdict == Verdict("refuse", "finite", "the update holds values that are not finite", 0.0)
        made.close(round_)
        models.append(made.model.tobytes())
    assert models[0] == models[1]


def test_all_refused_leaves_everything_as_it_was() -> None:
    made = federation(regulator=rules("norm_limit", limit=0.1), server=plugin(SERVER_STEPS, "momentum"))
    before = made.model.copy()
    round_ = opened(made)
    for name in CASES:
        round_.receive(reply(name, good(1)))
    outcome = made.close(round_)
    assert not outcome.moved and math.isnan(outcome.loss_start) and made.round == 1
    np.testing.assert_array_equal(made.model, before)


def test_a_round_without_answers_leaves_the_model() -> None:
    made = federation()
    before = made.model.copy()
    outcome = made.close(opened(made))
    assert not outcome.moved and outcome.sites == {}
    np.testing.assert_array_equal(made.model, before)


@pytest.mark.parametrize(
    "wrong",
    [
        reply("a", good(1, SIZE + 1)),
        reply("a", good(1), codec="fp16"),
        replace(reply("a", good(1)), payload=Payload("fp32", SIZE, (b"123",))),
        replace(reply("a", good(1)), payload=Payload("fp32", SIZE, ())),
    ],
)
def test_a_payload_that_does_not_fit_is_refused_and_the_round_goes_on(wrong: TrainReply) -> None:
    made = federation()
    round_ = opened(made)
    mine = round_.receive(wrong)
    assert mine.verdict is not None and (mine.verdict.outcome, mine.verdict.rule) == ("refuse", "shape")
    round_.receive(reply("b", good(2)))
    assert made.close(round_).moved


def test_a_skipped_upload_is_noted() -> None:
    made = federation()
    round_ = opened(made)
    mine = round_.receive(reply("a", None))
    assert mine.skipped_upload and mine.verdict is None
    assert not made.close(round_).moved


def test_strangers_latecomers_and_repeats_are_refused() -> None:
    made = federation()
    round_ = opened(made)
    round_.receive(reply("a", good(1)))
    for wrong in (reply("stranger", good(1)), reply("b", good(1), round_=2), reply("a", good(1))):
        with pytest.raises(RunError, match=wrong.site):
            round_.receive(wrong)
    for failure in (SiteFailure("a", 1, ""), SiteFailure("stranger", 1, ""), SiteFailure("b", 0, "")):
        with pytest.raises(RunError):
            round_.fail(failure)
    round_.fail(SiteFailure("b", 1, "late"))
    with pytest.raises(RunError, match="answered already"):
        round_.receive(reply("b", good(1)))
    made.close(round_)
    np.testing.assert_allclose(made.model, 1 + good(1), rtol=1e-6)


def test_a_round_is_closed_once() -> None:
    made = federation()
    round_ = opened(made)
    round_.receive(reply("a", good(1)))
    made.close(round_)
    after = made.model.copy()
    with pytest.raises(RunError, match="after round 1"):
        made.close(round_)
    np.testing.assert_array_equal(made.model, after)


def test_payloads_are_neither_changed_nor_kept() -> None:
    made = federation()
    sent = [good(1), good(2)]
    for round_number in (1, 2):
        round_ = opened(made)
        for name, values in zip("ab", sent, strict=True):
            round_.receive(reply(name, values, round_number))
        made.close(round_)
    np.testing.assert_array_equal(sent[0], good(1))
    assert not any(np.shares_memory(array, values) for array in made.state()[1].values() for values in sent)


# the regulator in a round


class Halves(RegulatorRule):
    """Down-weights every second site; in its other form only once all have arrived."""

    late = False

    def judge(self, arrival: Arrival, bench: Bench) -> Verdict:
        return Verdict("admit") if self.late else self._verdict(arrival)

    def judge_cohort(self, arrivals: Sequence[Arrival], bench: Bench) -> Mapping[str, Verdict]:
        return {one.site: self._verdict(one) for one in arrivals} if self.late else {}

    def _verdict(self, arrival: Arrival) -> Verdict:
        return Verdict("down-weight", "halves", "", 0.5 if arrival.site in "ace" else 0.25)


class Waits(PluginConfig):
    def traits(self) -> frozenset[str]:
        return frozenset({"compares-sites"})


def test_factors_multiply_the_weights_on_arrival_and_at_the_end_alike() -> None:
    models = []
    for late in (False, True):
        rule = Halves(Waits(kind="halves") if late else PluginConfig(kind="halves"))
        rule.late = late
        made = federation(regulator=[rule])
        round_ = opened(made)
        for name, cases in CASES.items():
            round_.receive(reply(name, good(cases), cases=cases))
        outcome = made.close(round_)
        assert outcome.sites["a"].verdict == Verdict("down-weight", "halves", "", 0.5)
        models.append(made.model)
    weights = [cases * (0.5 if name in "ace" else 0.25) for name, cases in CASES.items()]
    expected = sum(w * good(c) for w, c in zip(weights, CASES.values(), strict=True)) / sum(weights)
    np.testing.assert_allclose(models[0], 1 + expected, rtol=1e-5)
    assert models[0].tobytes() == models[1].tobytes()


def test_a_rule_that_compares_and_refuses_nobody_gives_the_streamed_bits() -> None:
    models = []
    for kinds in (["finite"], ["finite", "median_distance"]):
        made = federation(regulator=rules(*kinds))
        for round_number in (1, 2):
            round_ = opened(made)
            for name, cases in CASES.items():
                round_.receive(reply(name, good(cases), round_number, cases))
            made.close(round_)
        models.append(made.model.tobytes())
    assert models[0] == models[1]


def test_rules_that_compare_and_rules_that_do_not_work_together() -> None:
    made = federation(regulator=rules("finite", "median_distance"))
    round_ = opened(made)
    for name in "abcd":
        round_.receive(reply(name, good(3)))
    round_.receive(reply("e", -good(3)))
    round_.receive(reply("f", np.full(SIZE, np.nan, np.float32)))
    outcome = made.close(round_)
    verdicts = {name: mine.verdict for name, mine in outcome.sites.items()}
    assert {name for name, verdict in verdicts.items() if verdict and verdict.outcome == "refuse"} == {"e", "f"}
    assert verdicts["e"] is not None and verdicts["e"].rule == "median_distance"
    np.testing.assert_allclose(made.model, 1 + good(3), rtol=1e-6)


def test_the_regulator_does_not_learn_from_what_it_refused() -> None:
    rule = plugin(REGULATORS, "norm_history", factor=3)
    made = federation(regulator=[rule])
    for round_number in range(1, 6):
        round_ = opened(made, {"a": 100, "b": 100})
        round_.receive(reply("a", good(1), round_number))
        scale = 1 if round_number == 1 else 3.5**round_number
        round_.receive(reply("b", np.float32(scale) * good(1), round_number))
        outcome = made.close(round_)
    norms = rule.state()["norms"]
    assert len(norms["a"]) == 5 and len(norms["b"]) == 1
    verdict = outcome.sites["b"].verdict
    assert verdict is not None and verdict.outcome == "refuse"


# order and memory


class Listed(WeightedMean):
    def start(self, size: int) -> None:
        super().start(size)
        self.order: list[float] = []

    def add(self, update: Update, weight: float) -> None:
        self.order.append(weight)
        super().add(update, weight)


@pytest.mark.parametrize("kinds", [["finite"], ["finite", "median_distance"]])
def test_updates_are_combined_in_the_order_of_arrival(kinds: list[str]) -> None:
    aggregator = Listed(configured(AGGREGATORS, "weighted_mean"))  # type: ignore[arg-type]
    made = federation(aggregator=aggregator, regulator=rules(*kinds))
    round_ = opened(made)
    for name in made.plan(CASES).cohort:
        round_.receive(reply(name, good(1), cases=CASES[name]))
    made.close(round_)
    assert aggregator.order == list(CASES.values())


def peak_of_a_round(sites: int, parts: FederationParts, size: int = 200_000) -> int:
    made = Federation(parts, 0, np.ones(size, np.float32))
    cases = {f"site{number:03}": 10 for number in range(sites)}
    made.close(made.open(made.plan(cases)))
    round_ = made.open(made.plan(cases))
    tracemalloc.start()
    for name in cases:
        round_.receive(reply(name, good(1, size), 2))
    made.close(round_)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_number_of_sites_unless_a_rule_compares_them() -> None:
    few, many = (peak_of_a_round(sites, federation_parts()) for sites in (3, 24))
    assert many < few + 0.5 * 200_000 * 4
    held = peak_of_a_round(24, federation_parts(regulator=rules("finite", "median_distance")))
    assert held > few + 15 * 200_000 * 4


def test_importing_the_federation_imports_no_torch() -> None:
    code = (
        "import sys, medfl.federation.round, medfl.update.pipeline, medfl.study.build\n"
        "print(sorted(name for name in ('torch', 'monai', 'sqlalchemy', 'matplotlib') if name in sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
