"""Aggregators: their formulas, what they withstand, and what one update or one round leaves behind."""

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError
from toys.parts import Federated, configured, federation_parts, plugin
from toys.problems import curvature, least_squares, loss, optimum
from toys.tasks import LeastSquares, Rows, site

from medfl.federation.aggregation.base import AGGREGATORS, Aggregator
from medfl.federation.aggregation.by_coordinate import _BLOCK
from medfl.federation.aggregation.median import Median, MedianConfig
from medfl.federation.aggregation.trimmed_mean import TrimmedMean, TrimmedMeanConfig
from medfl.update.base import Update

Vector = npt.NDArray[np.float32]
KINDS = sorted(AGGREGATORS.targets)
SIZE = 50


def aggregator(kind: str, **settings: Any) -> Aggregator:
    made: Aggregator = plugin(AGGREGATORS, kind, **settings)
    return made


def combined(made: Aggregator, updates: list[Update], weights: list[float] | None = None) -> Vector:
    made.start(updates[0].size)
    for update, weight in zip(updates, weights or [1.0] * len(updates), strict=True):
        made.add(update, weight)
    result = made.result()
    assert result is not None
    return result.copy()


def dense(count: int, size: int = SIZE, seed: int = 0) -> list[Update]:
    rng = np.random.default_rng(seed)
    return [Update(rng.normal(size=size).astype(np.float32), size) for _ in range(count)]


def sparse(update: Update, indices: npt.NDArray[np.int64]) -> Update:
    return Update(update.values[indices], update.size, indices)


def owned(count: int, seed: int = 1) -> tuple[list[Update], npt.NDArray[np.bool_]]:
    """Updates that hold about half of the coordinates each, and who owns which; coordinate 0 is nobody's."""
    rng = np.random.default_rng(seed)
    owners = rng.random((count, SIZE)) < 0.5
    owners[:, 0] = False
    updates = [sparse(update, np.flatnonzero(mine)) for update, mine in zip(dense(count), owners, strict=True)]
    return updates, owners


# every aggregator


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_added_is_no_update(kind: str) -> None:
    made = aggregator(kind)
    made.start(4)
    assert made.result() is None
    combined(made, dense(2))
    made.start(SIZE)
    assert made.result() is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_knows_nothing_of_the_one_before_nor_of_its_size(kind: str) -> None:
    made, rounds = aggregator(kind), [dense(5, 7), dense(3), owned(4)[0], dense(2, seed=5)]
    for updates in rounds:
        fresh = combined(aggregator(kind), updates)
        assert combined(made, updates).tobytes() == fresh.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_updates_may_be_freed_and_are_left_alone(kind: str) -> None:
    updates = dense(4)
    expected = combined(aggregator(kind), updates)
    made = aggregator(kind)
    made.start(SIZE)
    scratch = np.empty(SIZE, np.float32)
    for update in updates:
        scratch[:] = update.values
        made.add(Update(scratch, SIZE), 1.0)
        np.testing.assert_array_equal(scratch, update.values)
        scratch.fill(np.nan)
    result = made.result()
    assert result is not None and result.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_may_be_asked_for_twice(kind: str) -> None:
    made, (updates, _) = aggregator(kind), owned(3)
    first = combined(made, updates, [1.0, 2.0, 5.0])
    second = made.result()
    assert second is not None
    np.testing.assert_allclose(second, first, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_have_no_seams(kind: str) -> None:
    size = 3 * _BLOCK * 16 + 5
    updates = dense(3, size)
    whole = combined(aggregator(kind), updates)
    places = np.r_[0:9, _BLOCK - 4 : _BLOCK + 4, 16 * _BLOCK - 4 : 16 * _BLOCK + 4, size - 9 : size]
    part = combined(aggregator(kind), [Update(update.values[places], places.size) for update in updates])
    np.testing.assert_array_equal(whole[places], part)


# the mean over owners


def owners_mean(updates: list[Update], owners: npt.NDArray[np.bool_], weights: list[float]) -> Vector:
    share = owners * np.array(weights)[:, None]
    total = sum(weight * update.dense().astype(np.float64) for weight, update in zip(weights, updates, strict=True))
    found: Vector = np.divide(total, share.sum(0), out=np.zeros(SIZE), where=share.sum(0) > 0)
    return found


def test_masked_mean_is_the_mean_over_the_owners() -> None:
    (updates, owners), weights = owned(6), [1.0, 7.0, 2.5, 40.0, 3.0, 11.0]
    exact = owners_mean(updates, owners, weights)
    found = combined(aggregator("masked_mean"), updates, weights)
    np.testing.assert_allclose(found, exact, rtol=2e-6, atol=1e-7)
    assert found[0] == 0 and not np.signbit(found[0])
    # the mean over everybody is another
    assert not np.allclose(combined(aggregator("weighted_mean"), updates, weights), exact, rtol=0.1)


def test_masked_mean_of_whole_and_partial_updates() -> None:
    (updates, owners), weights = owned(4), [3.0, 1.0, 2.0, 5.0]
    updates[2] = dense(4)[2]
    owners[2] = True
    exact = owners_mean(updates, owners, weights)
    np.testing.assert_allclose(combined(aggregator("masked_mean"), updates, weights), exact, rtol=2e-6, atol=1e-7)


def test_masked_mean_of_whole_updates_is_fedavg_to_the_bit() -> None:
    weights = [3.0, 1.0, 2.0, 5.0]
    found = combined(aggregator("masked_mean"), dense(4), weights)
    assert found.tobytes() == combined(aggregator("weighted_mean"), dense(4), weights).tobytes()


# weighted mean


@pytest.mark.parametrize(
    "weights",
    [
        [4.0, 4.0, 4.0, 4.0],
        [4.0, 3.0, 4.0, 1.0],
        [0.0, 3.0, 0.0, 1.0],
        [1e-30, 5.0, 1e-9, 5.0],
        [5.0, 1e30, 1.0, 1e-30],
    ],
    ids=str,
)
@pytest.mark.parametrize("scale", [1.0, 1e30])
@pytest.mark.parametrize("partly", [False, True])
def test_weighted_mean_is_the_mean_whatever_the_weights(weights: list[float], scale: float, partly: bool) -> None:
    """The fake, weights in units of the first however small it is, is infinite or NaN."""
    updates = owned(4)[0] if partly else dense(4)
    updates = [Update(update.values * np.float32(scale), SIZE, update.indices) for update in updates]
    share = np.array(weights) / sum(weights)
    exact = sum(part * update.dense().astype(np.float64) for part, update in zip(share, updates, strict=True))
    found = combined(aggregator("weighted_mean"), updates, weights)
    np.testing.assert_allclose(found, exact, rtol=2e-6, atol=1e-6 * scale)


# median and trimmed mean

ROWS = hnp.arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 6)), elements=st.floats(-1e3, 1e3, width=32))


