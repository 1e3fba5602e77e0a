"""Each regulator rule's verdicts, and how they are combined."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from toys.parts import configured, plugin

from medfl.errors import StudyError
from medfl.federation.regulator.base import ADMIT, REGULATORS, Arrival, Bench, RegulatorRule, Verdict, combine
from medfl.update.base import Update

SIZE = 50
MODEL = np.random.default_rng(0).normal(size=SIZE).astype(np.float32)
BENCH = Bench(MODEL)


def good(seed: int = 1, scale: float = 0.1) -> npt.NDArray[np.float32]:
    """Updates that share a direction."""
    rng = np.random.default_rng(seed)
    values = scale * (np.linspace(-1, 1, SIZE) + 0.3 * rng.normal(size=SIZE))
    return values.astype(np.float32)


def arrival(values: npt.NDArray[np.float32], site: str = "a", round_: int = 1) -> Arrival:
    update = Update(values, values.size)
    return Arrival(site, round_, update, update.norm(), 10, 1.0)


def rule(kind: str, **settings: Any) -> RegulatorRule:
    built: RegulatorRule = plugin(REGULATORS, kind, **settings)
    return built


def cohort(*bad: npt.NDArray[np.float32]) -> list[Arrival]:
    """Four good sites g0..g3, then bad ones b0.."""
    found = [arrival(good(seed), f"g{seed}") for seed in range(4)]
    return found + [arrival(values, f"b{number}") for number, values in enumerate(bad)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_finite(bad: float) -> None:
    values = good()
    assert rule("finite").judge(arrival(values), BENCH) == ADMIT
    values[3] = bad
    verdict = rule("finite").judge(arrival(values), BENCH)
    assert (verdict.outcome, verdict.rule, verdict.factor) == ("refuse", "finite", 0)
    assert "not finite" in verdict.reason


@pytest.mark.parametrize(
    "kind", ["finite", "norm_limit", "norm_history", "validation", "validation_median", "median_distance"]
)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_rule_alone_admits_values_that_are_not_finite(kind: str, bad: float) -> None:
    broken = good()
    broken[0] = bad
    made = rule(kind, **({"limit": 1e30} if kind == "norm_limit" else {}))
    bench = Bench(MODEL, lambda vector: {"loss": float(vector.sum())})
    arrivals = cohort(broken)
    verdict = made.judge(arrivals[-1], bench)
    later = made.judge_cohort(arrivals, bench)
    assert combine([verdict, later.get("b0", ADMIT)]).outcome == "refuse"
    assert all(combine([made.judge(one, bench), later.get(one.site, ADMIT)]).outcome == "admit" for one in arrivals[:4])


def test_norm_limit() -> None:
    values = np.zeros(SIZE, np.float32)
    values[0] = 2.0
    assert rule("norm_limit", limit=2).judge(arrival(values), BENCH) == ADMIT
    verdict = rule("norm_limit", limit=1.99).judge(arrival(values), BENCH)
    assert verdict.outcome == "refuse" and "2" in verdict.reason and "1.99" in verdict.reason


def test_norm_history_before_there_is_a_history() -> None:
    made = rule("norm_history", first=2)
    length = float(np.linalg.norm(MODEL))
    unit = (good() / np.linalg.norm(good())).astype(np.float32)
    assert made.judge(arrival(unit * np.float32(1.9 * length)), BENCH) == ADMIT
    verdict = made.judge(arrival(unit * np.float32(2.1 * length)), BENCH)
    assert verdict.outcome == "refuse" and "norm of the model" in verdict.reason


def test_norm_history_follows_each_sites_own_norms() -> None:
    made = rule("norm_history", factor=3, window=3)
    for norm in (100.0, 1.0, 1.0, 2.0):
        made.learn([("a", norm), ("b", 50.0)])
    unit = (good() / np.linalg.norm(good())).astype(np.float32)
    assert made.judge(arrival(unit * np.float32(2.9)), BENCH) == ADMIT
    verdict = made.judge(arrival(unit * np.float32(3.1)), BENCH)
    assert verdict.outcome == "refuse" and "its own median" in verdict.reason
    assert made.judge(arrival(unit * np.float32(100), "b"), BENCH) == ADMIT


def test_norm_history_of_updates_that_changed_nothing_does_not_lock_a_site_out() -> None:
    made = rule("norm_history")
    made.learn([("a", 0.0)])
    assert made.judge(arrival(good()), BENCH) == ADMIT


def test_norm_history_state_is_a_snapshot_and_continues() -> None:
    made = rule("norm_history", window=2)
    made.learn([("a", 1.0)])
    state = made.state()
    text = json.dumps(state)
    made.learn([("a", 2.0), ("b", 3.0)])
    assert json.dumps(state) == text
    other = rule("norm_history", window=2)
    other.restore(json.loads(text))
    other.learn([("a", 2.0), ("b", 3.0)])
    assert other.state() == made.state() == {"norms": {"a": [1.0, 2.0], "b": [3.0]}}


def quadratic(vector: npt.NDArray[np.float32]) -> dict[str, float]:
    """A public set on which the model MODEL + good(1) is perfect."""
    distance = float(((vector - MODEL - good()) ** 2).sum())
    return {"loss": distance, "dice": 1 / (1 + 10 * distance)}


def test_validation_admits_what_helps_and_refuses_what_harms() -> None:
    made, bench = rule("validation", tolerance=0.1, slack=0.0), Bench(MODEL, quadratic)
    assert made.judge(arrival(good()), bench) == ADMIT
    assert made.judge(arrival(np.zeros(SIZE, np.float32)), bench) == ADMIT
    verdict = made.judge(arrival(-good()), bench)
    assert (verdict.outcome, verdict.rule, verdict.factor) == ("refuse", "validation", 0)
    assert made.judge(arrival(100 * good()), bench).outcome == "refuse"


def test_validation_weighs_by_quality_with_a_floor() -> None:
    made, bench = rule("validation", tolerance=9, metric="dice", floor=0.2), Bench(MODEL, quadratic)
    best = made.judge(arrival(good()), bench)
    assert (best.outcome, best.rule, best.reason) == ("down-weight", "validation", "dice 1.000")
    assert best.factor == pytest.approx(1)
    worse = made.judge(arrival(np.zeros(SIZE, np.float32)), bench)
    assert worse.factor == pytest.approx(quadratic(MODEL)["dice"])
    assert made.judge(arrival(-good()), bench).factor == 0.2


@pytest.mark.parametrize("value", [float("nan"), -1.0, 0.0])
def test_a_quality_without_support_counts_as_the_floor(value: float) -> None:
    made = rule("validation", metric="dice", floor=0.3)
    verdict = made.judge(arrival(good()), Bench(MODEL, lambda vector: {"loss": 1.0, "dice": value}))
    assert verdict.factor == 0.3


def test_a_quality_above_one_is_not_an_advantage() -> None:
    made = rule("validation", metric="snr")
    assert made.judge(arrival(good()), Bench(MODEL, lambda vector: {"loss": 1.0, "snr": 40.0})).factor == 1.0


def test_validation_names_the_metrics_there_are() -> None:
    with pytest.raises(StudyError, match=r"'dise'.*dice, loss"):
        rule("validation", metric="dise").judge(arrival(good()), Bench(MODEL, quadratic))


def test_validation_without_public_images_is_refused() -> None:
    with pytest.raises(StudyError, match="public"):
        rule("validation").judge(arrival(good()), BENCH)


def test_validation_recovers_from_a_global_model_without_a_finite_loss() -> None:
    losses = iter([float("nan"), 3.0])
    assert rule("validation").judge(arrival(good()), Bench(MODEL, lambda vector: {"loss": next(losses)})) == ADMIT


def test_validation_scores_the_global_model_once_a_round_and_afresh_each_round() -> None:
    asked: list[bytes] = []

    def noted(vector: npt.NDArray[np.float32]) -> dict[str, float]:
        asked.append(vector.tobytes())
        return quadratic(vector)

    made, bench = rule("validation"), Bench(MODEL, noted)
    made.judge(arrival(good(1), "a"), bench)
    made.judge(arrival(good(2), "b"), bench)
    assert asked.count(MODEL.tobytes()) == 1 and len(asked) == 3
    made.judge(arrival(good(1), "a", 2), bench)
    assert asked.count(MODEL.tobytes()) == 2
    made.restore({})
    made.judge(arrival(good(1), "a", 2), bench)
    assert asked.count(MODEL.tobytes()) == 3


def by_median(arrivals: list[Arrival], loss: Callable[[Any], float]) -> dict[str, str]:
    bench = Bench(MODEL, lambda vector: {"loss": loss(vector)})
    verdicts = rule("validation_median", tolerance=0.3, slack=0.0).judge_cohort(arrivals, bench)
    assert all(verdict.outcome == "refuse" and verdict.factor == 0 for verdict in verdicts.values())
    return {site: verdict.reason for site, verdict in verdicts.items()}


def test_validation_median_refuses_who_does_worse_than_the_others_though_better_than_the_global_model() -> None:
    arrivals = [arrival(good(n), name) for n, name in enumerate("abc")]
    harmful = arrival(0.3 * good(), "d")
    assert by_median([*arrivals, harmful], lambda vector: quadratic(vector)["loss"]).keys() == {"d"}
    # the fake: `validation` measures against the global model, which the harmful update improves, too
    assert rule("validation").judge(harmful, Bench(MODEL, quadratic)) == ADMIT


def test_validation_median_needs_three_and_its_public_images() -> None:
    two = [arrival(good(1), "a"), arrival(-good(), "b")]
    assert by_median(two, lambda vector: quadratic(vector)["loss"]) == {}
    with pytest.raises(StudyError, match="public"):
        rule("validation_median").judge_cohort(two, BENCH)


def refused(arrivals: list[Arrival], **settings: Any) -> dict[str, str]:
    verdicts = rule("median_distance", **settings).judge_cohort(arrivals, BENCH)
    assert all(verdict.outcome == "refuse" and verdict.factor == 0 for verdict in verdicts.values())
    return {site: verdict.reason for site, verdict in verdicts.items()}


def test_median_distance_admits_sites_that_agree() -> None:
    assert refused(cohort()) == {}


def test_median_distance_refuses_the_negated_and_the_scaled() -> None:
    found = refused(cohort(-good(), 100 * good(), 0.01 * good()))
    assert set(found) == {"b0", "b1", "b2"}
    assert "cosine" in found["b0"] and "norm" in found["b1"] and "norm" in found["b2"]


def test_median_distance_is_not_fooled_by_a_huge_update() -> None:
    assert set(refused(cohort(1e30 * good()))) == {"b0"}


def test_median_distance_is_robust_to_one_that_is_not_finite() -> None:
    broken = good()
    broken[0] = np.nan
    assert set(refused(cohort(broken, -good()))) == {"b0", "b1"}


def test_median_distance_needs_three() -> None:
    assert refused(cohort(-good())[3:]) == {}


def test_median_distance_is_silent_where_there_is_no_direction() -> None:
    zeros = [arrival(np.zeros(SIZE, np.float32), f"z{number}") for number in range(3)]
    assert refused(zeros) == {}
    # sparse updates on different coordinates: their median is zero
    sparse = [arrival(np.eye(SIZE, dtype=np.float32)[number], f"s{number}") for number in range(4)]
    assert refused(sparse) == {}


@given(st.integers(0, 100), st.integers(1, 200))
def test_median_distance_does_not_depend_on_the_block_or_the_order(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    arrivals = [arrival(rng.normal(size=size).astype(np.float32), f"s{number}") for number in range(5)]
    assert set(refused(arrivals)) == set(refused(arrivals[::-1]))


def test_combine() -> None:
    low, lower = Verdict("down-weight", "x", "one", 0.5), Verdict("down-weight", "y", "two", 0.25)
    no = Verdict("refuse", "z", "three", 0.0)
    assert combine([]) == combine([ADMIT, ADMIT]) == ADMIT
    assert combine([ADMIT, low]) == low
    assert combine([low, ADMIT, lower]) == Verdict("down-weight", "x, y", "one; two", 0.125)
    assert combine([low, no, lower]) == no


def test_the_traits_that_studies_are_checked_by() -> None:
    assert "compares-sites" in configured(REGULATORS, "median_distance").traits()
    assert "needs-public-data" in configured(REGULATORS, "validation").traits()
    assert configured(REGULATORS, "finite").traits() == frozenset()
    assert configured(REGULATORS, "norm_history").traits() == {"needs-each-update"}
    with pytest.raises(ValidationError):
        configured(REGULATORS, "norm_limit")