def rows(array: Any) -> list[Update]:
    return [Update(row, row.size) for row in np.ascontiguousarray(array)]


@given(ROWS)
def test_median_is_the_median(array: Any) -> None:
    exact = np.median(array.astype(np.float64), axis=0)
    np.testing.assert_allclose(combined(aggregator("median"), rows(array)), exact, rtol=1e-6, atol=1e-30)


@given(ROWS, st.sampled_from([0.0, 0.1, 0.25, 0.4, 0.49]))
def test_trimmed_mean_is_the_mean_of_the_middle(array: Any, share: float) -> None:
    count = len(array)
    drop = min(int(np.ceil(round(share * count, 6))), (count - 1) // 2)
    exact = np.sort(array.astype(np.float64), axis=0)[drop : count - drop].mean(0)
    found = combined(aggregator("trimmed_mean", share=share), rows(array))
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-30)


def test_trimmed_mean_trims_where_sites_are_few() -> None:
    assert [TrimmedMean(TrimmedMeanConfig()).cut(count) for count in (1, 2, 3, 4, 10, 11, 20)] == [0, 0, 1, 1, 1, 2, 2]
    # 0.07 * 100 is a little more than 7
    assert TrimmedMean(TrimmedMeanConfig(share=0.07)).cut(100) == 7
    with pytest.raises(ValidationError):
        TrimmedMeanConfig(share=0.5)


class SumsInOrder(Median):
    """The fake: adds in the order of arrival, as a plain mean does."""

    def result(self) -> Vector | None:
        total = np.zeros_like(self._result)
        for row in self._rows[: self._count]:
            total += row / np.float32(3)
        return total


def bits_by_order(made: Aggregator) -> int:
    """Different results over all orders of five updates with zeros of both signs."""
    updates = dense(5, 40)
    for update, zero in zip(updates, (0.0, -0.0, -0.0, 0.0, -0.0), strict=True):
        update.values[:10] = zero
    return len({combined(made, list(order)).tobytes() for order in itertools.permutations(updates)})


@pytest.mark.parametrize("kind", ["median", "trimmed_mean"])
def test_the_order_of_the_updates_does_not_change_a_bit(kind: str) -> None:
    assert bits_by_order(aggregator(kind)) == 1
    assert bits_by_order(SumsInOrder(MedianConfig())) > 1


@pytest.mark.parametrize(("kind", "hostile"), [("median", 4), ("trimmed_mean", 3), ("majority_vote", 4)])
@pytest.mark.parametrize("value", [1e30, -1e30, np.inf, np.nan])
def test_a_minority_cannot_move_the_result_past_the_honest(kind: str, hostile: int, value: float) -> None:
    honest = dense(9 - hostile)
    for update in honest:
        update.values[:] = 1 + np.abs(update.values)
    wrong = [Update(np.full(SIZE, value, np.float32), SIZE) for _ in range(hostile)]
    settings = {"trimmed_mean": {"share": 0.33}, "majority_vote": {"scale": 2.0}}.get(kind, {})
    values = np.stack([update.values for update in honest])

    def within(made: Aggregator) -> bool:
        with np.errstate(invalid="ignore", over="ignore"):
            found = combined(made, wrong + honest)
        return bool(((found >= values.min(0)) & (found <= values.max(0))).all())

    if kind == "majority_vote":
        with np.errstate(invalid="ignore"):
            found = combined(aggregator(kind, **settings), wrong + honest)
        # a NaN is no direction, and is seen
        assert np.isnan(found).all() if np.isnan(value) else (found == 2.0).all()
    else:
        assert within(aggregator(kind, **settings))
    assert not within(aggregator("weighted_mean"))


@pytest.mark.parametrize("kind", ["median", "trimmed_mean"])
def test_weights_are_not_used_but_for_none(kind: str) -> None:
    plain = combined(aggregator(kind), dense(5))
    assert combined(aggregator(kind), dense(5), [1.0, 1e6, 3.0, 0.1, 9.0]).tobytes() == plain.tobytes()
    without = combined(aggregator(kind), dense(5)[:4])
    assert combined(aggregator(kind), dense(5), [1.0, 1.0, 1.0, 1.0, 0.0]).tobytes() == without.tobytes()


@pytest.mark.parametrize("kind", ["median", "trimmed_mean", "majority_vote"])
def test_what_a_sparse_update_does_not_hold_counts_as_no_change(kind: str) -> None:
    updates, _ = owned(5)
    spread = [Update(update.dense(), SIZE) for update in updates]
    assert combined(aggregator(kind), updates).tobytes() == combined(aggregator(kind), spread).tobytes()


# majority vote


def test_majority_vote_moves_by_one_step_in_the_direction_of_the_heavier_side() -> None:
    updates = rows(np.array([[1e-9, -5, 3, 0, 2], [7, -1, -1, 0, -2], [-2, 4, -1, 0, 0]], np.float32))
    # columns: 2 + 3 against 4; 4 against 5; 2 against 7; nobody; 2 against 3
    found = combined(aggregator("majority_vote", scale=0.25), updates, [2.0, 3.0, 4.0])
    assert found.tolist() == [0.25, -0.25, -0.25, 0, -0.25]
    assert combined(aggregator("majority_vote"), updates[:2], [1.0, 1.0])[2] == 0


def test_voters_are_wrong_less_often_than_one() -> None:
    """algorithms' test t07: a sign that one worker gets wrong 40 times in 100, fifteen voters 25."""
    rng = np.random.default_rng(0)
    noisy = (0.25 + rng.normal(size=(15, 20_000))).astype(np.float32)

    def wrong(updates: list[Update]) -> float:
        return float((combined(aggregator("majority_vote"), updates) < 0).mean())

    alone, together = wrong(rows(noisy[:1])), wrong(rows(noisy))
    assert alone == pytest.approx(0.402, abs=0.01)
    assert together < 0.25


# in a federation


def test_a_federation_with_two_hostile_sites_of_seven() -> None:
    problem = least_squares(7, 8, 60, 0.05)
    honest = problem[:5]
    best, rate = optimum(honest), 0.5 / curvature(problem)
    sites = [Rows(rows.features, rows.targets * (-30 if number > 4 else 1)) for number, rows in enumerate(problem)]

    def excess(kind: str, **settings: Any) -> float:
        parts = federation_parts(rate, 5, aggregator=aggregator(kind, **settings))
        federated = Federated(LeastSquares(8), [site(f"s{number}", each) for number, each in enumerate(sites)], parts)
        federated.run(20)
        return loss(honest, federated.model.astype(np.float64)) - loss(honest, best)

    fedavg = excess("weighted_mean")
    assert excess("median") < fedavg / 100
    assert excess("trimmed_mean", share=0.3) < fedavg / 100


def test_a_sub_model_that_one_site_trains_alone_moves_all_its_way() -> None:
    """Four sites of which one owns the last half: with the mean over everybody it would move a quarter as far."""
    common, alone = np.arange(25, dtype=np.int64), np.arange(SIZE, dtype=np.int64)
    step = Update(np.ones(SIZE, np.float32), SIZE)
    updates = [sparse(step, common)] * 3 + [sparse(step, alone)]
    assert combined(aggregator("masked_mean"), updates).tolist() == [1.0] * SIZE
    assert combined(aggregator("weighted_mean"), updates).tolist() == [1.0] * 25 + [0.25] * 25


def test_the_study_chooses_them_by_kind() -> None:
    chosen = {kind: configured(AGGREGATORS, kind).traits() for kind in KINDS}
    assert {kind for kind, traits in chosen.items() if "linear" in traits} == {"weighted_mean"}
    assert {kind for kind, traits in chosen.items() if "needs-each-update" in traits} == {"median", "trimmed_mean"}
